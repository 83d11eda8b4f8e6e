"""Cutout: a box of zeros at a random place."""

from dataclasses import dataclass

import numpy as np

from parallelcnn.kernels import colours as kernels
from parallelcnn.kernels.copying import copy

from .augmentation import Augmentation
from .base import Array, Step, pair


@dataclass(frozen=True, repr=False)
class Cutout(Augmentation):
    """In training, replaces a box of each image by zeros, in all channels (DeVries & Taylor 2017, arXiv:1708.04552).

    The centre of the box is any pixel, all equally likely, so a part of the box may be outside of the image. Behind
    `Normalize` the zeros are the mean colour, as in the paper.

    Args:
        size: rows and columns of the box, or (rows, columns).

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the size is not a positive integer; when the network is built, if the input is not an image.

    Example:
        >>> layers = (Normalize("auto"), Cutout(8), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        self._size()

    @property
    def is_active(self) -> bool:
        return True

    def record(self, step: Step, x: Array) -> Array:
        corners, y = step.array((2,), np.int64), step.array(x.shape[:-1])
        step.call(kernels.draw_corners, step.keys, step.number, *x.shape[1:-1], *self._size(), corners)
        step.call(copy, x.reshape(x.size), y.reshape(y.size))
        step.call(kernels.cut_out, corners, *self._size(), y)
        step.save(corners)
        return y

    def record_backward(self, step: Step, dy: Array) -> Array:
        (corners,) = step.saved
        step.call(kernels.cut_out, corners, *self._size(), dy)
        return dy

    def _size(self) -> tuple[int, int]:
        return pair(self, "size", self.size)
