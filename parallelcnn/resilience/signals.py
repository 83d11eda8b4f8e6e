"""Being asked to leave: by Ctrl-C, by a scheduler whose time limit comes near, or that wants the node for others."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A launcher passes Ctrl-C on to ranks that have it from the terminal already: that is not a second one.
_SAME_INTERRUPT = 1.0  # [s]


def hold_requests_to_leave() -> None:
    """Have SIGUSR1 wait until `LeaveOnSignal` takes it, instead of ending the process.

    A scheduler sends it at any time. While libraries, data and kernels are being loaded it must not be lost, and the
    training must come at least one minibatch further: otherwise a job that is started again and again would never end.
    It is blocked, not caught: MPICH, while it starts, puts a handler of its own in the place of ours. SIGINT and
    SIGTERM end the process there, which loses nothing.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def let_interrupts_end_the_process() -> None:
    """As for a program that is not Python's, until `catch_interrupts`.

    While Python, numba and MPI start, an exception would be shown as a traceback, get lost in somebody's code, or leave
    this rank waiting for the others to end MPI with it; and there is nothing yet that it would have to clean up.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _on_interrupt(signal.SIG_DFL)


def catch_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, as Python has it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        _on_interrupt(signal.default_int_handler)


def _on_interrupt(handler: Any) -> None:
    with contextlib.suppress(ValueError):  # on another thread than the main one, which Ctrl-C does not reach
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def interrupts_ending_the_process() -> Iterator[None]:
    """For compiling, in which LLVM's callbacks lose an exception, or crash after it."""
    let_interrupts_end_the_process()
    try:
        yield
    finally:
        catch_interrupts()


class LeaveOnSignal:
    """Remembers SIGINT, SIGTERM and SIGUSR1 inside a `with` statement; calling it tells whether one has come.

    A second Ctrl-C is a KeyboardInterrupt. What was held before is ignored afterwards, while results are being written
    and the process ends. Elsewhere than on the main thread, which no signal reaches, it does nothing.

    Attributes:
        received: the signal's number; 0: none has come.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._held: set[Any] = set()

    def __call__(self) -> bool:
        return self.received != 0

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):
            for number in _SIGNALS:
                # What the user's shell or nohup has switched off stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._remember)
            self._held = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if number in self._held else handler)
        self._before.clear()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.received == number and now - self._received_at > _SAME_INTERRUPT:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._received_at = number, now
