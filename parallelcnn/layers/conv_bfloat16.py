"""Convolutions whose factors are rounded to bfloat16; see `Step.bfloat16`."""

from typing import NamedTuple

import numpy as np

from parallelcnn.kernels import bfloat16

from .base import Array, Step
from .conv_windows import NO_BIAS, Algorithm, WindowAxis, phases, rotated


class Amx(NamedTuple):
    """Products in AMX's tiles; see `kernels.bfloat16`."""

    rows: WindowAxis
    columns: WindowAxis

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        image = step.scratch(bfloat16.image_shape(len(x), *self._seen(), step.n), np.uint32)
        step.call(bfloat16.bfloat16_image, x, self.rows.before, self.columns.before, image)
        steps = 0, 0, self.rows.stride, self.columns.stride
        step.call(bfloat16.bfloat16_forward, image, weight, bias, *_scratch(step, weight), steps, y)
        return x

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        K, P, Q, n = dy.shape
        dy_pairs = step.scratch(bfloat16.samples_shape(K, P, Q, n), np.uint32)
        step.call(bfloat16.bfloat16_samples, dy, dy_pairs)
        x_pairs = step.scratch(bfloat16.transposed_shape(len(image), *self._seen(), n), np.uint32)
        step.call(bfloat16.bfloat16_transposed, image, self.rows.before, self.columns.before, x_pairs)
        sums = step.scratch((*dweight.shape[2:], bfloat16.PANEL, bfloat16.PANEL))
        strides = self.rows.stride, self.columns.stride
        step.call(bfloat16.bfloat16_weight_gradient, dy_pairs, x_pairs, sums, strides, dweight)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        """For every phase of rows and columns of dx, a forward pass over dy with the taps that reach it, rotated and
        with their channel axes swapped.
        """
        (_, H, W, n), strides = dx.shape, (self.rows.stride, self.columns.stride)
        (above, rows), (before, columns) = _seen_backwards(self.rows, H), _seen_backwards(self.columns, W)
        image = step.scratch(bfloat16.image_shape(len(dy), rows, columns, n), np.uint32)
        step.call(bfloat16.bfloat16_image, dy, above, before, image)
        for row_taps, first_row, top in phases(self.rows):
            for column_taps, first_column, left in phases(self.columns):
                to = dx[:, first_row :: strides[0], first_column :: strides[1]]
                taps = rotated(weight[:, :, row_taps, column_taps]).swapaxes(0, 1)
                if taps.size == 0:  # with a stride longer than the window no window covers this phase
                    step.call(to.fill, 0)
                    continue
                steps, scratch = (above - top, before - left, 1, 1), _scratch(step, taps)
                step.call(bfloat16.bfloat16_forward, image, taps, NO_BIAS[dx.dtype], *scratch, steps, to)

    def _seen(self) -> tuple[int, int]:
        """The rows and columns that windows see, with the zeros around the image."""
        rows, columns = ((axis.outputs - 1) * axis.stride + axis.window for axis in self)
        return rows, columns


def _seen_backwards(axis: WindowAxis, size: int) -> tuple[int, int]:
    """The zeros before dy, and the rows, or columns, that the phases of dx see with the zeros around dy."""
    before = max(0, *(zeros for _, _, zeros in phases(axis)))
    places = (
        before - zeros + len(range(first, size, axis.stride)) + len(range(axis.window)[taps]) - 1
        for taps, first, zeros in phases(axis)
    )
    return before, max(places)


def _scratch(step: Step, weight: Array) -> tuple[Array, Array]:
    """The arrays `packed` and `sums` of the forward kernel."""
    packed = step.scratch(bfloat16.weights_shape(*weight.shape), np.uint32)
    return packed, step.scratch((bfloat16.PLACES, bfloat16.PANEL, bfloat16.PANEL))


class Rounded(NamedTuple):
    """Another algorithm, in float32, with its factors rounded: what `Amx` computes, up to rounding errors of float32.

    dy and the weights are rounded in both gradients, since either may not be needed.
    """

    algorithm: Algorithm

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        return self.algorithm.forward(step, _rounded(step, weight), bias, _rounded(step, x), y)

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        self.algorithm.weight_gradient(step, image, _rounded(step, dy), dweight)

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        self.algorithm.input_gradient(step, _rounded(step, weight), _rounded(step, dy), dx)


def _rounded(step: Step, array: Array) -> Array:
    rounded = step.scratch(array.shape)
    step.call(bfloat16.bfloat16_rounded, array.reshape(array.size), rounded.reshape(array.size))
    return rounded
