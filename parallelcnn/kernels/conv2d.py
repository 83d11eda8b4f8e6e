"""Direct convolution in tiles over rows.

Rows. With the samples innermost, an image row is W * n contiguous numbers. For a column stride of 1, tap (r, s) of
output row p is input row p * row_stride + r - top, shifted by s * n - left (top: rows of zeros above the image; left:
columns of zeros before it, times n). So with j counting the Q * n numbers of an output row

    y[k, p, j] = bias[k] + sum over c, r, s of  weight[k, c, r, s] * x[c, p * row_stride + r - top, start(s) + j]

where x is zero outside the image. With a dilation of d columns, d * n takes the place of n. For larger column strides,
`arrange` first splits each row into `column_stride` phases (columns 0, 2, 4, ... then 1, 3, 5, ... for 2), each `phase`
numbers long, so that a tap is contiguous again. It also adds the zeros, and so a column stride of 1 may use it, too:

    start(s) = (s mod column_stride) * phase + (s div column_stride) * n - left

Tiles. A tile is KB channels times VB vectors of an output row, or as many sums of the weight gradient. The sums stay in
registers during the loop over all channels and taps (see `_vectors`). This makes these kernels as fast as the machine's
matrix product. For 6 -> 16 channels of 13 x 13, filters of 3 x 3, n = 50, on one core whose float32 matrix product of
512 x 512 runs at 150 GFLOP/s, forward reaches 156 GFLOP/s and the weight gradient 100 (138 for n = 48, where no vector
crosses a cache line); plain loops with their sums in memory reach 88 and 92.

Groups. With G groups, filters [g * K / G, (g + 1) * K / G) see the channels [g * C / G, (g + 1) * C / G). A depthwise
convolution has one channel in each group.

The gradient of x is a forward pass over dy with rotated filters; see `Direct` in `layers/conv_algorithms.py`.
"""

from collections.abc import Callable
from functools import cache

from numba import int64

from ._jit import kernel
from ._packing import block_size, pack, packed_size, vectors_of
from ._tiles import forward_row, pool_row, unpool_row, weight_gradient_tile
from ._vectors import REGISTERS

_GRADIENT_SUMS = REGISTERS - 5  # most sums in a tile of the weight gradient


def scratch_size(filters: int, channels: int, rows: int, columns: int) -> int:
    """The size of the forward kernels' scratch array, for the forward pass and the gradient of x."""
    return max(packed_size(filters, channels, rows, columns), packed_size(channels, filters, rows, columns))


@kernel
def arrange(x, left, column_stride, rows):
    """rows[c, h, phase, i] = x[c, h, i * column_stride + phase - left], zero outside the image.

    x: (C, H, W, n), rows: (C, H, phases, columns per phase, n), with the phases that taps use; left: columns.
    """
    C, H, W, n = x.shape
    _, _, phases, columns, _ = rows.shape
    for c in range(C):
        for h in range(H):
            for phase in range(phases):
                for i in range(columns):
                    w = i * column_stride + phase - left
                    if 0 <= w < W:
                        for j in range(n):
                            rows[c, h, phase, i, j] = x[c, h, w, j]
                    else:
                        rows[c, h, phase, i] = 0


@kernel
def restore(drows, left, column_stride, dx):
    """The inverse of `arrange`: dx[c, h, w] is the number at the place to which `arrange` moves x[c, h, w], or zero."""
    C, H, W, n = dx.shape
    _, _, phases, columns, _ = drows.shape
    for c in range(C):
        for h in range(H):
            for w in range(W):
                i, phase = divmod(w + left, column_stride)
                if phase < phases and i < columns:
                    for j in range(n):
                        dx[c, h, w, j] = drows[c, h, phase, i, j]
                else:
                    dx[c, h, w] = 0


@cache
def forward_kernel(filter_columns: int, column_stride: int, filters: int) -> Callable[..., None]:
    """The forward kernel for this filter width, column stride and number of filters."""
    return _forward_kernel(filter_columns, column_stride, block_size(filters))


