"""Activation layer."""

from dataclasses import dataclass

from parallelcnn.activations import AnyActivation, find_activation
from parallelcnn.kernels.copying import copy

from .base import Array, Layer, Shape, Step


@dataclass(frozen=True, repr=False)
class Activation(Layer):
    """Apply an activation function element by element: y = f(x).

    Args:
        activation: name, function of one number, or `ActivationFunction`.

    Shapes: any -> the same.

    Raises:
        InputError: if the activation is not known.

    Example:
        >>> layers = (Conv2D(16, 3), Activation("relu"), Conv2D(16, 3), Activation(lambda x: x / (1 + abs(x))))
    """

    activation: AnyActivation

    def __post_init__(self) -> None:
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, step: Step, x: Array) -> Array:
        y = step.array(x.shape[:-1])
        step.call(copy, x.reshape(x.size), y.reshape(y.size))
        step.save(find_activation(self.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        (kept,) = step.saved
        find_activation(self.activation).record_backward(step, kept, dy)
        return dy
