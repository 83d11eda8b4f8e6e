"""The ways to compute a convolution and its gradients: which kernels, on which arrays, and which way suits.

`Rows` serves every convolution. The others are faster where they suit, which shapes alone decide: a choice by measuring
would give other bits in every run.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from parallelcnn.kernels import conv2d, panels, pointwise, winograd

from .base import Array, Arrays, Call, Shape

NO_BIAS = {np.dtype(t): np.empty(0, t) for t in (np.float32, np.float64)}

# From so many channels on, before and behind a layer, filters of 1 x 1 run as products of whole images.
_POINTWISE_CHANNELS = 32

# From so many channels and filters on, windows that take steps run as products of panels: 32 -> 64 channels take 1.1 to
# 1.5 times less time so, and 32 -> 32 or 16 -> 64 about as much.
_PANEL_CHANNELS, _PANEL_FILTERS = 32, 64


class WindowAxis(NamedTuple):
    """How windows lie along the rows, or the columns, of an image."""

    window: int
    stride: int
    before: int  # zeros in front of the image
    outputs: int  # windows


class Windows(NamedTuple):
    """How windows lie on an image."""

    rows: WindowAxis
    columns: WindowAxis


class Way(Protocol):
    """One of the ways below. What it lists is to be called one after the other."""

    def forward(self, weight: Array, bias: Array, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        """What overwrites y. bias: (K,), or (0,) for zeros. y may leave out the last rows and columns."""

    def weight_gradient(self, dweight: Array, x: Array, dy: Array, cache: Arrays) -> Iterator[Call]:
        """What overwrites dweight, given dy and what forward left in the cache."""

    def input_gradient(self, weight: Array, dy: Array, dx: Array, cache: Arrays) -> Iterator[Call]:
        """What overwrites dx."""


def find_way(windows: Windows, weight: Array, x: Array, y: Array, computed: Array) -> Way:
    """The way that suits.

    Args:
        weight, x, y: of the convolution, or their gradients.
        computed: whichever of y and the gradient by x is computed, or y for the gradient by the weights.
    """
    (rows, columns), (K, C, R, S) = windows, weight.shape
    if takes_panels(windows, K, C):
        return Panels(*windows)
    place_by_place = (R, S) == (1, 1) and x.shape[1:] == y.shape[1:] and (rows.before, columns.before) == (0, 0)
    if place_by_place and min(K, C) >= _POINTWISE_CHANNELS:
        return Pointwise()
    if winograd.pays(weight.shape, (rows.stride, columns.stride), computed.shape):
        return Winograd(*windows)
    return Rows(*windows)


def takes_panels(windows: Windows, filters: int, channels: int) -> bool:
    """Whether windows take steps, and enough filters share the copies of what they see."""
    takes_steps = any(axis.stride > 1 for axis in windows)
    return takes_steps and channels >= _PANEL_CHANNELS and filters >= _PANEL_FILTERS


def scratch_shapes(windows: Windows, filters: int, channels: int) -> dict[str, Shape]:
    """The arrays that the ways overwrite, whatever the number of samples."""
    K, C, R, S = filters, channels, windows.rows.window, windows.columns.window
    if takes_panels(windows, K, C):
        return panels.scratch_shapes(K, C, R, S)
    size = conv2d.scratch_size(K, C, R, S)
    if winograd.suits((K, C, R, S), (windows.rows.stride, windows.columns.stride)):
        size = max(size, winograd.memory_size(K, C))
    shapes: dict[str, Shape] = {"packed": (size,)}
    if (R, S) == (1, 1):
        shapes["panel"] = (pointwise.PANEL, C)
    return shapes


class Rows(NamedTuple):
    """Tiles over the rows of the image; see `kernels.conv2d`."""

    rows: WindowAxis
    columns: WindowAxis

    def cache_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """What it needs for each sample."""
        C, H, W = input_shape
        if self.columns.stride == 1:
            return {"zeros": (W,)}
        per_phase = self.columns.outputs + (self.columns.window - 1) // self.columns.stride
        phases = min(self.columns.stride, self.columns.window)
        parted = (C, H, phases, per_phase)
        return {"zeros": (phases * per_phase,), "rows": parted, "drows": parted}

    def forward(self, weight: Array, bias: Array, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        yield from self.arrange(x, cache)
        kernel = conv2d.forward_kernel(self.columns.window, self.columns.stride, len(weight))
        yield partial(kernel, *self.image_and_steps(x, cache, weight, bias, cache["packed"]), as_rows(y))

    def weight_gradient(self, dweight: Array, x: Array, dy: Array, cache: Arrays) -> Iterator[Call]:
        K, C, R, S = dweight.shape
        kernel = conv2d.weight_gradient_kernel(R, S, self.columns.stride, K, C)
        yield partial(kernel, *self.image_and_steps(x, cache, as_rows(dy), cache["zeros"].reshape(-1)), dweight)

    def input_gradient(self, weight: Array, dy: Array, dx: Array, cache: Arrays) -> Iterator[Call]:
        """A forward pass over dy with the filters turned round and their channel axes exchanged.

        For a stride of 2 every second row, or column, of dx is a pass of its own, over every second tap.
        """
        rows, columns = self
        n, image = dx.shape[-1], dx if columns.stride == 1 else cache["drows"]
        for row_phase in range(rows.stride):
            skipped = max(0, -((row_phase - rows.before) // rows.stride))  # rows of this phase above the image
            first_row = skipped * rows.stride + row_phase - rows.before
            for phase in range(min(columns.stride, columns.window)):
                to = image[:, first_row :: rows.stride]
                to = as_rows(to if columns.stride == 1 else to[:, :, phase])
                turned = _turned(weight[:, :, row_phase :: rows.stride, phase :: columns.stride])
                _, _, R, S = turned.shape
                if turned.size == 0:  # a stride longer than the window leaves something out
                    yield partial(to.fill, 0)
                    continue
                kernel = conv2d.forward_kernel(S, 1, len(turned))
                left = S - 1 - (columns.before if columns.stride == 1 else 0)
                steps = 1, R - 1 - skipped, left * n, 0, n
                yield partial(kernel, as_rows(dy), turned, NO_BIAS[dx.dtype], cache["packed"], *steps, to)
        if columns.stride > 1:
            yield partial(conv2d.restore, image, columns.before, columns.stride, dx)

    def arrange(self, x: Array, cache: Arrays) -> Iterator[Call]:
        """What parts rows into phases, for steps of several columns."""
        if self.columns.stride > 1:
            yield partial(conv2d.arrange, x, self.columns.before, self.columns.stride, cache["rows"])

    def image_and_steps(self, x: Array, cache: Arrays, *arguments: Array) -> tuple[Array | int, ...]:
        """What the kernels take: the image, further arguments, and row_stride, top, left, phase and n."""
        n, parted = x.shape[-1], self.columns.stride > 1
        image = cache["rows"] if parted else x
        left = 0 if parted else self.columns.before * n  # `arrange` has put the zeros in
        return as_rows(image), *arguments, self.rows.stride, self.rows.before, left, image.shape[-2] * n, n


class Pointwise(NamedTuple):
    """Filters of 1 x 1, one to each place of the image: matrix products; see `kernels.pointwise`."""

    def forward(self, weight: Array, bias: Array, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        yield partial(
            pointwise.pointwise_forward,
            whole_images(x),
            weight[:, :, 0, 0],
            bias if bias.size else None,
            whole_images(y),
        )

    def weight_gradient(self, dweight: Array, x: Array, dy: Array, cache: Arrays) -> Iterator[Call]:
        K, C, _, _ = dweight.shape
        sums = cache["packed"][: K * C].reshape(K, C)
        yield partial(
            pointwise.pointwise_weight_gradient,
            whole_images(x),
            whole_images(dy),
            cache["panel"],
            sums,
            dweight[:, :, 0, 0],
        )

    def input_gradient(self, weight: Array, dy: Array, dx: Array, cache: Arrays) -> Iterator[Call]:
        turned = cache["packed"][: weight.size].reshape(len(dx), len(dy))
        yield partial(
            pointwise.pointwise_backward_input, whole_images(dy), weight[:, :, 0, 0], turned, whole_images(dx)
        )


class Panels(NamedTuple):
    """Windows that take steps, over many channels: products of what they see; see `kernels.panels`."""

    rows: WindowAxis
    columns: WindowAxis

    def forward(self, weight: Array, bias: Array, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        kernel = panels.forward_kernel(self.columns.window, len(weight))
        yield partial(kernel, x, weight, bias, cache["packed"], cache["panel"], self._steps(), y)

    def weight_gradient(self, dweight: Array, x: Array, dy: Array, cache: Arrays) -> Iterator[Call]:
        scratch = cache["panel"], cache["dy_turned"], cache["sums"]
        yield partial(panels.panels_weight_gradient, x, dy, *scratch, self._steps(), dweight)

    def input_gradient(self, weight: Array, dy: Array, dx: Array, cache: Arrays) -> Iterator[Call]:
        kernel = panels.backward_input_kernel(math.prod(weight.shape[1:]))
        scratch = cache["packed"], cache["panel"], cache["dy_panel"]
        yield partial(kernel, dy, weight, NO_BIAS[dx.dtype], *scratch, self._steps(), dx)

    def _steps(self) -> tuple[int, int, int, int]:
        return self.rows.stride, self.rows.before, self.columns.stride, self.columns.before


class Winograd(NamedTuple):
    """Filters of 3 x 3 over many channels, in fewer multiplications; see `kernels.winograd`."""

    rows: WindowAxis
    columns: WindowAxis

    def forward(self, weight: Array, bias: Array, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        zeros_before = self.rows.before, self.columns.before
        yield partial(winograd.forward_kernel(len(weight)), x, weight, bias, cache["packed"], *zeros_before, y)

    def weight_gradient(self, dweight: Array, x: Array, dy: Array, cache: Arrays) -> Iterator[Call]:
        K, C, _, _ = dweight.shape
        kernel = winograd.weight_gradient_kernel(K, C)
        yield partial(kernel, x, dy, cache["packed"], self.rows.before, self.columns.before, dweight)

    def input_gradient(self, weight: Array, dy: Array, dx: Array, cache: Arrays) -> Iterator[Call]:
        """A forward pass over dy with the filters turned round and their channel axes exchanged."""
        zeros_before = 2 - self.rows.before, 2 - self.columns.before
        kernel = winograd.forward_kernel(len(dx))
        yield partial(kernel, dy, _turned(weight), NO_BIAS[dx.dtype], cache["packed"], *zeros_before, dx)


def _turned(weight: Array) -> Array:
    return weight.swapaxes(0, 1)[:, :, ::-1, ::-1]


def whole_images(array: Array) -> Array:
    """(C, H, W, n) seen as (C, all of an image's numbers)."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def as_rows(array: Array) -> Array:
    """(C, H, ..., n) seen as (C, H, one row's numbers). Written out, since -1 cannot be inferred where n = 0."""
    C, H = array.shape[:2]
    return array.reshape(C, H, math.prod(array.shape[2:]))
