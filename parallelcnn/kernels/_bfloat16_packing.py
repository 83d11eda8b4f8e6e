"""Round float32 to bfloat16, and arrange the numbers in pairs for matrix products of tiles; see `_amx`.

A pair is a uint32, the first number in its lower half. Rounding is to the nearest bfloat16, half-way to the even one;
NaN stays NaN.
"""

import numpy as np
from llvmlite import ir

from ._amx import ROWS
from ._jit import kernel_part
from ._vectors import loop, vectorised

_INT = ir.IntType(32)
_UPPER = 0xFFFF0000


def rounded(numbers: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, as uint32 whose lower half is zero."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return np.where(np.isnan(numbers), bits | 0x00400000, nearest).astype(np.uint32) & np.uint32(_UPPER)


@kernel_part
def rounded_bits(number):
    """A float32 rounded to bfloat16, as uint32 whose lower half is zero."""
    bits = np.float32(number).view(np.uint32)
    if number != number:
        return np.uint32((bits | np.uint32(0x00400000)) & np.uint32(_UPPER))
    return np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(_UPPER))


@kernel_part
def pair_of(low, high):
    """The pair of two numbers."""
    return np.uint32((rounded_bits(low) >> np.uint32(16)) | rounded_bits(high))


def _rounded(v, builder, numbers):
    """As `rounded`, for a vector."""

    def all_lanes(value):
        return v.integers(v.index(value))

    bits = builder.bitcast(numbers, ir.VectorType(_INT, v.lanes))
    odd = builder.and_(builder.lshr(bits, all_lanes(16)), all_lanes(1))
    nearest = builder.add(builder.add(bits, all_lanes(0x7FFF)), odd)
    is_number = builder.fcmp_ordered("ord", numbers, numbers)
    bits = builder.select(is_number, nearest, builder.or_(bits, all_lanes(0x00400000)))
    return builder.and_(bits, all_lanes(_UPPER))


def _pair(v, builder, low, high):
    """The pairs of two vectors that are rounded."""
    return builder.or_(builder.lshr(low, v.integers(v.index(16))), high)


def _plain_pack_channels(x, image):
    """Pairs of channels: image[c, i] = (x[2 c, i], x[2 c + 1, i]), zero for channels and samples that are not there.

    x: (C, n), image: (C / 2 rounded up, n rounded up to whole tiles).
    """
    C, n = x.shape
    numbers = np.zeros((2 * len(image), image.shape[1]), np.float32)
    numbers[:C, :n] = x
    bits = rounded(numbers)
    image[...] = bits[::2] >> 16 | bits[1::2]


@vectorised(_plain_pack_channels, like="x")
def pack_channels(v, builder, x, image):
    C, n = x.shape
    with loop(builder, v.index(0), image.shape[0]) as c:
        first = v.times(2, c)
        second = v.sum(first, v.index(1))
        has_second = builder.sext(builder.icmp_signed("<", second, C), ir.IntType(64))
        samples = builder.and_(n, has_second)  # n or 0
        with loop(builder, v.index(0), v.blocks(image.shape[1], v.index(v.lanes))) as part:
            i = v.times(v.lanes, part)

            def write(mask, c=c, first=first, second=second, samples=samples, i=i):
                low = v.load(x.at(first, i), 0, mask)
                high = v.load(x.at(second, i), 0, v.within(i, samples))
                pairs = _pair(v, builder, _rounded(v, builder, low), _rounded(v, builder, high))
                v.store_integers(pairs, image.at(c, i))

            v.with_mask_if_needed(i, n, write)


def _plain_pack_numbers(numbers, pairs):
    """pairs[i] = (numbers[2 i], numbers[2 i + 1]); numbers: (32,) at any distance, pairs: (16,).

    256 x 256 filters of 3 x 3 are packed in 0.55 ms, number by number in 0.71 ms.
    """
    bits = rounded(numbers)
    pairs[...] = bits[::2] >> 16 | bits[1::2]


@vectorised(_plain_pack_numbers, like="numbers")
def pack_numbers(v, builder, numbers, pairs):
    halves = [v.gathered([numbers.at(v.index(2 * i + half)) for i in range(ROWS)]) for half in range(2)]
    v.store_integers(_pair(v, builder, *(_rounded(v, builder, half) for half in halves)), pairs.at(v.index(0)))


def _plain_pack_samples(x, rows):
    """Pairs of neighbouring samples: rows[c, i] = (x[c, 2 i], x[c, 2 i + 1]), zero for samples that are not there.

    x: (C, n), rows: (C or more, 16); n is at most 32. Further rows are not written.
    """
    C, n = x.shape
    numbers = np.zeros((C, 2 * ROWS), np.float32)
    numbers[:, :n] = x
    bits = rounded(numbers)
    rows[:C] = bits[:, ::2] >> 16 | bits[:, 1::2]


