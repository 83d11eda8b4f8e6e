"""Learning-rate schedules: pure functions of the step. Pass one instead of a learning rate.

    SGD(learning_rate=Cosine(0.1, warmup=500))

Schedules keep no counter: the rates are the same after a resume and on any number of ranks. `Plateau` is also a
function of the history, which training passes to `Schedule.after` after each evaluation. All lengths are numbers of
steps, that is minibatches; PyTorch's schedulers count what the user calls them for, usually epochs.
"""

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from parallelcnn.arguments import check_integer
from parallelcnn.errors import InputError
from parallelcnn.plotting import new_axes

MODES = ("auto", "min", "max")  # of what is monitored
LARGEST_RATE = float(np.finfo(np.float32).max)
_POINTS = 1000  # of a plot
_LARGER_IS_BETTER = ("accuracy", "precision", "recall", "f1")


class Evaluated(Protocol):
    """The part of `History` that a schedule uses."""

    evaluations: list[tuple[int, int, Any]]

    def monitored(self, name: str | None, owner: str) -> list[tuple[int, int, float]]: ...


class Schedule(ABC):
    """Base class of learning-rate schedules. Subclass it, best as a frozen dataclass, to add your own.

    Example:
        >>> @dataclass(frozen=True)
        ... class Halving(Schedule):
        ...     learning_rate: float
        ...
        ...     def at(self, step, steps):
        ...         return self.learning_rate * 0.5 ** (4 * step // steps)
    """

    @abstractmethod
    def at(self, step: int, steps: int) -> float:
        """The learning rate of a step.

        Args:
            step: number of steps done before, 0 for the first.
            steps: number of steps of the whole training.
        """

    def after(self, history: Evaluated) -> "Schedule":
        """The schedule given a history. Training asks for it after each evaluation and each resume.

        By default the schedule itself. One that depends on the history, such as `Plateau`, returns another schedule.
        """
        return self

    def plot(self, steps: int, axes: Any = None) -> Any:
        """Plot the learning rate over a training of so many steps with matplotlib.

        Args:
            axes: where to plot. None: the axes of a new figure.

        Returns:
            The axes.

        Raises:
            InputError: if matplotlib is not installed, or `steps` is below 1.

        Example:
            >>> Cosine(0.1, warmup=100).plot(2000).figure.savefig("rate.png")
        """
        check_integer("steps", steps, 1)
        axes = new_axes("schedule.plot") if axes is None else axes
        points = np.unique(np.linspace(0, steps - 1, min(steps, _POINTS)).astype(int))
        axes.plot(points, [self.at(int(step), steps) for step in points])
        axes.set(xlabel="step", ylabel="learning rate")
        return axes


