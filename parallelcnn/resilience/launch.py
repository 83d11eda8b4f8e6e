"""Find out how this process was started: by a launcher, directly or through a script, or by a program that is a rank.

This module loads neither MPI nor numpy, so that --help and typing errors are answered at once.
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

# Variables with the number of ranks. Those of the launcher come before those of the allocation: mpirun -n 1 inside a
# job of four tasks is one rank.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
# Variables of launchers that do not give the number of ranks.
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
    """The number of ranks started together, and the environment variable that says so; (1, "") if there is none."""
    for variable in _SIZES:
        if ranks := number_in(variable):
            return ranks, f"{variable}={ranks}"
    return 1, ""


def launched_rank() -> int:
    """This process's rank by the environment; 0 if no variable says it, or if no launcher started this process."""
    if launched_ranks()[0] == 1 or rank_that_started_this():
        return 0
    for variable in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        rank = number_in(variable)
        if rank is not None:
            return rank
    return 0


def has_launcher_without_size() -> bool:
    """Whether the launcher of this process does not say how many ranks there are."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMI_SIZE" in os.environ:
        return False
    return any(variable in os.environ for variable in _RANKS_WITHOUT_SIZES)


def how_to_train_alone() -> str:
    """Advice for the user of a single process that looks like one of several ranks."""
    variables = [name for name in (*_SIZES, *_RANKS_WITHOUT_SIZES) if name in os.environ]
    return f"To train in this process alone: unset {' '.join(variables)}; in Python: comm=parallelcnn.Serial()"


def command_line() -> str:
    """The command line of this program."""
    program = sys.argv if Path(sys.argv[0]).name == "parallelcnn" else [sys.executable, *sys.orig_argv[1:]]
    return shlex.join(program)


def mpirun() -> str:
    """The mpirun beside this Python, if there is one, otherwise "mpirun"."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def end_the_job() -> None:
    """Make Open MPI's launcher kill all ranks, this one included, and end with exit code 1; returns if there is none.

    Under --with-ft ulfm (5.0.11) the launcher takes seconds to react to MPI's Abort, or never ends; and it does not end
    when a rank exits with an error code. SIGTERM always works.
    """
    with contextlib.suppress(OSError):
        os.kill(launcher(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_OBEY)


def launcher() -> int:
    """The process number of the Open MPI mpirun that started this job.

    Raises:
        OSError: if there is none visible: the launcher is another, on another machine, or outside of this container.
    """
    job = os.environ.get("PMIX_NAMESPACE", "").partition("@")[0]  # prterun-HOST-PROCESS
    for process, name in _ancestors():
        if name == "prterun" and job.endswith(f"-{process}"):
            return process
    raise ProcessLookupError("no launcher")


def rank_that_started_this() -> str:
    """Describe the rank that started this process; "" if a launcher started it, directly or through a script.

    A process started by a rank inherits its variables, and so looks like the same rank. In such a process MPICH aborts,
    and Open MPI waits for similar processes of all other ranks.
    """
    return _rank_that_started(os.getpid())


@functools.cache
def _rank_that_started(process: int) -> str:
    """As above, cached for each process number, since a forked process has another parent."""
    with contextlib.suppress(OSError):  # processes of other users
        for ancestor, name in _ancestors():
            if name in _LAUNCHERS or not _is_the_same_rank(ancestor):
                break
            if b"/libmpi" in Path(f"/proc/{ancestor}/maps").read_bytes():
                return f"{name}, process {ancestor}, which has started this one"
    # Python's subprocess closes this descriptor in programs that it starts. The launcher closes it after its first use.
    connection = number_in("PMI_FD")
    if connection is not None and not _is_open(connection):
        return f"the launcher's connection, PMI_FD={connection}, is closed"
    return ""


def _ancestors() -> Iterator[tuple[int, str]]:
    """(number, name) of this process's ancestors, the parent first; OSError if one is not visible."""
    process = os.getpid()
    while True:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield process, Path(f"/proc/{process}/comm").read_text(errors="replace").strip()


def _is_the_same_rank(process: int) -> bool:
    """Whether a process has the same rank variables as this one; OSError if it is not visible."""
    ours = [f"{name}={os.environ[name]}".encode() for name in _RANK_VARIABLES if name in os.environ]
    theirs = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return bool(ours) and all(variable in theirs for variable in ours)


def _is_open(descriptor: int) -> bool:
    """Whether the descriptor is a socket whose other end is open."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:  # nothing to read
        return True
    except OSError:
        return False
