"""Convolution as tiles over rows.

Rows. With the samples innermost, an image row is W * n contiguous numbers, and for a column stride of 1 tap (r, s) of
output row p is input row p * row_stride + r - top, shifted by s * n - left (top: rows of zeros above the image; left:
numbers, that is columns times n, before it). So with j counting the Q * n numbers of an output row

    y[k, p, j] = bias[k] + sum over c, r, s of  weight[k, c, r, s] * x[c, p * row_stride + r - top, start(s) + j]

where x is zero outside the image. For another column stride `arrange` parts each row beforehand into `column_stride`
phases (columns 0, 2, 4, ... then 1, 3, 5, ... for 2), each `phase` numbers long, so that a tap again is contiguous:

    start(s) = (s mod column_stride) * phase + (s div column_stride) * n - left

Tiles. A pass computes KB channels times VB vectors of an output row, or as many sums of the weight gradient; these sums
stay in registers while it runs over all channels and taps (see `_vectors`). That is what makes these kernels as fast as
the machine's matrix product: 6 -> 16 channels of 13 x 13, filters of 3 x 3, n = 50, on one core whose float32 matrix
product of 512 x 512 runs at 150 GFLOP/s: forward 156 GFLOP/s and weight gradient 100 (138 for n = 48, where no vector
crosses a cache line), where plain loops with their sums in memory reach 88 and 92.

The gradient by x is a forward pass over dy with the filters turned round, see `backward_input`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.core import config
from numba.extending import intrinsic

from ._jit import kernel
from ._vectors import REGISTERS, VECTOR_BYTES, Strided, Vectors, loop, unpack

_SUMS = 24 if REGISTERS >= 32 else 12  # of a tile: the other registers hold what is multiplied
_LARGEST_BLOCK = _SUMS // 3  # channels of a tile: at least three vectors share a weight


def block_size(channels: int, largest: int = _LARGEST_BLOCK) -> int:
    """Into blocks of how many to cut so many channels: as few blocks as possible, of equal size or nearly so."""
    blocks = -(-channels // max(min(largest, _LARGEST_BLOCK), 1))
    return -(-channels // blocks)


def packed_size(filters: int, channels: int, rows: int, columns: int) -> int:
    """How many numbers a forward kernel needs room for, to bring its weights into order."""
    block = block_size(filters)
    return -(-filters // block) * block * (1 + channels * rows * columns)


@kernel
def arrange(x, left, rows):
    """rows[c, h, phase, i] = x[c, h, i * column_stride + phase - left], zero outside the image.

    x: (C, H, W, n), rows: (C, H, column_stride, columns per phase, n); left: columns.
    """
    C, H, W, _ = x.shape
    _, _, column_stride, columns, _ = rows.shape
    for c in range(C):
        for h in range(H):
            for phase in range(column_stride):
                for i in range(columns):
                    w = i * column_stride + phase - left
                    if 0 <= w < W:
                        rows[c, h, phase, i] = x[c, h, w]
                    else:
                        rows[c, h, phase, i] = 0


@kernel
def restore(drows, left, dx):
    """The reverse of `arrange`: dx[c, h, w] is the number that `arrange` would have put x[c, h, w] to, or zero."""
    C, H, W, _ = dx.shape
    _, _, column_stride, columns, _ = drows.shape
    for c in range(C):
        for h in range(H):
            for w in range(W):
                i, phase = divmod(w + left, column_stride)
                if i < columns:
                    dx[c, h, w] = drows[c, h, phase, i]
                else:
                    dx[c, h, w] = 0


@cache
def forward_kernel(filter_columns: int, column_stride: int, filters: int) -> Callable[..., None]:
    """The forward kernel for one width of filter, one column stride and one way to cut the filters into blocks."""
    return _forward_kernel(filter_columns, column_stride, block_size(filters))


@cache
def _forward_kernel(S: int, column_stride: int, KB: int) -> Callable[..., None]:
    VB, border = min(_SUMS // KB, 4), 2  # vectors of a tile that lies inside, and of one that may not

    @kernel
    def conv2d_forward(x, weight, bias, packed, row_stride, top, left, phase, n, y):
        """x: (C, H, row), weight: (K, C, R, S), bias: (K,) or (0,), packed: (`packed_size`,), y: (K, P, row)."""
        K, P, length = y.shape
        C, H, row_length = x.shape
        R = weight.shape[2]
        blocks = -(-K // KB)
        size = KB * (1 + C * R * S)
        weights = packed[: blocks * size].reshape(blocks, size)
        pack(weight, bias, KB, weights)
        lanes = VECTOR_BYTES // y.itemsize
        first_start, last_start = _outermost_starts(S, column_stride, left, phase, n)
        for block in range(blocks):
            k = min(block * KB, K - KB)
            for p in range(P):
                row = p * row_stride - top
                taps = (R, max(0, -row), max(0, min(R, H - row)), row)
                j = 0
                while j < length:
                    tile, stop = (block, k, p, j), j + VB * lanes
                    if j + first_start >= 0 and stop + last_start <= row_length and stop <= length:
                        forward_tile(x, weights, y, tile, taps, (left, phase, n), S, column_stride, KB, VB, False)
                        j = stop
                    else:
                        forward_tile(x, weights, y, tile, taps, (left, phase, n), S, column_stride, KB, border, True)
                        j += border * lanes

    return conv2d_forward


@kernel
def pack(weight, bias, KB, packed):
    """Weights in the order in which tiles read them: for each block of KB filters k its biases, and then for every
    c, r and s its weights[k, c, r, s]. The last block overlaps the one before it where it must.

    packed: (blocks, KB * (1 + C * R * S)); bias: (K,), or (0,) for zeros.
    """
    K, C, R, S = weight.shape
    for block in range(packed.shape[0]):
        k0 = min(block * KB, K - KB)
        for k in range(KB):
            packed[block, k] = bias[k0 + k] if bias.size else packed.dtype.type(0)
        i = KB
        for c in range(C):
            for r in range(R):
                for s in range(S):
                    for k in range(KB):
                        packed[block, i] = weight[k0 + k, c, r, s]
                        i += 1


@kernel
def _outermost_starts(S, column_stride, left, phase, n):
    """The smallest and the largest start(s)."""
    first = last = -left
    for s in range(1, S):
        start = (s % column_stride) * phase + (s // column_stride) * n - left
        first, last = min(first, start), max(last, start)
    return first, last


def _plain_forward_tile(x, packed, y, tile, taps, columns, S, column_stride, KB, VB, masked):
    """y[k : k + KB, p, j : j + VB vectors], as far as there is so much of it.

    tile: (block, k, p, j). taps: (R, first, last, row): of R taps [first, last) hit the image, tap r its row row + r.
    columns: (left, phase, n). masked: whether some lanes lie outside of x or y.
    """
    block, k, p, j = tile
    R, first, last, row = taps
    left, phase, n = columns
    C, _, row_length = x.shape
    weight = packed[block, KB:].reshape(C, R, S, KB)
    stop = min(j + VB * (VECTOR_BYTES // y.itemsize), y.shape[2])
    sums = np.repeat(packed[block, :KB, np.newaxis], stop - j, axis=1)
    for s in range(S):
        start = j + (s % column_stride) * phase + (s // column_stride) * n - left
        low, high = max(start, 0), min(start + stop - j, row_length)
        if low < high and first < last:
            seen = x[:, row + first : row + last, low:high]
            sums[:, low - start : high - start] += np.tensordot(weight[:, first:last, s], seen, ((0, 1), (0, 1)))
    y[k : k + KB, p, j:stop] = sums


@intrinsic(prefer_literal=True)
def _compiled_forward_tile(_, x, packed, y, tile, taps, columns, S, column_stride, KB, VB, masked):
    signature = types.void(x, packed, y, tile, taps, columns, S, column_stride, KB, VB, masked)
    S, column_stride, KB, VB, masked = (kind.literal_value for kind in (S, column_stride, KB, VB, masked))

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, packed, y = (Strided(context, builder, *array) for array in zip(signature.args[:3], arguments, strict=False))
        block, k, p, j = unpack(builder, arguments[3])
        R, first, last, row = unpack(builder, arguments[4])
        left, phase, n = unpack(builder, arguments[5])
        v = Vectors(context, builder, signature.args[2].dtype)
        C, _, row_length = x.shape
        starts = _starts(v, builder, S, column_stride, builder.sub(j, left), phase, n)
        inside = [
            [v.within(builder.add(start, v.index(b * v.lanes)), row_length) if masked else None for b in range(VB)]
            for start in starts
        ]
        weights = packed.at(block, v.index(0))
        sums = [[v.variable(v.splat(v.number(weights, i))) for _ in range(VB)] for i in range(KB)]
        with loop(builder, v.index(0), C) as c, loop(builder, first, last) as r:
            x_row = x.at(c, builder.add(row, r), v.index(0))
            tap = builder.add(builder.mul(c, R), r)
            tap_weights = builder.gep(weights, [builder.add(v.index(KB), builder.mul(tap, v.index(S * KB)))])
            for s in range(S):
                begin = builder.gep(x_row, [starts[s]])
                seen = [v.load(begin, b, inside[s][b]) for b in range(VB)]
                for i in range(KB):
                    weight = v.splat(v.number(tap_weights, s * KB + i))
                    for b in range(VB):
                        v.add_product(sums[i][b], weight, seen[b])
        wanted = [v.within(v.index(b * v.lanes), builder.sub(y.shape[2], j)) if masked else None for b in range(VB)]
        for i in range(KB):
            begin = y.at(builder.add(k, v.index(i)), p, j)
            for b in range(VB):
                v.store(v.value(sums[i][b]), begin, b, wanted[b])
        return context.get_dummy_value()

    return signature, write


def _starts(v: Vectors, builder: Any, S: int, column_stride: int, origin: Any, phase: Any, n: Any) -> list[Any]:
    """origin + (s mod column_stride) * phase + (s div column_stride) * n, for each s."""
    starts = []
    for s in range(S):
        in_phase = builder.add(origin, builder.mul(v.index(s // column_stride), n))
        starts.append(builder.add(in_phase, builder.mul(v.index(s % column_stride), phase)))
    return starts


@cache
def weight_gradient_kernel(
    filter_rows: int, filter_columns: int, column_stride: int, filters: int, channels: int
) -> Callable[..., None]:
    """The kernel of the weight gradient, for one size of filter, one column stride and one way to cut into blocks.

    A tile of RB x S taps needs one row of x for each of RB, and its S taps are that row, shifted: the more of them, the
    less comes from outside the nearest cache (3 x 3 taps of three filters 102 GFLOP/s, 1 x 3 of eight 80; 64 -> 64
    channels of 16 x 16).
    """
    sums = REGISTERS - 5
    RB = max(min(filter_rows, (9 if REGISTERS >= 32 else 4) // filter_columns), 1)
    KB = block_size(filters, sums // (RB * filter_columns))
    CB = block_size(channels, sums // (RB * filter_columns * KB))
    return _weight_gradient_kernel(filter_columns, column_stride, KB, CB, RB)


@cache
def _weight_gradient_kernel(S: int, column_stride: int, KB: int, CB: int, RB: int) -> Callable[..., None]:
    @kernel
    def conv2d_weight_gradient(x, dy, zeros, row_stride, top, left, phase, n, dweight):
        """dweight[k, c, r, s] = sum over p, j of  dy[k, p, j] * x[c, p * row_stride + r - top, start(s) + j].

        x: (C, H, row), dy: (K, P, row), zeros: (row of x,), overwritten; dweight: (K, C, R, S).
        """
        K, C, R, _ = dweight.shape
        length, row_length = dy.shape[2], x.shape[2]
        zeros[:] = 0
        first_start, last_start = _outermost_starts(S, column_stride, left, phase, n)
        inside = (max(0, -first_start), min(length, row_length - last_start))
        for k in range(0, K, KB):
            for c in range(0, C, CB):
                for r in range(0, R, RB):
                    tile = (min(k, K - KB), min(c, C - CB), min(r, R - RB))
                    weight_gradient_tile(
                        x,
                        dy,
                        zeros,
                        dweight,
                        tile,
                        (row_stride, top),
                        (left, phase, n),
                        inside,
                        S,
                        column_stride,
                        KB,
                        CB,
                        RB,
                    )

    return conv2d_weight_gradient


def _plain_weight_gradient_tile(x, dy, zeros, dweight, tile, rows, columns, inside, S, column_stride, KB, CB, RB):
    """dweight[k : k + KB, c : c + CB, r : r + RB].

    tile: (k, c, r). rows: (row_stride, top). columns: (left, phase, n). zeros: stands in for rows outside the image.
    inside: for which j all taps lie inside of x and dy.
    """
    k, c, r = tile
    row_stride, top = rows
    left, phase, n = columns
    length, (_, H, row_length) = dy.shape[2], x.shape
    dweight[k : k + KB, c : c + CB, r : r + RB] = 0
    for s in range(S):
        start = (s % column_stride) * phase + (s // column_stride) * n - left
        low, high = max(0, -start), min(length, row_length - start)
        for p in range(dy.shape[1] if low < high else 0):
            for tap in range(r, r + RB):
                h = p * row_stride + tap - top
                if 0 <= h < H:
                    seen = x[c : c + CB, h, low + start : high + start]
                    dweight[k : k + KB, c : c + CB, tap, s] += dy[k : k + KB, p, low:high] @ seen.T


@intrinsic(prefer_literal=True)
def _compiled_weight_gradient_tile(_, x, dy, zeros, dweight, tile, rows, columns, inside, S, column_stride, KB, CB, RB):
    signature = types.void(x, dy, zeros, dweight, tile, rows, columns, inside, S, column_stride, KB, CB, RB)
    S, column_stride, KB, CB, RB = (kind.literal_value for kind in (S, column_stride, KB, CB, RB))

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, dy, zeros, dweight = (
            Strided(context, builder, *array) for array in zip(signature.args[:4], arguments, strict=False)
        )
        k, c, r = unpack(builder, arguments[4])
        row_stride, top = unpack(builder, arguments[5])
        left, phase, n = unpack(builder, arguments[6])
        inside_from, inside_to = unpack(builder, arguments[7])
        v = Vectors(context, builder, signature.args[1].dtype)
        zero, lanes = v.index(0), v.index(v.lanes)
        ks, cs, rs = (
            [builder.add(first, v.index(i)) for i in range(count)] for first, count in ((k, KB), (c, CB), (r, RB))
        )
        (_, P, length), (_, H, row_length) = dy.shape, x.shape
        starts = _starts(v, builder, S, column_stride, builder.neg(left), phase, n)
        sums = {(k, c, r, s): v.variable(v.zero) for k in ks for c in cs for r in rs for s in range(S)}

        with loop(builder, zero, P) as p:
            dy_rows = {k: dy.at(k, p, zero) for k in ks}
            x_rows = {}
            for r in rs:
                h = builder.sub(builder.add(builder.mul(p, row_stride), r), top)
                in_image = builder.icmp_unsigned("<", h, H)
                x_rows.update({(c, r): builder.select(in_image, x.at(c, h, zero), zeros.at(zero)) for c in cs})

            def add_products(j: Any, masked: bool) -> None:
                wanted = v.within(zero, builder.sub(length, j)) if masked else None
                dys = {k: v.load(builder.gep(dy_rows[k], [j]), 0, wanted) for k in ks}
                for (c, r), x_row in x_rows.items():
                    for s in range(S):
                        at = builder.add(j, starts[s])
                        seen_mask = builder.and_(v.within(at, row_length), wanted) if masked else None
                        seen = v.load(builder.gep(x_row, [at]), 0, seen_mask)
                        for k in ks:
                            v.add_product(sums[k, c, r, s], dys[k], seen)

            with loop(builder, zero, builder.sdiv(builder.add(length, v.index(v.lanes - 1)), lanes)) as vector:
                j = builder.mul(vector, lanes)
                starts_inside = builder.icmp_signed(">=", j, inside_from)
                ends_inside = builder.icmp_signed("<=", builder.add(j, lanes), inside_to)
                with builder.if_else(builder.and_(starts_inside, ends_inside)) as (then, otherwise):
                    with then:
                        add_products(j, masked=False)
                    with otherwise:
                        add_products(j, masked=True)
        for (k, c, r, s), total in sums.items():
            builder.store(v.total(v.value(total)), dweight.at(k, c, r, v.index(s)))
        return context.get_dummy_value()

    return signature, write


forward_tile = _plain_forward_tile if config.DISABLE_JIT else _compiled_forward_tile
weight_gradient_tile = _plain_weight_gradient_tile if config.DISABLE_JIT else _compiled_weight_gradient_tile


@kernel
def conv2d_backward_bias(dy, dbias):
    """dbias[k] = sum over p, j of dy[k, p, j]; in a quarter of the time that numpy's sum takes (9 us instead of 37)."""
    K, P, length = dy.shape
    for k in range(K):
        total = dbias.dtype.type(0)
        for p in range(P):
            for j in range(length):
                total += dy[k, p, j]
        dbias[k] = total
