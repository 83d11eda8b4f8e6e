"""Winograd convolution over many channels with fewer multiplications: filters of 3 x 3 with stride 1 or 2, or of 5 x 5
with stride 1.

4 x 4 neighbouring outputs depend on 6 x 6 places of the image. Linear transforms of these places and of the filter
reduce the products per output and channel from 9 to 2.25 (A. Lavin and S. Gray, "Fast Algorithms for Convolutional
Neural Networks", arXiv:1509.09308):

    y = A^T (sum over c of  (G weight[k, c] G^T) * (B^T x[c] B)) A,        6 x 6 products, * number by number

For each of the 36 places e = 6 * row + column this is a matrix product, over the channels, of transformed filters and
transformed image. The input gradient is a forward pass with rotated filters. The weight gradient is

    dweight[k, c] = G^T (sum over squares and samples of  (A dy[k] A^T) * (B^T x[c] B)) G

Filters of 5 x 5 have squares of 2 x 2 outputs, which depend on 6 x 6 places, too: 9 products per output instead of 25.

With a stride of 2, 4 x 4 outputs depend on 9 x 9 places, and there are 81 products, 5.1 per output instead of 9. Taps
that see odd rows and columns need no transform, so there are only 36 different transformed weights.

With the samples innermost, all transforms work on vectors, `lanes` samples at a time. The samples of a square that do
not fill a vector share one with those of the next squares: with 50 samples, 8 squares share a vector. A panel of a few
vectors is transformed, multiplied and transformed back in the nearest caches. The largest array written to memory is
the transformed filters.

Measured on one core whose float32 matrix product of 512 x 512 runs at 129 GFLOP/s, n = 32, counting the products of a
direct convolution: forward, and weight gradient; in brackets F(2 x 2, 3 x 3), used before, and the kernels of `conv2d`.

    16 -> 16 channels, 32 x 32    223 (115, 154)   188 (64, 120) GFLOP/s
    32 -> 32, 16 x 16             337 (178, 148)   267 (143, 97)
    64 -> 64, 32 x 32             360 (210, 115)   310 (174, 83)
    64 -> 64, 8 x 8               346 (209, 157)   317 (186, 126)
    128 -> 128, 16 x 16           380 (247, 87)    334 (206, 116)
    256 -> 256, 8 x 8             311 (229, 64)    324 (212, 77)

Stride 2, in brackets the kernels of `panels`, which computed it before; input gradient in the middle:

    64 -> 128, 32 x 32            154 (96)    127 (116)    120 (88)
    128 -> 256, 16 x 16           153 (123)   139 (125)    140 (87)

Filters of 5 x 5, in brackets the kernels of `conv2d`, on an AMD Zen 3 with AVX2, whose product runs at 85 GFLOP/s;
forward, input gradient and weight gradient:

    16 -> 16, 16 x 16             120 (75)    120 (68)    115 (88)
    32 -> 32, 16 x 16             129 (61)    138 (63)    136 (70)
    64 -> 64, 16 x 16             166 (48)    158 (44)    142 (66)

(`scripts/benchmarks/convolutions.py`; before: at commit 2fed455. `scripts/benchmarks/results/convolutions.md` is of a
processor with AVX2.)

It is less exact than `conv2d`, but of the order of float32's rounding: 16 to 256 channels in float32 differ from
float64, in the norm, by 0.5e-6 to 1.6e-6 forwards, at most three times as much as with `conv2d`, and by 0.6e-6 to
0.9e-6 in the weight gradient; filters of 5 x 5 by at most 1.8e-6 and 1.5e-6. See `_winograd_transforms` for the reason.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from numba import boolean
from numba.extending import register_jitable

from ._jit import kernel, kernel_part
from ._packing import MOST_VECTORS, SUMS, block_size, even_block, vectors_of
from ._vectors import VECTOR_BYTES
from ._winograd_tiles import (
    add_gradient_products,
    filter_gradients,
    filter_squares,
    gradient_square,
    input_square,
    output_square,
    square_products,
)
from ._winograd_transforms import TRANSFORMS, WEIGHTS

_LANES = VECTOR_BYTES // 4  # for float32, the smallest type
_LARGE_PANEL = 1 << (20 if VECTOR_BYTES == 64 else 18)  # bytes, found with second caches of 1 MiB and 512 KiB
# Channels that are transformed for all vectors of a panel before the next ones. Neighbouring vectors share cache lines
# of the image: 256 -> 64 channels, 15 x 15, n = 128 run at 172 GFLOP/s instead of 160 (AMD Zen 3), few channels as
# before.
_CHANNELS = 4
_PANEL = 32  # samples of squares in a panel of the weight gradient


def pays(weight: tuple[int, ...], strides: tuple[int, int], outputs: tuple[int, ...], seen: tuple[int, ...]) -> bool:
    """Whether the algorithm can compute this output, (K, P, Q, n), from the image that it sees, (C, H, W, n), with
    filters (K, C, R, S) and strides, and is faster than the tiles of `conv2d`.

    Squares partly outside of the output and partly filled vectors compute numbers that are not needed. So it is not
    faster for small images of few samples, and for few channels, where transforms cost more than they save.
    """
    (K, C, R, S), (_, P, Q, n) = weight, outputs
    if R != S or strides[0] != strides[1] or (R, strides[0]) not in TRANSFORMS:
        return False
    transforms = TRANSFORMS[R, strides[0]]
    order, VB = _order(P, Q, n, _LANES, transforms.outputs), vectors_of(block_size(K))
    pieces = order.squares * order.pieces // order.group
    vectors = -(-order.end // VB) * VB  # whole panels are multiplied
    # Counted in products. The transforms of a place take the time of 7 to 12 products for each channel and filter on a
    # Zen 4, which computes a product of 64 bytes in every clock cycle, and of about twice as many on an Intel Xeon that
    # computes two. With stride 2 the tiles of `conv2d` also copy the image: they take 1.25 to 1.45 times as long.
    transformed = transforms.side**2 * _LANES * (vectors * C * K + pieces * (10 * (C + K) + 64))
    # Those tiles leave out most taps outside the image: a padding of 2 makes the output larger, but adds few products.
    _, H, W, _ = seen
    direct = R * S * (1 if strides == (1, 1) else 1.25) * C * K * min(P, H) * min(Q, W) * n
    return 0 < transformed <= direct


def memory_size(filters: int, channels: int, taps: int, stride: int) -> int:
    """The size of the kernels' scratch memory, for both passes and both gradients."""
    passes = (_pass_size(*sizes, taps, stride) for sizes in ((filters, channels), (channels, filters)))
    return max(*passes, _weight_gradient_size(filters, channels, taps, stride))


