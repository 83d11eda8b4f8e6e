"""Winograd convolution F(4 x 4, 3 x 3): filters of 3 x 3 over many channels with fewer multiplications.

4 x 4 neighbouring outputs depend on 6 x 6 places of the image. Linear transforms of these places and of the filter
reduce the products per output and channel from 9 to 2.25 (A. Lavin and S. Gray, "Fast Algorithms for Convolutional
Neural Networks", arXiv:1509.09308):

    y = A^T (sum over c of  (G weight[k, c] G^T) * (B^T x[c] B)) A,        6 x 6 products, * number by number

For each of the 36 places e = 6 * row + column this is a matrix product, over the channels, of transformed filters and
transformed image. The input gradient is a forward pass with rotated filters. The weight gradient is

    dweight[k, c] = G^T (sum over squares and samples of  (A dy[k] A^T) * (B^T x[c] B)) G

With the samples innermost, all transforms work on whole vectors, `lanes` samples at a time. A panel of a few squares is
transformed, multiplied and transformed back in the nearest caches. The largest array written to memory is the
transformed filters.

Measured on one core whose float32 matrix product of 512 x 512 runs at 129 GFLOP/s, n = 32, counting the products of a
direct convolution: forward, and weight gradient; in brackets F(2 x 2, 3 x 3), used before, and the kernels of `conv2d`.

    16 -> 16 channels, 32 x 32    223 (115, 154)   188 (64, 120) GFLOP/s
    32 -> 32, 16 x 16             337 (178, 148)   267 (143, 97)
    64 -> 64, 32 x 32             360 (210, 115)   310 (174, 83)
    64 -> 64, 8 x 8               346 (209, 157)   317 (186, 126)
    128 -> 128, 16 x 16           380 (247, 87)    334 (206, 116)
    256 -> 256, 8 x 8             301 (229, 64)    324 (212, 77)

(`scripts/benchmarks/convolutions.py`.)

It is less exact than `conv2d`, but of the order of float32's rounding: 32 to 256 channels in float32 differ from
float64, in the norm, by 0.8e-6 to 1.1e-6 forwards and by 0.4e-6 to 1.0e-6 in the weight gradient; with `conv2d` by
0.2e-6 to 0.8e-6. See `_winograd_tiles` for the reason.
"""

from collections.abc import Callable
from functools import cache

from ._jit import kernel
from ._packing import MOST_VECTORS, SUMS, block_size, even_block, vectors_of
from ._vectors import VECTOR_BYTES
from ._winograd_tiles import (
    OUTPUTS,
    PLACES,
    add_gradient_products,
    filter_gradients,
    filter_squares,
    gradient_square,
    input_square,
    output_square,
    square_products,
)

_LANES = VECTOR_BYTES // 4  # for float32, the smallest type
_PANEL = 32  # samples of squares in a panel of the weight gradient


