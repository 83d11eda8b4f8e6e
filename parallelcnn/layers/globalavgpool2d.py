"""Global average pooling."""

from dataclasses import dataclass

from parallelcnn.kernels.window_sums import spread_windows, sum_windows

from .base import Array, Layer, Shape, Step
from .pooling import image_shape


@dataclass(frozen=True, repr=False)
class GlobalAvgPool2D(Layer):
    """Global average pooling: the mean of each channel (Lin et al. 2013, arXiv:1312.4400, section 3.2).

    Shapes: (C, H, W) -> (C,).

    Raises:
        ShapeError: when the network is built, if the input is not an image.

    Example:
        >>> GlobalAvgPool2D().output_shape((64, 7, 7))
        (64,)
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return (image_shape(self, input_shape)[0],)

    def forward(self, step: Step, x: Array) -> Array:
        C, H, W, n = x.shape
        y, row = step.array((C,)), step.array((W,))
        step.call(sum_windows, x, (H, W), (1, 1), (0, 0), H * W, row, y.reshape(C, 1, 1, n))
        step.save(x.shape)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        ((C, H, W, n),) = step.saved
        dx, row = step.array((C, H, W)), step.array((W,))
        step.call(spread_windows, dy.reshape(C, 1, 1, n), (H, W), (1, 1), (0, 0), H * W, row, dx)
        return dx
