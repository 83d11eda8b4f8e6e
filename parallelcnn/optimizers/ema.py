"""Exponential moving average of the parameters."""

from dataclasses import dataclass
from typing import Any

from parallelcnn.arguments import check_type
from parallelcnn.errors import InputError
from parallelcnn.kernels.averaging import move_average
from parallelcnn.schedules import Evaluated, check_number

from .base import Array, Optimizer


@dataclass(frozen=True)
class EMA(Optimizer):
    """Take the steps of another optimiser, and keep an exponential moving average of the parameters (Tarvainen &
    Valpola 2017, "Mean teachers are better role models", arXiv:1703.01780, section 2):

        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * parameter

    t is the number of steps done before. The smaller d of the first steps, as in TensorFlow's
    ExponentialMovingAverage(num_updates=t), lets the average forget the initial parameters.

    Evaluations during training use the average in place of the parameters, and at its end the network gets the average.
    Checkpoints hold both. Buffers are not averaged: they are moving averages already.

    Args:
        optimizer: the optimiser that takes the steps.
        decay: weight of the earlier average, at least 0 and below 1.

    Raises:
        InputError: if `optimizer` is not an optimiser, or `decay` is outside its range.

    Example:
        >>> EMA(AdamW(0.001), decay=0.999)
    """

    optimizer: Optimizer
    decay: float = 0.999

    def __post_init__(self) -> None:
        check_type("EMA: optimizer", self.optimizer, Optimizer, "SGD(0.1)")
        if isinstance(self.optimizer, EMA):
            raise InputError(f"EMA: optimizer must not be an EMA itself, got {self.optimizer!r}")
        check_number("EMA", "decay", self.decay)
        if self.decay >= 1:
            raise InputError(f"EMA: decay must be less than 1, got {self.decay!r}")

    @property
    def weight_decay(self) -> float:
        """That of the optimiser that takes the steps."""
        return getattr(self.optimizer, "weight_decay", 0.0)

    def update(
        self,
        params: Array,
        gradients: Array,
        state: dict[str, Array],
        step: int = 0,
        steps: int = 1,
        **options: Any,
    ) -> None:
        if "average" not in state:
            state["average"] = params.copy()
        self.optimizer.update(params, gradients, state, step, steps, **options)
        decay = min(self.decay, (1 + step) / (10 + step))
        move_average(state["average"], params, params.dtype.type(1 - decay))

    def takes(self, name: str) -> bool:
        return self.optimizer.takes(name)

    def rate(self, step: int, steps: int) -> float:
        return self.optimizer.rate(step, steps)

    def after(self, history: Evaluated) -> "EMA":
        inner = self.optimizer.after(history)
        return self if inner is self.optimizer else EMA(inner, self.decay)

    def average(self, state: dict[str, Array]) -> Array | None:
        return state.get("average")
