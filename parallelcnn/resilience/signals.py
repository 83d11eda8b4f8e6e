"""Graceful shutdown on SIGTERM, SIGUSR1 and Ctrl-C."""

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A launcher forwards Ctrl-C to ranks that have already received it from the terminal: that is not a second Ctrl-C.
_SAME_INTERRUPT = 1.0  # [s]


def hold_stop_signals() -> None:
    """Block SIGUSR1 until `StopOnSignal` handles it.

    A scheduler may send it at any time. It must not be lost while libraries, data and kernels are being loaded, and
    training must make at least one step: otherwise a job that is requeued again and again would never end. The signal
    is blocked, not caught, because MPICH installs its own handler when it starts. At this stage SIGINT and SIGTERM end
    the process, which loses nothing.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def let_interrupts_end_the_process() -> None:
    """Make Ctrl-C end the process at once, until `catch_interrupts`.

    While Python, numba and MPI start, a KeyboardInterrupt would print a traceback, be lost in other code, or leave this
    rank waiting for the others to finalise MPI. There is nothing to clean up yet.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _on_interrupt(signal.SIG_DFL)


def catch_interrupts() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again, as usual in Python."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        _on_interrupt(signal.default_int_handler)


def _on_interrupt(handler: Any) -> None:
    with contextlib.suppress(ValueError):  # only the main thread can set signal handlers
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def interrupts_ending_the_process() -> Iterator[None]:
    """Make Ctrl-C end the process while kernels compile: LLVM's callbacks lose an exception, or crash after it."""
    let_interrupts_end_the_process()
    try:
        yield
    finally:
        catch_interrupts()


class StopOnSignal:
    """Catch SIGINT, SIGTERM and SIGUSR1 inside a `with` statement. A call returns whether a signal was received.

    Args:
        signals: those to catch.

    A second Ctrl-C raises KeyboardInterrupt. After the `with` statement, a signal that was blocked before it is
    ignored, while results are written and the process ends. It does nothing on threads other than the main thread.

    Attributes:
        received: the number of the received signal; 0: none.
    """

    def __init__(self, signals: Iterable[signal.Signals] = _SIGNALS) -> None:
        self._signals = signals
        self.received = 0
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._held: set[Any] = set()

    def __call__(self) -> bool:
        return self.received != 0

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):
            for number in self._signals:
                # Keep ignoring signals that the shell or nohup ignores.
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


def stop_on_interrupt() -> StopOnSignal:
    """Catch Ctrl-C where it would raise KeyboardInterrupt anywhere, so that training can end between two steps. Where
    the program handles it, or on another thread, nothing is caught.
    """
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return StopOnSignal((signal.SIGINT,) if raises else ())
