"""The history of a training run."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parallelcnn.errors import InputError, nearest_name
from parallelcnn.layers.base import Array
from parallelcnn.notebook import picture, table
from parallelcnn.plotting import as_png, axes_of_a_picture, new_axes
from parallelcnn.training.evaluation import Evaluation, test_logs
from parallelcnn.wording import plural


@dataclass(repr=False)
class History:
    """The history of a training run, the same on every rank but for times. After a resume it has all earlier steps.

    `history["loss"]` is an array with the loss of every minibatch. `history["test_loss"]`, `history["test_accuracy"]`,
    and `history["test_NAME"]` of other metrics, hold a value for every evaluation; `history["step"]` and
    `history["epoch"]` its minibatches done and its epoch. For a validation set, see `Dataset.split`, the names are
    "val_loss" and so on. Checkpoints hold arrays, such as confusion matrices, of the newest evaluation only.

    Example:
        >>> history = pc.train(network, train_set, test_set, optimizer, epochs=3, batch_size=100)
        >>> history["test_accuracy"].max(), history["epoch"][history["test_loss"].argmin()]
        >>> history.plot()

    Attributes:
        losses: loss of every minibatch, before its step.
        evaluations: (minibatches done, epoch, result on the test or validation set) of every evaluation.
        samples_seen: number of samples trained on, counted in every epoch. It is the position in the sample order.
        train_seconds: time of the training loop with checkpoints, without compilation and evaluation [s].
        compile_seconds: time until all kernels were compiled or loaded [s].
        stopped: whether training stopped early because it was asked to.
        lost_ranks: number of ranks lost during training.
        exponents: exponents of reproducible sums, one for each segment; see `FixedPointReducer`.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, int, Evaluation]] = field(default_factory=list)
    samples_seen: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    stopped: bool = False
    lost_ranks: int = 0
    exponents: list[int] = field(default_factory=list)

    @property
    def left(self) -> bool:
        """The former name of `stopped`."""
        warnings.warn("history.left is now called history.stopped", DeprecationWarning, stacklevel=2)
        return self.stopped

    @property
    def steps(self) -> int:
        """Minibatches done."""
        return len(self.losses)

    def __getitem__(self, name: str) -> Array:
        if name == "loss":
            return np.array(self.losses, np.float64)
        logs = [test_logs(*evaluation) for evaluation in self.evaluations]
        # After a resume with other metrics, only what every evaluation has is a series.
        known = [name for name in (logs[0] if logs else ()) if all(name in one for one in logs)]
        if name not in known:
            raise InputError(f"the history has no series {name!r}: {nearest_name(name, ['loss', *known])}")
        return np.array([one[name] for one in logs])

    def monitored(self, name: str | None, owner: str) -> list[tuple[int, int, float]]:
        """(minibatches done, epoch, value) of every evaluation.

        Args:
            name: of a number, such as "test_accuracy"; None: the loss.
            owner: what asks for it, for the message.

        Raises:
            InputError: if an evaluation has no such number.
        """
        found = []
        for step, epoch, result in self.evaluations:
            logs = test_logs(step, epoch, result)
            monitor = f"{result.role}_loss" if name is None else name
            if np.ndim(logs.get(monitor, ())) > 0:
                known = [one for one in logs if one not in ("step", "epoch") and np.ndim(logs[one]) == 0]
                raise InputError(f"{owner}: no value {monitor!r} to monitor: {nearest_name(monitor, known)}")
            found.append((step, epoch, logs[monitor]))
        return found

    def plot(self, axes: Any = None) -> Any:
        """Plot the training loss over minibatches, raw (faint) and smoothed, and the test loss as dots.

        Args:
            axes: where to plot. None: the axes of a new figure.

        Returns:
            The axes.

        Raises:
            InputError: if matplotlib is not installed, or the history is empty.
        """
        if not self.losses:
            raise InputError("history.plot takes the history of at least one minibatch, got none")
        axes = new_axes("history.plot") if axes is None else axes
        losses, tests = self["loss"], [result.loss for _, _, result in self.evaluations]
        window = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        axes.plot(np.arange(1, len(losses) + 1), losses, color="tab:blue", alpha=0.25, linewidth=0.7)
        middle = np.arange(len(smooth)) + (window + 1) / 2
        axes.plot(middle, smooth, color="tab:blue", label=f"training loss (and its mean over {window} minibatches)")
        axes.plot([step for step, _, _ in self.evaluations], tests, "o", color="tab:red", label=self._tests_label)
        if min([losses.min(), *tests]) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="minibatch", ylabel="loss")
        axes.legend()
        axes.grid(alpha=0.3)
        return axes

    @property
    def _tests_label(self) -> str:
        return f"{self.evaluations[-1][2].set_name if self.evaluations else 'test'} loss"

    def __repr__(self) -> str:
        logs = test_logs(*self.evaluations[-1]) if self.evaluations else {}
        results = [f"{name} {_cell(value)}" for name, value in logs.items() if isinstance(value, float)]
        return f"<History: {'; '.join([self._caption(), *results])}>"

    def _caption(self) -> str:
        stopped = ", stopped early" if self.stopped else ""
        return f"{plural(self.steps, 'minibatch', 'minibatches')} in {self.train_seconds:.2f} s{stopped}"

    def _repr_html_(self) -> str:
        """For notebooks: a table of the evaluations, without metrics that are arrays, and the plot if matplotlib is
        installed.
        """
        logs = [test_logs(*evaluation) for evaluation in self.evaluations]
        names = ["epoch", "step", *dict.fromkeys(name for one in logs for name in one if name not in ("step", "epoch"))]
        names = [name for name in names if not any(np.ndim(one.get(name, 0)) for one in logs)]
        shown = table(self._caption(), names, ([_cell(one.get(name)) for name in names] for one in logs))
        axes = axes_of_a_picture() if self.losses else None
        if axes is None:
            return shown
        with warnings.catch_warnings():  # of fonts, and of a logarithmic axis for a loss that is not finite
            warnings.simplefilter("ignore")
            return shown + picture(as_png(self.plot(axes)), "the loss during training", 600)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
