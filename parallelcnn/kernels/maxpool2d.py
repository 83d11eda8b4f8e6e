"""Max-pooling. The argmax of each window, `winner`, is stored as the number of its tap, counted row by row."""

from collections.abc import Callable
from functools import cache, partial

from ._jit import kernel
from ._tiles import pool_row, unpool_row

# Tiles are unrolled over the taps of a window. Compiling them takes 16 s for windows of 56 x 56 and 9 minutes for
# 160 x 160. Large windows are rare, and run as plain loops.
_MOST_TAPS = 64


def is_tiled(window_rows: int, window_columns: int) -> bool:
    """Whether windows of this size run as tiles."""
    return window_rows * window_columns <= _MOST_TAPS


@cache
def forward_kernel(window_rows: int, window_columns: int) -> Callable[..., None]:
    """The forward kernel for this window size."""
    R, S = window_rows, window_columns
    if not is_tiled(R, S):
        return partial(_large_forward, R, S)

    @kernel
    def maxpool2d_forward(x, row_stride, column_stride, y, winner):
        """y[c, p, q] = max over (r, s) of x[c, p * row_stride + r, q * column_stride + s].

        winner: unsigned integers of y's shape, r * S + s; the first of equals. A NaN counts as largest and is not lost.
        """
        C, P, _, _ = y.shape
        for c in range(C):
            for p in range(P):
                pool_row(x, y, winner, (c, p * row_stride, c, p), column_stride, R, S)

    return maxpool2d_forward


@cache
def backward_kernel(window_rows: int, window_columns: int, side_by_side: bool) -> Callable[..., None]:
    """The backward kernel for this window size; side_by_side: windows do not overlap and have no gaps."""
    R, S = window_rows, window_columns
    adds = not side_by_side
    if not is_tiled(R, S):
        return partial(_large_backward, R, S)

    @kernel
    def maxpool2d_backward(dy, winner, row_stride, column_stride, dx):
        """dx[c, h, w] = sum of dy over the windows whose maximum is at (h, w).

        Windows side by side write every place once, so dx need not be set to zero first.
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


@kernel
def _large_forward(R, S, x, row_stride, column_stride, y, winner):
    """As `maxpool2d_forward`, for windows of any size."""
    C, P, Q, n = y.shape
    for c in range(C):
        for p in range(P):
            for q in range(Q):
                h, w = p * row_stride, q * column_stride
                for i in range(n):
                    y[c, p, q, i] = x[c, h, w, i]
                    winner[c, p, q, i] = 0
                for tap in range(1, R * S):
                    seen = x[c, h + tap // S, w + tap % S]
                    for i in range(n):
                        if seen[i] > y[c, p, q, i] or seen[i] != seen[i]:
                            y[c, p, q, i] = seen[i]
                            winner[c, p, q, i] = tap


@kernel
def _large_backward(R, S, dy, winner, row_stride, column_stride, dx):
    """As `maxpool2d_backward`, for windows of any size."""
    C, P, Q, n = dy.shape
    dx[:] = 0
    for c in range(C):
        for p in range(P):
            for q in range(Q):
                for i in range(n):
                    tap = winner[c, p, q, i]
                    dx[c, p * row_stride + tap // S, q * column_stride + tap % S, i] += dy[c, p, q, i]


@kernel
def border_forward(x, window, stride, padding, y, winner):
    """As `maxpool2d_forward`, for the windows that reach beyond the image, where nothing wins.

    window, stride, padding: (rows, columns). Each window contains at least one place of the image. y and winner hold
    all windows; those inside the image are left as they are.
    """
    (C, H, W, n), (_, P, Q, _), (R, S) = x.shape, y.shape, window
    for c in range(C):
        for p in range(P):
            h = p * stride[0] - padding[0]
            for q in range(Q):
                w = q * stride[1] - padding[1]
                if h >= 0 and w >= 0 and h + R <= H and w + S <= W:
                    continue
                first_r, first_s = max(-h, 0), max(-w, 0)
                for i in range(n):
                    y[c, p, q, i] = x[c, h + first_r, w + first_s, i]
                    winner[c, p, q, i] = first_r * S + first_s
                for r in range(first_r, min(R, H - h)):
                    for s in range(first_s, min(S, W - w)):
                        for i in range(n):
                            seen, best = x[c, h + r, w + s, i], y[c, p, q, i]
                            better = (seen > best) | (seen != seen)
                            y[c, p, q, i] = seen if better else best
                            winner[c, p, q, i] = r * S + s if better else winner[c, p, q, i]


@kernel
def border_backward(dy, winner, window, stride, padding, inside, dx):
    """As `maxpool2d_backward`, for the windows that reach beyond the image.

    inside: (h, w), the first place of the first window inside the image. From there on, dx is added to; the rows above
    and the columns to the left are overwritten.
    """
    (C, H, W, n), (_, P, Q, _), (R, S) = dx.shape, dy.shape, window
    dx[:, : inside[0]] = 0
    dx[:, :, : inside[1]] = 0
    for c in range(C):
        for p in range(P):
            h = p * stride[0] - padding[0]
            for q in range(Q):
                w = q * stride[1] - padding[1]
                if h >= 0 and w >= 0 and h + R <= H and w + S <= W:
                    continue
                for i in range(n):
                    tap = int(winner[c, p, q, i])  # unsigned, and h may be negative
                    dx[c, h + tap // S, w + tap % S, i] += dy[c, p, q, i]
