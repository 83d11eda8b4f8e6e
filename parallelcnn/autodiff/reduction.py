"""Sums and extrema along axes of arrays, recorded as numpy calls that allocate nothing.

np.sum and np.max along some axes would allocate buffers in each call. Here the axes get the length 1.
"""

import math
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np

from .contraction import Array, Recording, broadcast, contiguous, quietly


def without_repetitions(array: Array) -> Array:
    """The array with the length 1 along each axis along which it was broadcast."""
    return array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]


def record_sum(step: Recording, array: Array, axes: tuple[int, ...]) -> Array:
    """Record the sum along axes, as products with ones."""
    small = without_repetitions(array)
    y = contiguous(step, small)
    for run in reversed(_runs(axes, array.ndim)):
        shape = y.shape
        before, length = math.prod(shape[: run[0]]), math.prod(shape[run[0] : run[-1] + 1])
        after = math.prod(shape[run[-1] + 1 :])
        if length == 1:
            continue
        total = step.scratch(_reduced(shape, run))
        ones = _ones(length, y.dtype)
        if after == 1:
            step.call(quietly, np.matmul, y.reshape(before, length), ones, out=total.reshape(before))
        else:
            matrices = y.reshape(before, length, after)
            step.call(quietly, np.matmul, ones, matrices, out=total.reshape(before, after))
        y = total
    repetitions = math.prod(array.shape[i] for i in axes if array.shape[i] != small.shape[i])
    if repetitions != 1:
        total = step.scratch(y.shape)
        step.call(np.multiply, y, repetitions, out=total)
        y = total
    return broadcast(y, _reduced(array.shape, axes))


def record_extremum(step: Recording, ufunc: Any, array: Array, axes: tuple[int, ...]) -> Array:
    """Record the maximum, or the minimum, along axes: that of both halves, again and again."""
    small = without_repetitions(array)
    ordered = small.transpose([*axes, *(i for i in range(array.ndim) if i not in axes)])
    length = math.prod(small.shape[i] for i in axes)
    rows = step.scratch((length, small.size // length))
    step.call(np.copyto, rows.reshape(ordered.shape), ordered)
    while length > 1:
        half = -(-length // 2)
        step.call(quietly, ufunc, rows[: length - half], rows[half:length], out=rows[: length - half])
        length = half
    y = step.scratch(_reduced(small.shape, axes))
    step.call(np.copyto, y, rows[0].reshape(y.shape))
    return broadcast(y, _reduced(array.shape, axes))


def _runs(axes: tuple[int, ...], ndim: int) -> list[tuple[int, ...]]:
    """The axes, with neighbours together; the last axis, which may be long, on its own."""
    groups = groupby(range(ndim), lambda i: (i in axes, i == ndim - 1))
    return [tuple(some) for (reduced, _), some in groups if reduced]


@cache
def _ones(length: int, dtype: np.dtype) -> Array:
    return np.ones(length, dtype)


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in axes else size for i, size in enumerate(shape))
