"""`parallelcnn info`: versions, MPI library, ranks, hosts, cores and threads."""

import argparse
import sys
from typing import TYPE_CHECKING

from parallelcnn._version import __version__
from parallelcnn.cli.output import say
from parallelcnn.training.config import TrainConfig
from parallelcnn.wording import plural

if TYPE_CHECKING:
    from parallelcnn.comm import Transport


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    about = "versions, MPI library, ranks, hosts, cores and threads"
    parser = commands.add_parser("info", help=f"show {about}", description=f"Show {about}.")
    parser.set_defaults(run=run, strict=False, timeout=TrainConfig.timeout)


def run(options: argparse.Namespace, comm: "Transport") -> int:
    import numba
    import numpy as np

    from parallelcnn.comm import hosts, mpi_library
    from parallelcnn.resilience.launch import launched_ranks
    from parallelcnn.resources import usable_cores
    from parallelcnn.training.threads import blas_threads, choose_threads

    all_hosts = hosts(comm)
    cores = comm.allgather(len(usable_cores()))
    threads = comm.allgather(choose_threads(comm, None))
    if comm.rank != 0:
        return 0
    launched, said_by = launched_ranks()
    say(f"parallelcnn    {__version__}")
    say(f"python         {sys.version.split()[0]}, numpy {np.__version__}, numba {numba.__version__}")
    say(f"MPI library    {mpi_library()}")
    say(f"ranks          {comm.size}")
    if launched > 1 and comm.size == 1:
        say(f"               but {said_by}: each rank is alone; `parallelcnn doctor` names the right launcher")
    for rank, host in enumerate(all_hosts):
        may_use, computes_on = plural(cores[rank], "core"), plural(threads[rank], "thread")
        say(f"    rank {rank:<6} {host}, may use {may_use}, computes on {computes_on} by default")
    say(f"numba threads  {numba.config.NUMBA_NUM_THREADS} (not used: a rank has its own thread pool)")
    for library, count in blas_threads():
        say(f"BLAS threads   {count} ({library}; one in each of a rank's threads)")
    return 0
