"""Fully connected layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import dense as kernels

from .base import Array, Arrays, BoundLayer, Call, Shape, check_positive, draw_start_values

# The kernels read arrays as they lie. Where these do not fit into the caches, numpy's products, which copy them into
# blocks first, are faster. Milliseconds of one core with a second cache of 2 MiB, units x features x samples:
#     forward:        1000 x 1000 x  256: 3.4 (numpy 3.5), 512 x 4096 x 512: 33 (15), 64 x 25088 x 32: 1.40 (1.07)
#     input gradient: 84 x 400 x 48: 0.025 (0.027), 84 x 400 x 128: 0.074 (0.067), 512 x 1024 x 50: 0.69 (0.52)
# The weight gradient goes through panels: 512 x 4096 x 512: 13.7 (13.5), 84 x 400 x 1024: 0.52 (0.67).
# Calls of numpy's cannot be joined to others (`joining.py`), which costs as much as it saves for so few units: a step
# of 128 samples takes 1.09 ms either way, and on two threads one of 400 samples takes 2.06 ms instead of 2.21.
_MOST_INPUT_BYTES = 2**20
_MOST_UNITS = 128


@dataclass(frozen=True, repr=False)
class Dense(BoundLayer):
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
        shapes = {"panel": (kernels.PANEL,)}
        if find_activation(self.activation).keeps_input:
            shapes["before_activation"] = (self.units,)
        return shapes

    def multiply_adds(self, input_shape: Shape) -> int:
        return self.units * input_shape[0]

    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        multiplied = x.nbytes > _MOST_INPUT_BYTES
        if multiplied:
            yield partial(np.matmul, params["weight"], x, out=y)
        yield partial(kernels.dense_forward, params["weight"], x, params.get("bias"), multiplied, y)
        yield from find_activation(self.activation).forward_calls(y, cache.get("before_activation"))

    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        yield from find_activation(self.activation).backward_calls(cache.get("before_activation", y), dy)
        panel = cache["panel"].reshape(-1, kernels.PANEL)
        yield partial(kernels.dense_backward_params, dy, x, panel, grads["weight"], grads.get("bias"))
        if dx is None:
            return
        if self.units <= _MOST_UNITS:
            yield partial(kernels.dense_backward_input, params["weight"], dy, panel, dx)
        else:
            yield partial(np.matmul, params["weight"].T, dy, out=dx)
