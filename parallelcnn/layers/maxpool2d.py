"""Max-pooling."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import maxpool2d as kernels

from .base import Array, Arrays, BoundLayer, Call, Shape, pair


@dataclass(frozen=True, repr=False)
class MaxPool2D(BoundLayer):
    """The largest number of each window.

    Args:
        pool_size: rows and columns of the window, (R, S), or one number for both.
        stride: step between windows, (rows, columns) or one number for both; None: the window's size.
        activation: name or `ActivationFunction` applied to the output.

    Shapes: (C, H, W) -> (C, (H - R) div stride + 1, (W - S) div stride + 1); rows and columns that no whole window
    covers are left out.
    """

    pool_size: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None
    activation: str | ActivationFunction = "identity"

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

    def cache_shapes(self, input_shape: Shape) -> dict[str, Any]:
        (R, S), _ = window_and_stride(self)
        output_shape = self.output_shape(input_shape)
        shapes: dict[str, Any] = {"winner": (output_shape, np.min_scalar_type(R * S - 1))}
        if find_activation(self.activation).keeps_input:
            shapes["before_activation"] = output_shape
        return shapes

    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        window, stride = window_and_stride(self)
        yield partial(kernels.forward_kernel(*window), x, *stride, y, cache["winner"])
        yield from find_activation(self.activation).forward_calls(y, cache.get("before_activation"))

    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        if dx is not None:
            window, stride = window_and_stride(self)
            yield from find_activation(self.activation).backward_calls(cache.get("before_activation", y), dy)
            yield partial(kernels.backward_kernel(*window, window == stride), dy, cache["winner"], *stride, dx)


@cache
def window_and_stride(layer: MaxPool2D) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the window, and of the step between windows."""
    window = pair(layer, "pool_size", layer.pool_size)
    return window, window if layer.stride is None else pair(layer, "stride", layer.stride)
