"""Dropout of single numbers and of whole channels."""

import math
import numbers
from dataclasses import dataclass

import numpy as np

from parallelcnn.errors import InputError
from parallelcnn.kernels.dropout import RANDOM_BITS, dropout_backward, dropout_forward

from .base import Array, Layer, Shape, Step
from .pooling import image_shape


@dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Dropout: in training, replaces random numbers by 0, and divides the others by 1 - rate.

    So the expected output is the input. In prediction the output is the input (Srivastava et al. 2014, Journal of
    Machine Learning Research 15, section 10). The mask is a function of the seed, the epoch, the sample, the layer's
    number and the position. So it does not depend on the number of ranks and threads.

    Args:
        rate: probability that a number is dropped, in [0, 1), to 24 bits. 0: the layer does nothing.

    Shapes: any -> the same.

    Raises:
        InputError: if the rate is not a number in [0, 1).

    Example:
        >>> layers = (Flatten(), Dense(84, activation="relu"), Dropout(0.5), Dense(10))
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        rate = self.rate
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
            raise InputError(f"{self}: rate must be a number in [0, 1), got {rate!r}")

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, step: Step, x: Array) -> Array:
        if not step.training or self.rate == 0:
            return x
        y = step.array(x.shape[:-1])
        features, places = shape = self._features_and_places(x.shape[:-1])
        kept, layer_keys = step.array((features,), np.uint8), step.array((), np.uint64)
        limit, scale = math.ceil(float(self.rate) * 2**RANDOM_BITS), 1 / (1 - float(self.rate))
        parts_of_x, parts_of_y = (one.reshape(*shape, step.n) for one in (x, y))
        step.call(dropout_forward, parts_of_x, step.keys, step.number, limit, scale, layer_keys, kept, parts_of_y)
        step.save(kept, places, scale)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        if step.saved:
            kept, places, scale = step.saved
            step.call(dropout_backward, kept, scale, dy.reshape(len(kept), places, step.n))
        return dy

    def _features_and_places(self, input_shape: Shape) -> tuple[int, int]:
        """How many parts of a sample are dropped independently of each other, and how many numbers each part has."""
        return math.prod(input_shape), 1


@dataclass(frozen=True, repr=False)
class SpatialDropout(Dropout):
    """Spatial dropout: in training, replaces random channels by 0, and divides the others by 1 - rate.

    It suits images, where neighbouring numbers are so similar that `Dropout` has little effect (Tompson et al. 2015,
    arXiv:1411.4280, section 3.2). PyTorch calls it Dropout2d.

    Args:
        rate: probability that a channel is dropped, in [0, 1), to 24 bits. 0: the layer does nothing.

    Shapes: (C, H, W) -> the same.

    Raises:
        InputError: if the rate is not a number in [0, 1).
        ShapeError: when the network is built, if the input is not an image.

    Example:
        >>> layers = (Conv2D(16, 3, activation="relu"), SpatialDropout(0.2), Conv2D(16, 3, activation="relu"))
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        return image_shape(self, input_shape)

    def _features_and_places(self, input_shape: Shape) -> tuple[int, int]:
        C, H, W = input_shape
        return C, H * W
