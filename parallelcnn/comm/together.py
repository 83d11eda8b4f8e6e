"""What ranks do together, also when one of them fails."""

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

from parallelcnn.comm.communicator import Communicator
from parallelcnn.errors import ParallelCNNError, RankLostError

T = TypeVar("T")


def this_host() -> str:
    """The name of this machine, as SLURM or it itself says."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def hosts(comm: Communicator) -> list[str]:
    """The host of every rank. Collective: every rank of `comm` must call it."""
    return comm.gather(this_host())


def run_together(comm: Communicator, work: Callable[[], T]) -> T:
    """Do `work` on every rank; if it fails on one, raise on all, so that none waits for one that has failed.

    Collective: every rank of `comm` must call it.

    Returns:
        What `work` returned on this rank.

    Raises:
        ParallelCNNError: the error of the lowest rank that failed, on every rank. An exception of another kind
            becomes one that names the rank and carries its traceback.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    report: tuple[type[ParallelCNNError], str] | None = None
    if error is not None:
        if isinstance(error, ParallelCNNError):
            report = (type(error), str(error))
        elif isinstance(error, OSError | MemoryError):  # of the machine: where it was raised tells nothing
            who = f"rank {comm.rank} of {comm.size}: " if comm.size > 1 else ""
            report = (ParallelCNNError, f"{who}{str(error) or 'out of memory'}")
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
            report = (ParallelCNNError, f"rank {comm.rank} of {comm.size} failed\n{text}")
    for told in comm.gather(report):
        if told is not None:
            kind, message = told
            raise kind(message).together() from error
    return result


def do_with_survivors(comm: Communicator, work: Callable[[], T]) -> T:
    """Do what all ranks do together; if one is lost meanwhile, do it again without.

    Collective: every rank of `comm` must call it.
    """
    while True:
        try:
            return work()
        except RankLostError:
            comm.recover()


@contextlib.contextmanager
def abort_all_on_error(comm: Communicator) -> Iterator[None]:
    """If this rank fails inside, end all ranks: the others would wait for it forever. Or this one alone, where the
    others can go on without it.

    An error that every rank raises passes.
    """
    try:
        yield
    except BaseException as error:  # whatever it is, SystemExit too: the others wait
        if comm.size == 1 or getattr(error, "on_all_ranks", False):
            raise
        if isinstance(error, KeyboardInterrupt):
            abort_after_interrupt(comm)
        known = isinstance(error, ParallelCNNError | OSError | MemoryError)
        what = f"{type(error).__name__}: {error}" if known else traceback.format_exc()
        message = f"parallelcnn: rank {comm.rank} of {comm.size} failed\n{what}"
        if comm.survives and not isinstance(error, RankLostError):
            comm.give_up(message)
        comm.end_all(1, message)


def abort_after_interrupt(comm: Communicator) -> None:
    """Say that this rank was interrupted, and end all ranks.

    Ctrl-C interrupts all of them: rank 0 speaks first, and ends the others before they say the same.
    """
    with contextlib.suppress(ValueError):  # on another thread than the main one, which no signal interrupts
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher sends it on, to ranks that have it already
    if comm.rank != 0:
        time.sleep(1)
    comm.end_all(130, f"parallelcnn: rank {comm.rank} of {comm.size}: interrupted")
