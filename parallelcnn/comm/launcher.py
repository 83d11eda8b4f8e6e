"""What started this process: a launcher, directly or by a script, or a program that is a rank itself."""

import contextlib
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from parallelcnn.resources import number_in

_SECONDS_TO_OBEY = 2.0
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
_RANK_VARIABLES = ("PMI_RANK", "PMI_FD", "PMIX_NAMESPACE", "PMIX_RANK", "SLURM_PROCID")


def tell_to_end_the_job() -> None:
    """Have Open MPI's launcher kill all ranks, this one too, and leave with exit code 1; returns if it cannot be had.

    Under --with-ft ulfm (5.0.11) MPI's Abort takes it seconds or is waited for in vain, and a rank that leaves with a
    code of its own is not enough. What it never fails to do is what it does for SIGTERM.
    """
    with contextlib.suppress(OSError):
        os.kill(launcher(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_OBEY)


def launcher() -> int:
    """The mpirun that started this process, directly or by a script, and no other job; OSError if it is not to be seen:
    another launcher's, on another machine, outside of this container.
    """
    job = os.environ.get("PMIX_NAMESPACE", "").partition("@")[0]  # prterun-HOST-PROCESS
    for process, name in _ancestors():
        if name == "prterun" and job.endswith(f"-{process}"):
            return process
    raise ProcessLookupError("no launcher")


def rank_that_started_this() -> str:
    """The program that is a rank and has started this process, which only inherits the variables that make it look like
    the same rank, in words; "" if a launcher has started this process, directly or by a script.

    MPICH aborts in such a process, and Open MPI waits in it for one of every other rank.
    """
    return _rank_that_started(os.getpid())


@functools.cache
def _rank_that_started(process: int) -> str:
    """The same, for the process that asks: one that has been forked has another parent."""
    with contextlib.suppress(OSError):  # other users' processes
        for ancestor, name in _ancestors():
            if name in _LAUNCHERS or not _is_of_the_same_rank(ancestor):
                break
            if b"/libmpi" in Path(f"/proc/{ancestor}/maps").read_bytes():
                return f"{name}, process {ancestor}, which has started this one"
    # Python's subprocess closes it for the programs that it starts, and the launcher after the first that has used it.
    connection = number_in("PMI_FD")
    if connection is not None and not _is_open(connection):
        return f"the launcher's connection, PMI_FD={connection}, is closed"
    return ""


def _ancestors() -> Iterator[tuple[int, str]]:
    """The processes that this one descends from, its parent first, each with its name; OSError where one is not to be
    seen.
    """
    process = os.getpid()
    while True:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield process, Path(f"/proc/{process}/comm").read_text(errors="replace").strip()


def _is_of_the_same_rank(process: int) -> bool:
    """Whether a process was told to be the rank that this one was told to be; OSError if it is not to be seen."""
    ours = [f"{name}={os.environ[name]}".encode() for name in _RANK_VARIABLES if name in os.environ]
    theirs = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return bool(ours) and all(variable in theirs for variable in ours)


def _is_open(descriptor: int) -> bool:
    """Whether it is a socket whose other end has not been closed."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:  # nothing has been said
        return True
    except OSError:
        return False
