"""Rotated and zoomed images, with bilinear interpolation.

The pixel at (u, v) from the centre of the output is that at (a u + b v, c u + d v) from the centre of the image.
Between pixels it is interpolated; outside of the image every pixel is zero.

    matrices: (4, n) float64: a, b, c, d of each sample.

The random numbers of a sample are functions of keys[i] and the number of a layer; see `random`.
"""

import math

from numba.extending import register_jitable

from ._jit import kernel
from ._mix import mix, unit


@kernel
def draw_rotations(keys, number, largest, matrices):
    """Rotations by an angle in [-largest, largest), in radians."""
    for i in range(keys.size):
        angle = largest * (2 * unit(mix(keys[i], number), 0) - 1)
        matrices[0, i] = matrices[3, i] = math.cos(angle)
        matrices[1, i], matrices[2, i] = -math.sin(angle), math.sin(angle)


@kernel
def draw_zooms(keys, number, largest, matrices):
    """Zooms by a factor in [1 - largest, 1 + largest)."""
    for i in range(keys.size):
        factor = 1 + largest * (2 * unit(mix(keys[i], number), 0) - 1)
        matrices[0, i] = matrices[3, i] = 1 / factor
        matrices[1, i] = matrices[2, i] = 0


@register_jitable
def _taps(place, size):
    """The two pixels around a place on an axis, kept inside the image, and their weights: zero if they are outside."""
    before = math.floor(place)
    after, weight = before + 1, place - before
    weight_before = 1 - weight if 0 <= before < size else 0.0
    weight_after = weight if 0 <= after < size else 0.0
    return min(max(before, 0), size - 1), min(max(after, 0), size - 1), weight_before, weight_after


@register_jitable
def _taps_of(matrices, i, p, q, H, W):
    """The taps of pixel (p, q) of sample i on both axes."""
    u, v = p - (H - 1) / 2, q - (W - 1) / 2
    rows = _taps(matrices[0, i] * u + matrices[1, i] * v + (H - 1) / 2, H)
    columns = _taps(matrices[2, i] * u + matrices[3, i] * v + (W - 1) / 2, W)
    return rows, columns


@kernel
def affine_forward(x, matrices, y):
    """y = the rotated and zoomed x; x, y: (C, H, W, n)."""
    C, H, W, n = y.shape
    as_number = y.dtype.type
    for p in range(H):
        for q in range(W):
            for i in range(n):
                (r, r1, a, a1), (s, s1, b, b1) = _taps_of(matrices, i, p, q, H, W)
                w00, w01, w10, w11 = as_number(a * b), as_number(a * b1), as_number(a1 * b), as_number(a1 * b1)
                for c in range(C):
                    above = w00 * x[c, r, s, i] + w01 * x[c, r, s1, i]
                    y[c, p, q, i] = above + w10 * x[c, r1, s, i] + w11 * x[c, r1, s1, i]


@kernel
def affine_backward(dy, matrices, dx):
    """The gradient of `affine_forward` with respect to x."""
    C, H, W, n = dy.shape
    as_number = dy.dtype.type
    dx[...] = 0
    for p in range(H):
        for q in range(W):
            for i in range(n):
                (r, r1, a, a1), (s, s1, b, b1) = _taps_of(matrices, i, p, q, H, W)
                w00, w01, w10, w11 = as_number(a * b), as_number(a * b1), as_number(a1 * b), as_number(a1 * b1)
                for c in range(C):
                    value = dy[c, p, q, i]
                    dx[c, r, s, i] += w00 * value
                    dx[c, r, s1, i] += w01 * value
                    dx[c, r1, s, i] += w10 * value
                    dx[c, r1, s1, i] += w11 * value
