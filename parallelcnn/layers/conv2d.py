"""Two-dimensional convolution."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import conv2d as kernels
from parallelcnn.kernels import panels, pointwise, winograd

from .base import Array, Arrays, BoundLayer, Call, Shape, check_positive, draw_start_values, pair

NO_BIAS = {np.dtype(t): np.empty(0, t) for t in (np.float32, np.float64)}

# From so many channels on, before and behind a layer, filters of 1 x 1 run as products of whole images.
_POINTWISE_CHANNELS = 32

# From so many channels and filters on, windows that take steps run as products of panels: 32 -> 64 channels take 1.1 to
# 1.5 times less time so, and 32 -> 32 or 16 -> 64 about as much.
_PANEL_CHANNELS, _PANEL_FILTERS = 32, 64


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
        shapes: dict[str, Any] = {} if self._takes_panels(input_shape) else self.row_shapes(input_shape)
        if find_activation(self.activation).keeps_input:
            shapes["before_activation"] = self.output_shape(input_shape)
        return shapes

    def row_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """What the passes over rows keep."""
        _, columns = window_axes(self, input_shape)
        C, H, W = input_shape
        shapes: dict[str, Shape] = {"zeros": (W,)}
        if columns.stride > 1:
            per_phase = columns.outputs + (columns.window - 1) // columns.stride
            phases = min(columns.stride, columns.window)
            shapes["zeros"] = (phases * per_phase,)
            shapes["rows"] = shapes["drows"] = (C, H, phases, per_phase)
        return shapes

    def scratch_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        C, K, (R, S) = input_shape[0], self.filters, pair(self, "kernel_size", self.kernel_size)
        if self._takes_panels(input_shape):
            return panels.scratch_shapes(K, C, R, S)
        rows, columns = window_axes(self, input_shape)
        size = kernels.scratch_size(K, C, R, S)
        if winograd.suits((K, C, R, S), (rows.stride, columns.stride)):
            size = max(size, winograd.memory_size(K, C))
        shapes: dict[str, Shape] = {"packed": (size,)}
        if (R, S) == (1, 1):
            shapes["panel"] = (pointwise.PANEL, C)
        return shapes

    def multiply_adds(self, input_shape: Shape) -> int:
        R, S = pair(self, "kernel_size", self.kernel_size)
        return math.prod(self.output_shape(input_shape)) * input_shape[0] * R * S

    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        yield from self.convolution_calls(params, x, y, cache)
        yield from find_activation(self.activation).forward_calls(y, cache.get("before_activation"))

    def convolution_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        """What overwrites y, before the activation; y may leave out the last rows and columns."""
        rows, columns = window_axes(self, x.shape[:-1])
        weight, bias = params["weight"], params.get("bias", NO_BIAS[y.dtype])
        if self._is_pointwise(weight, x, y):
            yield partial(pointwise.pointwise_forward, as_row(x), weight[:, :, 0, 0], params.get("bias"), as_row(y))
        elif self._takes_panels(x.shape[:-1]):
            kernel = panels.forward_kernel(columns.window, self.filters)
            yield partial(kernel, x, weight, bias, cache["packed"], cache["panel"], self._windows(x), y)
        elif self.takes_winograd(x, y):
            kernel = winograd.forward_kernel(self.filters)
            yield partial(kernel, x, weight, bias, cache["packed"], rows.before, columns.before, y)
        else:
            image = self.arranged(x, cache)
            yield from self.arrange_calls(x, image)
            kernel = kernels.forward_kernel(columns.window, columns.stride, self.filters)
            yield partial(kernel, as_rows(image), weight, bias, cache["packed"], *self.steps(x, image), as_rows(y))

    def takes_winograd(self, x: Array, outputs: Array) -> bool:
        """Whether `outputs`, computed from or for an input x, come from Winograd's kernels."""
        rows, columns = window_axes(self, x.shape[:-1])
        weight = (self.filters, len(x), rows.window, columns.window)
        return winograd.pays(weight, (rows.stride, columns.stride), outputs.shape)

    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        yield from find_activation(self.activation).backward_calls(cache.get("before_activation", y), dy)
        if self.bias:
            yield partial(kernels.conv2d_backward_bias, as_rows(dy), grads["bias"])
        yield self.weight_gradient_call(grads["weight"], x, dy, cache)
        if dx is not None:
            yield from self.input_gradient_calls(params["weight"], dy, dx, cache)

    def arranged(self, x: Array, cache: Arrays) -> Array:
        """The image as the kernels read it: x itself, or, for steps of several columns, its rows parted into phases."""
        _, columns = window_axes(self, x.shape[:-1])
        return x if columns.stride == 1 else cache["rows"]

    def arrange_calls(self, x: Array, image: Array) -> Iterator[Call]:
        """What makes of x the image that the kernels read."""
        if image is not x:
            _, columns = window_axes(self, x.shape[:-1])
            yield partial(kernels.arrange, x, columns.before, columns.stride, image)

    def steps(self, x: Array, image: Array) -> tuple[int, int, int, int, int]:
        """row_stride, top, left, phase and n of the kernels, for x and how it is arranged."""
        rows, columns = window_axes(self, x.shape[:-1])
        n = x.shape[-1]
        left = columns.before * n if columns.stride == 1 else 0  # `arrange` has put the zeros in
        return rows.stride, rows.before, left, image.shape[-2] * n, n

    def weight_gradient_call(self, dweight: Array, x: Array, dy: Array, cache: Arrays) -> Call:
        """What overwrites dweight, given dy and what forward left in the cache."""
        rows, columns = window_axes(self, x.shape[:-1])
        K, C, R, S = dweight.shape
        if self._is_pointwise(dweight, x, dy):
            sums = cache["packed"][: K * C].reshape(K, C)
            kernel = pointwise.pointwise_weight_gradient
            return partial(kernel, as_row(x), as_row(dy), cache["panel"], sums, dweight[:, :, 0, 0])
        if self._takes_panels(x.shape[:-1]):
            kernel, scratch = panels.panels_weight_gradient, (cache["panel"], cache["dy_turned"], cache["sums"])
            return partial(kernel, x, dy, *scratch, self._windows(x), dweight)
        if self.takes_winograd(x, dy):
            kernel = winograd.weight_gradient_kernel(K, C)
            return partial(kernel, x, dy, cache["packed"], rows.before, columns.before, dweight)
        image = self.arranged(x, cache)
        kernel = kernels.weight_gradient_kernel(R, S, columns.stride, K, C)
        zeros = cache["zeros"].reshape(-1)
        return partial(kernel, as_rows(image), as_rows(dy), zeros, *self.steps(x, image), dweight)

    def input_gradient_calls(self, weight: Array, dy: Array, dx: Array, cache: Arrays) -> Iterator[Call]:
        """What overwrites dx: a forward pass over dy with the filters turned round and their channel axes exchanged.

        For a stride of 2 every second row, or column, of dx is a pass of its own, over every second tap.
        """
        if self._is_pointwise(weight, dx, dy):
            scratch = cache["packed"][: weight.size].reshape(len(dx), len(dy))
            yield partial(pointwise.pointwise_backward_input, as_row(dy), weight[:, :, 0, 0], scratch, as_row(dx))
            return
        if self._takes_panels(dx.shape[:-1]):
            kernel = panels.backward_input_kernel(math.prod(weight.shape[1:]))
            scratches = cache["packed"], cache["panel"], cache["dy_panel"]
            yield partial(kernel, dy, weight, NO_BIAS[dx.dtype], *scratches, self._windows(dx), dx)
            return
        rows, columns = window_axes(self, dx.shape[:-1])
        if self.takes_winograd(dx, dx):
            turned, no_bias = weight.swapaxes(0, 1)[:, :, ::-1, ::-1], NO_BIAS[dx.dtype]
            zeros_before = 2 - rows.before, 2 - columns.before
            yield partial(winograd.forward_kernel(len(dx)), dy, turned, no_bias, cache["packed"], *zeros_before, dx)
            return
        n, image = dx.shape[-1], dx if columns.stride == 1 else cache["drows"]
        for row_phase in range(rows.stride):
            skipped = max(0, -((row_phase - rows.before) // rows.stride))  # rows of this phase above the image
            first_row = skipped * rows.stride + row_phase - rows.before
            for phase in range(min(columns.stride, columns.window)):
                to = image[:, first_row :: rows.stride]
                to = as_rows(to if columns.stride == 1 else to[:, :, phase])
                taps = weight[:, :, row_phase :: rows.stride, phase :: columns.stride]
                turned = taps.swapaxes(0, 1)[:, :, ::-1, ::-1]
                _, _, R, S = turned.shape
                if turned.size == 0:  # a stride longer than the window leaves something out
                    yield partial(to.fill, 0)
                    continue
                kernel = kernels.forward_kernel(S, 1, len(turned))
                left = S - 1 - (columns.before if columns.stride == 1 else 0)
                steps = 1, R - 1 - skipped, left * n, 0, n
                yield partial(kernel, as_rows(dy), turned, NO_BIAS[dx.dtype], cache["packed"], *steps, to)
        if columns.stride > 1:
            yield partial(kernels.restore, image, columns.before, columns.stride, dx)

    def _is_pointwise(self, weight: Array, x: Array, y: Array) -> bool:
        """Whether `pointwise` serves: each place of y is that place of x, through a matrix. Else all about windows."""
        K, C, R, S = weight.shape
        # Behind the convolution a pooling may leave rows or columns out.
        if (R, S) != (1, 1) or min(K, C) < _POINTWISE_CHANNELS or x.shape[1:] != y.shape[1:]:
            return False
        return all(axis.stride == 1 and axis.before == 0 for axis in window_axes(self, x.shape[:-1]))

    def _takes_panels(self, input_shape: Shape) -> bool:
        """Whether `panels` serves: windows take steps, and enough filters share the copies of what they see."""
        takes_steps = any(axis.stride > 1 for axis in window_axes(self, input_shape))
        return takes_steps and input_shape[0] >= _PANEL_CHANNELS and self.filters >= _PANEL_FILTERS

    def _windows(self, x: Array) -> tuple[int, int, int, int]:
        """row_stride, top, column_stride and left of the kernels of panels."""
        rows, columns = window_axes(self, x.shape[:-1])
        return rows.stride, rows.before, columns.stride, columns.before


class WindowAxis(NamedTuple):
    """How windows lie along the rows, or the columns, of an image."""

    window: int
    stride: int
    before: int  # zeros in front of the image
    outputs: int  # windows


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


def as_row(array: Array) -> Array:
    """(C, H, W, n) seen as (C, all of an image's numbers)."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def as_rows(array: Array) -> Array:
    """(C, H, ..., n) seen as (C, H, one row's numbers). Written out, since -1 cannot be inferred where n = 0."""
    C, H = array.shape[:2]
    return array.reshape(C, H, math.prod(array.shape[2:]))
