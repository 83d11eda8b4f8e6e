"""Being asked to leave: by Ctrl-C, by a scheduler whose time limit comes near, or that wants the node for others."""

import contextlib
import signal
import time
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A launcher passes Ctrl-C on to ranks that have it from the terminal already: that is not a second one.
_SAME_INTERRUPT = 1.0  # [s]


class LeaveOnSignal:
    """Remembers SIGINT, SIGTERM and SIGUSR1 inside a `with` statement; calling it tells whether one has come.

    A second Ctrl-C is a KeyboardInterrupt. Elsewhere than on the main thread, which no signal reaches, it does nothing.

    Attributes:
        received: the signal's number; 0: none has come.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self.received != 0

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):
            for number in _SIGNALS:
                # What the user's shell or nohup has switched off stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.received == number and now - self._received_at > _SAME_INTERRUPT:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._received_at = number, now
