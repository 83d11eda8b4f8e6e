"""Dropout.

The mask is kept as one byte for each number. To compute it again in the backward pass would take three times as long as
to read it (0.6 and 0.2 ns for each number).
"""

from numba import uint64

from ._jit import kernel
from ._mix import mix

RANDOM_BITS = 24  # of a random number, as in `random.uniform`


@kernel
def dropout_forward(x, keys, number, limit, scale, layer_keys, kept, y):
    """y[f, j, i] = x[f, j, i] * scale where kept[f, i], otherwise x[f, j, i] * 0, which is NaN for a NaN.

    x, y: (features, places, n). kept: (features, n) uint8, overwritten: whether the random number of RANDOM_BITS bits
    that belongs to (keys[i], number, f) is at least `limit`. layer_keys: (n,) uint64, overwritten.
    """
    features, places, n = x.shape
    factor, zero = y.dtype.type(scale), y.dtype.type(0)
    for i in range(n):
        layer_keys[i] = mix(keys[i], number)
    for f in range(features):
        for i in range(n):
            kept[f, i] = mix(layer_keys[i], f) >> uint64(64 - RANDOM_BITS) >= uint64(limit)
        for j in range(places):
            for i in range(n):
                y[f, j, i] = x[f, j, i] * (factor if kept[f, i] else zero)


@kernel
def dropout_backward(kept, scale, dy):
    """dy[f, j, i] *= scale where kept[f, i], otherwise 0. Arrays are those of `dropout_forward`."""
    features, places, n = dy.shape
    factor, zero = dy.dtype.type(scale), dy.dtype.type(0)
    for f in range(features):
        for j in range(places):
            for i in range(n):
                dy[f, j, i] *= factor if kept[f, i] else zero
