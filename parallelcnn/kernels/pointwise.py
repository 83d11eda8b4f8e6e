"""Convolution with filters of 1 x 1 as matrix products. Their rows are very long: all numbers of an image.

GFLOP/s of one core for 64 -> 64 and 64 -> 256 channels of 16 x 16, n = 100, where a product of 512 x 512 runs at 146:

                        these        PyTorch      tiles over rows (`conv2d`)   numpy's products
    forward             129, 133     143, 146     65, 55                       102, 119
    weight gradient      92, 104      93, 104     60, 55                        80, 107
    input gradient      122, 117     149, 154     58, 41                       101,  94
"""

from ._jit import kernel
from ._tiles import product, transpose

PANEL = 256  # numbers of each row at a time, so that x^T fits into the second cache


@kernel
def pointwise_forward(x, weight, bias, y):
    """y = weight x + bias. x: (C, H * W * n), weight: (K, C), bias: (K,) or None, y: (K, H * W * n)."""
    product(weight, x, bias, y)


@kernel
def pointwise_weight_gradient(x, dy, panel, sums, dweight):
    """dweight = dy x^T. panel: (PANEL, C) and sums: (K, C), overwritten."""
    length = x.shape[1]
    sums[:] = 0
    for first in range(0, length, PANEL):
        last = min(first + PANEL, length)
        some = panel[: last - first]
        transpose(x[:, first:last], some)
        # Not in place: if the last block of rows overlaps the one before it, it would add twice.
        product(dy[:, first:last], some, sums, dweight)
        sums[:] = dweight
    dweight[:] = sums  # also if there were no samples to sum


@kernel
def pointwise_backward_input(dy, weight, turned, dx):
    """dx = weight^T dy. turned: (C, K), overwritten."""
    transpose(weight, turned)
    product(turned, dy, None, dx)