@vectorised(_plain_pack_samples, like="x")
def pack_samples(v, builder, x, rows):
    with loop(builder, v.index(0), x.shape[0]) as c:
        v.store_integers(_pairs_of_samples(v, builder, x, c), rows.at(c, v.index(0)))


def _plain_pack_transposed(x, columns):
    """As `pack_samples`, transposed: columns[i, c] = (x[c, 2 i], x[c, 2 i + 1]); columns: (16, C or more).

    Columns up to the next whole tile are overwritten.
    """
    rows = np.zeros((len(x), ROWS), np.uint32)
    _plain_pack_samples(x, rows)
    columns[:, : len(x)] = rows.T


@vectorised(_plain_pack_transposed, like="x")
def pack_transposed(v, builder, x, columns):
    C, _ = x.shape
    last = builder.sub(C, v.index(1))
    with loop(builder, v.index(0), v.blocks(C, v.index(ROWS))) as block:
        first = v.times(ROWS, block)
        # Rows that are not there are copies of the last one.
        channels = [v.smaller(v.sum(first, v.index(i)), last) for i in range(ROWS)]
        rows = [_pairs_of_samples(v, builder, x, c) for c in channels]
        for i, column in enumerate(v.transposed(rows)):
            v.store_integers(column, columns.at(v.index(i), first))


def _pairs_of_samples(v, builder, x, c):
    """The 16 pairs of samples of a row of x."""
    n = x.shape[1]
    halves = [v.load(x.at(c, v.index(0)), i, v.within(v.index(i * v.lanes), n)) for i in range(2)]
    low, high = (_rounded(v, builder, half) for half in halves)
    even, odd = v.deinterleaved(low, high)
    return _pair(v, builder, even, odd)


def _plain_pack_filters(x, rows):
    """Pairs of channels, transposed: rows[i, c] = (x[2 c, i], x[2 c + 1, i]), zero for channels that are not there.

    x: (C, n) with C and n at most 32, rows: (32, 16). Rows up to the next whole tile are overwritten.
    """
    C, n = x.shape
    numbers = np.zeros((2 * ROWS, n), np.float32)
    numbers[:C] = x
    bits = rounded(numbers)
    rows[:n] = (bits[::2] >> 16 | bits[1::2]).T


@vectorised(_plain_pack_filters, like="x")
def pack_filters(v, builder, x, rows):
    C, n = x.shape
    zero = v.index(0)
    with loop(builder, zero, v.blocks(n, v.index(ROWS))) as part:
        first = v.times(ROWS, part)
        pairs = []
        for c in range(ROWS):
            halves = []
            for channel in (v.index(2 * c), v.index(2 * c + 1)):
                is_there = builder.icmp_signed("<", channel, C)
                mask = v.within(first, builder.select(is_there, n, zero))
                halves.append(_rounded(v, builder, v.load(x.at(channel, first), 0, mask)))
            pairs.append(_pair(v, builder, *halves))
        for i, row in enumerate(v.transposed(pairs)):
            v.store_integers(row, rows.at(v.sum(first, v.index(i)), zero))


def _plain_unpack(sums, bias, y):
    """y[k, j] = sums[j, k] + bias[k]. sums: (J, 32, 32), bias: (K,) or (0,), y: (K, J, n) with K and n at most 32."""
    K, J, n = y.shape
    y[...] = sums[:J, :K, :n].swapaxes(0, 1)
    if len(bias):
        y += bias[:, None, None]


@vectorised(_plain_unpack, like="y")
def unpack(v, builder, sums, bias, y):
    K, J, n = y.shape
    has_bias = builder.icmp_signed(">", bias.shape[0], v.index(0))
    with loop(builder, v.index(0), K) as k:
        pointer = builder.select(has_bias, bias.at(k), sums.at(v.index(0), k, v.index(0)))
        number = builder.load(pointer)
        start = v.splat(builder.select(has_bias, number, ir.Constant(number.type, 0.0)))
        with loop(builder, v.index(0), J) as j:

            def write(i, mask, k=k, j=j, start=start):
                numbers = builder.fadd(v.load(sums.at(j, k, i), 0), start)
                v.store(numbers, y.at(k, j, i), 0, mask)
                # Of the next places. Without it, a large y is waited for: 24 -> 64 channels, 31 x 31, n = 128 take 16.7
                # ms instead of 9.5 in a network.
                v.prefetch(y.at(k, v.sum(j, J), i), written=True)

            v.cover(n, write, again=False)
