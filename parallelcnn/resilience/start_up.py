"""Initialise MPI, and end the job if some ranks do not call MPI_Init.

Ranks wait for each other in MPI_Init. The watchdog cannot run yet, because it needs MPI. Under mpirun --with-ft ulfm
ranks would wait for ever for a rank that died before, and under any launcher for a rank that never calls MPI_Init. So a
thread of every rank watches the time and the processes of this machine.
"""

import contextlib
import ctypes
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from parallelcnn.comm import say
from parallelcnn.resilience.launch import end_the_job, launcher
from parallelcnn.resources import number_in

LEAST_TIMEOUT = 5.0  # on a busy machine MPI itself takes seconds to start [s]

_LOOK_EVERY = 0.5  # [s]
# A rank that is gone may also have passed MPI_Init and ended before this rank was scheduled again.
_BELIEVED_AFTER = 3.0  # [s]
_SPEAK_APART = 2.0  # the ranks print one after the other, and the first one ends all [s]


def initialise(MPI: Any, rank: int, size: int, timeout: float) -> None:
    """Call MPI_Init_thread. If other ranks do not call it, print a message and end the job with exit code 1.

    Args:
        MPI: the module mpi4py.MPI, imported without initialising MPI.
        rank, size: rank of this process and number of ranks, from the launcher.
        timeout: how long to wait for others, at least `LEAST_TIMEOUT` [s]; 0: no limit.
    """
    try:
        init = ctypes.CDLL(MPI.__file__).MPI_Init_thread
    except (OSError, AttributeError):  # this mpi4py hides MPI's functions: do not watch
        MPI.Init_thread()
        return
    with _StartWatch(rank, size, timeout):
        # mpi4py's function holds the interpreter lock meanwhile. It also sets the error handlers below.
        if init(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int())) != MPI.SUCCESS:
            raise RuntimeError("MPI_Init_thread failed")
    for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):
        comm.Set_errhandler(MPI.ERRORS_RETURN)


class _StartWatch:
    """A thread that checks inside a `with` statement whether the other ranks are alive."""

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self._rank, self._size = rank, size
        self._timeout = max(timeout, LEAST_TIMEOUT) if timeout > 0 else math.inf
        self._size_here = number_in("OMPI_COMM_WORLD_LOCAL_SIZE") or 0
        self._seen: set[int] = set()
        self._alive: set[int] = set()
        self._alive_since = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="parallelcnn start", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(_LOOK_EVERY)  # with a timeout, since reading /proc of a stuck process may block

    def _live(self) -> None:
        give_up_at = time.monotonic() + self._timeout
        while True:
            now, alive = time.monotonic(), living_ranks()
            if alive != self._alive:
                self._alive, self._alive_since = alive, now
                self._seen |= alive
            if self._some_are_gone() and now - self._alive_since > _BELIEVED_AFTER:
                here = set(range(self._size)) if self._size_here == self._size else self._seen
                gone = ", ".join(map(str, sorted(here - alive))) or "another one of this machine"
                turn = len([rank for rank in alive if rank < self._rank])
                self._end(f"rank {gone} died before MPI had begun, and MPI would wait for ever", turn)
            if now > give_up_at:
                stopped = ", ".join(f"; rank {rank} is stopped" for rank in sorted(stopped_ranks()))
                self._end(
                    f"MPI has not begun after {self._timeout:g} s: it waits for ranks that do not come{stopped}",
                    self._rank,
                )
            if self._over.wait(_LOOK_EVERY):
                return

    def _some_are_gone(self) -> bool:
        """Whether ranks of this machine are gone.

        False if this rank does not see itself, since a process can overwrite its environment in /proc, and if it runs
        in its own container, where the other ranks never were visible.
        """
        sees_others = len(self._seen) > 1 or _launcher_is_seen()
        return self._rank in self._alive and len(self._alive) < self._size_here and sees_others

    def _end(self, why: str, turn: int) -> None:
        """Print the reason and end the job."""
        if self._over.wait(min(turn, 10) * _SPEAK_APART):
            return
        say(f"parallelcnn: error: {why}; the job ends")
        end_the_job()
        os._exit(1)


def _launcher_is_seen() -> bool:
    try:
        return launcher() > 0
    except OSError:
        return False


def living_ranks() -> set[int]:
    """The ranks of this Open MPI job that have a process on this machine; empty for other MPI libraries."""
    return set(_processes())


def stopped_ranks() -> set[int]:
    """The living ranks that are stopped, by SIGSTOP or a debugger."""
    stopped = set()
    for rank, process in _processes().items():
        with contextlib.suppress(OSError):
            if (process / "stat").read_text().rpartition(")")[2].split()[0] in "tT":
                stopped.add(rank)
    return stopped


def _processes() -> dict[int, Path]:
    """The folder in /proc of each living rank."""
    job = os.environ.get("PMIX_NAMESPACE", "").encode()
    ranks: dict[int, Path] = {}
    for process in Path("/proc").glob("[0-9]*") if job else ():
        # Processes that have ended, and those of other users, cannot be read.
        with contextlib.suppress(OSError, ValueError, KeyError):
            pairs = (pair.partition(b"=") for pair in (process / "environ").read_bytes().split(b"\0"))
            variables = {name: value for name, _, value in pairs}
            if variables.get(b"PMIX_NAMESPACE") == job:
                ranks[int(variables[b"OMPI_COMM_WORLD_RANK"])] = process
    return ranks
