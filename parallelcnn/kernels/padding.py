"""Zeros around an image."""

from ._jit import kernel


@kernel
def pad(x, top, left, y):
    """y[c, top + h, left + w] = x[c, h, w], and zeros elsewhere. x: (C, H, W, n); y: likewise, at least as large."""
    C, H, W, n = x.shape
    for c in range(C):
        y[c, :top] = 0
        y[c, top + H :] = 0
        for h in range(H):
            y[c, top + h, :left] = 0
            y[c, top + h, left + W :] = 0
            for w in range(W):
                for i in range(n):
                    y[c, top + h, left + w, i] = x[c, h, w, i]


@kernel
def crop(dy, top, left, dx):
    """dx[c, h, w] = dy[c, top + h, left + w], the transpose of `pad`."""
    C, H, W, n = dx.shape
    for c in range(C):
        for h in range(H):
            for w in range(W):
                for i in range(n):
                    dx[c, h, w, i] = dy[c, top + h, left + w, i]
