"""Ranks: who takes part, and what they say to each other. The only package that imports mpi4py.

A communicator is an argument of whatever talks; one process is a communicator of size 1, not another path through
the code. `world()` chooses: MPI's world if this process was started by mpirun or srun, otherwise `Serial`, for which
no MPI library need be installed.
"""

from parallelcnn.comm.communicator import Communicator as Communicator
from parallelcnn.comm.communicator import MPIRanks as MPIRanks
from parallelcnn.comm.communicator import Serial as Serial
from parallelcnn.comm.communicator import ulfm as ulfm
from parallelcnn.comm.sharing import share_on_node as share_on_node
from parallelcnn.comm.sharing import shared_file as shared_file
from parallelcnn.comm.starting import as_communicator as as_communicator
from parallelcnn.comm.starting import launched_rank as launched_rank
from parallelcnn.comm.starting import launched_ranks as launched_ranks
from parallelcnn.comm.starting import mpi_library as mpi_library
from parallelcnn.comm.starting import mpirun as mpirun
from parallelcnn.comm.starting import world as world
from parallelcnn.comm.together import abort_after_interrupt as abort_after_interrupt
from parallelcnn.comm.together import abort_all_on_error as abort_all_on_error
from parallelcnn.comm.together import do_with_survivors as do_with_survivors
from parallelcnn.comm.together import hosts as hosts
from parallelcnn.comm.together import run_together as run_together
from parallelcnn.comm.together import this_host as this_host
