"""Fully connected layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import dense as kernels

from .base import Array, Arrays, Layer, Shape, check_positive, draw_start_values


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """y = f(weight x + bias), one matrix product.

    Args:
        units: number of outputs.
        activation: name or `ActivationFunction` applied to the output.
        bias: whether each output adds a number of its own.

    Shapes: (features,) -> (units,).
    """

    units: int
    activation: str | ActivationFunction = "identity"
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "units")
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise ShapeError(f"{self} takes (features,), got {input_shape}: is a Flatten() missing before it?")
        return (self.units,)

    def param_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.units, input_shape[0])}
        if self.bias:
            shapes["bias"] = (self.units,)
        return shapes

    def init_params(self, params: Arrays, rng: np.random.Generator) -> None:
        units, features = params["weight"].shape
        draw_start_values(params["weight"], features, units, find_activation(self.activation), rng)

    def cache_shapes(self, input_shape: Shape) -> dict[str, Any]:
        if find_activation(self.activation).keeps_input:
            return {"before_activation": (self.units,)}
        return {}

    def multiply_adds(self, input_shape: Shape) -> int:
        return self.units * input_shape[0]

    def forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> None:
        np.matmul(params["weight"], x, out=y)
        if self.bias:
            kernels.add_bias(params["bias"], y)
        find_activation(self.activation).forward(y, cache.get("before_activation"))

    def backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> None:
        find_activation(self.activation).backward(cache.get("before_activation", y), dy)
        np.matmul(dy, x.T, out=grads["weight"])
        if self.bias:
            kernels.dense_backward_bias(dy, grads["bias"])
        if dx is not None:
            np.matmul(params["weight"].T, dy, out=dx)
