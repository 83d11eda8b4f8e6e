"""Reshape layer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from parallelcnn.errors import ShapeError

from .base import Array, Layer, Shape, Step, check_integer


@dataclass(frozen=True, repr=False)
class Reshape(Layer):
    """Give each sample another shape. The numbers stay in order, channel by channel and row by row. Copies nothing.

    Args:
        shape: the new shape of a sample, of the same total size.

    Shapes: any -> shape.

    Raises:
        ShapeError: if `shape` is not a tuple of positive integers; when the network is built, if its total size differs
            from the input's.

    Example:
        >>> NetworkHandler((Dense(64), Reshape((4, 4, 4)), Upsample2D(2)), (10,)).output_shape
        (4, 8, 8)
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Iterable) or isinstance(self.shape, str) or not tuple(self.shape):
            raise ShapeError(f"{self}: shape must be a tuple of positive integers, got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(check_integer(self, "shape", size, 1) for size in self.shape))

    def output_shape(self, input_shape: Shape) -> Shape:
        if math.prod(self.shape) != math.prod(input_shape):
            raise ShapeError(
                f"{self} takes inputs of {math.prod(self.shape)} numbers, got {input_shape}, which are "
                f"{math.prod(input_shape)}"
            )
        return self.shape

    def forward(self, step: Step, x: Array) -> Array:
        step.save(x.shape)
        return x.reshape(*self.shape, step.n)

    def backward(self, step: Step, dy: Array) -> Array | None:
        (input_shape,) = step.saved
        return dy.reshape(input_shape) if step.needs_input_gradient else None
