"""From images to vectors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from parallelcnn.kernels.copying import copy

from .base import Array, Arrays, BoundLayer, Call, Shape


@dataclass(frozen=True, repr=False)
class Flatten(BoundLayer):
    """The numbers of an image in one line, channel by channel, row by row.

    Shapes: any -> (its size,).
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        yield partial(copy, x.reshape(y.size), y.reshape(y.size))

    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        if dx is not None:
            yield partial(copy, dy.reshape(dx.size), dx.reshape(dx.size))
