"""From images to vectors."""

import math
from dataclasses import dataclass

from .base import Array, Arrays, Layer, Shape


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """The numbers of an image in one line, channel by channel, row by row.

    Shapes: any -> (its size,).
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> None:
        y[...] = x.reshape(y.shape)

    def backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> None:
        if dx is not None:
            dx[...] = dy.reshape(dx.shape)