@dataclass(frozen=True)
class Constant(Schedule):
    """Constant learning rate, after a linear warm-up.

    Args:
        learning_rate: the rate after the warm-up.
        warmup: number of warm-up steps, in which the rate rises linearly.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SGD(Constant(0.1, warmup=500))
    """

    learning_rate: float
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("Constant", "learning_rate", self.learning_rate)
        check_count(self, "warmup")

    def at(self, step: int, steps: int) -> float:
        return self.learning_rate * _warmed_up(step, self.warmup)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine annealing from `learning_rate` to `final` at the end of training, after a linear warm-up.

    Loshchilov & Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", arXiv:1608.03983, eq. 5, without
    restarts.

    Args:
        learning_rate: the rate at the end of the warm-up.
        warmup: number of warm-up steps, in which the rate rises linearly.
        final: the rate at the end of training.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SGD(Cosine(0.1, warmup=500), momentum=0.9)
    """

    learning_rate: float
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("Cosine", "learning_rate", self.learning_rate)
        check_number("Cosine", "final", self.final)
        check_count(self, "warmup")

    def at(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return self.learning_rate * _warmed_up(step, self.warmup)
        done = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        return self.final + (self.learning_rate - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply the learning rate by `gamma` every `step_size` steps, as PyTorch's StepLR.

    Args:
        learning_rate: the rate of the first `step_size` steps.
        step_size: number of steps between two changes, counted from the first step of training.
        gamma: the factor.
        warmup: number of warm-up steps, in which the rate rises linearly; they count as steps of training.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SGD(Step(0.1, 500))  # 0.1, then 0.01 after 500 steps, ...
    """

    learning_rate: float
    step_size: int
    gamma: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("Step", "learning_rate", self.learning_rate)
        check_integer("Step: step_size", self.step_size, 1)
        object.__setattr__(self, "step_size", int(self.step_size))
        check_number("Step", "gamma", self.gamma)
        check_count(self, "warmup")

    def at(self, step: int, steps: int) -> float:
        return self.learning_rate * _power(self.gamma, step // self.step_size) * _warmed_up(step, self.warmup)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiply the learning rate by `gamma` at each milestone, as PyTorch's MultiStepLR.

    Args:
        learning_rate: the rate before the first milestone.
        milestones: numbers of steps done, in increasing order, counted from the first step of training.
        gamma: the factor.
        warmup: number of warm-up steps, in which the rate rises linearly; they count as steps of training.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> MultiStep(0.1, (32_000, 48_000)).at(40_000, 64_000)  # the recipe of He et al. 2016 (ResNet, CIFAR-10)
        0.010000000000000002
    """

    learning_rate: float
    milestones: tuple[int, ...]
    gamma: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("MultiStep", "learning_rate", self.learning_rate)
        if not isinstance(self.milestones, Sequence) or isinstance(self.milestones, str):
            raise InputError(f"MultiStep: milestones must be a tuple of integers, got {self.milestones!r}")
        for milestone in self.milestones:
            check_integer("MultiStep: each milestone", milestone, 1)
        if sorted(set(self.milestones)) != list(self.milestones):
            raise InputError(f"MultiStep: milestones must be in increasing order, got {self.milestones!r}")
        object.__setattr__(self, "milestones", tuple(map(int, self.milestones)))
        check_number("MultiStep", "gamma", self.gamma)
        check_count(self, "warmup")

    def at(self, step: int, steps: int) -> float:
        passed = bisect.bisect_right(self.milestones, step)
        return self.learning_rate * _power(self.gamma, passed) * _warmed_up(step, self.warmup)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply the learning rate by `gamma` in each step after a linear warm-up, as PyTorch's ExponentialLR.

    Args:
        learning_rate: the rate at the end of the warm-up.
        gamma: the factor of a step, for example 0.1 ** (1 / 5000) for a tenth every 5000 steps.
        warmup: number of warm-up steps, in which the rate rises linearly.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SGD(Exponential(0.1, 0.1 ** (1 / 5000)))
    """

    learning_rate: float
    gamma: float
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("Exponential", "learning_rate", self.learning_rate)
        check_number("Exponential", "gamma", self.gamma)
        check_count(self, "warmup")

    def at(self, step: int, steps: int) -> float:
        rate = self.learning_rate * _power(self.gamma, max(step - self.warmup, 0))
        return rate * _warmed_up(step, self.warmup)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial decay from `learning_rate` to `final` at the end of training, after a linear warm-up.

    Without a warm-up and with final=0 it is PyTorch's PolynomialLR whose total_iters is the whole training. The rate
    falls linearly with power=1.

    Args:
        learning_rate: the rate at the end of the warm-up.
        warmup: number of warm-up steps, in which the rate rises linearly.
        power: exponent of the fraction of steps that are left.
        final: the rate at the end of training.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SGD(Polynomial(0.1, power=2.0))
    """

    learning_rate: float
    warmup: int = 0
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "power", "final"):
            check_number("Polynomial", name, getattr(self, name))
        check_count(self, "warmup")

    def at(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return self.learning_rate * _warmed_up(step, self.warmup)
        left = 1 - min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        return self.final + (self.learning_rate - self.final) * left**self.power


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One-cycle schedule: linear rise, linear fall to 0 (Smith & Topin 2018, "Super-convergence", arXiv:1708.07120).

    Args:
        learning_rate: the largest rate.
        rise: the fraction of the steps in which the rate rises, in (0, 1).

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SGD(OneCycle(0.4), momentum=0.9)
    """

    learning_rate: float
    rise: float = 0.25

    def __post_init__(self) -> None:
        check_number("OneCycle", "learning_rate", self.learning_rate)
        if not (_is_number(self.rise) and 0 < self.rise < 1):
            raise InputError(f"OneCycle: rise must be a number between 0 and 1, got {self.rise!r}")

    def at(self, step: int, steps: int) -> float:
        done = min((step + 0.5) / steps, 1.0)  # a training resumed with larger minibatches may be past its end
        return self.learning_rate * min(done / self.rise, (1 - done) / (1 - self.rise))


@dataclass(frozen=True)
class Plateau(Schedule):
    """Multiply the learning rate by `factor` when a value no longer improves, as PyTorch's ReduceLROnPlateau with
    threshold_mode="abs".

    Every evaluation during training counts: that after each epoch, and those of `evaluate_every`. The rate is a
    function of the history, so it is the same on every rank, after a resume and after a rank was lost.

    Args:
        learning_rate: the rate before the first reduction.
        factor: the factor of a reduction, below 1.
        patience: number of evaluations without an improvement that are accepted.
        monitor: the name of a number in the logs of `on_test_end`, such as "test_accuracy", or "val_accuracy" for a
            validation set. None: the loss of that set.
        mode: "min" or "max": which values are better. "auto": "max" for names that end in accuracy, precision, recall
            or f1.
        min_delta: only a change by more than this counts as an improvement.
        cooldown: number of evaluations after a reduction that are not counted as without an improvement.
        min_learning_rate: no reduction goes below it.
        warmup: number of warm-up steps, in which the rate rises linearly; they count as steps of training.
        changes: set by `after`: (minibatches done, learning rate) of each reduction; None: there is no history yet.

    Raises:
        InputError: for a number outside its range; in training, if the evaluations have no such value; in `plot`,
            without a history.

    Example:
        >>> schedule = Plateau(0.1, factor=0.5, patience=3)
        >>> history = pc.train(network, train_set, test_set, SGD(schedule), epochs=30, batch_size=100)
        >>> schedule.after(history).plot(history.steps)
    """

    learning_rate: float
    factor: float = 0.1
    patience: int = 10
    _: KW_ONLY
    monitor: str | None = None
    mode: str = "auto"
    min_delta: float = 1e-4
    cooldown: int = 0
    min_learning_rate: float = 0.0
    warmup: int = 0
    changes: tuple[tuple[int, float], ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "factor", "min_delta", "min_learning_rate"):
            check_number("Plateau", name, getattr(self, name))
        if self.factor >= 1:
            raise InputError(f"Plateau: factor must be less than 1, got {self.factor!r}")
        for name in ("patience", "cooldown", "warmup"):
            check_count(self, name)
        if not (self.monitor is None or isinstance(self.monitor, str)):
            raise InputError(f'Plateau: monitor must be a name such as "test_accuracy" or None, got {self.monitor!r}')
        if self.mode not in MODES:
            raise InputError(f"Plateau: mode must be auto, min or max, got {self.mode!r}")

    def at(self, step: int, steps: int) -> float:
        changes = self.changes or ()
        passed = bisect.bisect_right(changes, step, key=lambda change: change[0])
        rate = changes[passed - 1][1] if passed else self.learning_rate
        return rate * _warmed_up(step, self.warmup)

    def after(self, history: Evaluated) -> "Plateau":
        sign = -1.0 if larger_is_better(self.monitor, self.mode) else 1.0
        rate, best, waited, cooling = self.learning_rate, math.inf, 0, 0
        changes = []
        for step, _, value in history.monitored(self.monitor, "Plateau"):
            if sign * value < best - self.min_delta:
                best, waited = sign * value, 0
            else:
                waited += 1
            if cooling > 0:
                cooling, waited = cooling - 1, 0
            if waited > self.patience:
                cooling, waited = self.cooldown, 0
                reduced = max(rate * self.factor, self.min_learning_rate)
                if reduced < rate:
                    rate = reduced
                    changes.append((step, rate))
        return replace(self, changes=tuple(changes))

    def plot(self, steps: int, axes: Any = None) -> Any:
        """Plot the learning rates of a training that is done; see `Schedule.plot`."""
        if self.changes is None:
            raise InputError(
                "Plateau: the learning rate depends on the evaluations of a training: "
                "after it, write schedule.after(history).plot(history.steps)"
            )
        return super().plot(steps, axes)


def rate_at(learning_rate: "float | Schedule", step: int, steps: int) -> float:
    """The learning rate of a step, for a number or a schedule."""
    return learning_rate.at(step, steps) if isinstance(learning_rate, Schedule) else learning_rate


def larger_is_better(name: str | None, mode: str) -> bool:
    """Whether larger values of a metric are better.

    Args:
        name: such as "test_accuracy"; None: the loss.
        mode: "min", "max" or "auto": larger is better for names that end in accuracy, precision, recall or f1.
    """
    return mode == "max" or (mode == "auto" and name is not None and name.endswith(_LARGER_IS_BETTER))


def check_number(owner: str, name: str, value: Any) -> None:
    """Raise InputError unless `value` is a finite number of at least 0."""
    if not (_is_number(value) and 0 <= value <= LARGEST_RATE):
        raise InputError(f"{owner}: {name} must be a finite number of at least 0, got {value!r}")


def check_count(schedule: Schedule, name: str) -> None:
    """Raise InputError unless the field is an integer of at least 0. It is stored as an int: numpy's overflow."""
    value = getattr(schedule, name)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{type(schedule).__name__}: {name} must be an integer of at least 0, got {value!r}")
    object.__setattr__(schedule, name, int(value))


def _warmed_up(step: int, warmup: int) -> float:
    """The fraction of the learning rate that a linear warm-up has reached, in (0, 1]."""
    return min((step + 1) / (warmup + 1), 1.0)


def _power(gamma: float, exponent: int) -> float:
    """gamma ** exponent, limited to the numbers that float32 can hold: Python would raise OverflowError."""
    try:
        return min(float(gamma) ** exponent, LARGEST_RATE)
    except OverflowError:
        return LARGEST_RATE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
