"""Sums over a whole data set, the same bits on every machine."""

from numba import uint64

from ._jit import exact_kernel


@exact_kernel
def integer_sums(images, sums):
    """sums[0, c], sums[1, c] += the sum and the sum of squares of channel c; exact.

    images: (N, C, places) uint8; sums: (2, C) uint64.
    """
    N, C, places = images.shape
    for i in range(N):
        for c in range(C):
            total = square = uint64(0)
            for j in range(places):
                value = uint64(images[i, c, j])
                total += value
                square += value * value
            sums[0, c] += total
            sums[1, c] += square


@exact_kernel
def power_sums(images, mean, sums):
    """sums[0, c], sums[1, c] += the sums of d and of d^2, d = images[:, c] - mean[c].

    images: (N, C, places) floats; mean: (C,), sums: (2, C) float64.
    """
    N, C, places = images.shape
    for i in range(N):
        for c in range(C):
            total = square = 0.0
            for j in range(places):
                difference = images[i, c, j] - mean[c]
                total += difference
                square += difference * difference
            sums[0, c] += total
            sums[1, c] += square
