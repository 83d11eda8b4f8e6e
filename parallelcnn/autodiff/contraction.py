"""Products of arrays that are summed over shared axes, recorded as one matrix product.

The axes of arrays have labels, one character each, as in `np.einsum`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Array = np.ndarray

SAMPLES = "#"  # label of the axis of samples, always the last


class Recording(Protocol):
    """The part of a `Step` that traced functions use."""

    @property
    def n(self) -> int: ...

    @property
    def dtype(self) -> np.dtype: ...

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None: ...

    def scratch(self, shape: tuple[int, ...], dtype: Any = None) -> Array: ...


def record_product(
    step: Recording, left: Array, left_labels: str, right: Array, right_labels: str, labels: str
) -> Array:
    """Record the calls for einsum("LEFT,RIGHT->LABELS", left, right); returns the contiguous result.

    Labels that are not in `labels` must be in both arrays: the product is summed over these axes.
    """
    if _belongs_right(left_labels, right_labels, labels):
        left, left_labels, right, right_labels = right, right_labels, left, left_labels
    sizes = {**dict(zip(left_labels, left.shape, strict=True)), **dict(zip(right_labels, right.shape, strict=True))}
    summed = [one for one in left_labels if one in right_labels and one not in labels]
    rows = [one for one in labels if one not in right_labels]
    after_rows = labels[labels.index(rows[0]) :] if rows else labels
    columns = [one for one in labels if one not in left_labels and one in after_rows]
    batch = [one for one in labels if one not in rows and one not in columns]
    order = "".join([*batch, *rows, *columns])
    product = step.scratch(
        (
            *(sizes[one] for one in batch),
            math.prod(sizes[one] for one in rows),
            math.prod(sizes[one] for one in columns),
        )
    )
    matrices = (
        _as_matrices(step, left, left_labels, batch, rows, summed),
        _as_matrices(step, right, right_labels, batch, summed, columns),
    )
    step.call(quietly, np.matmul, *matrices, out=product)
    result = product.reshape([sizes[one] for one in order]).transpose([order.index(one) for one in labels])
    return contiguous(step, result)


def contiguous(step: Recording, array: Array) -> Array:
    """The array itself if it is contiguous, and not a broadcast one, which is read-only; otherwise a recorded copy."""
    if array.flags.c_contiguous and array.flags.writeable:
        return array
    copied = step.scratch(array.shape, array.dtype)
    step.call(np.copyto, copied, array)
    return copied


def broadcast(array: Array, shape: tuple[int, ...]) -> Array:
    """np.broadcast_to, which makes a read-only view, only where it is needed."""
    return array if array.shape == shape else np.broadcast_to(array, shape)


def quietly(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Call a function of numpy's without its warnings: exp(-x) may well overflow in 1 / (1 + exp(-x))."""
    with np.errstate(all="ignore"):
        function(*arguments, **named)


def _belongs_right(left: str, right: str, labels: str) -> bool:
    """Whether the left factor should be the right one, whose axes are the last ones of the product."""
    if (SAMPLES in left) != (SAMPLES in right):
        return SAMPLES in left
    own = [one for one in labels if (one in left) != (one in right)]
    return bool(own) and own[0] in right


def _as_matrices(
    step: Recording, array: Array, labels: str, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> Array:
    """The array as (*batch, rows, columns), as BLAS takes it; a recorded copy where a view is none of these."""
    found = [one for one in batch if one in labels]
    ordered = array.transpose([labels.index(one) for one in (*found, *rows, *columns)])
    of_batch = [array.shape[labels.index(one)] if one in labels else 1 for one in batch]
    of_matrix = [math.prod(array.shape[labels.index(one)] for one in some) for some in (rows, columns)]
    matrices = ordered.reshape(of_batch + of_matrix)
    if np.may_share_memory(matrices, array) and _is_for_blas(matrices):
        return matrices
    copied = step.scratch(matrices.shape)
    step.call(np.copyto, copied.reshape(ordered.shape), ordered)
    return copied


def _is_for_blas(matrices: Array) -> bool:
    """Whether the numbers of each row, or of each column, are neighbours."""
    (n_rows, n_columns), (rows, columns) = matrices.shape[-2:], matrices.strides[-2:]
    size = matrices.itemsize
    return (columns == size and rows >= n_columns * size) or (rows == size and columns >= n_rows * size)
