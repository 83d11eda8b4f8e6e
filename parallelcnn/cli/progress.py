"""Progress of a training on the terminal."""

import math
import sys
from typing import Any, TextIO

from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History


class Progress:
    """A reporter that shows progress: a bar on a terminal, otherwise a line for each epoch.

    Args:
        epochs: number of epochs.
        samples: samples in an epoch.
        stream: where to print; stdout by default.
    """

    def __init__(self, epochs: int, samples: int, stream: TextIO | None = None) -> None:
        self._epochs, self._samples = epochs, samples
        self._stream = stream or sys.stdout
        self._on_terminal = self._stream.isatty()
        self._bar: Any = None
        self._loss_sum = 0.0
        self._samples_done = 0
        self._seconds_before = 0.0

    def resumed(self, history: History) -> None:
        """Continue from there. The first epoch's loss and rate count only what comes from here on."""
        self.close()
        self._seconds_before = history.train_seconds
        self._loss_sum, self._samples_done = 0.0, 0

    def minibatch(self, step: int, epoch: int, loss: float, samples: int) -> None:
        self._loss_sum += loss * samples
        self._samples_done += samples
        if self._on_terminal:
            self._advance_bar(epoch, samples, loss)

    def evaluation(self, step: int, epoch: int, result: Evaluation, history: History) -> None:
        if history.samples_seen % self._samples != 0:
            return
        self.close()
        seconds = history.train_seconds - self._seconds_before
        accuracy = "" if result.accuracy is None else f"   test accuracy {percent(result.accuracy)}"
        mean_loss = self._loss_sum / self._samples_done if self._samples_done else math.nan
        rate = self._samples_done / seconds if seconds > 0 else math.nan
        print(
            f"epoch {epoch}/{self._epochs}   loss {mean_loss:.4f}   test loss {result.loss:.4f}"
            f"{accuracy}   {seconds:.2f} s   {rate:,.0f} samples/s",
            file=self._stream,
            flush=True,
        )
        self._seconds_before = history.train_seconds
        self._loss_sum, self._samples_done = 0.0, 0

    def close(self) -> None:
        """Remove the bar from the terminal."""
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


def percent(accuracy: float | None) -> str:
    """An accuracy in per cent."""
    return "unknown" if accuracy is None else f"{100 * accuracy:.2f} %"
