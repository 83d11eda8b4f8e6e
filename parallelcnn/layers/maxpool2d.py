"""Max-pooling."""

from dataclasses import dataclass

import numpy as np

from parallelcnn.activations import AnyActivation, find_activation
from parallelcnn.kernels import maxpool2d as kernels

from .base import Array, Shape, Step
from .pooling import Pooling2D, padding_of
from .pooling import window_and_stride as window_and_stride


@dataclass(frozen=True, repr=False)
class MaxPool2D(Pooling2D):
    """Two-dimensional max-pooling: the largest number of each window.

    A NaN counts as largest. Of equal numbers, the first one in the window gets the gradient.

    Args:
        pool_size: rows and columns of the window, (R, S), or one number for both.
        stride: distance between neighbouring windows, (rows, columns) or one number for both; None: the window's size.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.
        padding: rows and columns by which windows may reach beyond the image on each side, or one number for both: at
            most half the window, as in PyTorch. Places outside the image are never the largest.

    Shapes: (C, H, W) -> (C, P, Q) with P = (H + 2 padding - R) div stride + 1, and Q likewise. Rows and columns that no
    whole window covers are ignored.

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if the window is larger than the padded
            image.

    Example:
        >>> MaxPool2D(3, stride=2, padding=1).output_shape((16, 32, 32))
        (16, 16, 16)
    """

    activation: AnyActivation = "identity"

    def __post_init__(self) -> None:
        super().__post_init__()
        find_activation(self.activation)

    def forward(self, step: Step, x: Array) -> Array:
        window, stride = window_and_stride(self)
        y = step.array(self.output_shape(x.shape[:-1]))
        argmax = step.array(y.shape[:-1], argmax_type(window))
        image, outputs = self._inside(x.shape)
        step.call(kernels.forward_kernel(*window), x[image], *stride, y[outputs], argmax[outputs])
        padding = padding_of(self)
        if any(padding):
            step.call(kernels.border_forward, x, window, stride, padding, y, argmax)
        step.save(x.shape, argmax, find_activation(self.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        window, stride = window_and_stride(self)
        x_shape, argmax, kept = step.saved
        find_activation(self.activation).record_backward(step, kept, dy)
        dx = step.array(x_shape[:-1])
        image, outputs = self._inside(x_shape)
        kernel = kernels.backward_kernel(*window, window == stride)
        step.call(kernel, dy[outputs], argmax[outputs], *stride, dx[image])
        padding = padding_of(self)
        if any(padding):
            first = (image[1].start, image[2].start)
            step.call(kernels.border_backward, dy, argmax, window, stride, padding, first, dx)
        return dx

    def _inside(self, x_shape: Shape) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of the image from its first whole window on, and the part of the output for whole windows.

        These are everything without padding. With padding, windows inside the image run as fast as without.
        """
        window, stride = window_and_stride(self)
        image, outputs = [slice(None)], [slice(None)]
        for size, R, step, padding in zip(x_shape[1:3], window, stride, padding_of(self), strict=True):
            first, end = -(-padding // step), (size + padding - R) // step + 1
            image.append(slice(first * step - padding, None))
            outputs.append(slice(first, max(end, first)))
        return tuple(image), tuple(outputs)


def argmax_type(window: tuple[int, int]) -> np.dtype:
    """The smallest integer type for indices into a window."""
    rows, columns = window
    return np.min_scalar_type(rows * columns - 1)
