"""Base class of the layers that change images at random."""

from abc import abstractmethod
from typing import Any

import numpy as np

from parallelcnn.errors import ShapeError

from .base import Array, Layer, Shape, Step
from .pooling import image_shape


class Augmentation(Layer):
    """A layer that changes images at random in training, and does nothing in prediction.

    The random numbers are functions of the seed, the epoch, the sample and the layer's number. So they do not depend on
    the number of ranks and threads.
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return image_shape(self, input_shape)

    def forward(self, step: Step, x: Array) -> Array:
        return self.record(step, x) if step.training and self.is_active else x

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        return self.record_backward(step, dy) if self.is_active else dy

    @property
    @abstractmethod
    def is_active(self) -> bool:
        """Whether it changes anything in training."""

    @abstractmethod
    def record(self, step: Step, x: Array) -> Array:
        """`forward` in training."""

    @abstractmethod
    def record_backward(self, step: Step, dy: Array) -> Array:
        """`backward`, if it is needed."""


def check_amount(layer: Layer, name: str, value: Any, *, at_most: float, below: bool = False) -> None:
    """Raise ShapeError, naming the layer, unless the value is a number from 0 to `at_most`, or below it."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= at_most or (below and value == at_most):
        rule = f"a number of at least 0 and {'below' if below else 'at most'} {at_most:g}"
        raise ShapeError(f"{layer}: {name} must be {rule}, got {value!r}")
