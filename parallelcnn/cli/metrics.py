"""metrics.jsonl: a row for each minibatch and for each evaluation."""

import bisect
import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from parallelcnn.errors import TrainingWarning
from parallelcnn.files.atomic import write_atomically
from parallelcnn.files.regular import open_regular
from parallelcnn.training.evaluation import Evaluation, Value
from parallelcnn.training.history import History

_ROWS_AT_ONCE = 100  # fit into Python's buffer of 8 KiB, which would otherwise be flushed in mid-row
_PAUSE_FACTOR = 20  # between two attempts to write the file again: at most 5 % of the time is spent on it


def loss_row(step: int, epoch: int, loss: float) -> str:
    """The row of a minibatch. Formatted by hand: json.dumps took 2 % of a step. JSON has no NaN: null."""
    number = f"{loss:.9g}" if math.isfinite(loss) else "null"
    return f'{{"step": {step}, "epoch": {epoch}, "loss": {number}}}\n'


def evaluation_row(step: int, epoch: int, result: Evaluation) -> str:
    values = {"loss": result.loss, "accuracy": result.accuracy, **dict(result.others)}
    row = {"step": step, "epoch": epoch, **{f"{result.role}_{name}": as_json(one) for name, one in values.items()}}
    return json.dumps(row) + "\n"


def as_json(value: Value | None) -> Any:
    """The value of a metric as JSON, which has no NaN: null."""
    if isinstance(value, tuple):
        return list(map(as_json, value))
    return None if value is None or not math.isfinite(value) else value


def rows_of(history: History, epoch_samples: int) -> Iterator[str]:
    """All rows of a training, the same as were written while it ran.

    Every epoch ends with an evaluation. So a minibatch belongs to the epoch of the next evaluation, also if the batch
    size has changed; after the last evaluation, to the current epoch.

    Args:
        epoch_samples: samples in an epoch.
    """
    evaluated = [step for step, _, _ in history.evaluations]
    current = -(-history.samples_seen // epoch_samples)
    for step, loss in enumerate(history.losses, start=1):
        following = bisect.bisect_left(evaluated, step)
        epoch = current if following == len(evaluated) else history.evaluations[following][1]
        yield loss_row(step, epoch, loss)
        if following < len(evaluated) and evaluated[following] == step:
            yield evaluation_row(*history.evaluations[following])


class MetricsFile:
    """A `metrics.jsonl` that is being written. It never ends a training.

    If a row cannot be written, because the disk is full, a warning says so, and `complete` writes the rows later.

    Args:
        path: of the file; rows are appended to what is there.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = open_regular(path, "a")
        self._warned = False
        self._try_again_at = 0.0

    def append(self, row: str, *, flush: bool) -> None:
        if self._file is None:
            return
        try:
            self._file.write(row)
            if flush:
                self._file.flush()
        except OSError as error:
            self._drop(error)

    def append_loss(self, step: int, epoch: int, loss: float) -> None:
        self.append(loss_row(step, epoch, loss), flush=step % _ROWS_AT_ONCE == 0)

    def start_again(self, path: Path) -> None:
        """Continue in this file, all of which `complete` is to write."""
        self._path, self._try_again_at = path, 0.0
        self._close()

    def complete(self, history: History, epoch_samples: int, *, last_chance: bool = False) -> None:
        """Write the file again if it lacks rows, or has been removed or replaced.

        Args:
            last_chance: try even if that has just failed, and warn if it fails.
        """
        if self._is_whole() or (not last_chance and time.monotonic() < self._try_again_at):
            return
        self.rewrite(history, epoch_samples)
        if last_chance and self._file is None:
            warnings.warn(f"{self._path} lacks rows, since it could not be written", TrainingWarning, stacklevel=2)

    def rewrite(self, history: History, epoch_samples: int) -> None:
        """Write the whole file again: exactly the rows of `history`."""
        self._close()
        started = time.monotonic()
        try:
            write_atomically(self._path, "".join(rows_of(history, epoch_samples)).encode())
            self._file = open_regular(self._path, "a")
        except OSError as error:
            self._drop(error)
            now = time.monotonic()
            self._try_again_at = now + _PAUSE_FACTOR * (now - started)

    def close(self) -> None:
        self.append("", flush=True)
        self._close()

    def _is_whole(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except OSError:
            return False

    def _drop(self, error: OSError) -> None:
        self._close()
        if not self._warned:
            self._warned = True
            message = f"{self._path} cannot be written now: {error.strerror}; its rows will be written later"
            warnings.warn(message, TrainingWarning, stacklevel=3)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # of what is still buffered
                file.close()
