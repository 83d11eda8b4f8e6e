"""Windows of images: flips and crops, which move numbers and change none.

A window has the size of the image. Row p of it is row first + step * p of the image, with a step of 1 or -1; columns
likewise. Where that is outside of the image, the window is zero. Several flips and crops, one after the other, are one
window.

    windows: (4, n) int64: first row, step of the rows, first column, step of the columns of each sample's window.

The random numbers of a sample are functions of keys[i] and the number of a layer; see `random`.
"""

from numba import uint64

from ._jit import kernel
from ._mix import below, mix


@kernel
def whole_windows(windows):
    """Let every window be the whole image."""
    windows[0], windows[1] = 0, 1
    windows[2], windows[3] = 0, 1


@kernel
def flip_windows(keys, number, rows, columns, H, W, windows):
    """Reverse the order of the rows of a window with a probability of 1/2 if `rows`, and of the columns if `columns`.

    H, W: size of the images.
    """
    for i in range(keys.size):
        bits = mix(mix(keys[i], number), 0)
        if rows and bits >> uint64(63):
            windows[0, i] += windows[1, i] * (H - 1)
            windows[1, i] = -windows[1, i]
        if columns and (bits >> uint64(62)) & uint64(1):
            windows[2, i] += windows[3, i] * (W - 1)
            windows[3, i] = -windows[3, i]


@kernel
def crop_windows(keys, number, rows, columns, windows):
    """Move every window by up to `rows` rows and `columns` columns in both directions, each place equally likely."""
    for i in range(keys.size):
        key = mix(keys[i], number)
        windows[0, i] += windows[1, i] * (below(key, 0, 2 * rows + 1) - rows)
        windows[2, i] += windows[3, i] * (below(key, 1, 2 * columns + 1) - columns)


@kernel
def take_windows(x, windows, mean, factor, y):
    """y[c, p, q, i] = (the window of sample i)[c, p, q] minus mean[c], times factor[c]; x, y: (C, H, W, n)."""
    C, H, W, n = y.shape
    zero = x.dtype.type(0)
    for c in range(C):
        for p in range(H):
            for q in range(W):
                for i in range(n):
                    row = windows[0, i] + windows[1, i] * p
                    column = windows[2, i] + windows[3, i] * q
                    value = x[c, row, column, i] if 0 <= row < H and 0 <= column < W else zero
                    y[c, p, q, i] = (value - mean[c]) * factor[c]


@kernel
def take_windows_backward(dy, windows, dx):
    """The gradient of `take_windows` with respect to x, for a mean of 0 and a factor of 1."""
    C, H, W, n = dy.shape
    dx[...] = 0
    for c in range(C):
        for p in range(H):
            for q in range(W):
                for i in range(n):
                    row = windows[0, i] + windows[1, i] * p
                    column = windows[2, i] + windows[3, i] * q
                    if 0 <= row < H and 0 <= column < W:
                        dx[c, row, column, i] = dy[c, p, q, i]
