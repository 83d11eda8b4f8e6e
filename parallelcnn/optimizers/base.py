"""Base classes of optimisers: `Optimizer` for your own, `KernelOptimizer` for those of this package."""

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import Any, Self

import numpy as np

from parallelcnn.errors import InputError
from parallelcnn.kernels.clipping import clamp, scale, sum_of_squares
from parallelcnn.parameters import in_rows
from parallelcnn.schedules import Evaluated, Schedule, check_number, rate_at

Array = np.ndarray
Share = Callable[[Callable[[Array], object], Array], object]

# Fewer elements are updated by one thread. Adam on two threads took 1.4 times as long as on one with 78,000 elements,
# 0.8 times with 200,000 and 0.7 times with 300,000 to 3,000,000, where both wait for memory.
_MANY = 200_000


class Optimizer(ABC):
    """Base class of optimisers. Subclass it, best as a frozen dataclass, to add your own.

    An optimiser with a `weight_decay` other than 0 is called with one more argument, `update(..., parts=)`. Biases and
    normalisation parameters should not decay (He et al. 2019, arXiv:1812.01187, section 3.1). `parts` says which
    elements do: an array of integers, whose rows (start, stop, decays) cover the vectors, with decays 1 or 0.

    Example:
        >>> @dataclass(frozen=True)
        ... class SignDescent(Optimizer):
        ...     learning_rate: float = 0.001
        ...
        ...     def update(self, params, gradients, state, step=0, steps=1):
        ...         params -= self.rate(step, steps) * np.sign(gradients)
    """

    @abstractmethod
    def update(self, params: Array, gradients: Array, state: dict[str, Array], step: int = 0, steps: int = 1) -> None:
        """Update the parameters by one step.

        Args:
            params: flat vector, updated in place.
            gradients: flat vector of the same length, summed over all ranks; may be overwritten.
            state: the state vectors by name, each as long as the parameters, updated in place; empty at first.
            step: number of steps done before, for schedules and bias correction.
            steps: number of steps of the whole training.
        """

    def takes(self, name: str) -> bool:
        """Whether `update` has an optional argument of that name."""
        arguments = _arguments_of_update(type(self))
        return name in arguments or any(one.kind is one.VAR_KEYWORD for one in arguments.values())

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        return rate_at(getattr(self, "learning_rate", math.nan), step, steps)

    def after(self, history: Evaluated) -> Self:
        """The optimiser with its schedule given a history; see `Schedule.after`. The optimiser itself without one."""
        before = getattr(self, "learning_rate", None)
        now = before.after(history) if isinstance(before, Schedule) else before
        if now is before:
            return self
        other = copy.copy(self)
        object.__setattr__(other, "learning_rate", now)  # it may be a frozen dataclass
        return other

    def average(self, state: dict[str, Array]) -> Array | None:
        """The state vector that is evaluated in place of the parameters, and that replaces them at the end of training.

        None, the default: the parameters are evaluated.
        """
        return None


class KernelOptimizer(Optimizer):
    """An optimiser whose step is one kernel: checks its fields and clips the gradients. Subclasses are frozen
    dataclasses with the fields below, and define `state_names` and `take_step`.

    Weight decay applies to all parameters but those declared with `Parameter(weight_decay=False)`: biases and
    normalisation parameters.

    Attributes:
        learning_rate: a number, or a schedule.
        weight_decay: see the subclass.
        clip_norm: the largest L2 norm of all gradients together; None: no limit. After the sum over ranks, larger
            gradients are scaled to it, as by PyTorch's clip_grad_norm_ (Pascanu et al. 2013, arXiv:1211.5063, alg. 1).
        clip_value: the largest absolute value of a gradient; None: no limit. After the sum over ranks, larger values
            are set to it, as by PyTorch's clip_grad_value_, before their norm is computed.
    """

    learning_rate: float | Schedule
    weight_decay: float
    clip_norm: float | None
    clip_value: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.learning_rate, Schedule):
            self._check_numbers("learning_rate")
        self._check_numbers("weight_decay")
        self._check_numbers(*(name for name in ("clip_norm", "clip_value") if getattr(self, name) is not None))

    def update(
        self,
        params: Array,
        gradients: Array,
        state: dict[str, Array],
        step: int = 0,
        steps: int = 1,
        parts: Array | None = None,
        share: Share | None = None,
    ) -> None:
        """Update the parameters by one step; see `Optimizer`.

        Args:
            parts: None: all parameters decay.
            share: calls a function with shares of an array, at the same time on several threads. No bit of the result
                depends on it. None: this thread does everything.
        """
        if self.clip_value is not None:
            clamp(gradients, gradients.dtype.type(self.clip_value))
        if self.clip_norm is not None:
            clip_by_norm(gradients, self.clip_norm)
        for name in self.state_names():
            if name not in state:
                state[name] = np.zeros_like(params)
        parts = _all(params.size) if parts is None else parts
        take_step = partial(self.take_step, params, gradients, state, self.rate(step, steps), step)
        if share is None or params.size < _MANY:
            take_step(parts)
        else:
            share(take_step, parts)

    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """The names of the state vectors. They are 0 at first."""

    @abstractmethod
    def take_step(
        self, params: Array, gradients: Array, state: dict[str, Array], rate: float, step: int, parts: Array
    ) -> None:
        """Call the kernel, which updates the elements of `parts`. Factors must have the type of the vectors: with a
        float64 factor the whole loop would compute in float64.

        Args:
            rate: the learning rate of this step.
        """

    def _check_numbers(self, *names: str, below_one: bool = False) -> None:
        """Raise InputError unless each field is a finite number of at least 0 and, if so asked, below 1."""
        owner = type(self).__name__
        for name in names:
            value = getattr(self, name)
            check_number(owner, name, value)
            if below_one and value >= 1:
                raise InputError(f"{owner}: {name} must be less than 1, got {value!r}")

    def _check_betas(self, betas: Any) -> None:
        """Raise InputError unless `betas` is a tuple of two numbers in [0, 1)."""
        numbers = betas if isinstance(betas, tuple) else ()
        good = [isinstance(beta, int | float | np.number) and 0 <= beta < 1 for beta in numbers]
        if good != [True, True]:
            owner = type(self).__name__
            raise InputError(f"{owner}: betas must be a tuple of two numbers of at least 0 and below 1, got {betas!r}")


def clip_by_norm(gradients: Array, largest: float) -> None:
    """Scale the vector down to the L2 norm `largest` if its norm is larger."""
    norm = math.sqrt(sum_of_squares(gradients))
    if norm > largest:
        scale(gradients, gradients.dtype.type(largest / norm))


@lru_cache
def _all(size: int) -> Array:
    """The `parts` of a vector of which everything decays."""
    return in_rows([(0, size, 1)])


@cache
def _arguments_of_update(kind: type[Optimizer]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.update).parameters
