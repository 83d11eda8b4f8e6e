"""What the layers of one network work on: activations, caches and gradients of activations, allocated once.

Memory is held for the largest number of samples seen so far; any smaller number gets views into its beginning. In
training a rank meets one or two numbers (its share of a full minibatch, and of the last), so a step allocates nothing.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from parallelcnn.errors import ShapeError
from parallelcnn.layers.base import Array, Call, Layer, Shape

_CACHE_LINE = 64  # bytes


class Workspace:
    """The arrays for one number of samples.

    Attributes:
        activations: before, between and after the layers, each (*shape, n).
        dactivations: the loss differentiated by them; None for the input, which nobody asks for.
        caches: for each layer, the arrays that its `cache_shapes` asked for.
        calls: kept here by those who run the layers, by name of the pass: for each part, such as a layer, its calls.
    """

    def __init__(
        self,
        activations: list[Array],
        dactivations: list[Array | None],
        caches: list[dict[str, Array]],
    ) -> None:
        self.activations = activations
        self.dactivations = dactivations
        self.caches = caches
        self.calls: dict[str, list[list[Call]]] = {}


class Workspaces:
    """The workspaces of one network, by number of samples.

    Args:
        layers: the network.
        shapes: of one sample before, between and after the layers.
        dtype: of activations, of scratches, and of caches that name none.
    """

    def __init__(self, layers: Sequence[Layer], shapes: Sequence[Shape], dtype: np.dtype) -> None:
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        inputs = list(zip(layers, shapes[:-1], strict=True))
        self._caches = [
            {name: _with_dtype(entry, dtype) for name, entry in layer.cache_shapes(shape).items()}
            for layer, shape in inputs
        ]
        scratches = [layer.scratch_shapes(shape) for layer, shape in inputs]
        self._scratch_bytes = (
            sum(math.prod(size) for scratch in scratches for size in scratch.values()) * dtype.itemsize
        )
        check_memory("the layers' scratch arrays", self._scratch_bytes)
        self._scratches = [
            {name: _aligned(math.prod(size), dtype).reshape(size) for name, size in scratch.items()}
            for scratch in scratches
        ]
        self._dtype = dtype
        self._capacity = -1
        self._by_size: dict[int, Workspace] = {}

    def get(self, n: int) -> Workspace:
        """The workspace for n samples.

        Raises:
            ShapeError: if so many samples do not fit into this machine's memory.
        """
        if n > self._capacity:
            self._allocate(n)
        if n not in self._by_size:
            self._by_size[n] = self._views(n)
        return self._by_size[n]

    def check_memory(self, n: int) -> None:
        """Raise ShapeError if the arrays for n samples do not fit into this machine's memory."""
        check_memory(f"the network's activations for {n} samples", self.bytes_for(n) - self._scratch_bytes)

    def bytes_for(self, n: int) -> int:
        """How much memory the arrays for n samples take, those for any number of samples included."""
        cache_bytes = sum(
            math.prod(shape) * dtype.itemsize for cache in self._caches for shape, dtype in cache.values()
        )
        numbers = sum(self._sizes) + 2 * max(self._sizes)
        return n * (numbers * self._dtype.itemsize + cache_bytes) + self._scratch_bytes

    def _allocate(self, n: int) -> None:
        self.check_memory(n)
        self._by_size.clear()  # their views would keep the old memory alive
        # The gradient of an activation is needed only until the one before it is there: two places take turns.
        sizes, largest = self._sizes, max(self._sizes)
        self._activations = [_aligned(size * n, self._dtype) for size in sizes]
        self._dactivations = [_aligned(largest * n, self._dtype) for _ in range(2)]
        self._cache_memory = [
            {name: _aligned(math.prod(shape) * n, dtype) for name, (shape, dtype) in cache.items()}
            for cache in self._caches
        ]
        self._capacity = n

    def _views(self, n: int) -> Workspace:
        return Workspace(
            [_view(flat, shape, n) for flat, shape in zip(self._activations, self._shapes, strict=True)],
            [_view(self._dactivations[i % 2], shape, n) if i > 0 else None for i, shape in enumerate(self._shapes)],
            [
                {name: _view(memory[name], shape, n) for name, (shape, _) in cache.items()} | scratch
                for cache, memory, scratch in zip(self._caches, self._cache_memory, self._scratches, strict=True)
            ],
        )


def check_memory(what: str, n_bytes: int) -> None:
    """Raise ShapeError if that many bytes are more than this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > memory:
        raise ShapeError(f"{what} take {n_bytes >> 20:,} MiB, more than the {memory >> 20:,} MiB of this machine")


def _aligned(size: int, dtype: np.dtype) -> Array:
    """A flat array that begins on a cache line: where n is a multiple of 16, no vector then lies across two of them
    (weight gradient of 6 -> 16 channels, n = 48: 138 GFLOP/s instead of 98).
    """
    memory = np.empty(size * dtype.itemsize + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size * dtype.itemsize].view(dtype)


def _with_dtype(entry: Any, dtype: np.dtype) -> tuple[Shape, np.dtype]:
    """(shape, dtype) of an entry of `cache_shapes`, which may be a shape alone."""
    named = len(entry) == 2 and isinstance(entry[0], tuple)
    return (entry[0], np.dtype(entry[1])) if named else (entry, dtype)


def _view(flat: Array, shape: Shape, n: int) -> Array:
    return flat[: math.prod(shape) * n].reshape(*shape, n)
