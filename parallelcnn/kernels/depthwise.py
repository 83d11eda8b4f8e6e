"""Depthwise convolution with a column stride: filter k reads channel c = k div multiplier only.

    y[k, p, q] = bias[k] + sum over r, s of  weight[k, 0, r, s] * x[c, p * stride[0] + r - before[0],
                                                                         q * stride[1] + s - before[1]]

A window has few products, so the time is that of reading and writing. These kernels read the image where it is. The
general ones (`conv2d`) would first copy its columns apart, and take twice as long.

The gradient of x is a forward pass over dy for every phase of rows and columns; see `Depthwise` in
`layers/conv_algorithms.py`.
"""

from collections.abc import Callable
from functools import cache

from ._depthwise_tiles import depthwise_gradient_tile, depthwise_row
from ._jit import kernel
from ._vectors import REGISTERS

MOST_TAPS = 64  # tiles are unrolled over the taps of a window, and take long to compile for large ones
_GRADIENT_SUMS = REGISTERS - 5  # most sums in a tile of the weight gradient


@cache
def forward_kernel(filter_rows: int, filter_columns: int, adds: bool) -> Callable[..., None]:
    """The forward kernel for this filter size; adds: whether it adds to y."""
    R, S = filter_rows, filter_columns

    @kernel
    def depthwise_forward(x, weight, bias, zeros, stride, before, y):
        """x: (C, H, W, n), weight: (K, 1, R, S), bias: (K,) or None, zeros: (n,), overwritten; y: (K, P, Q, n).

        stride, before: (rows, columns); before: zeros before the image.
        """
        K, P, _, _ = y.shape
        zeros[:] = 0
        for k in range(K):
            for p in range(P):
                depthwise_row(x, weight, bias, zeros, y, (k // (K // len(x)), k, p), stride, before, adds, R, S)

    return depthwise_forward


@cache
def weight_gradient_kernel(filter_rows: int, filter_columns: int) -> Callable[..., None]:
    """The kernel of the weight gradient for this filter size."""
    R, S = filter_rows, filter_columns
    RB = max((rows for rows in range(1, R + 1) if R % rows == 0 and rows * S <= _GRADIENT_SUMS), default=1)

    @kernel
    def depthwise_weight_gradient(x, dy, zeros, stride, before, dweight):
        """x: (C, H, W, n), dy: (K, P, Q, n), zeros: (n,), overwritten; dweight: (K, 1, R, S)."""
        K = len(dy)
        zeros[:] = 0
        for k in range(K):
            for r in range(0, R, RB):
                depthwise_gradient_tile(x, dy, zeros, dweight, (k // (K // len(x)), k, r), stride, before, RB, S)

    return depthwise_weight_gradient
