"""Maximum over windows; what won is remembered as the number of its tap, counted row by row through the window."""

from collections.abc import Callable
from functools import cache

from ._jit import kernel
from ._tiles import pool_row, unpool_row


@cache
def forward_kernel(window_rows: int, window_columns: int) -> Callable[..., None]:
    """The forward kernel for one size of window."""
    R, S = window_rows, window_columns

    @kernel
    def maxpool2d_forward(x, row_stride, column_stride, y, winner):
        """y[c, p, q] = max over (r, s) of x[c, p * row_stride + r, q * column_stride + s].

        winner: like y, unsigned integers, r * S + s; the first of equals wins. A NaN wins, so that it is not lost.
        """
        C, P, _, _ = y.shape
        for c in range(C):
            for p in range(P):
                pool_row(x, y, winner, (c, p * row_stride, c, p), column_stride, R, S)

    return maxpool2d_forward


@cache
def backward_kernel(window_rows: int, window_columns: int, side_by_side: bool) -> Callable[..., None]:
    """The backward kernel for one size of window, and for windows that lie side by side or otherwise."""
    R, S = window_rows, window_columns
    adds = not side_by_side

    @kernel
    def maxpool2d_backward(dy, winner, row_stride, column_stride, dx):
        """dx[c, h, w] = sum of dy over the windows in which (h, w) won.

        Windows that lie side by side write every place once: no zeros first, nothing to add to.
        """
        C, P, Q, _ = dy.shape
        if side_by_side:  # zeros only below and to the right of all windows
            dx[:, P * row_stride :] = 0
            dx[:, :, Q * column_stride :] = 0
        else:
            dx[:] = 0
        for c in range(C):
            for p in range(P):
                unpool_row(dy, winner, dx, (c, p * row_stride, c, p), column_stride, adds, R, S)

    return maxpool2d_backward
