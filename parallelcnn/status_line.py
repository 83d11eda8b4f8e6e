"""A line on the terminal that says what a command is doing while it prints nothing else."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Self, TextIO

_SILENT = 1.5  # before the line appears [s]
_EVERY = 0.5  # between two updates [s]

Status = str | tuple[str | int, ...]


class StatusLine:
    """Shows a status and its seconds once nothing has been printed for one and a half seconds, from `start` until the
    end of the `with` statement. Whatever prints calls `make_room` before.

    Attributes:
        status: returns what the command is doing; see `Transport`.
    """

    def __init__(self) -> None:
        self.status: Callable[[], Status] = lambda: "starting"
        self._stream: TextIO | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._update, name="parallelcnn status", daemon=True)

    def start(self, stream: TextIO | None) -> None:
        """Begin; without effect if the stream is no terminal."""
        if is_terminal(stream):
            self._stream = stream
            make_room()
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        make_room()

    def _update(self) -> None:
        shown, since = "", 0.0
        while not self._ended.wait(_EVERY):
            now, status = time.monotonic(), self.status()
            text = status if isinstance(status, str) else str(status[0]).format(*status[1:])
            if text != shown:
                shown, since = text, now
            if _bar_is_shown():
                make_room()
            elif now - _line.written_at >= _SILENT:
                _line.show(f"{text} ... {now - since:.0f} s", self._stream)


class _Line:
    """The last line of the terminal, which all threads share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stream: TextIO | None = None  # where a status is shown at the moment
        self.written_at = 0.0

    def show(self, text: str, stream: TextIO | None) -> None:
        with self._lock:
            self._write(f"\r{text}\x1b[K", stream)
            self._stream = stream

    def clear(self) -> None:
        self.written_at = time.monotonic()
        if self._stream is not None:
            with self._lock:
                self._write("\r\x1b[K", self._stream)
                self._stream = None

    def _write(self, text: str, stream: TextIO | None) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, or the stream is closed
            print(text, end="", file=stream, flush=True)


_line = _Line()


def _bar_is_shown() -> bool:
    tqdm = sys.modules.get("tqdm")
    return bool(tqdm is not None and getattr(tqdm.tqdm, "_instances", None))


def make_room() -> None:
    """Remove the status line, because something else is printed now."""
    _line.clear()


def is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
