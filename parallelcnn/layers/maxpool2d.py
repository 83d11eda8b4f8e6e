"""Max-pooling."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from parallelcnn.activations import AnyActivation, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import maxpool2d as kernels

from .base import Array, Layer, Shape, Step, pair


@dataclass(frozen=True, repr=False)
class MaxPool2D(Layer):
    """Two-dimensional max-pooling: the largest number of each window.

    Args:
        pool_size: rows and columns of the window, (R, S), or one number for both.
        stride: step between windows, (rows, columns) or one number for both; None: the window's size.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.

    Shapes: (C, H, W) -> (C, (H - R) div stride + 1, (W - S) div stride + 1). Rows and columns that no whole window
    covers are ignored.
    """

    pool_size: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None
    activation: AnyActivation = "identity"

    def __post_init__(self) -> None:
        pair(self, "pool_size", self.pool_size)
        if self.stride is not None:
            pair(self, "stride", self.stride)
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise ShapeError(f"{self} takes images (C, H, W), got {input_shape}")
        C, H, W = input_shape
        (R, S), (row_stride, column_stride) = window_and_stride(self)
        if R > H or S > W:
            raise ShapeError(
                f"{self}: a window of {R} x {S} is larger than the image, {H} x {W}; "
                f"it takes images at least as large as its window"
            )
        return (C, (H - R) // row_stride + 1, (W - S) // column_stride + 1)

    def forward(self, step: Step, x: Array) -> Array:
        window, stride = window_and_stride(self)
        y = step.array(self.output_shape(x.shape[:-1]))
        argmax = step.array(y.shape[:-1], argmax_type(window))
        step.call(kernels.forward_kernel(*window), x, *stride, y, argmax)
        step.save(x.shape[:-1], argmax, find_activation(self.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        window, stride = window_and_stride(self)
        input_shape, argmax, kept = step.saved
        find_activation(self.activation).record_backward(step, kept, dy)
        dx = step.array(input_shape)
        step.call(kernels.backward_kernel(*window, window == stride), dy, argmax, *stride, dx)
        return dx


def argmax_type(window: tuple[int, int]) -> np.dtype:
    """The smallest integer type for indices into a window."""
    rows, columns = window
    return np.min_scalar_type(rows * columns - 1)


@cache
def window_and_stride(layer: MaxPool2D) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the window, and of the stride."""
    window = pair(layer, "pool_size", layer.pool_size)
    return window, window if layer.stride is None else pair(layer, "stride", layer.stride)
