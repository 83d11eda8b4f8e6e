"""Base class of the pooling layers: the windows, and the shape of the output."""

from dataclasses import dataclass, field
from functools import cache

from parallelcnn.errors import ShapeError

from .base import Layer, Shape, pair


@dataclass(frozen=True, repr=False)
class Pooling2D(Layer):
    """A layer that reduces each window of an image to one number."""

    pool_size: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None
    padding: int | tuple[int, int] = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        # Without the cache, in which MaxPool2D(2.0) would be found as MaxPool2D(2).
        window, _ = window_and_stride.__wrapped__(self)
        # A larger padding would allow windows without a place of the image.
        if any(2 * padding > size for padding, size in zip(padding_of(self), window, strict=True)):
            raise ShapeError(
                f"{self}: padding must be at most half the window, which is {window[0]} x {window[1]}, "
                f"got {self.padding!r}"
            )

    def output_shape(self, input_shape: Shape) -> Shape:
        C, H, W = image_shape(self, input_shape)
        (R, S), (row_stride, column_stride) = window_and_stride(self)
        top, left = padding_of(self)
        if H + 2 * top < R or W + 2 * left < S:
            padded = f" with a padding of {top} x {left}" if self.padding else ""
            raise ShapeError(
                f"{self}: a window of {R} x {S} is larger than the image, {H} x {W}{padded}; "
                f"it takes images at least as large as its window"
            )
        return (C, (H + 2 * top - R) // row_stride + 1, (W + 2 * left - S) // column_stride + 1)


@cache
def window_and_stride(layer: Pooling2D) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the window, and of the stride."""
    window = pair(layer, "pool_size", layer.pool_size)
    return window, window if layer.stride is None else pair(layer, "stride", layer.stride)


def padding_of(layer: Pooling2D) -> tuple[int, int]:
    """Rows and columns of the padding on each side."""
    return pair(layer, "padding", layer.padding, at_least=0)


def image_shape(layer: Layer, input_shape: Shape) -> tuple[int, int, int]:
    """(C, H, W); ShapeError, naming the layer, if the input is not an image."""
    if len(input_shape) != 3:
        raise ShapeError(f"{layer} takes images (C, H, W), got {input_shape}")
    C, H, W = input_shape
    return C, H, W