@cache
def _forward_kernel(S: int, column_stride: int, KB: int) -> Callable[..., None]:
    VB = vectors_of(KB)

    @kernel
    def conv2d_forward(x, weight, bias, packed, row_stride, top, left, phase, n, y):
        """x: (C, H, row), weight: (K, C / groups, R, S), bias: (K,) or (0,), packed: (`packed_size`,), y: (K, P, row).

        The number of groups follows from the shapes.
        """
        H, (_, C, R, _), P = x.shape[1], weight.shape, y.shape[1]
        groups = len(x) // C
        K = len(y) // groups
        for group in range(groups):
            first = group * K
            seen = x[group * C : (group + 1) * C]
            weights = pack(weight[first : first + K], bias[first : first + K], int64(KB), packed)
            for block in range(len(weights)):
                k = first + min(block * KB, K - KB)
                for p in range(P):
                    row = p * row_stride - top
                    taps = (R, max(0, -row), max(0, min(R, H - row)), row)
                    forward_row(seen, weights, y, (block, k, p), taps, (left, phase, n), S, column_stride, KB, VB)

    return conv2d_forward


@cache
def pooled_forward_kernel(
    filter_columns: int, column_stride: int, filters: int, pool_rows: int, pool_columns: int
) -> Callable[..., None]:
    """The forward kernel of a convolution followed by max-pooling whose windows do not overlap."""
    return _pooled_forward_kernel(filter_columns, column_stride, block_size(filters), pool_rows, pool_columns)


@cache
def _pooled_forward_kernel(S: int, column_stride: int, KB: int, PR: int, PS: int) -> Callable[..., None]:
    VB = vectors_of(KB)

    @kernel
    def conv2d_pooled_forward(x, weight, bias, packed, row_stride, top, left, phase, n, band, y, winner):
        """As `conv2d_forward`, but the output before pooling, a band of rows, stays in the nearest cache.

        band: (`block_size`, pool_rows, columns, n), y and winner: (K, P, Q, n) after pooling.
        """
        K, P, _, _ = y.shape
        H, R = x.shape[1], weight.shape[2]
        weights = pack(weight, bias, int64(KB), packed)
        band_rows = band.reshape(KB, PR, band.shape[2] * n)
        for block in range(len(weights)):
            k = min(block * KB, K - KB)
            for p in range(P):
                for r in range(PR):
                    row = (p * PR + r) * row_stride - top
                    taps = (R, max(0, -row), max(0, min(R, H - row)), row)
                    forward_row(x, weights, band_rows, (block, 0, r), taps, (left, phase, n), S, column_stride, KB, VB)
                for i in range(KB):
                    pool_row(band, y, winner, (i, 0, k + i, p), PS, PR, PS)

    return conv2d_pooled_forward


@cache
def weight_gradient_kernel(
    filter_rows: int, filter_columns: int, column_stride: int, filters: int, channels: int
) -> Callable[..., None]:
    """The kernel of the weight gradient for this filter size, column stride and numbers of filters and channels."""
    return _weight_gradient_kernel(
        filter_columns, column_stride, *_gradient_blocks(filter_rows, filter_columns, filters, channels)
    )


