"""What started this process: a launcher, directly or through a script, or a program that is itself a rank.

Loads neither MPI nor numpy, so that --help and typing errors are answered at once.
"""

import contextlib
import functools
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from parallelcnn.resources import number_in

# Variables that say how many ranks were started. What started this very process comes before the allocation around
# it: mpirun -n 1 inside a job of four tasks is one rank.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
# Variables of launchers that do not say how many.
_RANKS_WITHOUT_SIZES = ("PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "MV2_COMM_WORLD_RANK", "ALPS_APP_PE")
_RANK_VARIABLES = ("PMI_RANK", "PMI_FD", "PMIX_NAMESPACE", "PMIX_RANK", "SLURM_PROCID")
_LAUNCHERS = (
    "hydra_pmi_proxy",
    "mpiexec.hydra",
    "mpiexec",
    "mpirun",
    "prterun",
    "prted",
    "orted",
    "slurmstepd",
    "srun",
)
_SECONDS_TO_OBEY = 2.0


def launched_ranks() -> tuple[int, str]:
    """How many ranks the environment says were started together, and the variable that says so; (1, "") if none."""
    for variable in _SIZES:
        if ranks := number_in(variable):
            return ranks, f"{variable}={ranks}"
    return 1, ""


def launched_rank() -> int:
    """This process's rank, as the environment says; 0 if it says nothing, or if no launcher started this process."""
    if launched_ranks()[0] == 1 or rank_that_started_this():
        return 0
    for variable in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        rank = number_in(variable)
        if rank is not None:
            return rank
    return 0


def has_launcher_without_size() -> bool:
    """Whether a launcher started this process that does not say how many ranks there are."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMI_SIZE" in os.environ:
        return False
    return any(variable in os.environ for variable in _RANKS_WITHOUT_SIZES)


def how_to_train_alone() -> str:
    """The advice for a process that looks like a rank and should not."""
    variables = [name for name in (*_SIZES, *_RANKS_WITHOUT_SIZES) if name in os.environ]
    return f"To train in this process alone: unset {' '.join(variables)}; in Python: comm=parallelcnn.Serial()"


def command_line() -> str:
    """How this program was called."""
    program = sys.argv if Path(sys.argv[0]).name == "parallelcnn" else [sys.executable, *sys.orig_argv[1:]]
    return shlex.join(program)


def mpirun() -> str:
    """The launcher that came with this Python's MPI, if there is one."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def end_the_job() -> None:
    """Have Open MPI's launcher kill all ranks, this one too, and end with exit code 1; returns if it is not there.

    Under --with-ft ulfm (5.0.11) MPI's Abort takes the launcher seconds, or it never ends; and it is not enough that a
    rank ends with an exit code of its own. SIGTERM always works.
    """
    with contextlib.suppress(OSError):
        os.kill(launcher(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_OBEY)


def launcher() -> int:
    """The process of Open MPI's mpirun that started this job.

    Raises:
        OSError: if it cannot be seen: it is another launcher, or runs on another machine or outside of this container.
    """
    job = os.environ.get("PMIX_NAMESPACE", "").partition("@")[0]  # prterun-HOST-PROCESS
    for process, name in _ancestors():
        if name == "prterun" and job.endswith(f"-{process}"):
            return process
    raise ProcessLookupError("no launcher")


def rank_that_started_this() -> str:
    """The program that is a rank and has started this process, in words; "" if a launcher has started this process,
    directly or through a script.

    This process inherits the variables that make it look like the same rank. MPICH aborts in such a process, and Open
    MPI waits in it for one of every other rank.
    """
    return _rank_that_started(os.getpid())


@functools.cache
def _rank_that_started(process: int) -> str:
    """The same, for the process that asks: a forked one has another parent."""
    with contextlib.suppress(OSError):  # other users' processes
        for ancestor, name in _ancestors():
            if name in _LAUNCHERS or not _is_the_same_rank(ancestor):
                break
            if b"/libmpi" in Path(f"/proc/{ancestor}/maps").read_bytes():
                return f"{name}, process {ancestor}, which has started this one"
    # Python's subprocess closes it in the programs that it starts, and the launcher after the first that has used it.
    connection = number_in("PMI_FD")
    if connection is not None and not _is_open(connection):
        return f"the launcher's connection, PMI_FD={connection}, is closed"
    return ""


def _ancestors() -> Iterator[tuple[int, str]]:
    """Number and name of the processes that this one descends from, its parent first; OSError if one cannot be seen."""
    process = os.getpid()
    while True:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield process, Path(f"/proc/{process}/comm").read_text(errors="replace").strip()


def _is_the_same_rank(process: int) -> bool:
    """Whether a process was started as the rank that this one seems to be; OSError if it cannot be seen."""
    ours = [f"{name}={os.environ[name]}".encode() for name in _RANK_VARIABLES if name in os.environ]
    theirs = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return bool(ours) and all(variable in theirs for variable in ours)


def _is_open(descriptor: int) -> bool:
    """Whether it is a socket whose other end has not been closed."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:  # nothing to read
        return True
    except OSError:
        return False
