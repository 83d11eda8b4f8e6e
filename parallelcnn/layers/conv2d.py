"""Two-dimensional convolution."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import conv2d as kernels

from .base import Array, Arrays, Layer, Shape, check_positive, draw_start_values, pair

_NO_BIAS = {np.dtype(t): np.empty(0, t) for t in (np.float32, np.float64)}


@dataclass(frozen=True, repr=False)
class Conv2D(Layer):
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
        rows, columns = window_axes(self, input_shape)
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
        rows, columns = window_axes(self, input_shape)
        shapes: dict[str, Any] = {"spare": (3, columns.outputs)}
        if not self._rows_are_the_image(input_shape):
            shapes["rows"] = shapes["drows"] = (
                input_shape[0],
                kernels.rows_needed(rows.outputs, rows.window, rows.stride),
                columns.stride,
                columns.outputs + (columns.window - 1) // columns.stride,
            )
        if find_activation(self.activation).keeps_input:
            shapes["before_activation"] = self.output_shape(input_shape)
        return shapes

    def forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> None:
        rows, columns = window_axes(self, x.shape[:-1])
        n = x.shape[-1]
        image = x
        if "rows" in cache:
            image = cache["rows"]
            kernels.arrange(x, rows.before, columns.before, columns.stride, image)
        kernels.forward_kernel(rows.window, columns.window, rows.stride, columns.stride)(
            _as_rows(image),
            params["weight"],
            params.get("bias", _NO_BIAS[y.dtype]),
            image.shape[-2] * n,
            n,
            cache["spare"].reshape(3, columns.outputs * n),
            _as_rows(y),
        )
        find_activation(self.activation).forward(y, cache.get("before_activation"))

    def backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> None:
        rows, columns = window_axes(self, x.shape[:-1])
        n = x.shape[-1]
        image = cache.get("rows", x)
        find_activation(self.activation).backward(cache.get("before_activation", y), dy)
        steps = (rows.stride, columns.stride, image.shape[-2] * n, n)
        if self.bias:
            kernels.conv2d_backward_bias(_as_rows(dy), grads["bias"])
        is_3x3 = rows.window == columns.window == 3
        backward_params = kernels.conv2d_backward_params_3x3 if is_3x3 else kernels.conv2d_backward_params
        backward_params(_as_rows(image), _as_rows(dy), *steps, grads["weight"])
        if dx is None:
            return
        spare = cache["spare"].reshape(3, columns.outputs * n)
        dimage = cache.get("drows", dx)
        kernels.conv2d_backward_input(_as_rows(dy), params["weight"], *steps, spare, _as_rows(dimage))
        if "drows" in cache:
            kernels.restore(dimage, rows.before, columns.before, columns.stride, dx)

    def _rows_are_the_image(self, input_shape: Shape) -> bool:
        """Whether the kernels can run over x itself: nothing in front, nothing behind, every column next to its own."""
        rows, columns = window_axes(self, input_shape)
        return (
            rows.before == columns.before == 0
            and kernels.rows_needed(rows.outputs, rows.window, rows.stride) <= input_shape[1]
            and columns.needed <= input_shape[2]
            and columns.stride == 1
        )


class WindowAxis(NamedTuple):
    """How windows lie along the rows, or the columns, of an image."""

    window: int
    stride: int
    before: int  # zeros in front of the image
    outputs: int  # windows

    @property
    def needed(self) -> int:
        """Input rows (or columns), zeros included, that some window covers."""
        return (self.outputs - 1) * self.stride + self.window


@cache
def window_axes(layer: Conv2D, input_shape: Shape) -> tuple[WindowAxis, WindowAxis]:
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
    return axes[0], axes[1]


def _as_rows(array: Array) -> Array:
    """(C, H, ..., n) seen as (C, H, one row's numbers). Written out, since -1 cannot be inferred where n = 0."""
    C, H = array.shape[:2]
    return array.reshape(C, H, array[0, 0].size)
