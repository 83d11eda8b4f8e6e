"""Callbacks that write what they see to files, for other programs to read. Rank 0 writes."""

import contextlib
import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.arguments import as_path
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.files.atomic import write_atomically
from parallelcnn.files.regular import open_regular
from parallelcnn.training.callbacks import Callback, Logs


class CSVLogger(Callback):
    """Write one row for each epoch to a CSV file: epoch, step, loss, test_loss, test_accuracy and other metrics.

    The columns are the numbers in the logs of `on_epoch_end`; metrics that are arrays are left out. After a resume the
    rows of earlier epochs are kept, and those after the checkpoint are replaced. A file of another training is
    overwritten. If the file cannot be written, a warning says so, and its rows are written after the next epoch.

    Args:
        path: of the file.
        locate: called before the file is written; returns its path, in case it changes during training.

    Raises:
        InputError: if the path is not one; when training resumes, if the file holds something else.

    Example:
        >>> pc.train(network, train_set, test_set, optimizer, 3, 100, callbacks=[CSVLogger("epochs.csv")])
        >>> pandas.read_csv("epochs.csv").plot(x="epoch", y=["loss", "test_loss"])
    """

    def __init__(self, path: str | Path, locate: Callable[[], Path] | None = None) -> None:
        self._path, self._locate = as_path("path", path), locate
        self._rows: list[dict[str, Any]] = []

    def on_train_begin(self, logs: Logs) -> None:
        self._rows = []

    def on_resume(self, logs: Logs) -> None:
        if self.training.comm.rank == 0:
            rows = self._rows or self._read()
            self._rows = [row for row in rows if int(row["step"]) <= self.training.history.steps]

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.training.comm.rank != 0:
            return
        numbers = {name: value for name, value in logs.items() if np.ndim(value) == 0}
        first = {name: numbers.pop(name) for name in ("epoch", "step")}
        self._rows.append({**first, **numbers})
        columns = dict.fromkeys(name for row in self._rows for name in row)  # a resume may have other metrics
        content = io.StringIO()
        writer = csv.DictWriter(content, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        try:
            if self._locate is not None:
                self._path = self._locate()
            write_atomically(self._path, content.getvalue().encode())
        except OSError as error:
            message = f"CSVLogger: {self._path} cannot be written: {error.strerror}"
            warnings.warn(message, TrainingWarning, stacklevel=2)

    def _read(self) -> list[dict[str, Any]]:
        try:
            with open_regular(self._path) as file:
                rows = list(csv.DictReader(file, strict=True))
            steps = [int(row["step"]) for row in rows]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"CSVLogger: {self._path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, csv.Error):
            steps = [-1]
        if any(step < 0 for step in steps) or any(None in row for row in rows):
            raise InputError(f"CSVLogger: {self._path} must hold the rows of the training that resumes")
        return rows


class TensorBoard(Callback):
    """Write loss and metrics for TensorBoard: test_loss and metrics of every evaluation, the loss of every epoch.

    It needs the package tensorboardX. The x axis counts minibatches. After a resume, TensorBoard hides what an earlier
    start wrote after the checkpoint. Metrics that are arrays are left out.

    Args:
        folder: where the event files go; show them with `tensorboard --logdir FOLDER`.
        locate: called before something is written; returns the folder, in case it changes during training.

    Raises:
        InputError: if the path is not one, or tensorboardX is not installed.

    Example:
        >>> pc.train(network, train_set, test_set, optimizer, 3, 100, callbacks=[TensorBoard("runs/a")])
    """

    def __init__(self, folder: str | Path, locate: Callable[[], Path] | None = None) -> None:
        self._folder, self._locate = as_path("folder", folder), locate
        self._writer: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError("TensorBoard needs tensorboardX: pip install tensorboardX") from None
        self._open = SummaryWriter

    def on_resume(self, logs: Logs) -> None:
        self._close()
        if self.training.comm.rank == 0:
            self._follow()
            self._writer = self._open(str(self._folder), purge_step=self.training.history.steps + 1)

    def on_test_end(self, logs: Logs) -> None:
        for name, value in logs.items():
            if name not in ("step", "epoch") and np.ndim(value) == 0:
                self._write(name, value, logs["step"])

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._write("loss", logs["loss"], logs["step"])
        if self._writer is not None:
            self._writer.flush()

    def on_train_end(self, logs: Logs) -> None:
        self._close()

    def _write(self, name: str, value: float, step: int) -> None:
        if self.training.comm.rank != 0:
            return
        self._follow()
        if self._writer is None:
            self._writer = self._open(str(self._folder))
        self._writer.add_scalar(name, value, step)

    def _follow(self) -> None:
        """Continue in another folder, if it has changed."""
        folder = self._folder
        with contextlib.suppress(OSError):  # no new folder for now
            folder = self._folder if self._locate is None else self._locate()
        if folder != self._folder:
            self._close()
            self._folder = folder

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
