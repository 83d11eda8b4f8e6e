"""Strided convolution as matrix products of panels (im2col).

The numbers of one channel of y, (P, Q, n), are its places, numbered in order. A panel holds the inputs of the windows
of the places from `first` on, zero outside the image: with (p, q, i) for place first + j,

    panel[c, r, s, j] = x[c, p * row_stride + r - top, q * column_stride + s - left, i]

So only `exchange` deals with strides and padding. The rest are matrix products of contiguous rows:

    forward             y[k, first + j] = bias[k] + sum over c, r, s of  weight[k, c, r, s] * panel[c, r, s, j]
    weight gradient     dweight[k, c, r, s] = sum over panels and j of  dy[k, first + j] * panel[c, r, s, j]
    input gradient      panel[c, r, s, j] = sum over k of  weight[k, c, r, s] * dy[k, first + j], added to dx where x
                        was read

A panel of 64 channels and 3 x 3 windows takes 221 kB, so it stays in the second cache while all filters use it, whereas
`conv2d` loads whole images from memory for each block of filters. It is copied once for all filters, which is cheap if
there are many. GFLOP/s of one core where a product of 512 x 512 runs at 150, 64 -> 128 channels of 16 x 16, 3 x 3,
stride 2, n = 32 and 100:

                        these        PyTorch      tiles over rows (`conv2d`)
    forward             140, 129     160, 156     109, 76
    weight gradient     114, 111     117, 119     101, 82
    input gradient      129, 125     143, 138     103, 64
"""

from collections.abc import Callable
from functools import cache

from numba import boolean, int64

from ._jit import kernel, kernel_part
from ._packing import block_size, pack, packed_size, vectors_of
from ._tiles import copy_rows, forward_row, transpose
from ._transposed_product import transposed_product, turned_shape

PANEL = 96  # places of a panel: whole tiles of three or four vectors

# Channels copied at a time. If all are copied at once, each from other memory pages, a step of 32 samples takes 5 %
# longer.
_CHANNELS = 16


def scratch_shapes(weight: tuple[int, ...], item_bytes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the scratch arrays of these kernels, by argument name, for filters (K, C, R, S)."""
    K, channels, rows, columns = weight
    taps = channels * rows * columns
    return {
        "packed": (max(packed_size(K, channels, rows, columns), packed_size(taps, K, 1, 1)),),
        "panel": (channels, rows, columns, PANEL),
        "dy_panel": (K, 1, PANEL),
        "dy_turned": turned_shape(PANEL, item_bytes),
        "sums": (2, taps, K),
    }


@kernel_part
def exchange(image, panel, first, last, outputs, windows, back):
    """Copy the inputs of the windows of places [first, last) from image to panel; if `back`, add panel to image.

    image: (C, H, W, n), panel: (C, R, S, PANEL), outputs: Q, windows: (row_stride, top, column_stride, left).
    """
    C, H, W, n = image.shape
    _, R, S, _ = panel.shape
    row_stride, top, column_stride, left = windows
    place = first
    while place < last:
        # The samples of one window that belong to this panel.
        window, i = divmod(place, n)
        p, q = divmod(window, outputs)
        count = min(n - i, last - place)
        j = place - first
        for c in range(0, C, _CHANNELS):
            channels = slice(c, min(c + _CHANNELS, C))
            for r in range(R):
                h = p * row_stride + r - top
                for s in range(S):
                    w = q * column_stride + s - left
                    inside = 0 <= h < H and 0 <= w < W
                    if inside and back:
                        copy_rows(panel[channels, r, s, j : j + count], image[channels, h, w, i : i + count], True)
                    elif inside:
                        copy_rows(image[channels, h, w, i : i + count], panel[channels, r, s, j : j + count], False)
                    elif not back:
                        panel[channels, r, s, j : j + count] = 0
        place += count


@cache
def forward_kernel(filter_columns: int, filters: int) -> Callable[..., None]:
    """The forward kernel for this filter width and number of filters."""
    return _forward_kernel(filter_columns, block_size(filters))


@cache
def _forward_kernel(S: int, KB: int) -> Callable[..., None]:
    VB = vectors_of(KB)

    @kernel
    def panels_forward(x, weight, bias, packed, panel, windows, y):
        """x: (C, H, W, n), weight: (K, C, R, S), bias: (K,) or (0,), y: (K, P, Q, n)."""
        K, P, Q, n = y.shape
        C, R, _, length = panel.shape
        weights = pack(weight, bias, int64(KB), packed)
        # The tiles use a panel as an image whose rows have S columns of `length` samples.
        rows, places = panel.reshape(C, R, S * length), y.reshape(K, 1, P * Q * n)
        for first in range(0, P * Q * n, length):
            last = min(first + length, P * Q * n)
            exchange(x, panel, first, last, Q, windows, boolean(False))
            for block in range(len(weights)):
                k = min(block * KB, K - KB)
                some = places[:, :, first:last]
                forward_row(rows, weights, some, (block, k, 0), (R, 0, R, 0), (0, 0, length), S, 1, KB, VB)

    return panels_forward


@kernel
def panels_weight_gradient(x, dy, panel, dy_turned, sums, windows, dweight):
    """x: (C, H, W, n), dy: (K, P, Q, n), dweight: (K, C, R, S)."""
    K, P, Q, n = dy.shape
    C, R, S, length = panel.shape
    rows, dplaces = panel.reshape(C * R * S, length), dy.reshape(K, P * Q * n)
    before, after = sums[0], sums[1]
    after[:] = 0
    for first in range(0, P * Q * n, length):
        last = min(first + length, P * Q * n)
        exchange(x, panel, first, last, Q, windows, boolean(False))
        # Not in place: if the last block of rows overlaps the one before it, it would add twice.
        before, after = after, before
        transposed_product(rows[:, : last - first], dplaces[:, first:last], dy_turned, before, after)
    transpose(after, dweight.reshape(K, C * R * S))


@cache
def backward_input_kernel(taps: int) -> Callable[..., None]:
    """The input gradient kernel for this number of taps, C * R * S."""
    return _backward_input_kernel(block_size(taps))


@cache
def _backward_input_kernel(KB: int) -> Callable[..., None]:
    VB = vectors_of(KB)

    @kernel
    def panels_backward_input(dy, weight, no_bias, packed, panel, dy_panel, windows, dx):
        """dy: (K, P, Q, n), weight: (K, C, R, S), no_bias: (0,), dx: (C, H, W, n)."""
        K, P, Q, n = dy.shape
        C, R, S, length = panel.shape
        taps = C * R * S
        # A panel is the output of a 1 x 1 convolution of dy with one filter per tap.
        weights = pack(weight.reshape(1, 1, K, taps).T, no_bias, int64(KB), packed)
        rows, dplaces = panel.reshape(taps, 1, length), dy.reshape(K, P * Q * n)
        dx[:] = 0
        for first in range(0, P * Q * n, length):
            last = min(first + length, P * Q * n)
            copy_rows(dplaces[:, first:last], dy_panel[:, 0, : last - first], False)
            for block in range(len(weights)):
                k = min(block * KB, taps - KB)
                some = rows[:, :, : last - first]
                forward_row(dy_panel, weights, some, (block, k, 0), (1, 0, 1, 0), (0, 0, length), 1, 1, KB, VB)
            exchange(dx, panel, first, last, Q, windows, boolean(True))

    return panels_backward_input
