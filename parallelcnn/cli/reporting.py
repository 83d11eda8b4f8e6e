"""What a run tells: on the terminal while it goes on, and in the files of its folder."""

import contextlib
import io
import json
import math
import os
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from parallelcnn._version import __version__
from parallelcnn.comm import Communicator, mpi_library
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import grain
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.files.atomic import lock, remove_unfinished, write_atomically
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import SGD
from parallelcnn.profiling import Profiler
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History

_FILES = ("model.npz", "metrics.jsonl", "loss.png", "summary.json", "profile.txt", "trace.json", "checkpoints")
_LINES_AT_ONCE = 100  # of metrics.jsonl: they fit into Python's buffer of 8 KiB, which would empty itself in mid-line


class FolderInUseError(InputError):
    """Another run writes to the folder."""


class RunFolder:
    """The folder that receives what a run leaves behind; one run at a time. What is there stays as it is until `open`.

    Args:
        path: created where it is missing; None: `runs/` and the UTC time.

    Raises:
        InputError: if nothing can be written there.
        FolderInUseError: if another run writes there.

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
            raise FolderInUseError(f"--out {self.path} must be one run's at a time, but another run writes there now")

    def open(self, *, goes_on: bool) -> None:
        """Make room for a run's files.

        Args:
            goes_on: whether the run goes on with what is there. Otherwise files of an earlier run in it move into a
                folder of their own inside it.

        Raises:
            InputError: if nothing can be written there.
        """
        with self._refusing_what_fails():
            for folder in (self.path, self.checkpoints):
                remove_unfinished(folder)
            earlier = [self.path / name for name in _FILES if (self.path / name).exists()]
            if earlier and not goes_on:
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
        """Where the checkpoints go."""
        return self.path / "checkpoints"

    def write_metrics(self, lines: str, *, flush: bool) -> None:
        """Add lines to `metrics.jsonl`. If that fails, warn, and let the training go on without it."""
        if self._metrics is None:
            return
        try:
            self._metrics.write(lines)
            if flush:
                self._metrics.flush()
        except OSError as error:
            self._give_metrics_up(error)

    def take_metrics_up(self, history: History, epoch_samples: int) -> None:
        """Make `metrics.jsonl` say what has happened so far: what is there of it, and what is missing."""
        if self._metrics is None:
            return
        path = self.path / "metrics.jsonl"
        try:
            self._metrics.close()
            kept = [line for line in _read_metrics(path) if line["step"] <= history.steps]
            done = max((line["step"] for line in kept if "loss" in line), default=0)
            tested = {line["step"] for line in kept if "test_loss" in line}
            steps_per_epoch = max(history.steps * epoch_samples / max(history.samples_seen, 1), 1)
            for step, loss in enumerate(history.losses[done:], start=done + 1):
                kept.append({"step": step, "epoch": math.ceil(step / steps_per_epoch), "loss": loss})
            kept += [_as_line(*one) for one in history.evaluations if one[0] not in tested]
            kept.sort(key=lambda line: (line["step"], "test_loss" in line))
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self._metrics = path.open("a", encoding="utf-8")
        except OSError as error:
            self._give_metrics_up(error)

    def close(self) -> None:
        """Close the file of metrics, with what has not been written yet, and let another run write here."""
        if self._metrics is not None:
            try:
                self._metrics.close()
            except OSError as error:
                self._give_metrics_up(error)
        if self._lock is not None:
            self._lock.close()

    def _give_metrics_up(self, error: OSError) -> None:
        path = self.path / "metrics.jsonl"
        warnings.warn(f"{path} gets no more lines: {error.strerror}", TrainingWarning, stacklevel=2)
        metrics, self._metrics = self._metrics, None
        with contextlib.suppress(OSError):
            if metrics is not None:
                metrics.close()

    def make_again(self) -> bool:
        """Make the folder again if it has been removed since, for what is still to come; False if metrics are lost."""
        self.path.mkdir(parents=True, exist_ok=True)
        return (self.path / "metrics.jsonl").exists()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Put `summary.json` into the folder."""
        write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def write_profile(self, profiler: Profiler) -> None:
        """Put `profile.txt`, the table, and `trace.json`, the time line, into the folder."""
        write_atomically(self.path / "profile.txt", f"{profiler.table()}\n".encode())
        profiler.save_trace(self.path / "trace.json")

    def plot_losses(self, history: History) -> bool:
        """Put `loss.png` into the folder; False where matplotlib is not installed."""
        try:
            import matplotlib
        except ImportError:
            return False
        matplotlib.use("Agg")
        plot_losses(self.path / "loss.png", history)
        return True


