"""An activation as a layer of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.kernels.copying import copy

from .base import Array, Arrays, BoundLayer, Call, Shape


@dataclass(frozen=True, repr=False)
class Activation(BoundLayer):
    """y = f(x), element by element.

    Args:
        activation: name or `ActivationFunction`.

    Shapes: any -> the same.
    """

    activation: str | ActivationFunction

    def __post_init__(self) -> None:
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        yield partial(copy, x.reshape(x.size), y.reshape(y.size))
        yield from find_activation(self.activation).forward_calls(y, None)  # the input is at hand: it is x

    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        if dx is not None:
            function = find_activation(self.activation)
            yield partial(copy, dy.reshape(dy.size), dx.reshape(dx.size))
            yield from function.backward_calls(x if function.keeps_input else y, dx)
