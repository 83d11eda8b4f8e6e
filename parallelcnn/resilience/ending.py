"""End all ranks when one rank fails. Otherwise the others would wait for it for ever."""

import contextlib
import signal
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

from parallelcnn.comm import Transport
from parallelcnn.errors import ParallelCNNError, RankLostError
from parallelcnn.resilience.fault_tolerance import is_fault_tolerant


def end_all(comm: Transport, code: int, message: str) -> NoReturn:
    """Print the message and end all ranks with this exit code, because this rank cannot continue."""
    if is_fault_tolerant(comm):
        comm.end_all(code, message)
    comm.abort(code, message)
    raise AssertionError("abort returned")


@contextlib.contextmanager
def abort_all_on_error(comm: Transport) -> Iterator[None]:
    """Context that ends all ranks if this rank fails, or only this rank if the others can continue without it.

    An error that all ranks raise is not caught.
    """
    try:
        yield
    except BaseException as error:  # also SystemExit: the other ranks wait for this one
        if comm.size == 1 or getattr(error, "on_all_ranks", False):
            raise
        if isinstance(error, KeyboardInterrupt):
            abort_after_interrupt(comm)
        known = isinstance(error, ParallelCNNError | OSError)
        what = f"{type(error).__name__}: {error}" if known else traceback.format_exc()
        message = f"parallelcnn: rank {comm.rank} of {comm.size} failed\n{what}"
        if is_fault_tolerant(comm) and not isinstance(error, RankLostError):
            comm.give_up(message)
        end_all(comm, 1, message)


def abort_after_interrupt(comm: Transport) -> NoReturn:
    """Print that this rank was interrupted, and end all ranks.

    Ctrl-C interrupts all ranks. Rank 0 prints first, and ends the others before they print the same.
    """
    with contextlib.suppress(ValueError):  # only the main thread can set signal handlers
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher sends it again to ranks that have received it
    if comm.rank != 0:
        time.sleep(1)
    end_all(comm, 130, f"parallelcnn: rank {comm.rank} of {comm.size}: interrupted")
