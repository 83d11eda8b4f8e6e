"""Winograd convolution F(2 x 2, 3 x 3): filters of 3 x 3 over many channels with fewer multiplications.

2 x 2 neighbouring outputs depend on 4 x 4 places of the image. Linear transforms of these places and of the filter
reduce the products per output and channel from 9 to 4 (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks"):

    y = A^T (sum over c of  (G weight[k, c] G^T) * (B^T x[c] B)) A,        4 x 4 products, * number by number

For each of the 16 places e = 4 * row + column this is a matrix product, over the channels, of transformed filters and
transformed image. The input gradient is a forward pass with rotated filters. The weight gradient is

    dweight[k, c] = G^T (sum over squares and samples of  (A dy[k] A^T) * (B^T x[c] B)) G

With the samples innermost, all transforms add and subtract whole vectors, `lanes` samples at a time. A panel of a few
squares is transformed, multiplied and transformed back in the nearest caches. The largest array written to memory is
the transformed filters.

Measured on one core whose float32 matrix product of 512 x 512 runs at 150 GFLOP/s, n = 32, counting the products of a
direct convolution: forward, and weight gradient; in brackets with the kernels of `conv2d`.

    64 -> 64 channels, 32 x 32    278 (143)   213 (137) GFLOP/s
    128 -> 128, 16 x 16           287 (151)   246 (134)
    256 -> 256, 8 x 8             273 (161)   233 (130)
    32 -> 64, 16 x 16             277 (168)   202 (137)
    16 -> 16, 32 x 32             194 (170)    95 (137)

(`scripts/compare_networks.py --layers` of commit 317eccc; in brackets with `pays` returning False.)

It is as exact as `conv2d`: 256 -> 256 channels in float32 differ from float64, in the norm, by 5.1e-7 in the forward
pass and 2.9e-7 in the weight gradient; with `conv2d` by 8.1e-7 and 2.0e-7.
"""

from collections.abc import Callable
from functools import cache

from ._jit import kernel
from ._packing import MOST_VECTORS, SUMS, block_size, even_block, vectors_of
from ._vectors import VECTOR_BYTES
from ._winograd_tiles import add_gradient_products, gradient_square, input_square, output_square, square_products

_LANES = VECTOR_BYTES // 4  # for float32, the smallest type
_FEWEST_CHANNELS = 32  # with 16 the transforms cost as much as the products save
_MOST_WASTE = 1.6  # computed numbers per needed number


def suits(weight: tuple[int, ...], steps: tuple[int, int]) -> bool:
    """Whether the algorithm can compute a convolution with these filters, (K, C, R, S), and strides, and has enough
    channels to outweigh the transforms.
    """
    K, C, *window = weight
    return window == [3, 3] and steps == (1, 1) and min(K, C) >= _FEWEST_CHANNELS


