"""The run directory: lock, metrics.jsonl, summary.json, loss.png and profile."""

import contextlib
import io
import json
import math
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from parallelcnn.cli.progress import Progress
from parallelcnn.comm import Communicator
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.files.atomic import lock, remove_unfinished, write_atomically
from parallelcnn.profiling import Profiler
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History

_FILES = ("model.npz", "metrics.jsonl", "loss.png", "summary.json", "profile.txt", "trace.json", "checkpoints")
_ROWS_AT_ONCE = 100  # rows of metrics.jsonl fit into Python's buffer of 8 KiB, which would flush in mid-row


class DirectoryInUseError(InputError):
    """Another run writes to the directory."""


class RunDirectory:
    """The directory that receives the files of a run; one run at a time. Existing files stay until `open`.

    Args:
        path: created if missing; None: `runs/` and the time in UTC.

    Raises:
        InputError: if nothing can be written there.
        DirectoryInUseError: if another run writes there.

    Attributes:
        moved_to: where `open` has moved the files of an earlier run.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._now = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
        self.path = Path(path) if path is not None else _unused(Path("runs") / self._now)
        self.moved_to: Path | None = None
        self._metrics: TextIO | None = None
        with self._refusing_what_fails():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path / ".lock")
        if self._lock is None:
            raise DirectoryInUseError(
                f"--out {self.path} must belong to one run at a time, but another run is writing there"
            )

    def open(self, *, resume: bool) -> None:
        """Make room for the files of this run.

        Args:
            resume: keep existing files and append to them. Otherwise files of an earlier run are moved to a new
                directory inside this one.

        Raises:
            InputError: if nothing can be written there.
        """
        with self._refusing_what_fails():
            for directory in (self.path, self.checkpoints):
                remove_unfinished(directory)
            earlier = [self.path / name for name in _FILES if (self.path / name).exists()]
            if earlier and not resume:
                self.moved_to = _unused(self.path / f"before-{self._now}")
                self.moved_to.mkdir()
                for file in earlier:
                    file.rename(self.moved_to / file.name)
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")

    @contextlib.contextmanager
    def _refusing_what_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {error.strerror}") from None

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    def write_metrics(self, rows: str, *, flush: bool) -> None:
        """Append rows to `metrics.jsonl`. If that fails, warn, and train on without it."""
        if self._metrics is None:
            return
        try:
            self._metrics.write(rows)
            if flush:
                self._metrics.flush()
        except OSError as error:
            self._give_metrics_up(error)

    def complete_metrics(self, history: History, epoch_samples: int) -> None:
        """Add to `metrics.jsonl` the rows of `history` that it lacks, and remove later ones."""
        if self._metrics is None:
            return
        path = self.path / "metrics.jsonl"
        try:
            self._metrics.close()
            kept = [row for row in _read_metrics(path) if row["step"] <= history.steps]
            done = max((row["step"] for row in kept if "loss" in row), default=0)
            tested = {row["step"] for row in kept if "test_loss" in row}
            steps_per_epoch = max(history.steps * epoch_samples / max(history.samples_seen, 1), 1)
            for step, loss in enumerate(history.losses[done:], start=done + 1):
                kept.append({"step": step, "epoch": math.ceil(step / steps_per_epoch), "loss": loss})
            kept += [_evaluation_row(*one) for one in history.evaluations if one[0] not in tested]
            kept.sort(key=lambda row: (row["step"], "test_loss" in row))
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            self._metrics = path.open("a", encoding="utf-8")
        except OSError as error:
            self._give_metrics_up(error)

    def close(self) -> None:
        """Write what is left of the metrics, and release the directory for other runs."""
        if self._metrics is not None:
            try:
                self._metrics.close()
            except OSError as error:
                self._give_metrics_up(error)
        if self._lock is not None:
            self._lock.close()

    def _give_metrics_up(self, error: OSError) -> None:
        path = self.path / "metrics.jsonl"
        warnings.warn(f"{path} gets no more rows: {error.strerror}", TrainingWarning, stacklevel=2)
        metrics, self._metrics = self._metrics, None
        with contextlib.suppress(OSError):
            if metrics is not None:
                metrics.close()

    def make_again(self) -> bool:
        """Create the directory again if it has been removed; False if the metrics are lost."""
        self.path.mkdir(parents=True, exist_ok=True)
        return (self.path / "metrics.jsonl").exists()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def write_profile(self, profiler: Profiler) -> None:
        """Write `profile.txt`, the table, and `trace.json`, the timeline."""
        write_atomically(self.path / "profile.txt", f"{profiler.table()}\n".encode())
        profiler.save_trace(self.path / "trace.json")

    def plot_losses(self, history: History) -> bool:
        """Write `loss.png`; False if matplotlib is not installed."""
        try:
            import matplotlib
        except ImportError:
            return False
        matplotlib.use("Agg")
        plot_losses(self.path / "loss.png", history)
        return True


class RunReporter:
    """Reports a run: progress on the terminal, and `metrics.jsonl`.

    Every rank has one; only rank 0 prints and writes. If rank 0 is lost, the new rank 0 takes the directory over.

    Args:
        comm: the ranks.
        directory: on rank 0, where the metrics go.
        path: of that directory, on every rank.
        epochs: number of epochs.
        samples: samples in an epoch.

    Attributes:
        directory: on rank 0.
        first_step_at: when the first minibatch was done, by `time.perf_counter` [s].
    """

    def __init__(
        self, comm: Communicator, directory: RunDirectory | None, path: Path, epochs: int, samples: int
    ) -> None:
        self._comm, self.directory, self._path = comm, directory, path
        self._samples = samples
        self._progress = Progress(epochs, samples)
        self.first_step_at = math.nan

    def resumed(self, history: History) -> None:
        self._progress.resumed(history)
        if self._comm.rank != 0:
            return
        if self.directory is None:
            self.directory = RunDirectory(self._path)
            self.directory.open(resume=True)
        self.directory.complete_metrics(history, self._samples)

    def minibatch(self, step: int, epoch: int, loss: float, samples: int) -> None:
        if math.isnan(self.first_step_at):
            self.first_step_at = time.perf_counter()
        if self.directory is None:
            return
        # Formatted here: json.dumps took 2 % of a step. JSON has no NaN: null.
        number = f"{loss:.9g}" if math.isfinite(loss) else "null"
        row = f'{{"step": {step}, "epoch": {epoch}, "loss": {number}}}\n'
        self.directory.write_metrics(row, flush=step % _ROWS_AT_ONCE == 0)
        self._progress.minibatch(step, epoch, loss, samples)

    def evaluation(self, step: int, epoch: int, result: Evaluation, history: History) -> None:
        if self.directory is None:
            return
        self.directory.write_metrics(json.dumps(_evaluation_row(step, epoch, result)) + "\n", flush=True)
        self._progress.evaluation(step, epoch, result, history)

    def close(self) -> None:
        """Remove the progress bar, and release the directory."""
        self._progress.close()
        if self.directory is not None:
            self.directory.close()


def _evaluation_row(step: int, epoch: int, result: Evaluation) -> dict[str, Any]:
    test_loss = result.loss if math.isfinite(result.loss) else None
    return {"step": step, "epoch": epoch, "test_loss": test_loss, "test_accuracy": result.accuracy}


def _read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The complete rows of `metrics.jsonl`; the last row of a killed run may be cut off."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def plot_losses(path: Path, history: History) -> None:
    """Plot the training loss over minibatches, raw (faint) and smoothed, with the test loss as dots."""
    from matplotlib.figure import Figure

    losses = np.array(history.losses)
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(losses) + 1), losses, color="tab:blue", alpha=0.25, linewidth=0.7)
    middle = np.arange(len(smooth)) + (window + 1) / 2
    axes.plot(middle, smooth, color="tab:blue", label=f"training loss (and its mean over {window} minibatches)")
    steps = [step for step, _, _ in history.evaluations]
    tests = [result.loss for _, _, result in history.evaluations]
    axes.plot(steps, tests, "o", color="tab:red", label="test loss")
    if min(losses.min(), *tests) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("minibatch")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _unused(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