# ---- forward pass and input gradient


class _Blocks(NamedTuple):
    """How a pass is divided. Below, "filters" are what is computed, and "channels" what is seen."""

    KB: int  # filters of a tile
    VB: int  # vectors of a tile, and of a panel
    group: int  # blocks of filters whose sums are computed before any is transformed


def _blocks(filters: int, channels: int, side: int) -> _Blocks:
    KB = block_size(filters)
    VB = vectors_of(KB)
    # Few sums stay in the nearest cache. But if a panel is too large for the second one, reading it for each block of
    # filters takes longer than reading many sums: 256 -> 256 channels, 8 x 8, run at 321 GFLOP/s instead of 281.
    panel = 4 * side**2 * channels * VB * _LANES
    most = 1 if panel < _LARGE_PANEL else 8
    return _Blocks(KB, VB, even_block(-(-filters // KB), most))


def _pass_size(filters: int, channels: int, taps: int, stride: int) -> int:
    side = TRANSFORMS[taps, stride].side
    KB, VB, group = _blocks(filters, channels, side)
    panel = side**2 * (channels + 1 + group * KB) * VB * _LANES
    packed = -(-filters // KB) * KB
    return panel + (WEIGHTS**2 + taps**2) * packed * (channels + 1) + filters


@cache
def forward_kernel(filters: int, channels: int, taps: int, stride: int) -> Callable[..., None]:
    """The forward kernel for these numbers of filters and channels, and for windows of taps x taps."""
    return _forward_kernel(_blocks(filters, channels, TRANSFORMS[taps, stride].side), taps, stride)


@cache
def _forward_kernel(blocks: _Blocks, taps: int, stride: int) -> Callable[..., None]:
    (KB, VB, group), transforms = blocks, TRANSFORMS[taps, stride]
    outputs, side = transforms.outputs, transforms.side
    transform_filters, products = _filter_transform(KB, taps, stride), _group_products(blocks, side)
    transform_panel = _panel_transform(taps, stride, False)

    @kernel
    def winograd_forward(x, weight, turned, bias, memory, top, left, y):
        """x: (C, H, W, n), weight: (K, C, R, R), bias: (K,) or (0,), memory: (`memory_size`,), y: (K, P, Q, n).

        turned: whether weight is (C, K, R, R), and its filters are to be rotated by 180 degrees: an input gradient.
        top, left: rows and columns of zeros before the image.
        """
        C, (K, P, Q, n) = len(x), y.shape
        lanes = VECTOR_BYTES // x.itemsize
        # One channel more than needed, so that the places do not share the same few cache lines.
        seen, memory = _taken(memory, (side**2, C + 1, VB * lanes))
        sums, memory = _taken(memory, (side**2, group * KB, VB * lanes))
        weights, memory = transform_filters(weight, turned, turned, memory)
        biases = memory[:K]
        biases[:] = 0
        if bias.size:
            for k in range(K):
                biases[k] = bias[k]
        order = _order(P, Q, n, lanes, outputs)
        for first in range(0, order.end, VB):
            transform_panel(x, top, left, first, first + VB, order, seen)
            for block in range(0, weights.shape[1], group):
                begin, end = products(weights, seen, sums, K, block)
                for piece in range(*_pieces(first, first + VB, order)):
                    p, q, i, column = _place(piece, first, order)
                    output_square(sums, column, biases[begin:end], y[begin:end], (p, q, i), taps, stride)

    return winograd_forward


@cache
def backward_input_kernel(filters: int, channels: int) -> Callable[..., None]:
    """The kernel of the input gradient for these numbers of filters and channels, 3 x 3 taps and a stride of 2."""
    return _backward_input_kernel(_blocks(channels, filters, TRANSFORMS[3, 2].side))


@cache
def _backward_input_kernel(blocks: _Blocks) -> Callable[..., None]:
    taps, stride = 3, 2
    (KB, VB, group), transforms = blocks, TRANSFORMS[taps, stride]
    outputs, side = transforms.outputs, transforms.side
    transform_filters, products = _filter_transform(KB, taps, stride), _group_products(blocks, side)
    transform_panel = _panel_transform(taps, stride, True)

    @kernel
    def winograd_backward_input(dy, weight, memory, top, left, dx):
        """dy: (K, P, Q, n), weight: (K, C, 3, 3), memory: (`memory_size`,), dx: (C, H, W, n), overwritten.

        The forward pass transposed: squares of dx overlap, and are added there.
        """
        (K, C, _, _), (_, P, Q, n) = weight.shape, dy.shape
        lanes = VECTOR_BYTES // dy.itemsize
        seen, memory = _taken(memory, (side**2, K + 1, VB * lanes))
        sums, memory = _taken(memory, (side**2, group * KB, VB * lanes))
        weights, memory = transform_filters(weight, boolean(True), boolean(False), memory)
        # The first row and column, to which squares add, and what lies beyond all squares. With zeros everywhere, to
        # which whole squares add, the input gradient takes up to 1.09 times as long.
        dx[:, 0] = 0
        dx[:, :, 0] = 0
        dx[:, stride * outputs * -(-P // outputs) + 1 - top :] = 0
        dx[:, :, stride * outputs * -(-Q // outputs) + 1 - left :] = 0
        order = _order(P, Q, n, lanes, outputs)
        for first in range(0, order.end, VB):
            transform_panel(dy, 0, 0, first, first + VB, order, seen)
            for block in range(0, weights.shape[1], group):
                begin, end = products(weights, seen, sums, C, block)
                c = block * KB
                for piece in range(*_pieces(first, first + VB, order)):
                    p, q, i, column = _place(piece, first, order)
                    place = (stride * p - top, stride * q - left, i)
                    # From c on: the group before has added the channels that the last group computes again.
                    output_square(sums[:, c - begin :], column, None, dx[c:end], place, taps, stride)

    return winograd_backward_input


@cache
def _panel_transform(taps: int, stride: int, back: bool) -> Callable[..., None]:
    step = 1 if back else stride

    @kernel_part
    def transform_panel(x, top, left, first, last, order, seen):
        """Transform the squares of vectors [first, last) of the image x, or if `back` of a gradient of outputs."""
        for c in range(0, len(x), _CHANNELS):
            some, seen_of_some = x[c : c + _CHANNELS], seen[:, c : c + _CHANNELS]
            for piece in range(*_pieces(first, last, order)):
                p, q, i, column = _place(piece, first, order)
                place = (step * p - top, step * q - left, i)
                input_square(some, place, seen_of_some, column, taps, stride, back)

    return transform_panel


@cache
def _group_products(blocks: _Blocks, side: int) -> Callable[..., tuple[int, int]]:
    KB, VB, group = blocks

    @kernel_part
    def group_products(weights, seen, sums, K, first):
        """Compute sums[e, i] = weights[of e, for filter begin + i] seen[e] for the filters [begin, end) of the group
        of blocks that begins with block `first`.

        The last block may overlap the one before it. Returns (begin, end).
        """
        last = min(first + group, weights.shape[1])
        begin = min(first * KB, K - KB)
        for e in range(side**2):
            of_place = weights[_weights_of(e, side)]
            for block in range(first, last):
                i = min(block * KB, K - KB) - begin
                square_products(of_place[block], seen[e], sums[e, i : i + KB], KB, VB)
        return begin, min(last * KB, K)

    return group_products


@cache
def _filter_transform(KB: int, taps: int, stride: int) -> Callable[..., Any]:
    @kernel_part
    def transform_filters(weight, swapped, rotated, memory):
        """Returns weights[e, k // KB, c, k % KB] = (G weight[k, c] G^T)[e], (36, blocks, C + 1, KB), at the beginning
        of the memory, and the rest. The last block may overlap the one before it. The last channel keeps the places
        from sharing a few cache lines: without it, transforming 128 x 128 filters takes 315 us instead of 165, and
        convolutions of 128 -> 128 channels, 8 x 8, n = 32 and 48, take 1.03 to 1.07 times as long (Intel Xeon).

        weight: (K, C, R, R), or if `swapped` (C, K, R, R). rotated: whether to rotate the filters by 180 degrees. Views
        would do this too, but need further kernels, compiled for their memory layouts.

        Products read the weights one after the other: from rows of channels, (36, K, C), products of 256 -> 256
        channels take 1.7 times as long on an AMD Zen 3.
        """
        K, C, _, _ = weight.shape
        if swapped:
            K, C = C, K
        blocks = -(-K // KB)
        weights, memory = _taken(memory, (WEIGHTS**2, blocks, C + 1, KB))
        # One row for each tap, so that the transform is vector instructions: 64 x 64 filters take 53 us instead of 308.
        filters, memory = _taken(memory, (taps**2, blocks, C + 1, KB))
        for block in range(blocks):
            k = min(block * KB, K - KB)
            for c in range(C):
                for i in range(KB):
                    taken = weight[c, k + i] if swapped else weight[k + i, c]
                    for r in range(taps):
                        for s in range(taps):
                            tap = taps * r + s
                            filters[taps**2 - 1 - tap if rotated else tap, block, c, i] = taken[r, s]
        filters[:, :, C] = 0
        size = blocks * (C + 1) * KB
        filter_squares(filters.reshape(taps**2, size), weights.reshape(WEIGHTS**2, size), taps, stride)
        return weights, memory

    return transform_filters


@kernel_part
def _weights_of(e, side):
    """The number of the transformed weights for place e. With stride 2, the last places of a side share weights."""
    row, column = divmod(e, side)
    return WEIGHTS * min(row, WEIGHTS - 1) + min(column, WEIGHTS - 1)


class _Order(NamedTuple):
    """The order of vectors of samples.

    Each square fills some vectors alone. The samples left over of a group of squares share one vector, after those of
    the group. A piece is a vector that a square fills, or the samples left over of one square.
    """

    outputs: int  # along the side of a square
    squares: int
    in_row: int  # squares in a row
    lanes: int
    alone: int  # vectors that a square fills
    left: int  # samples of a square that are left over
    group: int  # squares of a group
    vectors: int  # of a group
    pieces: int  # of a group
    end: int  # vectors in total


@register_jitable  # also called before anything is compiled
def _order(P, Q, n, lanes, outputs):
    in_row = -(-Q // outputs)
    squares = -(-P // outputs) * in_row
    alone, left = divmod(n, lanes)
    group = lanes // left if left else 1
    shared = 1 if left else 0
    end = squares * alone + shared * -(-squares // group)
    vectors, pieces = group * alone + shared, group * (alone + shared)
    return _Order(outputs, squares, in_row, lanes, alone, left, group, vectors, pieces, end)


@kernel_part
def _pieces(first, last, order):
    """The range of the pieces in vectors [first, last)."""
    return _first_piece(first, order), _first_piece(last, order)


@kernel_part
def _first_piece(vector, order):
    if vector >= order.end:
        return order.squares * (order.pieces // order.group)
    group, number = divmod(vector, order.vectors)
    return group * order.pieces + number


@kernel_part
def _filled(group, order):
    """The number of vectors that the squares of a group fill alone. The last group may have fewer squares."""
    return min(order.group, order.squares - group * order.group) * order.alone


@kernel_part
def _is_filled(vector, order):
    """Whether one square fills the vector."""
    group, number = divmod(vector, order.vectors)
    return vector < order.end and number < _filled(group, order)


@kernel_part
def _place(piece, first, order):
    """First row, column and sample of a piece, and its column in the panel whose first vector is `first`."""
    group, number = divmod(piece, order.pieces)
    filled = _filled(group, order)
    square, vector = group * order.group, group * order.vectors - first
    if number < filled:
        square += number // order.alone
        i, column = (number % order.alone) * order.lanes, (vector + number) * order.lanes
    else:
        square += number - filled
        i, column = order.alone * order.lanes, (vector + filled) * order.lanes + (number - filled) * order.left
    return order.outputs * (square // order.in_row), order.outputs * (square % order.in_row), i, column


@kernel_part
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


def _weight_gradient_size(filters: int, channels: int, taps: int, stride: int) -> int:
    CB, VB = _weight_gradient_blocks(filters, channels)
    width = VB * _LANES
    blocks, channels = -(-filters // width), -(-channels // CB) * CB
    panel = TRANSFORMS[taps, stride].side ** 2 * ((channels + 1) * _PANEL + (blocks * _PANEL + 1) * width)
    return panel + WEIGHTS**2 * blocks * (channels + 1) * width


@cache
def weight_gradient_kernel(filters: int, channels: int, taps: int, stride: int) -> Callable[..., None]:
    """The weight gradient kernel for these numbers of filters and channels, and for windows of taps x taps."""
    return _weight_gradient_kernel(*_weight_gradient_blocks(filters, channels), taps, stride)


@cache
def _weight_gradient_kernel(CB: int, VB: int, taps: int, stride: int) -> Callable[..., None]:
    transforms = TRANSFORMS[taps, stride]
    outputs, side = transforms.outputs, transforms.side
    transform_panel = _panel_transform(taps, stride, False)

    @kernel
    def winograd_weight_gradient(x, dy, memory, top, left, dweight):
        """x: (C, H, W, n), dy: (K, P, Q, n), memory: (`memory_size`,), dweight: (K, C, R, R), overwritten.

        top, left: rows and columns of zeros before the image.
        """
        (K, C, _, _), (_, P, Q, n) = dweight.shape, dy.shape
        lanes = VECTOR_BYTES // x.itemsize
        slots, width = _PANEL // lanes, VB * lanes
        blocks, channels = -(-K // width), -(-C // CB) * CB
        # One channel and one row more than needed, as in the forward kernel.
        seen, memory = _taken(memory, (side**2, channels + 1, _PANEL))
        turned, memory = _taken(memory, (side**2, blocks * _PANEL + 1, width))
        totals, memory = _taken(memory, (WEIGHTS**2, blocks, channels + 1, width))
        seen[:] = 0
        totals[:] = 0
        order = _order(P, Q, n, lanes, outputs)
        for first in range(0, order.end, slots):
            filled = min(slots, order.end - first)
            for slot in range(filled):
                if not _is_filled(first + slot, order):
                    seen[:, :, slot * lanes : (slot + 1) * lanes] = 0
                    for block in range(blocks):
                        t = block * _PANEL + slot * lanes
                        turned[:, t : t + lanes] = 0
            transform_panel(x, top, left, first, first + slots, order, seen)
            for block in range(blocks):
                for piece in range(*_pieces(first, first + slots, order)):
                    p, q, i, t = _place(piece, first, order)
                    for column in range(0, width, lanes):
                        place, to = (block * width + column, p, q, i), (block * _PANEL + t, column)
                        gradient_square(dy, place, turned, to, taps, stride)
            for e in range(side**2):
                of_weights = totals[_weights_of(e, side)]
                for block in range(blocks):
                    rows = turned[e, block * _PANEL : block * _PANEL + filled * lanes]
                    for c in range(0, channels, CB):
                        some = of_weights[block, c : c + CB]
                        add_gradient_products(seen[e, c : c + CB], rows, some, _PANEL, CB, VB)
        filter_gradients(totals.reshape(WEIGHTS**2, blocks * (channels + 1) * width), taps, stride)
        for k in range(K):
            block, column = divmod(k, width)
            for c in range(C):
                for r in range(taps):
                    for s in range(taps):
                        dweight[k, c, r, s] = totals[taps * r + s, block, c, column]

    return winograd_weight_gradient
