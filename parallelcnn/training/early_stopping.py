"""Stop training when a value no longer improves."""

import math
import warnings
from dataclasses import dataclass, field

from parallelcnn.arguments import check_integer
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.layers.base import Array
from parallelcnn.schedules import MODES, check_number, larger_is_better
from parallelcnn.training.callbacks import Callback, Logs


@dataclass
class EarlyStopping(Callback):
    """Stop training when a value no longer improves.

    Args:
        monitor: the name of a number in the logs of `on_test_end`, such as "test_accuracy", or "val_accuracy" for a
            validation set. None: the loss of that set.
        patience: number of epochs without an improvement that are accepted.
        min_delta: only a change by more than this counts as an improvement.
        mode: "min" or "max": which values are better. "auto": "max" for names that end in accuracy, precision, recall
            or f1.
        restore_best: at the end of training, set parameters and buffers to those after the epoch of the last
            improvement. They are kept in memory: every rank must have this callback. The history stays that of the
            whole training, and checkpoints hold the parameters of their step.

    Raises:
        InputError: if an argument is outside its range; in training, if the logs have no such number, or with
            `restore_best` if training resumes from a checkpoint after the best epoch, whose parameters it lacks.

    Example:
        >>> best = EarlyStopping("test_accuracy", patience=5, restore_best=True)
        >>> pc.train(network, train_set, test_set, optimizer, 100, 100, callbacks=[best])
    """

    monitor: str | None = None
    patience: int = 3
    min_delta: float = 0.0
    mode: str = "auto"
    restore_best: bool = False
    _best_step: int = field(default=0, init=False, repr=False, compare=False)  # 0: there was no improvement yet
    _kept: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)
    _kept_step: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.monitor is None or isinstance(self.monitor, str)):
            raise InputError(
                f'EarlyStopping: monitor must be a name such as "test_accuracy" or None, got {self.monitor!r}'
            )
        check_integer("EarlyStopping: patience", self.patience, 0)
        check_number("EarlyStopping", "min_delta", self.min_delta)
        if self.mode not in MODES:
            raise InputError(f"EarlyStopping: mode must be auto, min or max, got {self.mode!r}")

    def on_train_begin(self, logs: Logs) -> None:
        self._best_step, self._kept, self._kept_step = 0, {}, 0

    def on_resume(self, logs: Logs) -> None:
        history, order = self.training.history, self.training.order
        epoch = order.epoch_of(history.samples_seen)
        has_ended = history.samples_seen == order.samples_in(epoch)
        # The last epoch counts once it has been evaluated at its end: a rank may have been lost before.
        is_evaluated = any(step == history.steps for step, _, _ in history.evaluations)
        counts = has_ended and is_evaluated
        self._best_step, waited = self._best(self._values(without=None if counts else epoch))
        if counts and waited > self.patience:  # it had stopped here
            self.training.stop()
        if not self.restore_best:
            return
        if self._best_step == history.steps:
            self._keep()
        elif self._best_step and not self._kept:
            raise InputError(
                f"EarlyStopping: restore_best cannot resume after minibatch {history.steps}, since the best parameters "
                f"are those after minibatch {self._best_step}: resume from there, or without restore_best"
            )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._best_step, waited = self._best(self._values())
        if self.restore_best and self._best_step == self.training.history.steps:
            self._keep()
        if waited > self.patience:
            self.training.stop()

    def on_train_end(self, logs: Logs) -> None:
        if not self._kept:
            return
        if self._kept_step != self._best_step:  # training went back to an earlier checkpoint
            warnings.warn(
                f"EarlyStopping: the best parameters, those after minibatch {self._best_step}, are lost; the network "
                f"keeps those of the end of training",
                TrainingWarning,
                stacklevel=2,
            )
            return
        network = self.training.network
        network.params, network.buffers = self._kept["params"], self._kept["buffers"]

    def _keep(self) -> None:
        network = self.training.network
        with network.averaged(self.training.optimizer):  # what was evaluated
            self._kept = {"params": network.params.copy(), "buffers": network.buffers.copy()}
        self._kept_step = self.training.history.steps

    def _best(self, values: list[tuple[int, float]]) -> tuple[int, int]:
        """(minibatch of the last improvement, 0 if there was none; number of epochs since)."""
        sign = -1.0 if larger_is_better(self.monitor, self.mode) else 1.0
        best, best_step, waited = math.inf, 0, 0
        for step, value in values:
            if sign * value < best - self.min_delta:
                best, best_step, waited = sign * value, step, 0
            else:
                waited += 1
        return best_step, waited

    def _values(self, without: int | None = None) -> list[tuple[int, float]]:
        """(minibatch, value) after each epoch, taken from the history, so that a resume needs no other state.

        Args:
            without: an epoch that has not ended, if there is one.
        """
        values = self.training.history.monitored(self.monitor, "EarlyStopping")
        return list({epoch: (step, value) for step, epoch, value in values if epoch != without}.values())
