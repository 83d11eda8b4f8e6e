"""Nearest-neighbour upsampling."""

from dataclasses import dataclass

from parallelcnn.kernels.window_sums import spread_windows, sum_windows

from .base import Array, Layer, Shape, Step, pair
from .pooling import image_shape


@dataclass(frozen=True, repr=False)
class Upsample2D(Layer):
    """Nearest-neighbour upsampling: repeats each row and column, as Keras's UpSampling2D.

    Args:
        size: how often each row and each column is repeated, (rows, columns) or one number for both.

    Shapes: (C, H, W) -> (C, H * rows, W * columns).

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if the input is not an image.

    Example:
        >>> Upsample2D(2).output_shape((16, 8, 8))
        (16, 16, 16)
    """

    size: int | tuple[int, int] = 2

    def __post_init__(self) -> None:
        pair(self, "size", self.size)

    def output_shape(self, input_shape: Shape) -> Shape:
        C, H, W = image_shape(self, input_shape)
        rows, columns = pair(self, "size", self.size)
        return (C, H * rows, W * columns)

    def forward(self, step: Step, x: Array) -> Array:
        """Spread each number over its window of the output, undivided."""
        y = step.array(self.output_shape(x.shape[:-1]))
        size, row = pair(self, "size", self.size), step.array((y.shape[2],))
        step.call(spread_windows, x, size, size, (0, 0), 1, row, y)
        step.save(x.shape[:-1])
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        (input_shape,) = step.saved
        size, row, dx = pair(self, "size", self.size), step.array((dy.shape[2],)), step.array(input_shape)
        step.call(sum_windows, dy, size, size, (0, 0), 1, row, dx)
        return dx