def pays(weight: tuple[int, ...], steps: tuple[int, int], outputs: tuple[int, ...]) -> bool:
    """Whether the algorithm can compute this output, (K, P, Q, n), or input gradient, with filters (K, C, R, S) and
    strides, and is faster than the tiles of `conv2d`.

    Squares partly outside of the output and partly filled vectors compute numbers that are not needed. So it is not
    faster for single samples, and for few channels, where transforms cost more than they save.
    """
    (K, C, *window), (_, P, Q, n) = weight, outputs
    squares = -(-P // OUTPUTS) * -(-Q // OUTPUTS) * -(-n // _LANES) * _LANES
    if window != [3, 3] or steps != (1, 1):
        return False
    # Clock cycles: two products each, and as measured for the transforms of a square of a channel and of a filter.
    cycles = squares * (PLACES / 2 * C * K + 250 * C + 170 * K)
    return 0 < 1.2 * cycles <= 9 / 2 * C * K * P * Q * n


def memory_size(filters: int, channels: int) -> int:
    """The size of the kernels' scratch memory, for both passes and both gradients."""
    return max(
        _forward_size(filters, channels), _forward_size(channels, filters), _weight_gradient_size(filters, channels)
    )


# ---- forward pass and input gradient


def _forward_size(filters: int, channels: int) -> int:
    KB = block_size(filters)
    VB = vectors_of(KB)
    panel = PLACES * (channels + 1 + KB) * VB * _LANES
    return panel + (PLACES + 9) * filters * channels + filters


@cache
def forward_kernel(filters: int) -> Callable[..., None]:
    """The forward kernel for this number of filters."""
    return _forward_kernel(block_size(filters))


@cache
def _forward_kernel(KB: int) -> Callable[..., None]:
    VB = vectors_of(KB)

    @kernel
    def winograd_forward(x, weight, bias, memory, top, left, y):
        """x: (C, H, W, n), weight: (K, C, 3, 3), bias: (K,) or (0,), memory: (`memory_size`,), y: (K, P, Q, n).

        top, left: rows and columns of zeros before the image.
        """
        (K, C, _, _), (_, P, Q, n) = weight.shape, y.shape
        lanes = VECTOR_BYTES // x.itemsize
        # One channel more than needed, so that the 36 places do not share the same few cache lines.
        seen, memory = _taken(memory, (PLACES, C + 1, VB * lanes))
        sums, memory = _taken(memory, (PLACES, KB, VB * lanes))
        weights, memory = _taken(memory, (PLACES, K, C))
        taps, memory = _taken(memory, (9, K, C))
        _transform_filters(weight, taps, weights)
        biases = memory[:K]
        biases[:] = 0
        if bias.size:
            biases[:] = bias
        squares, vectors = -(-P // OUTPUTS) * -(-Q // OUTPUTS), -(-n // lanes)
        for first in range(0, squares * vectors, VB):
            slots = min(VB, squares * vectors - first)
            for slot in range(slots):
                p, q, i = _place(first + slot, Q, vectors, lanes)
                input_square(x, (p - top, q - left, i), seen, slot)
            for k0 in range(0, K, KB):
                k = min(k0, K - KB)  # the last block may overlap the one before it
                for e in range(PLACES):
                    square_products(weights[e, k : k + KB], seen[e], sums[e], KB, VB)
                for slot in range(slots):
                    place = _place(first + slot, Q, vectors, lanes)
                    output_square(sums, slot, biases[k : k + KB], y[k : k + KB], place)

    return winograd_forward


@kernel
def _transform_filters(weight, taps, weights):
    """weights[e, k, c] = (G weight[k, c] G^T)[e].

    weight: (K, C, 3, 3), taps: (9, K, C), overwritten; weights: (36, K, C).
    """
    K, C, _, _ = weight.shape
    for k in range(K):
        for c in range(C):
            for r in range(3):
                for s in range(3):
                    taps[3 * r + s, k, c] = weight[k, c, r, s]
    filter_squares(taps.reshape(9, K * C), weights.reshape(PLACES, K * C))


@kernel
def _place(number, Q, vectors, lanes):
    """First row, column and sample of a vector of squares. The numbering runs over samples, then columns, then rows."""
    square, vector = divmod(number, vectors)
    row, column = divmod(square, -(-Q // OUTPUTS))
    return OUTPUTS * row, OUTPUTS * column, vector * lanes


@kernel
def _taken(memory, shape):
    """Take an array from the beginning of the memory; returns it and the rest of the memory."""
    size = 1
    for length in shape:
        size *= length
    return memory[:size].reshape(shape), memory[size:]


# ---- weight gradient


def _weight_gradient_blocks(filters: int, channels: int) -> tuple[int, int]:
    """Numbers of channels and of vectors of filters in a tile."""
    VB = even_block(-(-filters // _LANES), MOST_VECTORS)
    return even_block(channels, SUMS // VB), VB


def _weight_gradient_size(filters: int, channels: int) -> int:
    CB, VB = _weight_gradient_blocks(filters, channels)
    width = VB * _LANES
    blocks, channels = -(-filters // width), -(-channels // CB) * CB
    return PLACES * ((channels + 1) * _PANEL + (blocks * _PANEL + 1) * width + blocks * channels * width)


@cache
def weight_gradient_kernel(filters: int, channels: int) -> Callable[..., None]:
    """The weight gradient kernel for these numbers of filters and channels."""
    return _weight_gradient_kernel(*_weight_gradient_blocks(filters, channels))


@cache
def _weight_gradient_kernel(CB: int, VB: int) -> Callable[..., None]:
    @kernel
    def winograd_weight_gradient(x, dy, memory, top, left, dweight):
        """x: (C, H, W, n), dy: (K, P, Q, n), memory: (`memory_size`,), dweight: (K, C, 3, 3), overwritten.

        top, left: rows and columns of zeros before the image.
        """
        (K, C, _, _), (_, P, Q, n) = dweight.shape, dy.shape
        lanes = VECTOR_BYTES // x.itemsize
        slots, width = _PANEL // lanes, VB * lanes
        blocks, channels = -(-K // width), -(-C // CB) * CB
        # One channel and one row more than needed, as in the forward kernel.
        seen, memory = _taken(memory, (PLACES, channels + 1, _PANEL))
        turned, memory = _taken(memory, (PLACES, blocks * _PANEL + 1, width))
        totals, memory = _taken(memory, (PLACES, blocks, channels, width))
        seen[:] = 0
        totals[:] = 0
        squares, vectors = -(-P // OUTPUTS) * -(-Q // OUTPUTS), -(-n // lanes)
        for first in range(0, squares * vectors, slots):
            for slot in range(slots):
                # After the last square there are no samples, so this writes zeros.
                p, q, i = _place(first + slot, Q, vectors, lanes) if first + slot < squares * vectors else (0, 0, n)
                input_square(x, (p - top, q - left, i), seen, slot)
                for block in range(blocks):
                    for column in range(0, width, lanes):
                        to = (block * _PANEL + slot * lanes, column)
                        gradient_square(dy, (block * width + column, p, q, i), turned, to)
            for e in range(PLACES):
                for block in range(blocks):
                    rows = turned[e, block * _PANEL : (block + 1) * _PANEL]
                    for c in range(0, channels, CB):
                        some = totals[e, block, c : c + CB]
                        add_gradient_products(seen[e, c : c + CB], rows, some, _PANEL, CB, VB)
        _transform_totals(totals, dweight)

    return winograd_weight_gradient


@kernel
def _transform_totals(totals, dweight):
    """dweight[k, c] = G^T totals[:, block, c, column of k] G.

    totals: (36, blocks, C or more, width), overwritten.
    """
    K, C, _, _ = dweight.shape
    _, blocks, channels, width = totals.shape
    filter_gradients(totals.reshape(PLACES, blocks * channels * width))
    for k in range(K):
        block, column = divmod(k, width)
        for c in range(C):
            for r in range(3):
                for s in range(3):
                    dweight[k, c, r, s] = totals[3 * r + s, block, c, column]