class RunReporter:
    """Tells of a run while it goes on: a progress bar on a terminal, otherwise a line an epoch; and metrics.jsonl.

    On every rank, but only rank 0 speaks; if it is lost, another one is rank 0, and takes the folder over.

    Args:
        comm: the ranks.
        folder: on rank 0, where the metrics go.
        path: of that folder, on every rank.
        epochs: how many there will be.
        samples: in an epoch.
        stream: where the bar or the lines go; stdout unless given.

    Attributes:
        folder: on rank 0.
        first_step_at: when the first minibatch was done, by `time.perf_counter` [s].
    """

    def __init__(
        self,
        comm: Communicator,
        folder: RunFolder | None,
        path: Path,
        epochs: int,
        samples: int,
        stream: TextIO | None = None,
    ) -> None:
        self._comm, self.folder, self._path = comm, folder, path
        self._epochs, self._samples = epochs, samples
        self._stream = stream or sys.stdout
        self._on_terminal = self._stream.isatty()
        self._bar: Any = None
        self._loss_sum = 0.0
        self._seconds_before = 0.0
        self._epoch_done = 0
        self.first_step_at = math.nan

    def resumed(self, history: History) -> None:
        self._take_bar_off()
        self._seconds_before = history.train_seconds
        if self._comm.rank != 0:
            return
        if self.folder is None:
            self.folder = RunFolder(self._path)
            self.folder.open(goes_on=True)
        self.folder.take_metrics_up(history, self._samples)
        # The loss of an epoch is said as that of what was seen of it since.
        self._loss_sum, self._epoch_done = 0.0, 0

    def minibatch(self, step: int, epoch: int, loss: float, samples: int) -> None:
        if math.isnan(self.first_step_at):
            self.first_step_at = time.perf_counter()
        if self.folder is None:
            return
        # Written out, not json.dumps, which took 2 % of a step. JSON knows no NaN: null.
        number = f"{loss:.9g}" if math.isfinite(loss) else "null"
        line = f'{{"step": {step}, "epoch": {epoch}, "loss": {number}}}\n'
        self.folder.write_metrics(line, flush=step % _LINES_AT_ONCE == 0)
        self._loss_sum += loss * samples
        self._epoch_done += samples
        if self._on_terminal:
            self._advance_bar(epoch, samples, loss)

    def evaluation(self, step: int, epoch: int, result: Evaluation, history: History) -> None:
        if self.folder is None:
            return
        self.folder.write_metrics(json.dumps(_as_line(step, epoch, result)) + "\n", flush=True)
        if history.samples_seen % self._samples != 0:
            return
        seconds = history.train_seconds - self._seconds_before
        self._take_bar_off()
        accuracy = "" if result.accuracy is None else f"   test accuracy {as_percent(result.accuracy)}"
        mean_loss = self._loss_sum / self._epoch_done if self._epoch_done else math.nan
        rate = self._epoch_done / seconds if seconds > 0 else math.nan
        print(
            f"epoch {epoch}/{self._epochs}   loss {mean_loss:.4f}   test loss {result.loss:.4f}"
            f"{accuracy}   {seconds:.2f} s   {rate:,.0f} samples/s",
            file=self._stream,
            flush=True,
        )
        self._seconds_before = history.train_seconds
        self._loss_sum, self._epoch_done = 0.0, 0

    def close(self) -> None:
        """Take the progress bar off the terminal, and leave the folder to others."""
        self._take_bar_off()
        if self.folder is not None:
            self.folder.close()

    def _take_bar_off(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance_bar(self, epoch: int, samples: int, loss: float) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._samples,
                desc=f"epoch {epoch}/{self._epochs}",
                unit=" samples",
                leave=False,
                file=self._stream,
                dynamic_ncols=True,
            )
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(samples)


