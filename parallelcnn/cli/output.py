"""Safe printing: a full disk or a closed pipe behind stdout or stderr loses output, never a training."""

import contextlib
import io
import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from parallelcnn.errors import shown
from parallelcnn.status_line import make_room


def say(text: object, stream: TextIO | None = None) -> None:
    """Print text that may quote files, on stdout by default, with control characters escaped."""
    make_room()
    print("\n".join(map(shown, str(text).split("\n"))), file=stream or sys.stdout, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines. Columns below a name that hold only numbers are aligned to the right."""
    cells = [[shown(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Inside, printing never fails: without a stdout, if it cannot be written, or cannot encode a character."""
    before = sys.stdout, sys.stderr
    try:
        sys.stdout, sys.stderr = _safe(sys.stdout), _safe(sys.stderr)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _is_number(text: str) -> bool:
    """Whether the text is a number, perhaps with a unit, or empty."""
    return re.fullmatch(r"(?:\d[\d,.]*(?:/\d+)?(?: %| s|(?: min \d+ s)|(?: h \d+ min))?)?", text) is not None


def lost_output() -> OSError | None:
    """Inside `safe_output`, why something that was printed on stdout could not be written."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _TolerantFile) else None


def _safe(stream: Any) -> Any:
    if stream is None:
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # of a program that has replaced it
    stream.reconfigure(errors="backslashreplace")
    unbuffered = isinstance(stream.buffer, io.FileIO)  # PYTHONUNBUFFERED
    if not unbuffered and not isinstance(getattr(stream.buffer, "raw", None), io.FileIO):
        return stream
    stream.flush()
    buffer = io.BufferedWriter(_TolerantFile(stream.fileno(), "wb", closefd=False))
    by_line = unbuffered or stream.line_buffering
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=by_line)


class _TolerantFile(io.FileIO):
    """A file that loses what cannot be written, and remembers why."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                self.error = error
                return len(data)
            if written is not None:
                return written
            select.select([], [self], [])  # a non-blocking descriptor whose reader is slow
