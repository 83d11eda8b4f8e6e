"""Copies of the places of an image that filters of 1 x 1 with a stride see.

Direct convolution (`conv2d`) would copy every column. 16 -> 32 channels of 32 x 32 with stride 2, n = 32: 80 GFLOP/s
instead of 38 forwards, and 72 instead of 36 in the input gradient.
"""

from ._jit import kernel
from ._tiles import copy_rows


@kernel
def subsample(x, strides, image):
    """image[c, p, q] = x[c, p * strides[0], q * strides[1]]. x: (C, H, W, n), image: (C, P, Q, n)."""
    C, P, Q, _ = image.shape
    rows, columns = strides
    for c in range(C):
        for p in range(P):
            copy_rows(x[c, p * rows, : (Q - 1) * columns + 1 : columns], image[c, p], False)


@kernel
def subsample_backward(dimage, strides, dx):
    """The gradient of `subsample`: dx is dimage at the places that were copied, and zero elsewhere."""
    C, P, Q, _ = dimage.shape
    rows, columns = strides
    for c in range(C):
        for p in range(P):
            dx[c, p * rows] = 0
            copy_rows(dimage[c, p], dx[c, p * rows, : (Q - 1) * columns + 1 : columns], False)
            dx[c, p * rows + 1 : (p + 1) * rows] = 0
        dx[c, P * rows :] = 0
