"""The windows of a convolution, and the interface of the algorithms that compute it."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from .base import Array, Step

NO_BIAS = {np.dtype(t): np.empty(0, t) for t in (np.float32, np.float64)}


class WindowAxis(NamedTuple):
    """The windows of a convolution along the rows, or the columns, of an image."""

    window: int
    stride: int
    before: int  # zeros before the image
    outputs: int  # number of windows
    dilation: int = 1  # distance between neighbouring taps


class Windows(NamedTuple):
    """The windows of a convolution on an image."""

    rows: WindowAxis
    columns: WindowAxis


class Algorithm(Protocol):
    """Interface of convolution algorithms. The methods record calls on a step."""

    def forward(self, step: Step, weight: Array, bias: Array, x: Array, y: Array) -> Array:
        """Compute y; returns the image that `weight_gradient` takes: x, or x in another layout.

        bias: (K,), or (0,) for no bias. y may leave out the last rows and columns.
        """

    def weight_gradient(self, step: Step, image: Array, dy: Array, dweight: Array) -> None:
        """Compute dweight."""

    def input_gradient(self, step: Step, weight: Array, dy: Array, dx: Array) -> None:
        """Compute dx."""


def phases(axis: WindowAxis) -> Iterator[tuple[slice, int, int]]:
    """For each phase of rows, or columns, of dx: the taps that reach it, its first place, the zeros before dy."""
    for phase in range(axis.stride):
        taps = range(phase, axis.window, axis.stride)
        skipped = max(0, -((phase - axis.before) // axis.stride))  # places of this phase before the image
        first = skipped * axis.stride + phase - axis.before
        yield slice(phase, None, axis.stride), first, len(taps) - 1 - skipped


def rotated(weight: Array) -> Array:
    return weight[:, :, ::-1, ::-1]
