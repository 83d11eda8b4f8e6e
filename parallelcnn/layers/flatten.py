"""Flatten layer."""

import math
from dataclasses import dataclass

from .base import Array, Layer, Shape, Step


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """Flatten an image to a vector, channel by channel and row by row. Copies nothing.

    Shapes: any -> (its size,).

    Example:
        >>> Flatten().output_shape((16, 5, 5))
        (400,)
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, step: Step, x: Array) -> Array:
        step.save(x.shape)
        return x.reshape(math.prod(x.shape[:-1]), step.n)

    def backward(self, step: Step, dy: Array) -> Array | None:
        (input_shape,) = step.saved
        return dy.reshape(input_shape) if step.needs_input_gradient else None
