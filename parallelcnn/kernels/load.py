"""From a data set to the first layer: gather, scale, transpose, in one pass."""

import numpy as np

from ._jit import kernel

_unsigned = np.uint64  # an index that needs no check for "counted from the end"


@kernel
def all_within(indices, count):
    """Whether every index lies in [0, count); numpy's minimum and maximum took 1 % of a step."""
    for i in range(indices.size):  # noqa: SIM110 (numba compiles no generator here)
        if not 0 <= indices[i] < count:
            return False
    return True


@kernel
def load(images, indices, scale, x):
    """x[f, i] = images[indices[i], f] * scale; images: (N, features), x: (features, n)."""
    features, N = x.shape
    # A cache line of an image at a time: the 64 rows of x that it goes to stay in the cache while the images go by.
    # 25 us for n = 50 images of 28 x 28; 37 us image by image.
    for first in range(0, features, 64):
        last = min(first + 64, features)
        for i in range(N):
            image = images[indices[i]]
            for f in range(_unsigned(first), _unsigned(last)):
                x[f, _unsigned(i)] = image[f] * scale