def _gradient_blocks(R: int, S: int, filters: int, channels: int) -> tuple[int, int, int, int]:
    """Choose the numbers of filters, channels and filter rows in a tile of the weight gradient, and how many taps of a
    row it sums at a time: (KB, CB, RB, SB).

    For each vector a tile adds KB * CB * RB * SB products. It loads KB rows of dy and SB times CB * RB of x, of which
    only KB + CB * RB come from outside the nearest cache. The choice takes the fewest cycles, at two products, one
    load, and half a vector from outside per cycle. Measured, 64 -> 64 channels, 3 x 3, GFLOP/s: (4, 2, 1, 3) 150,
    (3, 1, 3, 3) 148, (2, 1, 3, 3) 136, (8, 1, 1, 3) 90; 6 -> 16 channels: 111, 101, 94, 82. With AVX2, 3 -> 64
    channels, 7 x 7, stride 2: (2, 1, 1, 4) 78, (1, 1, 1, 7) 67.
    """

    def cycles(tile: tuple[int, int, int, int]) -> float:
        KB, CB, RB, SB = tile
        tiles = -(-filters // KB) * -(-channels // CB) * (R // RB)
        taps = [SB] * (S // SB) + [S % SB] * (S % SB > 0)
        return tiles * sum(max(KB * CB * RB * some / 2, KB + CB * RB * some, 2 * (KB + CB * RB)) for some in taps)

    tiles = [
        (KB, CB, RB, SB)
        for KB in range(1, min(filters, 8) + 1)
        for CB in range(1, min(channels, 8) + 1)
        for RB in range(1, R + 1)
        for SB in range(1, S + 1)
        if R % RB == 0 and KB * CB * RB * SB <= _GRADIENT_SUMS
    ]
    return min(tiles, key=cycles)


@cache
def _weight_gradient_kernel(S: int, column_stride: int, KB: int, CB: int, RB: int, SB: int) -> Callable[..., None]:
    @kernel
    def conv2d_weight_gradient(x, dy, zeros, row_stride, top, left, phase, n, dweight):
        """dweight[k, c, r, s] = sum over p, j of  dy[k, p, j] * x[c, p * row_stride + r - top, start(s) + j].

        x: (C, H, row), dy: (K, P, row), zeros: (row of x,), overwritten; dweight: (K, C / groups, R, S).
        """
        _, C, R, _ = dweight.shape
        groups = len(x) // C
        K = len(dy) // groups
        zeros[:] = 0
        rows, columns = (row_stride, top), (left, phase, n)
        for group in range(groups):
            seen = x[group * C : (group + 1) * C]
            for k0 in range(0, K, KB):
                k = group * K + min(k0, K - KB)
                for c in range(0, C, CB):
                    for r in range(0, R, RB):
                        tile = (k, k, min(c, C - CB), r)
                        weight_gradient_tile(
                            seen, dy, zeros, dweight, tile, rows, columns, False, S, column_stride, KB, CB, RB, SB
                        )

    return conv2d_weight_gradient


def pooled_weight_gradient_block(filter_rows: int, filter_columns: int, filters: int) -> int:
    """Number of channels in the band of `pooled_weight_gradient_kernel`."""
    return _gradient_blocks(filter_rows, filter_columns, filters, 1)[0]


@cache
def pooled_weight_gradient_kernel(
    filter_rows: int, filter_columns: int, column_stride: int, filters: int, pool_rows: int, pool_columns: int
) -> Callable[..., None]:
    """The weight gradient kernel of a convolution followed by max-pooling whose windows do not overlap."""
    KB, _, RB, SB = _gradient_blocks(filter_rows, filter_columns, filters, 1)
    return _pooled_weight_gradient_kernel(filter_columns, column_stride, KB, RB, SB, pool_rows, pool_columns)


@cache
def _pooled_weight_gradient_kernel(
    S: int, column_stride: int, KB: int, RB: int, SB: int, PR: int, PS: int
) -> Callable[..., None]:
    @kernel
    def conv2d_pooled_weight_gradient(x, dy, winner, zeros, row_stride, top, left, phase, n, band, dweight):
        """As `conv2d_weight_gradient`, from dy and winner, (K, P, Q, n), after pooling.

        The gradient before pooling stays in the nearest cache, in a band: (KB, pool_rows, columns, n).
        """
        K, C, R, _ = dweight.shape
        P = dy.shape[1]
        zeros[:] = 0
        band_rows = band.reshape(KB, PR, band.shape[2] * n)
        columns = (left, phase, n)
        for k0 in range(0, K, KB):
            k = min(k0, K - KB)
            for p in range(P):
                for i in range(KB):
                    unpool_row(dy, winner, band, (i, 0, k + i, p), PS, False, PR, PS)
                rows = (row_stride, top - p * PR * row_stride)
                for c in range(C):
                    for r in range(0, R, RB):
                        tile = (0, k, c, r)
                        weight_gradient_tile(
                            x, band_rows, zeros, dweight, tile, rows, columns, p > 0, S, column_stride, KB, 1, RB, SB
                        )

    return conv2d_pooled_weight_gradient
