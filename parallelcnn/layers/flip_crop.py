"""Random flips and crops: the image moves, and its numbers stay the same."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.errors import ShapeError
from parallelcnn.kernels import windows as kernels

from .augmentation import Augmentation
from .base import Array, Shape, Step, pair

_MODES = ("horizontal", "vertical", "horizontal_and_vertical")


class WindowLayer(Augmentation):
    """Base class of layers that take a window of each image; see `kernels.windows`.

    A network takes the windows of its first layers while it loads the images; see `fusions`.
    """

    @abstractmethod
    def draw(self, keys: Array, number: int, shape: Shape, windows: Array) -> tuple[Any, ...]:
        """The kernel that changes the windows as this layer does, and its arguments.

        Args:
            keys, number: see `Step`.
            shape: (C, H, W) of the images.
            windows: (4, n).
        """

    def record(self, step: Step, x: Array) -> Array:
        windows, y = step.array((4,), np.int64), step.array(x.shape[:-1])
        zeros, ones = np.zeros(len(x), step.dtype), np.ones(len(x), step.dtype)
        step.call(kernels.whole_windows, windows)
        step.call(*self.draw(step.keys, step.number, x.shape[:-1], windows))
        step.call(kernels.take_windows, x, windows, zeros, ones, y)
        step.save(windows)
        return y

    def record_backward(self, step: Step, dy: Array) -> Array:
        (windows,) = step.saved
        dx = step.array(dy.shape[:-1])
        step.call(kernels.take_windows_backward, dy, windows, dx)
        return dx


@dataclass(frozen=True, repr=False)
class RandomFlip(WindowLayer):
    """In training, mirrors each image with a probability of 1/2.

    At the front of a network it costs next to nothing: the images are mirrored while they are loaded.

    Args:
        mode: "horizontal" (left and right are exchanged), "vertical" (top and bottom), or "horizontal_and_vertical",
            each with a probability of 1/2. Not for images whose mirror image means something else, such as digits.

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the mode is another; when the network is built, if the input is not an image.

    Example:
        >>> layers = (RandomFlip(), RandomCrop(4), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    mode: str = "horizontal"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ShapeError(f"{self}: mode must be {', '.join(_MODES[:-1])} or {_MODES[-1]}, got {self.mode!r}")

    @property
    def is_active(self) -> bool:
        return True

    def draw(self, keys: Array, number: int, shape: Shape, windows: Array) -> tuple[Any, ...]:
        rows, columns = self.mode != "horizontal", self.mode != "vertical"
        return kernels.flip_windows, keys, number, rows, columns, *shape[1:], windows


@dataclass(frozen=True, repr=False)
class RandomCrop(WindowLayer):
    """In training, puts zeros around each image and takes a random part that has the size of the image.

    So the image moves by up to `padding` pixels in both directions; every place is equally likely (He et al. 2016,
    arXiv:1512.03385, section 4.2). At the front of a network it costs next to nothing: the images are moved while they
    are loaded. The zeros are black for images in [0, 1], and the mean colour after `Normalize`.

    Args:
        padding: number of zeros on each side, or (rows, columns).

    Shapes: (C, H, W) -> the same.

    Raises:
        ShapeError: if the padding is not an integer of at least 0; when the network is built, if the input is not an
            image.

    Example:
        >>> layers = (RandomFlip(), RandomCrop(4), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    padding: int | tuple[int, int]

    def __post_init__(self) -> None:
        self._padding()

    @property
    def is_active(self) -> bool:
        return any(self._padding())

    def draw(self, keys: Array, number: int, shape: Shape, windows: Array) -> tuple[Any, ...]:
        return kernels.crop_windows, keys, number, *self._padding(), windows

    def _padding(self) -> tuple[int, int]:
        return pair(self, "padding", self.padding, at_least=0)
