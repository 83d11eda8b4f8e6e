"""Learning-rate schedules: pure functions of the step. Pass one instead of a learning rate.

    SGD(learning_rate=Cosine(0.1, warmup=500))

Schedules keep no counter: the rates are the same after a resume and on any number of ranks.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.errors import InputError

LARGEST_RATE = float(np.finfo(np.float32).max)


class Schedule(ABC):
    """Base class of learning-rate schedules. Subclass it, best as a frozen dataclass, to add your own."""

    @abstractmethod
    def at(self, step: int, steps: int) -> float:
        """The learning rate of a step.

        Args:
            step: number of steps done before, 0 for the first.
            steps: number of steps of the whole training.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """Constant learning rate, after a linear warm-up.

    Args:
        learning_rate: the rate after the warm-up.
        warmup: number of warm-up steps, in which the rate rises linearly.

    Raises:
        InputError: for a number outside its range.
    """

    learning_rate: float
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("Constant", "learning_rate", self.learning_rate)
        check_count("Constant", "warmup", self.warmup)

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
    """

    learning_rate: float
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("Cosine", "learning_rate", self.learning_rate)
        check_number("Cosine", "final", self.final)
        check_count("Cosine", "warmup", self.warmup)

    def at(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return self.learning_rate * _warmed_up(step, self.warmup)
        done = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        return self.final + (self.learning_rate - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One-cycle schedule: linear rise, linear fall to 0 (Smith & Topin 2018, "Super-convergence", arXiv:1708.07120).

    Args:
        learning_rate: the largest rate.
        rise: the fraction of the steps in which the rate rises, in (0, 1).

    Raises:
        InputError: for a number outside its range.
    """

    learning_rate: float
    rise: float = 0.25

    def __post_init__(self) -> None:
        check_number("OneCycle", "learning_rate", self.learning_rate)
        if not (_is_number(self.rise) and 0 < self.rise < 1):
            raise InputError(f"OneCycle: rise must be a number between 0 and 1, got {self.rise!r}")

    def at(self, step: int, steps: int) -> float:
        done = (step + 0.5) / steps
        return self.learning_rate * min(done / self.rise, (1 - done) / (1 - self.rise))


def rate_at(learning_rate: "float | Schedule", step: int, steps: int) -> float:
    """The learning rate of a step, for a number or a schedule."""
    return learning_rate.at(step, steps) if isinstance(learning_rate, Schedule) else learning_rate


def check_number(owner: str, name: str, value: Any) -> None:
    """Raise InputError unless `value` is a finite number of at least 0."""
    if not (_is_number(value) and 0 <= value <= LARGEST_RATE):
        raise InputError(f"{owner}: {name} must be a finite number of at least 0, got {value!r}")


def check_count(owner: str, name: str, value: Any) -> None:
    """Raise InputError unless `value` is an integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{owner}: {name} must be an integer of at least 0, got {value!r}")


def _warmed_up(step: int, warmup: int) -> float:
    """The fraction of the learning rate that a linear warm-up has reached, in (0, 1]."""
    return min((step + 1) / (warmup + 1), 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
