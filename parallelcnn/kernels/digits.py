"""Draw pen strokes into small grey images.

Letters: N images of H x W pixels; V handwritings of up to S strokes, each through up to L of P points. The kernels use
only + - * / and sqrt, whose rounding IEEE 754 defines, so the pixels are the same everywhere.
"""

import math

import numpy as np

from ._jit import exact_kernel

# Line segments of a curve between two points: at 28 pixels more of them make no visible difference.
_PIECES = 4


@exact_kernel
def draw_strokes(points, variant, radius, ink, noise, strokes, grain, nearest, images):
    """images = 255 ink clip(radius + 1/2 - distance, 0, 1) + noise (grain - 127.5), clipped.

    points: (N, P, 2), x to the right and y down [pixels]; pixel (h, w) is centred at (w, h).
    variant: (N,), integers in [0, V), the handwriting of each image.
    radius, ink, noise: (N,), half the pen's width [pixels], its blackness and the paper's grain.
    strokes: (V, S, L), integers, the points of each stroke, -1 after the last.
    grain: (N, H, W), random bytes.
    nearest: (H, W), float64, overwritten: the squared distance to near strokes.
    images: (N, H, W), uint8, overwritten.
    """
    N, H, W = images.shape
    _, S, L = strokes.shape
    for n in range(N):
        reach = radius[n] + 0.5
        nearest[:] = reach * reach
        for s in range(S):
            stroke = strokes[variant[n], s]
            length = 0
            while length < L and stroke[length] >= 0:
                length += 1
            _draw_curve(points[n], stroke[:length], reach, nearest)
        for h in range(H):
            for w in range(W):
                cover = min(reach - math.sqrt(nearest[h, w]), 1.0)
                value = 255.0 * ink[n] * cover + noise[n] * (grain[n, h, w] - 127.5)
                images[n, h, w] = np.uint8(min(max(value, 0.0), 255.0))


@exact_kernel
def _draw_curve(points, stroke, reach, nearest):
    """nearest = min(nearest, squared distance to the Catmull-Rom curve through points[stroke])."""
    last = len(stroke) - 1
    closed = last > 2 and stroke[0] == stroke[last]
    for i in range(last):
        before = i - 1 if i > 0 else (last - 1 if closed else 0)
        after = i + 2 if i + 2 <= last else (1 if closed else last)
        p0, p1 = points[stroke[before]], points[stroke[i]]
        p2, p3 = points[stroke[i + 1]], points[stroke[after]]
        pieces = _PIECES if last > 1 else 1
        x0, y0 = p1[0], p1[1]
        for piece in range(1, pieces + 1):
            t = piece / pieces
            x1 = _catmull_rom(p0[0], p1[0], p2[0], p3[0], t)
            y1 = _catmull_rom(p0[1], p1[1], p2[1], p3[1], t)
            _draw_segment(x0, y0, x1, y1, reach, nearest)
            x0, y0 = x1, y1


@exact_kernel
def _catmull_rom(a, b, c, d, t):
    """Catmull and Rom (1974): the cubic from b to c with slopes (c - a) / 2 and (d - b) / 2."""
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


@exact_kernel
def _draw_segment(x0, y0, x1, y1, reach, nearest):
    """nearest = min(nearest, squared distance to the segment), if that is below reach^2."""
    H, W = nearest.shape
    # Clip to the image before rounding: a far-away float may not fit an integer.
    left = int(max(min(min(x0, x1) - reach + 1.0, float(W)), 0.0))
    right = int(max(min(max(x0, x1) + reach + 1.0, float(W)), 0.0))
    top = int(max(min(min(y0, y1) - reach + 1.0, float(H)), 0.0))
    bottom = int(max(min(max(y0, y1) + reach + 1.0, float(H)), 0.0))
    dx, dy = x1 - x0, y1 - y0
    # A segment may be a point: no division by zero.
    along = max(dx * dx + dy * dy, 1e-9)
    for h in range(top, bottom):
        for w in range(left, right):
            px, py = w - x0, h - y0
            t = min(max((px * dx + py * dy) / along, 0.0), 1.0)
            px, py = px - t * dx, py - t * dy
            nearest[h, w] = min(nearest[h, w], px * px + py * py)
