"""Training callbacks, named as in Keras. All ranks call them at the same steps, with the same values."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallelcnn.arguments import check_callable
from parallelcnn.comm import Transport
from parallelcnn.data.sampler import SampleOrder
from parallelcnn.errors import InputError, nearest_name
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.training.evaluation import Evaluation, test_logs
from parallelcnn.training.history import History

Logs = Mapping[str, Any]


@dataclass
class Training:
    """The running training, available to callbacks.

    Attributes:
        comm: the ranks. If a rank is lost, `comm.rank` and `comm.size` change.
        network: the network in training. Callbacks may predict with it.
        history: the history so far.
        epochs: number of epochs.
        order: the order of the samples.
        optimizer: the optimiser. With `EMA`, what is evaluated is its average: see `NetworkHandler.averaged`.
    """

    comm: Transport
    network: NetworkHandler
    history: History
    epochs: int
    order: SampleOrder
    optimizer: Optimizer
    stop_is_asked: bool = field(default=False, init=False)

    def samples_in(self, epoch: int) -> int:
        """Number of samples in an epoch, counted from 1."""
        return self.order.samples_in(epoch) - self.order.samples_in(epoch - 1)

    def stop(self) -> None:
        """Stop training early: all ranks save and stop after the same minibatch, even if only one rank calls this."""
        self.stop_is_asked = True


class Callback:
    """Base class of callbacks. Override the methods that you need. Callbacks need not derive from this class.

    Attributes:
        training: see `Training`; set before the first method call.

    Example:
        >>> class StopAt(Callback):
        ...     def on_epoch_end(self, epoch, logs):
        ...         if logs["test_accuracy"] > 0.98:
        ...             self.training.stop()
    """

    training: Training

    def on_train_begin(self, logs: Logs) -> None:
        """Training begins, or resumes."""

    def on_batch_end(self, step: int, logs: Logs) -> None:
        """Minibatch `step` is done, counted from 1 over all epochs. logs: epoch, loss, samples."""

    def on_test_end(self, logs: Logs) -> None:
        """The network was evaluated on the test set. logs: step, epoch, test_loss, and test_NAME of each metric; for a
        validation set (see `Dataset.split`) val_loss and val_NAME.
        """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """An epoch is done. logs: those of `on_test_end`, and loss, the mean over the epoch's samples; after a resume
        in this epoch, over those after the resume.
        """

    def on_resume(self, logs: Logs) -> None:
        """Training continues from the step in `training.history`: after a resume, after a rank was lost, or after the
        ranks went back to a checkpoint.
        """

    def on_train_end(self, logs: Logs) -> None:
        """Training has ended without an error. logs: those of the last `on_test_end`."""


METHODS = [name for name in vars(Callback) if name.startswith("on_")]


class LambdaCallback:
    """A callback of functions.

    Args:
        functions: functions by the name of the method in whose place training calls them; see `Callback`.

    Raises:
        InputError: if there is no method of that name, or the value is not a function.

    Example:
        >>> show = LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs["test_loss"]))
    """

    def __init__(self, **functions: Callable[..., None]) -> None:
        for name, function in functions.items():
            if name not in METHODS:
                raise InputError(f"LambdaCallback: training calls no {name}: {nearest_name(name, METHODS)}")
            check_callable(f"LambdaCallback: {name}", function)
            if function is not None:
                setattr(self, name, function)


class _Reporter(Callback):
    """Calls a reporter, the one callback of earlier versions."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter

    def on_batch_end(self, step: int, logs: Logs) -> None:
        self._reporter.minibatch(step, logs["epoch"], logs["loss"], logs["samples"])

    def on_test_end(self, logs: Logs) -> None:
        self._reporter.evaluation(*self.training.history.evaluations[-1], self.training.history)

    def on_resume(self, logs: Logs) -> None:
        if hasattr(self._reporter, "resumed"):
            self._reporter.resumed(self.training.history)


def reporter_as_callbacks(reporter: Any) -> list[Callback]:
    """The callbacks for `train(reporter=)` of earlier versions."""
    return [] if reporter is None else [_Reporter(reporter)]


class Callbacks:
    """Calls the callbacks of a training. A method that no callback overrides costs nothing."""

    def __init__(self, callbacks: Sequence[Any], training: Training) -> None:
        self._training = training
        for callback in callbacks:
            with contextlib.suppress(AttributeError):  # a user's object may not accept new attributes
                callback.training = training
        self._methods = {name: _overridden(callbacks, name) for name in METHODS}
        self._batch_end = self._methods["on_batch_end"]
        self._loss_sum, self._samples = 0.0, 0
        self._last: dict[str, Any] = {}

    @property
    def stop_is_asked(self) -> bool:
        """Whether a callback of this rank has asked to stop."""
        return self._training.stop_is_asked

    def withdraw_stop(self) -> None:
        self._training.stop_is_asked = False

    def train_begin(self) -> None:
        self._call("on_train_begin", {})

    def batch_end(self, step: int, epoch: int, loss: float, samples: int) -> None:
        self._loss_sum += loss * samples
        self._samples += samples
        for method in self._batch_end:
            method(step, {"epoch": epoch, "loss": loss, "samples": samples})

    def test_end(self, step: int, epoch: int, result: Evaluation, *, epoch_ended: bool) -> None:
        self._last = test_logs(step, epoch, result)
        self._call("on_test_end", self._last)
        if epoch_ended:
            loss = self._loss_sum / self._samples if self._samples else math.nan
            self._loss_sum, self._samples = 0.0, 0
            self._call("on_epoch_end", epoch, {"loss": loss, **self._last})

    def resumed(self) -> None:
        self._loss_sum, self._samples = 0.0, 0
        self._call("on_resume", {})

    def train_end(self) -> None:
        self._call("on_train_end", self._last)

    def _call(self, name: str, *arguments: Any) -> None:
        for method in self._methods[name]:
            method(*arguments)


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise InputError unless each callback has a callback method, and no `on_...` method that training never calls."""
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks must be a list, got {callbacks!r}")
    for callback in callbacks:
        if isinstance(callback, type):
            raise InputError(f"callbacks must be objects: write {callback.__name__}(...)")
        names = [name for name in dir(callback) if name.startswith("on_")]
        unknown = [name for name in names if name not in METHODS]
        if unknown:
            raise InputError(f"{callback!r}: training calls no {unknown[0]}: {nearest_name(unknown[0], METHODS)}")
        if not names:
            raise InputError(f"callbacks must have at least one of {', '.join(METHODS)}, got {callback!r}")


def _overridden(callbacks: Sequence[Any], name: str) -> list[Callable[..., None]]:
    overriding = (one for one in callbacks if getattr(type(one), name, None) is not getattr(Callback, name))
    return [method for one in overriding if (method := getattr(one, name, None)) is not None]
