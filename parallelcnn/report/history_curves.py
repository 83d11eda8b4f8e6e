"""The curves of a training: loss, accuracy and learning rate over the epochs."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from parallelcnn.data.sampler import Sampler
from parallelcnn.report.curves import Series, line_chart
from parallelcnn.report.markup import Markup, element
from parallelcnn.training.history import History

if TYPE_CHECKING:
    from parallelcnn.report.training_report import ReportedRun

EpochsAt = Callable[[Any], Any]  # minibatches done, or an array of them, to epochs done

_MOST_POINTS = 120  # of a curve

# The first three colours of the style sheet.
TRAINING, TESTING, RATE, FINAL = 0, 1, 2, 3


def charts(run: "ReportedRun") -> Markup | None:
    """The charts beside each other; None if no minibatch was done."""
    history = run.history
    if not history.losses:
        return None
    epochs = epochs_at(history, len(run.train_set))
    tested = [(float(epochs(step)), result) for step, _, result in history.evaluations]
    name = tested[-1][1].set_name if tested else "test"
    losses = [
        Series("training loss", _means(history, epochs), TRAINING),
        Series(f"{name} loss", [(x, result.loss) for x, result in tested], TESTING, markers=True),
    ]
    known = [(x, result.accuracy) for x, result in tested if result.accuracy is not None]
    accuracies = [Series(f"{name} accuracy", known, TESTING, markers=True)]
    end = float(epochs(history.steps))
    if run.on_train_set is not None and run.on_train_set.accuracy is not None:
        accuracies.append(
            Series("training accuracy at the end", [(end, run.on_train_set.accuracy)], TRAINING, line=False)
        )
    if run.on_test_set is not None and run.evaluated is not run.test_set:
        losses.append(Series("test loss at the end", [(end, run.on_test_set.loss)], FINAL, line=False))
        if run.on_test_set.accuracy is not None:
            accuracies.append(Series("test accuracy at the end", [(end, run.on_test_set.accuracy)], FINAL, line=False))
    drawn = [line_chart("Loss", losses, "epoch", number, logarithmic=True)]
    if known:
        drawn.append(line_chart("Accuracy", accuracies, "epoch", percentage, highest=1.0))
    rates = [Series("learning rate", _rates(run, epochs), RATE)]
    drawn.append(line_chart("Learning rate", rates, "epoch", number))
    return element("div", drawn, class_="charts")


def epochs_at(history: History, samples: int) -> EpochsAt:
    """A function from minibatches done to epochs done, also if the batch size has changed during training.

    Args:
        samples: in an epoch.
    """
    steps, epochs = [0.0], [0.0]
    evaluated = history.evaluations
    for (step, epoch, _), (_, following, _) in pairwise(evaluated):
        if following > epoch:  # every epoch ends with an evaluation
            steps.append(float(step))
            epochs.append(float(epoch))
    if history.steps > steps[-1]:
        steps.append(float(history.steps))
        epochs.append(history.samples_seen / samples)
    return lambda step: np.interp(step, steps, epochs)


def number(value: float) -> str:
    """A number with at most four digits."""
    return f"{value:.4g}"


def percentage(value: float) -> str:
    return f"{100 * value:.4g} %"


def _means(history: History, epochs: EpochsAt) -> list[tuple[float, float]]:
    """(epoch, mean loss) of groups of neighbouring minibatches."""
    losses = history["loss"]
    size = -(-len(losses) // _MOST_POINTS)
    starts = np.arange(0, len(losses), size)
    counts = np.diff([*starts, len(losses)])
    means = np.add.reduceat(losses, starts) / counts
    return list(zip(epochs(starts + counts / 2).tolist(), means.tolist(), strict=True))


def _rates(run: "ReportedRun", epochs: EpochsAt) -> list[tuple[float, float]]:
    """(epoch, learning rate) of some of the steps that were done."""
    config, done = run.config, run.history.steps
    planned = max(Sampler(len(run.train_set), config.batch_size, config.seed).steps_in(config.epochs), done)
    optimizer = run.optimizer.after(run.history)
    steps = np.unique(np.linspace(0, done - 1, min(done, _MOST_POINTS)).astype(int)).tolist()
    rates = [(float(epochs(step)), float(optimizer.rate(step, planned))) for step in steps]
    rates.append((float(epochs(done)), rates[-1][1]))
    return [(x, rate) for x, rate in rates if math.isfinite(rate)]
