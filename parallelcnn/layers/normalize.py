"""Normalisation by fixed numbers for each channel, those of the training set."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parallelcnn.errors import InputError, ShapeError
from parallelcnn.kernels import colours as kernels
from parallelcnn.kernels.statistics import integer_sums, power_sums

from .augmentation import Augmentation
from .base import Array, Layer, Shape, Step
from .frozen import Frozen, thawed

AUTO = "auto"
_PIECE = 4096  # images that are read at a time


@dataclass(frozen=True, repr=False)
class Normalize(Layer):
    """y = (x - mean) / std, with fixed numbers for each channel, in training and in prediction.

    With "auto", `train` takes the mean and the standard deviation of each channel from the training set, with uint8
    images scaled to [0, 1]. From then on the layer holds these numbers. They are saved with the model, so predictions
    prepare images as training did. In a network of vectors each feature is a channel.

    At the front of a network it costs next to nothing: the numbers are changed while they are loaded.

    Args:
        mean: "auto", a number, or a tuple with a number for each channel.
        std: a number above 0, or a tuple of such; None with "auto".

    Shapes: any -> the same.

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if there are more or fewer channels.
        InputError: when a network runs that has a layer with "auto" which has not got its numbers.

    Example:
        >>> layers = (Normalize("auto"), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
        >>> Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)).output_shape((3, 32, 32))
        (3, 32, 32)
    """

    mean: float | tuple[float, ...] | str = AUTO
    std: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.mean, str) and self.mean == AUTO:
            if self.std is not None:
                raise ShapeError(f"{self}: std must be None if the mean is 'auto', got {self.std!r}")
            return
        if self.std is None:
            raise ShapeError(f"{self}: std must be given with the mean, Normalize(mean, std), or 'auto' for both")
        object.__setattr__(self, "mean", _numbers(self, "mean", self.mean, "a finite number"))
        object.__setattr__(self, "std", _numbers(self, "std", self.std, "a finite number above 0", above=0))

    @property
    def is_auto(self) -> bool:
        """Whether it has no numbers yet."""
        return self.std is None

    def output_shape(self, input_shape: Shape) -> Shape:
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if isinstance(numbers, tuple) and len(numbers) != input_shape[0]:
                raise ShapeError(
                    f"{self}: {name} must hold a number for each of {input_shape[0]} channels, got {len(numbers)}"
                )
        return input_shape

    def forward(self, step: Step, x: Array) -> Array:
        y = step.array(x.shape[:-1])
        size = len(x), math.prod(x.shape[1:-1]), step.n
        step.call(kernels.normalize, x.reshape(size), *self.mean_and_factor(len(x), step.dtype), y.reshape(size))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        size = len(dy), math.prod(dy.shape[1:-1]), step.n
        mean, factor = self.mean_and_factor(len(dy), step.dtype)
        step.call(kernels.normalize, dy.reshape(size), np.zeros_like(mean), factor, dy.reshape(size))
        return dy

    def mean_and_factor(self, channels: int, dtype: np.dtype) -> tuple[Array, Array]:
        """The mean, and 1 over the standard deviation, of each channel."""
        if self.is_auto:
            raise InputError(
                f"{self} has no mean and standard deviation yet: training takes them from the training set, if only "
                f"layers of augmentation are before it in the network; or call network.adapt(train_set), or write "
                f"Normalize(mean, std)"
            )
        mean, std = (np.broadcast_to(np.asarray(one, np.float64), channels) for one in (self.mean, self.std))
        return mean.astype(dtype), (1 / std).astype(dtype)


def adapted(layers: tuple[Layer, ...], images: Array) -> tuple[Layer, ...]:
    """The layers, with the numbers of these images for a `Normalize("auto")` that has only `Augmentation` before it.

    Args:
        images: (N, H, W), (N, C, H, W) or (N, features), uint8 or floats.
    """
    for i, layer in enumerate(layers):
        normalize = thawed(layer)
        if isinstance(normalize, Normalize) and normalize.is_auto:
            mean, std = mean_and_deviation(images)
            with_numbers: Layer = replace(normalize, mean=mean, std=std)
            return (*layers[:i], with_numbers if layer is normalize else Frozen(with_numbers), *layers[i + 1 :])
        if not isinstance(normalize, Augmentation):
            break
    return layers


def mean_and_deviation(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with uint8 scaled to [0, 1]; a deviation of 0 is replaced by 1.

    The same bits on every machine.

    Args:
        images: as in `adapted`.
    """
    N, *shape = images.shape
    channels, *size = (1, *shape) if len(shape) == 2 else shape
    count = N * math.prod(size)

    def pieces() -> Iterator[Array]:  # the images may be larger than the memory
        for start in range(0, N, _PIECE):
            piece = images[start : start + _PIECE]
            yield piece.reshape(len(piece), channels, math.prod(size))

    if images.dtype == np.uint8:
        sums = np.zeros((2, channels), np.uint64)
        for piece in pieces():
            integer_sums(piece, sums)
        totals, squares = sums.tolist()
        means = [total / (255 * count) for total in totals]
        pairs = zip(totals, squares, strict=True)
        deviations = [math.sqrt(count * square - total * total) / (255 * count) for total, square in pairs]
    else:
        sums = np.zeros((2, channels))
        for piece in pieces():
            power_sums(piece, np.zeros(channels), sums)
        mean = sums[0] / count
        sums[...] = 0
        for piece in pieces():
            power_sums(piece, mean, sums)
        means, deviations = mean.tolist(), np.sqrt(sums[1] / count).tolist()
    return tuple(means), tuple(deviation or 1.0 for deviation in deviations)


def _numbers(layer: Layer, name: str, value: Any, rule: str, above: float = -math.inf) -> float | tuple[float, ...]:
    """The value as a Python number, or a tuple of such."""
    given = value.tolist() if isinstance(value, np.ndarray) else value
    several = isinstance(given, Iterable) and not isinstance(given, str)
    numbers = tuple(given) if several else (given,)
    for number in numbers:
        is_number = isinstance(number, int | float | np.number) and not isinstance(number, bool)
        if not is_number or not above < number < math.inf:
            raise ShapeError(f"{layer}: {name} must be {rule}, or a tuple of such, got {value!r}")
    converted = tuple(map(float, numbers))
    return converted if several else converted[0]
