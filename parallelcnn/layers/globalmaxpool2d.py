"""Global max-pooling."""

from dataclasses import dataclass

from parallelcnn.kernels import maxpool2d as kernels

from .base import Array, Layer, Shape, Step
from .maxpool2d import argmax_type
from .pooling import image_shape


@dataclass(frozen=True, repr=False)
class GlobalMaxPool2D(Layer):
    """Global max-pooling: the largest number of each channel.

    A NaN counts as largest. Of equal numbers, the first one gets the gradient.

    Shapes: (C, H, W) -> (C,).

    Raises:
        ShapeError: when the network is built, if the input is not an image.

    Example:
        >>> GlobalMaxPool2D().output_shape((64, 7, 7))
        (64,)
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return (image_shape(self, input_shape)[0],)

    def forward(self, step: Step, x: Array) -> Array:
        C, H, W, n = x.shape
        y, argmax = step.array((C,)), step.array((C,), argmax_type((H, W)))
        y_image, argmax_image = y.reshape(C, 1, 1, n), argmax.reshape(C, 1, 1, n)
        step.call(kernels.forward_kernel(H, W), x, H, W, y_image, argmax_image)
        step.save(x.shape, argmax_image)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        (C, H, W, n), argmax = step.saved
        dx = step.array((C, H, W))
        step.call(kernels.backward_kernel(H, W, True), dy.reshape(C, 1, 1, n), argmax, H, W, dx)
        return dx
