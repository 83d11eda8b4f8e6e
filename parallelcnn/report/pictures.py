"""Pictures of filters and matrices, as arrays of pixels."""

import math
from typing import Any

import numpy as np

from parallelcnn.network import NetworkHandler
from parallelcnn.pixels import grid

Array = np.ndarray

_LARGEST_MATRIX = 500  # rows; of larger matrices, squares of cells share a pixel
_MOST_FILTERS = 64
_COLUMNS = 16  # of filters

# Blue to white to orange, which colour-blind people can distinguish (Okabe & Ito 2008, "Color Universal Design").
_NEGATIVE, _ZERO, _POSITIVE = np.array([[0, 92, 158], [247, 247, 247], [201, 84, 0]], np.float64)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape, (H, W) or (C, H, W), can be shown as images."""
    return len(shape) in (2, 3) and min(shape) > 0


def first_filters(network: NetworkHandler) -> tuple[str, Array] | None:
    """The first layer's filters: a name such as "0.weight", and (filters, channels, rows, columns); None: it has none.

    The weights of a dense layer that reads the whole image are filters of the image's size.
    """
    for name, array in network.parameters.items():
        if array.ndim == 4 and array.size:
            return name, array
        if array.ndim == 2 and len(network.input_shape) == 3 and array.shape[1] == math.prod(network.input_shape):
            return name, array.reshape(-1, *network.input_shape)
        if array.ndim > 1:
            return None
    return None


def filters_picture(filters: Array) -> Array:
    """Filters beside each other, (H, W, 4) uint8, separated by transparent pixels; at most the first 64.

    Each is scaled by its largest weight. Filters of 3 channels are in colour, grey being 0. Of other filters the mean
    over the channels is shown: blue is negative, white 0 and orange positive.
    """
    filters = np.asarray(filters[:_MOST_FILTERS], np.float64)
    filters = filters if filters.shape[1] == 3 else filters.mean(axis=1, keepdims=True)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    filters = filters / np.where(largest == 0, 1, largest)
    pictures = np.full((len(filters), *filters.shape[2:], 4), 255, np.uint8)
    for picture, one in zip(pictures, filters, strict=True):
        colours = one.transpose(1, 2, 0) * 127.5 + 127.5 if len(one) == 3 else _diverging(one[0])
        picture[..., :3] = np.rint(colours)
    return grid(list(pictures), filters_across(len(filters)), fill=0)[:-1, :-1]


def filters_across(count: int) -> int:
    """How many of `count` filters stand beside each other."""
    return min(count, _COLUMNS) if count <= _COLUMNS else next(n for n in (16, 12, 10, 8) if count % n == 0 or n == 8)


def matrix_picture(fractions: Array) -> Array:
    """A confusion matrix as a picture, (n, n, 4) uint8: correct ones in blue, mistakes in orange; at most 500 rows.

    Args:
        fractions: (classes, classes), of the samples of each class (row).
    """
    factor = -(-len(fractions) // _LARGEST_MATRIX)
    pad = -len(fractions) % factor
    padded = np.pad(fractions, ((0, pad), (0, pad)))
    n = len(padded) // factor
    largest = padded.reshape(n, factor, n, factor).max(axis=(1, 3))
    picture = np.empty((n, n, 4), np.uint8)
    picture[..., :3], picture[..., 3] = _POSITIVE, np.rint(255 * np.sqrt(np.clip(largest, 0, 1)))  # so that few show
    np.einsum("iic->ic", picture)[:, :3] = _NEGATIVE
    return picture


def _diverging(numbers: Array) -> Any:
    """Colours, (..., 3), of numbers in [-1, 1]."""
    strength = np.abs(numbers)[..., None]
    end = np.where(numbers[..., None] < 0, _NEGATIVE, _POSITIVE)
    return _ZERO + strength * (end - _ZERO)
