"""Random changes of brightness and contrast."""

import math
from dataclasses import dataclass

from parallelcnn.kernels import colours as kernels

from .augmentation import Augmentation, check_amount
from .base import Array, Step

_LARGEST = 1e30  # a number that also float32 can hold


@dataclass(frozen=True, repr=False)
class RandomBrightness(Augmentation):
    """In training, adds one random number to all numbers of an image, as Keras's layer of that name.

    The result is not limited to [0, 1].

    Args:
        factor: the number lies between -factor and factor, all equally likely. Images of uint8 are in [0, 1] in a
            network: 0.2 is a fifth of the way from black to white.

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the factor is not a finite number of at least 0; when the network is built, if the input is not
            an image.

    Example:
        >>> layers = (RandomBrightness(0.2), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    factor: float

    def __post_init__(self) -> None:
        check_amount(self, "factor", self.factor, at_most=_LARGEST)

    @property
    def is_active(self) -> bool:
        return self.factor > 0

    def record(self, step: Step, x: Array) -> Array:
        numbers, y = step.array(()), step.array(x.shape[:-1])
        size = math.prod(x.shape[:-1]), step.n
        step.call(kernels.draw_numbers, step.keys, step.number, 0.0, float(self.factor), numbers)
        step.call(kernels.add_numbers, x.reshape(size), numbers, y.reshape(size))
        return y

    def record_backward(self, step: Step, dy: Array) -> Array:
        return dy


@dataclass(frozen=True, repr=False)
class RandomContrast(Augmentation):
    """In training, multiplies the distance of all numbers from the mean of their channel by one random
    number.

    The mean is that of the channel in the same image, as in Keras's layer of that name. The result is not limited to
    [0, 1].

    Args:
        factor: the number lies between 1 - factor and 1 + factor, all equally likely; from 0 to 1.

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the factor is outside its range; when the network is built, if the input is not an image.

    Example:
        >>> layers = (RandomContrast(0.2), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    factor: float

    def __post_init__(self) -> None:
        check_amount(self, "factor", self.factor, at_most=1)

    @property
    def is_active(self) -> bool:
        return self.factor > 0

    def record(self, step: Step, x: Array) -> Array:
        factors, y = step.array(()), step.array(x.shape[:-1])
        step.call(kernels.draw_numbers, step.keys, step.number, 1.0, float(self.factor), factors)
        step.save(factors)
        self._change(step, x, y)
        return y

    def record_backward(self, step: Step, dy: Array) -> Array:
        dx = step.array(dy.shape[:-1])
        self._change(step, dy, dx)
        return dx

    def _change(self, step: Step, x: Array, y: Array) -> None:
        (factors,) = step.saved
        size = len(x), math.prod(x.shape[1:-1]), step.n
        step.call(kernels.change_contrast, x.reshape(size), factors, step.array(()), y.reshape(size))
