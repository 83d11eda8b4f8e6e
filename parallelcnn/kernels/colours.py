"""Changes of the numbers of an image: normalisation, brightness, contrast, and a square cut out.

The random numbers of a sample are functions of keys[i] and the number of a layer; see `random`. x and y may be the same
array.
"""

from ._jit import kernel
from ._mix import below, mix, unit


@kernel
def normalize(x, mean, factor, y):
    """y[c, j, i] = (x[c, j, i] - mean[c]) * factor[c]; x, y: (C, places, n)."""
    C, places, n = x.shape
    for c in range(C):
        for j in range(places):
            for i in range(n):
                y[c, j, i] = (x[c, j, i] - mean[c]) * factor[c]


@kernel
def draw_numbers(keys, number, middle, largest, numbers):
    """numbers[i] = a random number in [middle - largest, middle + largest); numbers: (n,)."""
    for i in range(keys.size):
        numbers[i] = middle + largest * (2 * unit(mix(keys[i], number), 0) - 1)


@kernel
def add_numbers(x, numbers, y):
    """y[f, i] = x[f, i] + numbers[i]; x, y: (features, n)."""
    features, n = x.shape
    for f in range(features):
        for i in range(n):
            y[f, i] = x[f, i] + numbers[i]


@kernel
def change_contrast(x, factors, means, y):
    """y[c, j, i] = m + factors[i] * (x[c, j, i] - m), where m is the mean of x[c, :, i]; x, y: (C, places, n).

    This is a symmetric linear function of x, so it also computes dx from dy. means: (n,), overwritten.
    """
    C, places, n = x.shape
    share = x.dtype.type(1 / places)
    for c in range(C):
        means[:] = 0
        for j in range(places):
            for i in range(n):
                means[i] += x[c, j, i] * share
        for j in range(places):
            for i in range(n):
                y[c, j, i] = means[i] + factors[i] * (x[c, j, i] - means[i])


@kernel
def draw_corners(keys, number, H, W, rows, columns, corners):
    """The first row and column of a box of `rows` x `columns` whose centre is any pixel of the image, equally likely.

    corners: (2, n) int64. A part of the box may be outside of the image.
    """
    for i in range(keys.size):
        key = mix(keys[i], number)
        corners[0, i] = below(key, 0, H) - rows // 2
        corners[1, i] = below(key, 1, W) - columns // 2


@kernel
def cut_out(corners, rows, columns, y):
    """y *= 0 inside each sample's box, so that a NaN stays one; y: (C, H, W, n), corners: see `draw_corners`."""
    C, H, W, n = y.shape
    for i in range(n):
        top, left = corners[0, i], corners[1, i]
        for c in range(C):
            for p in range(max(top, 0), min(top + rows, H)):
                for q in range(max(left, 0), min(left + columns, W)):
                    y[c, p, q, i] *= 0
