"""Run work on all ranks such that it fails on all ranks if it fails on one."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import TypeVar

from parallelcnn.comm.transport import Transport
from parallelcnn.errors import ParallelCNNError, sentence

T = TypeVar("T")


def this_host() -> str:
    """The name of this machine: SLURM's name for it, or its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def hosts(comm: Transport) -> list[str]:
    """The host of every rank. Collective: every rank of `comm` must call it."""
    return comm.allgather(this_host())


def run_together(comm: Transport, work: Callable[[], T]) -> T:
    """Run `work` on every rank. If it fails on one rank, raise an error on all, so that no rank waits for another.

    Collective: every rank of `comm` must call it.

    Returns:
        The result of `work` on this rank.

    Raises:
        ParallelCNNError: the error of the lowest rank that failed, on every rank. An OSError or MemoryError is replaced
            by one that names the rank, any other exception by one that also contains the traceback.
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
        elif isinstance(error, OSError | MemoryError):  # an error of the machine: a traceback would not help
            who = f"rank {comm.rank} of {comm.size}: " if comm.size > 1 else ""
            report = (ParallelCNNError, f"{who}{sentence(error)}")
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
            report = (ParallelCNNError, f"rank {comm.rank} of {comm.size} failed\n{text}")
    for failure in comm.allgather(report):
        if failure is not None:
            kind, message = failure
            raise kind(message).together() from error
    return result
