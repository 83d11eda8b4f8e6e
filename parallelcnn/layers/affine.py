"""Random rotations and zooms."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.kernels import affine as kernels

from .augmentation import Augmentation, check_amount
from .base import Array, Step


class AffineLayer(Augmentation):
    """Base class of layers that move every pixel by a random linear function; see `kernels.affine`."""

    @abstractmethod
    def draw(self, step: Step, matrices: Array) -> tuple[Any, ...]:
        """The kernel that draws the matrices, (4, n), and its arguments."""

    def record(self, step: Step, x: Array) -> Array:
        matrices, y = step.array((4,), np.float64), step.array(x.shape[:-1])
        step.call(*self.draw(step, matrices))
        step.call(kernels.affine_forward, x, matrices, y)
        step.save(matrices)
        return y

    def record_backward(self, step: Step, dy: Array) -> Array:
        (matrices,) = step.saved
        dx = step.array(dy.shape[:-1])
        step.call(kernels.affine_backward, dy, matrices, dx)
        return dx


@dataclass(frozen=True, repr=False)
class RandomRotation(AffineLayer):
    """In training, rotates each image around its centre by a random angle.

    Numbers between pixels are interpolated (bilinear), and what was outside of the image is zero.

    Args:
        degrees: the angle lies between -degrees and degrees, all equally likely; from 0 to 180.

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the angle is outside its range; when the network is built, if the input is not an image.

    Example:
        >>> layers = (RandomRotation(15), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    degrees: float

    def __post_init__(self) -> None:
        check_amount(self, "degrees", self.degrees, at_most=180)

    @property
    def is_active(self) -> bool:
        return self.degrees > 0

    def draw(self, step: Step, matrices: Array) -> tuple[Any, ...]:
        return kernels.draw_rotations, step.keys, step.number, math.radians(self.degrees), matrices


@dataclass(frozen=True, repr=False)
class RandomZoom(AffineLayer):
    """In training, enlarges or shrinks each image around its centre by a random number, the same in both directions.

    Numbers between pixels are interpolated (bilinear), and what was outside of the image is zero.

    Args:
        factor: the image is enlarged by a number between 1 - factor and 1 + factor, all equally likely; at least 0 and
            below 1.

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the factor is outside its range; when the network is built, if the input is not an image.

    Example:
        >>> layers = (RandomZoom(0.1), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    factor: float

    def __post_init__(self) -> None:
        check_amount(self, "factor", self.factor, at_most=1, below=True)

    @property
    def is_active(self) -> bool:
        return self.factor > 0

    def draw(self, step: Step, matrices: Array) -> tuple[Any, ...]:
        return kernels.draw_zooms, step.keys, step.number, float(self.factor), matrices
