"""What a run tells: on the terminal while it goes on, and in the files of its folder."""

import io
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from parallelcnn.comm import Communicator
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import grain
from parallelcnn.errors import InputError
from parallelcnn.evaluation import Evaluation
from parallelcnn.files import write_atomically
from parallelcnn.network import NetworkHandler
from parallelcnn.training import History

_FILES = ("model.npz", "metrics.jsonl", "loss.png", "summary.json")


class RunFolder:
    """The folder that receives what a run leaves behind.

    Args:
        path: created where it is missing; None: `runs/` and the UTC time. Files of an earlier run in it move into a
            folder of their own inside it.

    Raises:
        InputError: if nothing can be written there.
    """

    def __init__(self, path: str | Path | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
        self.path = Path(path) if path is not None else _unused(Path("runs") / now)
        self.moved_to: Path | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            earlier = [self.path / name for name in _FILES if (self.path / name).exists()]
            if earlier:
                self.moved_to = _unused(self.path / f"before-{now}")
                self.moved_to.mkdir()
                for file in earlier:
                    file.rename(self.moved_to / file.name)
            self.metrics: TextIO = (self.path / "metrics.jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {error.strerror}") from None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Put `summary.json` into the folder."""
        write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

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

    Args:
        metrics: receives one JSON object a line, for every minibatch and every evaluation.
        epochs: how many there will be.
        samples: in an epoch.
        stream: where the bar or the lines go.
    """

    def __init__(self, metrics: TextIO, epochs: int, samples: int, stream: TextIO = sys.stdout) -> None:
        self._metrics, self._epochs, self._samples, self._stream = metrics, epochs, samples, stream
        self._bar: Any = None
        self._loss_sum, self._losses = 0.0, 0
        self._seconds_before = 0.0
        self._epoch_done = 0

    def minibatch(self, step: int, epoch: int, loss: float, samples: int) -> None:
        # Written out, not json.dumps, which took 2 % of a step; a NaN stands in quotes, as JSON knows none.
        number = f"{loss:.9g}" if loss - loss == 0 else f'"{loss}"'
        self._metrics.write(f'{{"step": {step}, "epoch": {epoch}, "loss": {number}}}\n')
        self._loss_sum += loss
        self._losses += 1
        self._epoch_done += samples
        if self._stream.isatty():
            self._advance_bar(epoch, samples, loss)

    def evaluation(self, step: int, epoch: int, result: Evaluation, history: History) -> None:
        line = {"step": step, "epoch": epoch, "test_loss": result.loss, "test_accuracy": result.accuracy}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        if self._epoch_done < self._samples:
            return
        seconds = history.train_seconds - self._seconds_before
        self.close()
        accuracy = "" if result.accuracy is None else f"   test accuracy {100 * result.accuracy:.2f} %"
        print(
            f"epoch {epoch}/{self._epochs}   loss {self._loss_sum / self._losses:.4f}   test loss {result.loss:.4f}"
            f"{accuracy}   {seconds:.2f} s   {self._samples / seconds:,.0f} samples/s",
            file=self._stream,
            flush=True,
        )
        self._seconds_before = history.train_seconds
        self._loss_sum, self._losses, self._epoch_done = 0.0, 0, 0

    def close(self) -> None:
        """Take the progress bar off the terminal."""
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


def describe_run(
    comm: Communicator,
    hosts: Sequence[str],
    model: str,
    network: NetworkHandler,
    train_set: Dataset,
    test_set: Dataset,
    batch_size: int,
    epochs: int,
    rest: str,
) -> str:
    """What is about to run, before the first step."""
    per_epoch = -(-len(train_set) // batch_size)
    shares = [len(grain(np.arange(batch_size), rank, comm.size)) for rank in range(comm.size)]
    classes = "" if train_set.classes is None else f", {train_set.classes} classes"
    ranks = f"{comm.size} on {', '.join(f'{host} ({hosts.count(host)})' for host in dict.fromkeys(hosts))}"
    return "\n".join(
        [
            network.summary(),
            f"network    {model}",
            f"data       {train_set.name}: {len(train_set):,} to train on, {len(test_set):,} to test on{classes}",
            f"ranks      {ranks}",
            f"minibatch  {batch_size} = {' + '.join(map(str, shares)) if comm.size <= 8 else _short(shares)}",
            f"training   {epochs} epochs of {per_epoch:,} minibatches, {rest}",
        ]
    )


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
