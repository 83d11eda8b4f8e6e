"""Two-dimensional convolution."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels.conv2d import conv2d_backward_bias

from .base import Array, Arrays, BoundLayer, Call, Shape, check_positive, draw_start_values, pair
from .convolutions import NO_BIAS, Rows, WindowAxis, Windows, as_rows, find_way, scratch_shapes, takes_panels


@dataclass(frozen=True, repr=False)
class Conv2D(BoundLayer):
    """Slide filters over an image: y[k] = f(bias[k] + sum over c of weight[k, c] correlated with x[c]).

    Args:
        filters: number of output channels, K.
        kernel_size: rows and columns of the filter, (R, S), or one number for both.
        stride: step between windows, (rows, columns) or one number for both.
        padding: "valid": none; "same": zeros around the image so that stride 1 keeps its size (and stride s leaves
            ceil(size / s), the odd zero going below and to the right, as in Keras); a number, or (rows, columns):
            that many zeros on each side.
        activation: name or `ActivationFunction` applied to the output.
        bias: whether each filter adds a number of its own.

    Shapes: (C, H, W) -> (filters, P, Q) with P = (H + zeros above and below - R) div stride + 1, and Q likewise.
    """

    filters: int
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: str | int | tuple[int, int] = "valid"
    activation: str | ActivationFunction = "identity"
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "filters")
        pair(self, "kernel_size", self.kernel_size)
        pair(self, "stride", self.stride)
        if isinstance(self.padding, str):
            if self.padding not in ("valid", "same"):
                raise ShapeError(f"{self}: padding must be 'valid', 'same' or a number, got {self.padding!r}")
        else:
            pair(self, "padding", self.padding, at_least=0)
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        rows, columns = windows_of(self, input_shape)
        return (self.filters, rows.outputs, columns.outputs)

    def param_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        R, S = pair(self, "kernel_size", self.kernel_size)
        shapes: dict[str, Shape] = {"weight": (self.filters, input_shape[0], R, S)}
        if self.bias:
            shapes["bias"] = (self.filters,)
        return shapes

    def init_params(self, params: Arrays, rng: np.random.Generator) -> None:
        weight = params["weight"]
        K, C, R, S = weight.shape
        draw_start_values(weight, C * R * S, K * R * S, find_activation(self.activation), rng)

    def cache_shapes(self, input_shape: Shape) -> dict[str, Any]:
        windows = windows_of(self, input_shape)
        shapes: dict[str, Any] = {}
        if not takes_panels(windows, self.filters, input_shape[0]):
            shapes |= Rows(*windows).cache_shapes(input_shape)
        if find_activation(self.activation).keeps_input:
            shapes["before_activation"] = self.output_shape(input_shape)
        return shapes

    def scratch_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        return scratch_shapes(windows_of(self, input_shape), self.filters, input_shape[0])

    def multiply_adds(self, input_shape: Shape) -> int:
        R, S = pair(self, "kernel_size", self.kernel_size)
        return math.prod(self.output_shape(input_shape)) * input_shape[0] * R * S

    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        way = find_way(windows_of(self, x.shape[:-1]), params["weight"], x, y, computed=y)
        yield from way.forward(params["weight"], params.get("bias", NO_BIAS[y.dtype]), x, y, cache)
        yield from find_activation(self.activation).forward_calls(y, cache.get("before_activation"))

    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        yield from find_activation(self.activation).backward_calls(cache.get("before_activation", y), dy)
        if self.bias:
            yield partial(conv2d_backward_bias, as_rows(dy), grads["bias"])
        yield from self.gradient_calls(params, grads, x, cache, dy, dx)

    def gradient_calls(
        self, params: Arrays, grads: Arrays, x: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        """What overwrites the gradients by the weights and by x, given dy before the activation."""
        weight, windows = params["weight"], windows_of(self, x.shape[:-1])
        yield from find_way(windows, weight, x, dy, computed=dy).weight_gradient(grads["weight"], x, dy, cache)
        if dx is not None:
            yield from find_way(windows, weight, dx, dy, computed=dx).input_gradient(weight, dy, dx, cache)


@cache
def windows_of(layer: Conv2D, input_shape: Shape) -> Windows:
    """How windows lie along rows and columns; ShapeError if the layer does not take such an input."""
    if len(input_shape) != 3:
        raise ShapeError(f"{layer} takes images (C, H, W), got {input_shape}")
    window = pair(layer, "kernel_size", layer.kernel_size)
    stride = pair(layer, "stride", layer.stride)
    axes = []
    for i, size in enumerate(input_shape[1:]):
        if layer.padding == "same":
            outputs = -(-size // stride[i])
            before = max((outputs - 1) * stride[i] + window[i] - size, 0) // 2
        else:
            before = 0 if layer.padding == "valid" else pair(layer, "padding", layer.padding, 0)[i]
            outputs = (size + 2 * before - window[i]) // stride[i] + 1
        if outputs < 1:
            padded = f" with {before} zeros on each side" if before else ""
            raise ShapeError(
                f"{layer}: a window of {window[0]} x {window[1]} is larger than the image, "
                f"{input_shape[1]} x {input_shape[2]}{padded}; it takes images at least as large as its window"
            )
        # From a single window no step is taken, however long it is.
        axes.append(WindowAxis(window[i], stride[i] if outputs > 1 else 1, before, outputs))
    return Windows(*axes)
