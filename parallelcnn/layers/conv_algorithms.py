"""The convolution algorithms: which kernels each one calls, and when it is used.

    Direct      any convolution, also with groups or dilation                `kernels/conv2d.py`
    Pointwise   filters of 1 x 1, stride 1, no padding, many channels        `kernels/pointwise.py`
    Subsampled  filters of 1 x 1, strides above 1, no padding                `kernels/subsampling.py`
    Im2col      strides above 1, many channels and filters                   `kernels/panels.py`
    Winograd    filters of 3 x 3 with stride 1 or 2, or of 5 x 5 with
                stride 1, many channels                                      `kernels/winograd.py`
    Depthwise   small filters of one channel, column stride above 1          `kernels/depthwise.py`
    Amx         numbers rounded to bfloat16, on a processor with AMX         `kernels/bfloat16.py`
    Rounded     numbers rounded to bfloat16, elsewhere: any of the above

The choice depends on shapes alone: a choice by timing could give other bits in every run.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from parallelcnn.kernels import bfloat16, conv2d, depthwise, panels, pointwise, subsampling, winograd
from parallelcnn.kernels.adding import add_to

from .base import Array, Shape, Step
from .conv_bfloat16 import Amx, Rounded
from .conv_windows import NO_BIAS, Algorithm, WindowAxis, Windows, phases, rotated

# From these numbers of channels and filters on, strided windows run as matrix products of panels: for 32 -> 64 channels
# this is 1.1 to 1.5 times faster, for 32 -> 32 or 16 -> 64 about as fast.
_IM2COL_CHANNELS, _IM2COL_FILTERS = 32, 64

# From this number of filters on, `Direct` copies the image with zeros around its columns, if that makes at most so many
# times as many products. Otherwise the forward pass cuts rows into pieces at the border, and the weight
# gradient computes places there tap by tap. GFLOP/s for 3 -> 32 channels of 32 x 32 with the copy (without it), for
# n = 32 and n = 100:
#
#     7 x 7    forward 93 (81), 74 (75)    weight gradient 73 (66), 62 (44)
#     3 x 3    forward 82 (77), 81 (78)    weight gradient 89 (86), 77 (55)
#
# Forward, 16 filters lose a tenth (AMD Zen 3, AVX2).
_PADDED_FILTERS, _PADDED_PRODUCTS = 32, 1.15

# From these numbers of filters, and of numbers that a row of a window sees, products of bfloat16 are faster. With AMX,
# for n = 32, 32 x 32, 3 x 3, 3 -> 16 channels would run at 105 GFLOP/s forwards and 67 in the weight gradient, copies
# included (float32: 167 and 142), and 16 -> 16 channels run at 360 and 410 (235 and 201).
_ROUNDED_FILTERS, _ROUNDED_NUMBERS = 16, 16


def is_rounded(weight: Shape) -> bool:
    """Whether a convolution of filters (K, C, R, S) is large enough for bfloat16; see `Step.bfloat16`."""
    K, C, _, S = weight
    return K >= _ROUNDED_FILTERS and C * S >= _ROUNDED_NUMBERS


def select(windows: Windows, weight: Shape, x: Shape, y: Shape, computed: Shape, *, rounds: bool = False) -> Algorithm:
    """Select the algorithm for these shapes.

    Args:
        weight: (K, C / groups, R, S).
        x, y: (C, H, W, n) and (K, P, Q, n).
        computed: the shape, of the two, that is computed; y for the weight gradient.
        rounds: whether to round the factors to bfloat16, if `is_rounded`.
    """
    (rows, columns), (K, C, R, S) = windows, weight
    strides, is_plain = (rows.stride, columns.stride), x[0] == C and rows.dilation == columns.dilation == 1
    is_one_by_one = is_plain and (R, S) == (1, 1) and (rows.before, columns.before) == (0, 0)
    if is_one_by_one and max(strides) > 1:
        unstrided, seen = Windows(*(axis._replace(stride=1) for axis in windows)), (C, *y[1:])
        convolution = select(unstrided, weight, seen, y, seen if computed == x else y, rounds=rounds)
        return Subsampled(strides, convolution)
    if rounds and is_plain and is_rounded(weight):
        return Amx(*windows) if bfloat16.is_fast() else Rounded(select(windows, weight, x, y, computed))
    if C == 1 < x[0] and columns.stride > 1 and R * S <= depthwise.MOST_TAPS:
        return Depthwise(*windows)
    if not is_plain:
        return Direct(*windows)
    if is_one_by_one and x[1:] == y[1:] and min(K, C) >= pointwise.LEAST_CHANNELS:
        return Pointwise()
    outputs, seen = (x, y) if strides == (1, 1) and computed == x else (y, x)
    if winograd.pays(weight, strides, outputs, seen):
        return Winograd(*windows)
    if max(strides) > 1 and C >= _IM2COL_CHANNELS and K >= _IM2COL_FILTERS:
        return Im2col(*windows)
    few = columns.window * columns.outputs <= _PADDED_PRODUCTS * _products_inside(columns, x[2])
    return Direct(*windows, padded=columns.before > 0 and K >= _PADDED_FILTERS and few)


def _products_inside(axis: WindowAxis, size: int) -> int:
    """The number of taps inside an image of this size, of all windows along the axis."""
    starts = (window * axis.stride - axis.before for window in range(axis.outputs))
    return sum(max(0, min(start + axis.window, size) - max(start, 0)) for start in starts)


class Direct(NamedTuple):
    """Direct convolution: tiles over the rows of the image; see `kernels.conv2d`.

    Args:
        padded: whether to copy the image with zeros around its columns although the column stride is 1.
    """

    rows: WindowAxis
    columns: WindowAxis
    padded: bool = False

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        image = self.arrange(step, x)
        groups = len(x) // weight.shape[1]
        kernel = conv2d.forward_kernel(self.columns.window, self.columns.stride, len(weight) // groups)
        packed = self._packed(step, weight, groups)
        for seen, made, steps in self._parts(image, y):
            step.call(kernel, as_rows(seen), weight, bias, packed, *steps, as_rows(made))
        return image

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        K, C, R, S = dweight.shape
        kernel = conv2d.weight_gradient_kernel(R, S, self.columns.stride, K // (len(image) // C), C)
        zeros = step.scratch((math.prod(image.shape[2:]),))
        to = dweight
        for seen, made, steps in self._parts(image, dy):
            step.call(kernel, as_rows(seen), as_rows(made), zeros, *steps, to)
            if to is not dweight:
                step.call(add_to, dweight.reshape(dweight.size), to.reshape(to.size))
            elif self.rows.dilation > 1:
                to = step.scratch(dweight.shape)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        """A forward pass over dy with the filters rotated by 180 degrees and their channel axes swapped.

        For a stride of 2, every second row, or column, of dx is a separate pass over every second tap.
        """
        rows, columns, _ = self
        groups = len(dx) // weight.shape[1]
        n, strided = dx.shape[-1], columns.stride > 1
        image = step.array(self._parted(dx)) if strided else dx
        packed = self._packed(step, weight, groups)
        weight = _swapped(step, weight, groups)
        if rows.dilation > 1 or columns.dilation > 1:
            C, _, R, S = weight.shape
            kernel = conv2d.forward_kernel(S, 1, C // groups)
            left = (S - 1) * columns.dilation - columns.before
            for to, seen, (_, top, *_) in self._parts(dx, dy):
                steps = 1, R - 1 - top, left * n, 0, n * columns.dilation
                step.call(kernel, as_rows(seen), rotated(weight), NO_BIAS[dx.dtype], packed, *steps, as_rows(to))
            return
        for row_taps, first_row, top in phases(rows):
            for phase in range(min(columns.stride, columns.window)):
                to = image[:, first_row :: rows.stride]
                to = as_rows(to[:, :, phase] if strided else to)
                turned = rotated(weight[:, :, row_taps, phase :: columns.stride])
                C, _, _, S = turned.shape
                if turned.size == 0:  # with a stride longer than the window no window covers this phase
                    step.call(to.fill, 0)
                    continue
                kernel = conv2d.forward_kernel(S, 1, C // groups)
                left = S - 1 - (0 if strided else columns.before)
                steps = 1, top, left * n, 0, n
                step.call(kernel, as_rows(dy), turned, NO_BIAS[dx.dtype], packed, *steps, to)
        if strided:
            step.call(conv2d.restore, image, columns.before, columns.stride, dx)

    def _parts(self, image: Array, y: Array) -> Iterator[tuple[Array, Array, tuple[int, ...]]]:
        """The rows of the image and of y that belong together, with the kernels' steps. With a dilation of d rows there
        are d parts, each of every d-th row: in these, the taps of a window are neighbours.
        """
        d, before = self.rows.dilation, self.rows.before
        row_stride, _, *columns = self.steps(image)
        for part in range(d):
            first = (part - before) % d
            yield image[:, first::d], y[:, part::d], (row_stride, (first - part + before) // d, *columns)

    def arrange(self, step: Step, x: Array) -> Array:
        """The image in the layout of the kernels: for a column stride above 1, each row is split into phases. Zeros are
        added around the columns.
        """
        if not self._arranges():
            return x
        image = step.array(self._parted(x))
        step.call(conv2d.arrange, x, self.columns.before, self.columns.stride, image)
        return image

    def steps(self, image: Array) -> tuple[int, ...]:
        """The arguments row_stride, top, left, phase and n of the kernels."""
        n = image.shape[-1]
        left = 0 if self._arranges() else self.columns.before * n  # `arrange` adds the zeros
        return self.rows.stride, self.rows.before, left, image.shape[-2] * n, n * self.columns.dilation

    def _arranges(self) -> bool:
        return self.padded or self.columns.stride > 1

    def _parted(self, x: Array) -> Shape:
        C, H = x.shape[:2]
        per_phase = self.columns.outputs + (self.columns.window - 1) // self.columns.stride
        return C, H, min(self.columns.stride, self.columns.window), per_phase

    def _packed(self, step: Step, weight: Array, groups: int) -> Array:
        K, *others = weight.shape
        return step.scratch((conv2d.scratch_size(K // groups, *others),))


class Pointwise:
    """Filters of 1 x 1 as matrix products; see `kernels.pointwise`."""

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        seen, given = whole_images(x), bias if bias.size else None
        columns = step.scratch(pointwise.columns_shape(len(seen), seen.shape[1], x.itemsize))
        step.call(pointwise.pointwise_forward, seen, weight[:, :, 0, 0], given, columns, whole_images(y))
        return x

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        K, C, _, _ = dweight.shape
        panel, sums = step.scratch(pointwise.panel_shape(dweight.itemsize)), step.scratch((2, K, C))
        kernel = pointwise.pointwise_weight_gradient
        step.call(kernel, whole_images(image), whole_images(dy), panel, sums, dweight[:, :, 0, 0])

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        seen, turned = whole_images(dy), step.scratch((len(dx), len(dy)))
        columns = step.scratch(pointwise.columns_shape(len(seen), seen.shape[1], dy.itemsize))
        kernel = pointwise.pointwise_backward_input
        step.call(kernel, seen, weight[:, :, 0, 0], turned, columns, whole_images(dx))


class Subsampled(NamedTuple):
    """Filters of 1 x 1 with a stride: a convolution with stride 1 of the places that windows see, copied together."""

    strides: tuple[int, int]
    convolution: Algorithm

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        image = step.array((len(x), *y.shape[1:-1]))
        step.call(subsampling.subsample, x, self.strides, image)
        return self.convolution.forward(step, weight, bias, image, y)

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        self.convolution.weight_gradient(step, image, dy, dweight)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        dimage = step.scratch((len(dx), *dy.shape[1:]))
        self.convolution.input_gradient(step, weight, dy, dimage)
        step.call(subsampling.subsample_backward, dimage, self.strides, dx)


class Im2col(NamedTuple):
    """Strided windows over many channels as matrix products of panels; see `kernels.panels`."""

    rows: WindowAxis
    columns: WindowAxis

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        kernel = panels.forward_kernel(self.columns.window, len(weight))
        scratch = self._scratch(step, weight, "packed", "panel")
        step.call(kernel, x, weight, bias, *scratch, self._steps(), y)
        return x

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        scratch = self._scratch(step, dweight, "panel", "dy_turned", "sums")
        step.call(panels.panels_weight_gradient, image, dy, *scratch, self._steps(), dweight)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        kernel = panels.backward_input_kernel(math.prod(weight.shape[1:]))
        scratch = self._scratch(step, weight, "packed", "panel", "dy_panel")
        step.call(kernel, dy, weight, NO_BIAS[dx.dtype], *scratch, self._steps(), dx)

    def _scratch(self, step: Step, weight: Array, *names: str) -> list[Array]:
        shapes = panels.scratch_shapes(weight.shape, weight.itemsize)
        return [step.scratch(shapes[name]) for name in names]

    def _steps(self) -> tuple[int, int, int, int]:
        return self.rows.stride, self.rows.before, self.columns.stride, self.columns.before


class Winograd(NamedTuple):
    """Filters of 3 x 3 or 5 x 5, over many channels, with fewer multiplications; see `kernels.winograd`."""

    rows: WindowAxis
    columns: WindowAxis

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        kernel = winograd.forward_kernel(len(weight), len(x), *self._window())
        step.call(kernel, x, weight, False, bias, self._memory(step, weight), self.rows.before, self.columns.before, y)
        return x

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        K, C, _, _ = dweight.shape
        kernel = winograd.weight_gradient_kernel(K, C, *self._window())
        step.call(kernel, image, dy, self._memory(step, dweight), self.rows.before, self.columns.before, dweight)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        """With stride 1, a forward pass over dy with filters rotated by 180 degrees and their channel axes swapped."""
        memory = self._memory(step, weight)
        if self.rows.stride == 1:
            zeros_before = [axis.window - 1 - axis.before for axis in self]
            kernel = winograd.forward_kernel(len(dx), len(dy), *self._window())
            step.call(kernel, dy, weight, True, NO_BIAS[dx.dtype], memory, *zeros_before, dx)
        else:
            kernel = winograd.backward_input_kernel(len(dy), len(dx))
            step.call(kernel, dy, weight, memory, self.rows.before, self.columns.before, dx)

    def _window(self) -> tuple[int, int]:
        """The taps along a side, and the stride."""
        return self.rows.window, self.rows.stride

    def _memory(self, step: Step, weight: Array) -> Array:
        K, C, _, _ = weight.shape
        return step.scratch((winograd.memory_size(K, C, *self._window()),))


class Depthwise(NamedTuple):
    """Filters that read one channel each, with a column stride; see `kernels.depthwise`."""

    rows: WindowAxis
    columns: WindowAxis

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        kernel = depthwise.forward_kernel(self.rows.window, self.columns.window, adds=False)
        step.call(kernel, x, weight, bias if bias.size else None, self._zeros(step, x), *self._steps(), y)
        return x

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        kernel = depthwise.weight_gradient_kernel(self.rows.window, self.columns.window)
        step.call(kernel, image, dy, self._zeros(step, dy), *self._steps(), dweight)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        """For every phase of rows and columns of dx, a forward pass over dy with the taps that reach it, rotated.

        A channel with several filters adds up their gradients.
        """
        multiplier = len(dy) // len(dx)
        for row_taps, first_row, top in phases(self.rows):
            for column_taps, first_column, left in phases(self.columns):
                to = dx[:, first_row :: self.rows.stride, first_column :: self.columns.stride]
                taps = weight[:, :, row_taps, column_taps]
                if taps.size == 0:
                    step.call(to.fill, 0)
                    continue
                for number in range(multiplier):
                    kernel = depthwise.forward_kernel(*taps.shape[2:], adds=number > 0)
                    seen, turned = dy[number::multiplier], rotated(taps[number::multiplier])
                    step.call(kernel, seen, turned, None, self._zeros(step, dy), (1, 1), (top, left), to)

    def _steps(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.rows.stride, self.columns.stride), (self.rows.before, self.columns.before)

    @staticmethod
    def _zeros(step: Step, array: Array) -> Array:
        return step.scratch(array.shape[-1:])


def _swapped(step: Step, weight: Array, groups: int) -> Array:
    """The filters with their channel axes swapped within each group: (C, K / groups, R, S)."""
    K, C, R, S = weight.shape
    if groups == 1:
        return weight.swapaxes(0, 1)
    swapped = step.scratch((groups, C, K // groups, R, S))
    step.call(np.copyto, swapped, weight.reshape(groups, K // groups, C, R, S).swapaxes(1, 2))
    return swapped.reshape(groups * C, K // groups, R, S)


def whole_images(array: Array) -> Array:
    """View (C, H, W, n) as (C, H * W * n)."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def as_rows(array: Array) -> Array:
    """View (C, H, ..., n) as (C, H, numbers of a row). The size is explicit: numpy cannot infer -1 if n = 0."""
    C, H = array.shape[:2]
    return array.reshape(C, H, math.prod(array.shape[2:]))
