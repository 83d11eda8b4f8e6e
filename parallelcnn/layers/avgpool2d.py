"""Average pooling."""

from dataclasses import dataclass, field

from parallelcnn.kernels.window_sums import spread_windows, sum_windows

from .base import Array, Step
from .pooling import Pooling2D, padding_of, window_and_stride


@dataclass(frozen=True, repr=False)
class AvgPool2D(Pooling2D):
    """Two-dimensional average pooling: the mean of each window.

    Args:
        pool_size: rows and columns of the window, (R, S), or one number for both.
        stride: distance between neighbouring windows, (rows, columns) or one number for both; None: the window's size.
        padding: rows and columns of zeros on each side of the image, or one number for both: at most half the window,
            as in PyTorch.
        count_include_pad: whether a mean counts the zeros of the padding. True is PyTorch's default; False is what
            Keras computes with padding="same".

    Shapes: (C, H, W) -> (C, P, Q) with P = (H + 2 padding - R) div stride + 1, and Q likewise. Rows and columns that no
    whole window covers are ignored.

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if the window is larger than the padded
            image.

    Example:
        >>> AvgPool2D(3, stride=2, padding=1).output_shape((16, 32, 32))
        (16, 16, 16)
    """

    count_include_pad: bool = field(default=True, kw_only=True)

    def forward(self, step: Step, x: Array) -> Array:
        y = step.array(self.output_shape(x.shape[:-1]))
        row = step.array((x.shape[2],))
        step.call(sum_windows, x, *window_and_stride(self), padding_of(self), self._divisor(), row, y)
        step.save(x.shape[:-1])
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        (input_shape,) = step.saved
        dx, row = step.array(input_shape), step.array((input_shape[2],))
        step.call(spread_windows, dy, *window_and_stride(self), padding_of(self), self._divisor(), row, dx)
        return dx

    def _divisor(self) -> int:
        (R, S), _ = window_and_stride(self)
        return R * S if self.count_include_pad else 0