def pays(weight: tuple[int, ...], steps: tuple[int, int], outputs: tuple[int, ...]) -> bool:
    """Whether the algorithm is also faster for this output, (K, P, Q, n), or input gradient. Squares partly outside of
    it and partly filled vectors compute numbers that are not needed, so it is not faster for single samples.
    """
    _, P, Q, n = outputs
    computed = 4 * -(-P // 2) * -(-Q // 2) * -(-n // _LANES) * _LANES
    return n > 0 and suits(weight, steps) and computed <= _MOST_WASTE * P * Q * n


def memory_size(filters: int, channels: int) -> int:
    """The size of the kernels' scratch memory, for both passes and both gradients."""
    return max(
        _forward_size(filters, channels), _forward_size(channels, filters), _weight_gradient_size(filters, channels)
    )


# ---- forward pass and input gradient


def _forward_size(filters: int, channels: int) -> int:
    KB = block_size(filters)
    VB = vectors_of(KB)
    weights = -(-filters // KB) * 16 * channels * KB
    return weights + 16 * (channels + 1 + KB) * VB * _LANES + 16 * channels + filters


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
        # One channel more than needed, so that the 16 places do not share the same few cache lines.
        seen, memory = _taken(memory, (16, C + 1, VB * lanes))
        sums, memory = _taken(memory, (16, KB, VB * lanes))
        weights, memory = _taken(memory, (-(-K // KB), 16, C, KB))
        transformed, memory = _taken(memory, (16, C))
        _transform_filters(weight, transformed, weights)
        biases = memory[:K]
        biases[:] = 0
        if bias.size:
            biases[:] = bias
        squares, vectors = -(-P // 2) * -(-Q // 2), -(-n // lanes)
        for first in range(0, squares * vectors, VB):
            slots = min(VB, squares * vectors - first)
            for slot in range(slots):
                p, q, i = _place(first + slot, Q, vectors, lanes)
                input_square(x, (p - top, q - left, i), seen, slot)
            for block in range(len(weights)):
                k = min(block * KB, K - KB)  # the last block may overlap the one before it
                for e in range(16):
                    square_products(weights[block, e], seen[e], sums[e], KB, VB)
                for slot in range(slots):
                    p, q, i = _place(first + slot, Q, vectors, lanes)
                    output_square(sums, slot, biases, y, (k, p, q, i))

    return winograd_forward


@kernel
def _transform_filters(weight, transformed, weights):
    """weights[block, e, c, i] = (G weight[k, c] G^T)[e] of filter k, number i of its block.

    weight: (K, C, 3, 3), transformed: (16, C), overwritten; weights: (blocks, 16, C, KB).
    """
    K, C, _, _ = weight.shape
    KB = weights.shape[3]
    for block in range(len(weights)):
        for i in range(KB):
            taps = weight[min(block * KB, K - KB) + i]
            for c in range(C):
                for s in range(3):
                    a0, a1, a2, a3 = _three_to_four(taps[c, 0, s], taps[c, 1, s], taps[c, 2, s])
                    transformed[s, c], transformed[4 + s, c] = a0, a1
                    transformed[8 + s, c], transformed[12 + s, c] = a2, a3
                for row in range(0, 16, 4):
                    b = _three_to_four(transformed[row, c], transformed[row + 1, c], transformed[row + 2, c])
                    transformed[row, c], transformed[row + 1, c] = b[0], b[1]
                    transformed[row + 2, c], transformed[row + 3, c] = b[2], b[3]
            for e in range(16):
                weights[block, e, :, i] = transformed[e]


@kernel
def _three_to_four(a, b, c):
    """G (a, b, c)."""
    half = type(a)(0.5)
    return a, half * (a + b + c), half * (a - b + c), c


@kernel
def _place(number, Q, vectors, lanes):
    """First row, column and sample of a vector of squares. The numbering runs over samples, then columns, then rows."""
    square, vector = divmod(number, vectors)
    row, column = divmod(square, -(-Q // 2))
    return 2 * row, 2 * column, vector * lanes


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
    panel, width = MOST_VECTORS * _LANES, VB * _LANES
    blocks, channels = -(-filters // width), -(-channels // CB) * CB
    return 16 * ((channels + 1) * panel + (blocks * panel + 1) * width + blocks * channels * width)


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
        panel, width = MOST_VECTORS * lanes, VB * lanes
        blocks, channels = -(-K // width), -(-C // CB) * CB
        # One channel and one row more than needed, as in the forward kernel.
        seen, memory = _taken(memory, (16, channels + 1, panel))
        turned, memory = _taken(memory, (16, blocks * panel + 1, width))
        totals, memory = _taken(memory, (16, blocks, channels, width))
        seen[:] = 0
        totals[:] = 0
        squares, vectors = -(-P // 2) * -(-Q // 2), -(-n // lanes)
        for first in range(0, squares * vectors, MOST_VECTORS):
            for slot in range(MOST_VECTORS):
                # After the last square there are no samples, so this writes zeros.
                p, q, i = _place(first + slot, Q, vectors, lanes) if first + slot < squares * vectors else (0, 0, n)
                input_square(x, (p - top, q - left, i), seen, slot)
                for block in range(blocks):
                    for column in range(0, width, lanes):
                        to = (block * panel + slot * lanes, column)
                        gradient_square(dy, (block * width + column, p, q, i), turned, to)
            for e in range(16):
                for block in range(blocks):
                    rows = turned[e, block * panel : (block + 1) * panel]
                    for c in range(0, channels, CB):
                        add_gradient_products(seen[e, c : c + CB], rows, totals[e, block, c : c + CB], CB, VB)
        _transform_totals(totals, dweight)

    return winograd_weight_gradient


@kernel
def _transform_totals(totals, dweight):
    """dweight[k, c] = G^T totals[:, block, c, column of k] G."""
    K, C, _, _ = dweight.shape
    width = totals.shape[3]
    for c in range(C):
        for k in range(K):
            block, column = divmod(k, width)
            d = totals[:, block, c, column]
            for r in range(3):
                t0 = _tap_of_four(d[0], d[4], d[8], d[12], r)
                t1 = _tap_of_four(d[1], d[5], d[9], d[13], r)
                t2 = _tap_of_four(d[2], d[6], d[10], d[14], r)
                t3 = _tap_of_four(d[3], d[7], d[11], d[15], r)
                for s in range(3):
                    dweight[k, c, r, s] = _tap_of_four(t0, t1, t2, t3, s)


@kernel
def _tap_of_four(a, b, c, d, tap):
    """Element `tap` of G^T (a, b, c, d)."""
    half = type(a)(0.5)
    if tap == 0:
        return a + half * (b + c)
    if tap == 1:
        return half * (b - c)
    return half * (b + c) + d
