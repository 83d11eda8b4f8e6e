"""Parametric ReLU."""

import math
from dataclasses import dataclass

from parallelcnn.kernels import prelu as kernels

from .base import Array, Layer, Parameter, Shape, Step


@dataclass(frozen=True, repr=False)
class PReLU(Layer):
    """Parametric ReLU: y = x if x > 0, otherwise weight[c] * x, with one learned slope for each channel c.

    The slopes start at 0.25, and weight decay does not apply to them (He et al. 2015, arXiv:1502.01852, eq. 1 and
    section 2.1).

    Shapes: (C, H, W) or (features,) -> the same. For (features,) there is one slope for each feature.

    Example:
        >>> layers = (Conv2D(6, 3), PReLU(), Flatten(), Dense(10))
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        return {"weight": Parameter((input_shape[0],), initial=0.25, weight_decay=False)}

    def forward(self, step: Step, x: Array) -> Array:
        y = step.array(x.shape[:-1])
        step.call(kernels.prelu_forward, _by_channel(x), step.params["weight"], _by_channel(y))
        step.save(x)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        (x,) = step.saved
        weight, dweight = step.params["weight"], step.grads["weight"]
        step.call(kernels.prelu_backward, _by_channel(x), weight, _by_channel(dy), dweight)
        return dy if step.needs_input_gradient else None


def _by_channel(array: Array) -> Array:
    """A view of shape (C, all other numbers)."""
    return array.reshape(len(array), math.prod(array.shape[1:]))