def _as_line(step: int, epoch: int, result: Evaluation) -> dict[str, Any]:
    test_loss = result.loss if math.isfinite(result.loss) else None
    return {"step": step, "epoch": epoch, "test_loss": test_loss, "test_accuracy": result.accuracy}


def _read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl` that are whole: of a run that was killed the last one may not be."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def describe_run(
    options: Namespace,
    hosts: Sequence[str],
    threads: Sequence[int],
    network: NetworkHandler,
    train_set: Dataset,
    test_set: Dataset,
    optimizer: SGD,
) -> str:
    """What is about to run, before the first step.

    Args:
        options: of the command: model, batch_size, epochs.
        hosts, threads: of every rank.
    """
    ranks = ", ".join(f"{host} ({hosts.count(host)})" for host in dict.fromkeys(hosts))
    fewest, most = min(threads), max(threads)
    each = f"{in_words(most, 'thread') if fewest == most else f'{fewest} to {most} threads'} each"
    shares = []
    for rank, count in enumerate(threads):
        share = grain(np.arange(options.batch_size), rank, len(hosts))
        shares += [len(grain(share, i, count)) for i in range(count)]
    classes = "" if train_set.classes is None else f", {train_set.classes} classes"
    steps = -(-len(train_set) // options.batch_size)
    return "\n".join(
        [
            network.summary(),
            f"network    {options.model}",
            f"data       {train_set.name}: {len(train_set):,} to train on, {len(test_set):,} to test on{classes}",
            f"ranks      {len(hosts)} on {ranks}, {each}",
            f"minibatch  {options.batch_size} = {' + '.join(map(str, shares)) if len(shares) <= 8 else _short(shares)}",
            f"training   {options.epochs} epochs of {steps:,} minibatches, {optimizer}",
        ]
    )


def summarize(
    options: Namespace,
    hosts: Sequence[str],
    threads: Sequence[int],
    network: NetworkHandler,
    train_set: Dataset,
    history: History,
    on_train_set: Evaluation,
) -> dict[str, Any]:
    """What `summary.json` holds of a run: what was asked for, and what came of it."""
    on_test_set = history.evaluations[-1][2]
    asked = ("model", "epochs", "batch_size", "learning_rate", "momentum", "nesterov", "weight_decay", "seed")
    return {
        "version": __version__,
        **{name: getattr(options, name) for name in asked},
        "layers": [repr(layer) for layer in network.layers],
        "parameters": network.params.size,
        "data": train_set.name,
        "ranks": len(hosts),
        "hosts": list(hosts),
        "threads": list(threads),
        "mpi_library": mpi_library() if len(hosts) > 1 else None,
        "grains": options.reproducible,
        "lost_ranks": history.lost_ranks,
        "samples_seen": history.samples_seen,
        "train_seconds": history.train_seconds,
        "compile_seconds": history.compile_seconds,
        "train_accuracy": on_train_set.accuracy,
        "train_loss": on_train_set.loss,
        "test_accuracy": on_test_set.accuracy,
        "test_loss": on_test_set.loss,
        "parameters_sha256": network.parameters_sha256(),
    }


def describe_result(folder: RunFolder, summary: Mapping[str, Any]) -> str:
    """What came of a run, in two lines."""
    accuracies = [as_percent(summary[f"{which}_accuracy"]) for which in ("train", "test")]
    return (
        f"done       train accuracy {accuracies[0]}, test accuracy {accuracies[1]}; "
        f"{summary['train_seconds']:.2f} s of training, {summary['compile_seconds']:.2f} s of compilation, "
        f"{summary['peak_rss_bytes'] / 2**20:,.0f} MiB a rank\n"
        f"written    {folder.path}{os.sep}"
    )


def as_percent(accuracy: float | None) -> str:
    """An accuracy as people read it."""
    return "unknown" if accuracy is None else f"{100 * accuracy:.2f} %"


def in_words(count: int, noun: str) -> str:
    """A number of things as people write it."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plot_losses(path: Path, history: History) -> None:
    """Draw the training loss over minibatches, faint as it is and smoothed, with the test loss marked."""
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


def _short(shares: list[int]) -> str:
    low, high = min(shares), max(shares)
    return f"{len(shares)} x {low}" if low == high else f"{len(shares)} shares of {low} or {high}"


def _unused(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
