"""Communication between ranks. The only package that imports mpi4py.

Functions that communicate take a `Transport` as their argument `comm`. A single process uses `Serial`, a transport of
size 1, and the same code.
"""

from parallelcnn.comm.library import load_mpi as load_mpi
from parallelcnn.comm.library import mpi_library as mpi_library
from parallelcnn.comm.messages import first_line as first_line
from parallelcnn.comm.messages import last_line as last_line
from parallelcnn.comm.messages import say as say
from parallelcnn.comm.sharing import share_on_node as share_on_node
from parallelcnn.comm.sharing import shared_file as shared_file
from parallelcnn.comm.together import hosts as hosts
from parallelcnn.comm.together import run_together as run_together
from parallelcnn.comm.together import this_host as this_host
from parallelcnn.comm.transport import MPITransport as MPITransport
from parallelcnn.comm.transport import Serial as Serial
from parallelcnn.comm.transport import Transport as Transport
from parallelcnn.comm.transport import wait_patiently as wait_patiently


def __getattr__(name: str) -> object:
    """Scripts may still import `world` from here. It is in `resilience`, to choose a fault-tolerant transport."""
    if name != "world":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import parallelcnn

    return parallelcnn.world
