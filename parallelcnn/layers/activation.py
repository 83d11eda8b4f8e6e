"""An activation as a layer of its own."""

from dataclasses import dataclass

from parallelcnn.activations import ActivationFunction, find_activation

from .base import Array, Arrays, Layer, Shape


@dataclass(frozen=True, repr=False)
class Activation(Layer):
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

    def forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> None:
        y[...] = x
        find_activation(self.activation).forward(y, None)  # the input is at hand: it is x

    def backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> None:
        if dx is not None:
            function = find_activation(self.activation)
            dx[...] = dy
            function.backward(x if function.keeps_input else y, dx)
