"""Tiles: the innermost loops of convolution and pooling, in vector instructions.

Each tile is implemented twice. The plain version defines in numpy what the tile computes, and runs when compilation is
off (NUMBA_DISABLE_JIT). The other version generates vector instructions, with the sums in registers. Sizes in capitals
(S, KB, VB, ...) are compile-time constants.

See `conv2d` for rows, phases and starts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._vectors import REGISTERS, VECTOR_BYTES, Vectors, loop, vectorised

_SHORT = 2  # vectors of a tile where fewer places are left than a whole tile has


def _plain_forward_row(x, packed, y, place, taps, columns, S, column_stride, KB, VB):
    """Compute y[k : k + KB, p] from the weights and biases packed[block].

    place: (block, k, p). taps: (R, first, last, row): of R taps [first, last) hit the image, tap r in row row + r.
    columns: (left, phase, n).
    """
    block, k, p = place
    R, first, last, row = taps
    left, phase, n = columns
    C, _, row_length = x.shape
    weight = packed[block, KB:].reshape(C, R, S, KB)
    y[k : k + KB, p] = packed[block, :KB, np.newaxis]
    for s in range(S):
        start = (s % column_stride) * phase + (s // column_stride) * n - left
        low, high = max(0, -start), min(y.shape[2], row_length - start)
        if low < high and first < last:
            seen = x[:, row + first : row + last, low + start : high + start]
            y[k : k + KB, p, low:high] += np.tensordot(weight[:, first:last, s], seen, ((0, 1), (0, 1)))


@vectorised(_plain_forward_row, like="y", constants=("S", "column_stride", "KB", "VB"))
def forward_row(v, builder, x, packed, y, place, taps, columns, S, column_stride, KB, VB):
    block, k, p = place
    R, first, last, row = taps
    left, _, n = columns
    zero, all_taps = v.index(0), v.index(S)
    (C, _, row_length), length = x.shape, y.shape[2]
    starts = _starts(v, S, column_stride, *columns)
    weights = packed.at(block, zero)

    def tile(j: Any, vectors: int, some_taps: tuple[Any, Any] | None = None, end: Any = None) -> None:
        """Compute `vectors` vectors of KB channels, from place j of the row on, but not from place `end` on.

        some_taps: the first tap and the end of the taps that lie inside; None for all.
        """
        for i in range(KB):
            begin = y.at(builder.add(k, v.index(i)), p, j)
            for b in range(vectors):
                v.prefetch(begin, b, written=True)  # 3 -> 32 channels, 32 x 32, n = 48: 1.07 to 1.09 times as fast
        sums = [[v.variable(v.splat(v.number(weights, i))) for _ in range(vectors)] for i in range(KB)]
        wanted = v.masks(j, end, vectors, masked=end is not None)

        def add_tap(seen_from: Any, tap_weights: Any) -> None:
            seen = [v.load(seen_from, b, wanted[b]) for b in range(vectors)]
            for i in range(KB):
                weight = v.splat(v.number(tap_weights, i))
                for b in range(vectors):
                    v.add_product(sums[i][b], weight, seen[b])

        with loop(builder, zero, C) as c, loop(builder, first, last) as r:
            x_row = builder.gep(x.at(c, builder.add(row, r), zero), [j])
            tap = builder.add(builder.mul(c, R), r)
            tap_weights = builder.gep(weights, [builder.add(v.index(KB), builder.mul(tap, v.index(S * KB)))])
            if some_taps is None:
                for s in range(S):
                    add_tap(builder.gep(x_row, [starts[s]]), builder.gep(tap_weights, [v.index(s * KB)]))
            else:
                with loop(builder, *some_taps) as number:
                    start = builder.sub(builder.mul(number, n), left)
                    add_tap(builder.gep(x_row, [start]), builder.gep(tap_weights, [v.times(KB, number)]))
        for i in range(KB):
            begin = y.at(builder.add(k, v.index(i)), p, j)
            for b in range(vectors):
                v.store(v.value(sums[i][b]), begin, b, wanted[b])

    def tiles(j: Any, end: Any, low: Any, high: Any) -> None:
        """Compute the places from j to `end`, for which the taps from `low` to `high` lie inside. The last tile
        overlaps the one before it.
        """
        some_taps = (low, high) if column_stride == 1 else None  # otherwise all lie inside: `arrange` has added zeros
        whole = v.index(VB * v.lanes)
        last_tile = builder.sub(end, whole)
        with builder.if_else(builder.icmp_signed("<=", j, last_tile)) as (fits, is_short):
            with fits, loop(builder, zero, v.blocks(builder.sub(end, j), whole)) as number:
                begin = v.smaller(builder.add(j, builder.mul(number, whole)), last_tile)
                if some_taps is None:
                    tile(begin, VB)
                else:
                    has_all = builder.icmp_signed("==", builder.sub(high, low), all_taps)
                    with builder.if_else(has_all) as (then, otherwise):
                        with then:
                            tile(begin, VB)
                        with otherwise:
                            tile(begin, VB, some_taps)
            with is_short:
                some = v.index(_SHORT * v.lanes)
                with loop(builder, zero, v.blocks(builder.sub(end, j), some)) as number:
                    tile(builder.add(j, builder.mul(number, some)), _SHORT, some_taps, end)

    if column_stride > 1:
        tiles(zero, length, zero, all_taps)
        return
    # Cut the row into pieces in each of which the same taps lie inside. Masks instead would take registers from the
    # sums: with AVX2 the input gradient of 1 -> 6 channels, 28 x 28, 3 x 3, runs at 42 GFLOP/s instead of 30.
    place_now = v.variable(zero)
    with loop(builder, zero, builder.select(builder.icmp_signed(">", length, zero), v.index(2 * S + 1), zero)):
        j = v.value(place_now)
        low = v.smaller(v.larger(v.blocks(builder.sub(left, j), n), zero), all_taps)
        beyond = v.sum(row_length, left)  # tap s lies inside as long as j + s * n < beyond
        high = v.smaller(v.larger(v.blocks(builder.sub(beyond, j), n), low), all_taps)
        next_inside = builder.sub(left, builder.mul(builder.sub(low, v.index(1)), n))
        next_outside = builder.sub(beyond, builder.mul(builder.sub(high, v.index(1)), n))
        end = v.smaller(length, builder.select(builder.icmp_signed(">", low, zero), next_inside, length))
        end = v.smaller(end, builder.select(builder.icmp_signed(">", high, low), next_outside, length))
        tiles(j, end, low, high)
        builder.store(end, place_now)


def _plain_weight_gradient_tile(x, dy, zeros, dweight, tile, rows, columns, adds, S, column_stride, KB, CB, RB, SB):
    """Compute dweight[k : k + KB, c : c + CB, r : r + RB]; if `adds`, add to dweight.

    tile: (first channel of dy, k, c, r). rows: (row_stride, top). columns: (left, phase, n). zeros: a row of zeros, for
    rows outside the image. SB: taps of a filter row that are summed at a time.
    """
    channel, k, c, r = tile
    row_stride, top = rows
    left, phase, n = columns
    (_, H, row_length), (_, P, length) = x.shape, dy.shape
    if not adds:
        dweight[k : k + KB, c : c + CB, r : r + RB] = 0
    for s in range(S):
        start = (s % column_stride) * phase + (s // column_stride) * n - left
        low, high = max(0, -start), min(length, row_length - start)
        for p in range(P if low < high else 0):
            for tap in range(r, r + RB):
                h = p * row_stride + tap - top
                if 0 <= h < H:
                    seen = x[c : c + CB, h, low + start : high + start]
                    dweight[k : k + KB, c : c + CB, tap, s] += dy[channel : channel + KB, p, low:high] @ seen.T


@vectorised(_plain_weight_gradient_tile, like="dy", constants=("S", "column_stride", "KB", "CB", "RB", "SB"))
def weight_gradient_tile(
    v, builder, x, dy, zeros, dweight, tile, rows, columns, adds, S, column_stride, KB, CB, RB, SB
):
    channel, k, c, r = tile
    row_stride, top = rows
    zero = v.index(0)
    (_, H, row_length), (_, P, length) = x.shape, dy.shape
    starts = _starts(v, S, column_stride, *columns)
    # Places [inside_from, inside_to) of a row see all taps inside the image.
    inside_from, inside_to = _inside(v, starts, row_length, length)
    inside_from = v.smaller(inside_from, length)
    inside_to = v.larger(inside_to, inside_from)
    sums = {
        (i, ci, ri, s): v.variable(v.zero) for i in range(KB) for ci in range(CB) for ri in range(RB) for s in range(S)
    }

    with loop(builder, zero, P) as p:
        dy_rows = [dy.at(builder.add(channel, v.index(i)), p, zero) for i in range(KB)]
        x_rows = {}
        for ri in range(RB):
            h = builder.sub(builder.add(builder.mul(p, row_stride), builder.add(r, v.index(ri))), top)
            in_image = builder.icmp_unsigned("<", h, H)
            for ci in range(CB):
                x_row = x.at(builder.add(c, v.index(ci)), h, zero)
                x_rows[ci, ri] = builder.select(in_image, x_row, zeros.at(zero))

        def add_products(j: Any, mask: Any, some_taps: Sequence[int]) -> None:
            dys = [v.load(builder.gep(dy_row, [j]), 0, mask) for dy_row in dy_rows]
            for (ci, ri), x_row in x_rows.items():
                for s in some_taps:
                    seen = v.load(builder.gep(x_row, [builder.add(j, starts[s])]), 0, mask)
                    for i in range(KB):
                        v.add_product(sums[i, ci, ri, s], dys[i], seen)

        def add_range(begin: Any, end: Any, some_taps: Sequence[int]) -> None:
            def add(j: Any, mask: Any) -> None:
                add_products(builder.add(begin, j), mask, some_taps)

            v.cover(v.larger(builder.sub(end, begin), zero), add, again=False)

        for first_tap in range(0, S, SB):
            add_range(inside_from, inside_to, range(S)[first_tap : first_tap + SB])
        # The other places tap by tap: with masks for each tap, 7 x 7 filters took twice as long (AVX2).
        for s in range(S if column_stride == 1 else 0):  # otherwise all lie inside: `arrange` has added zeros
            first = v.larger(v.times(-1, starts[s]), zero)
            last = v.smaller(length, builder.sub(row_length, starts[s]))
            with loop(builder, zero, v.index(2)) as side:
                is_left = builder.icmp_signed("==", side, zero)
                begin = builder.select(is_left, first, v.larger(first, inside_to))
                end = builder.select(is_left, v.smaller(last, inside_from), last)
                add_range(begin, end, [s])
    for (i, ci, ri, s), total in sums.items():
        at = (k, i), (c, ci), (r, ri), (zero, s)
        to = dweight.at(*(builder.add(first, v.index(further)) for first, further in at))
        before = builder.select(adds, builder.load(to), v.total(v.zero))
        builder.store(builder.fadd(before, v.total(v.value(total))), to)


def _starts(v: Vectors, S: int, column_stride: int, left: Any, phase: Any, n: Any) -> list[Any]:
    """start(s), the offset of tap s in a row, for each s."""
    return [
        v.sum(v.times(s % column_stride, phase), v.times(s // column_stride, n), v.times(-1, left)) for s in range(S)
    ]


def _inside(v: Vectors, starts: list[Any], row_length: Any, length: Any) -> tuple[Any, Any]:
    """The range of j for which all taps lie inside a row of x, and j inside a row of y."""
    first = last = starts[0]
    for start in starts[1:]:
        first, last = v.smaller(first, start), v.larger(last, start)
    return v.larger(v.times(-1, first), v.index(0)), v.smaller(length, v.sum(row_length, v.times(-1, last)))


def _plain_pool_row(x, y, winner, place, pool_stride, R, S):
    """Compute y[c, p] and winner[c, p]: the maximum of each window that begins in row h of x[channel], and its tap.

    place: (channel, h, c, p). pool_stride: columns from one window to the next.
    """
    channel, h, c, p = place
    for q in range(y.shape[2]):
        w = q * pool_stride
        taps = x[channel, h : h + R, w : w + S].reshape(R * S, -1)
        winner[c, p, q] = np.where(np.isnan(taps), np.inf, taps).argmax(axis=0) if taps.size else 0
        y[c, p, q] = taps.max(axis=0)


@vectorised(_plain_pool_row, like="x", constants=("R", "S"))
def pool_row(v, builder, x, y, winner, place, pool_stride, R, S):
    channel, h, c, p = place
    _, _, Q, n = y.shape
    with loop(builder, v.index(0), Q) as q:
        w = builder.mul(q, pool_stride)

        def pool(i: Any, wanted: Any) -> None:
            best = best_tap = None
            for tap in range(R * S):
                r, s = v.index(tap // S), v.index(tap % S)
                seen = v.load(x.at(channel, builder.add(h, r), builder.add(w, s), i), 0, wanted)
                number_of_tap = v.integers(v.index(tap))
                if best is None:
                    best, best_tap = seen, number_of_tap
                    continue
                is_nan = builder.fcmp_unordered("uno", seen, seen)
                better = builder.or_(builder.fcmp_ordered(">", seen, best), is_nan)
                best = builder.select(better, seen, best)
                best_tap = builder.select(better, number_of_tap, best_tap)
            v.store(best, y.at(c, p, q, i), 0, wanted)
            v.store_integers(best_tap, winner.at(c, p, q, i), wanted)

        v.cover(n, pool, again=True)


def _plain_unpool_row(dy, winner, dx, place, pool_stride, adds, R, S):
    """The gradient of `pool_row`: each window of dx[channel] gets dy[c, p] at its winner, and zero elsewhere.

    place: (channel, h, c, p). adds: whether to add to dx.
    """
    channel, h, c, p = place
    for q in range(dy.shape[2]):
        for tap in range(R * S):
            to = dx[channel, h + tap // S, q * pool_stride + tap % S]
            to[...] = (to if adds else 0) + np.where(winner[c, p, q] == tap, dy[c, p, q], 0)


@vectorised(_plain_unpool_row, like="dy", constants=("adds", "R", "S"))
def unpool_row(v, builder, dy, winner, dx, place, pool_stride, adds, R, S):
    channel, h, c, p = place
    _, _, Q, n = dy.shape
    with loop(builder, v.index(0), Q) as q:
        w = builder.mul(q, pool_stride)
        # Places that are written three windows later: 1.2 to 1.4 times as fast (Intel Xeon, 48 samples).
        ahead = builder.mul(v.times(3, pool_stride), n)

        def unpool(i: Any, wanted: Any) -> None:
            gradient = v.load(dy.at(c, p, q, i), 0, wanted)
            won = v.load_integers(winner.at(c, p, q, i), wanted)
            for tap in range(R * S):
                to = dx.at(channel, builder.add(h, v.index(tap // S)), builder.add(w, v.index(tap % S)), i)
                here = builder.select(builder.icmp_signed("==", won, v.integers(v.index(tap))), gradient, v.zero)
                v.store(builder.fadd(v.load(to, 0, wanted), here) if adds else here, to, 0, wanted)
                v.prefetch(builder.gep(to, [ahead]), written=True)

        v.cover(n, unpool, again=not adds)


# Tiles of a matrix product: 24 sums in 32 registers or 12 in 16. Wider tiles load less: one number of a for each row,
# one vector of b for each column of vectors. A single tile of 4 vectors covers the 50 samples of a rank.
_PRODUCT_ROWS = 6
PRODUCT_VECTORS = 4 if REGISTERS >= 32 else 2
PRODUCT_BYTES = PRODUCT_VECTORS * VECTOR_BYTES  # of a row of a tile


def _plain_product(a, b, start, c):
    """c = start + a b. The rows of b and c are contiguous.

    start: (rows of c,), or another array of c's shape, or None for zeros.
    """
    sums = a @ b
    if start is not None:
        sums += start if start.ndim == 2 else start[:, np.newaxis]
    c[...] = sums


@vectorised(_plain_product, like="c")
def product(v, builder, a, b, start, c):
    zero, (K, N), products = v.index(0), c.shape, a.shape[1]

    def starts(row: Any, j: Any, inside: list[Any]) -> list[Any]:
        """The initial values of the sums of a row."""
        if start is None:
            return [v.zero] * len(inside)
        if len(start.shape) == 1:
            return [v.splat(builder.load(start.at(row)))] * len(inside)
        return [v.load(start.at(row, j), vector, mask) for vector, mask in enumerate(inside)]

    def tile(k: Any, j: Any, ahead: Any, KB: int, VB: int, *, masked: bool) -> None:
        """Compute VB vectors of KB rows, from c[k, j] on. ahead: the column of b to prefetch meanwhile."""
        rows = [builder.add(k, v.index(i)) for i in range(KB)]
        if start is None or len(start.shape) == 1:
            # c is large: 32 -> 32 channels of 32 x 32, 100 samples, 1.4 times as fast, others 1.0 to 1.1 times.
            for row in rows:
                for vector in range(VB):
                    v.prefetch(c.at(row, j), vector, written=True)
        inside = v.masks(j, N, VB, masked=masked)
        sums = [[v.variable(first) for first in starts(row, j, inside)] for row in rows]
        with loop(builder, zero, products) as i:
            begin = b.at(i, j)
            v.prefetch(b.at(i, ahead))
            factors = [v.load(begin, vector, inside[vector]) for vector in range(VB)]
            for row, row_sums in zip(rows, sums, strict=True):
                factor = v.splat(builder.load(a.at(row, i)))
                for vector in range(VB):
                    v.add_product(row_sums[vector], factor, factors[vector])
        for row, row_sums in zip(rows, sums, strict=True):
            begin = c.at(row, j)
            for vector in range(VB):
                v.store(v.value(row_sums[vector]), begin, vector, inside[vector])

    def tiles(j: Any, VB: int, *, masked: bool) -> None:
        """Compute VB vectors of all rows. The last block of rows may overlap the one before it."""
        block = v.index(_PRODUCT_ROWS)
        with builder.if_else(builder.icmp_signed(">=", K, block)) as (then, otherwise):
            with then, loop(builder, zero, v.blocks(K, block)) as number:
                k = v.smaller(builder.mul(number, block), builder.sub(K, block))
                # Each block of rows prefetches another vector of b for the next tiles. Without this, b arrives late
                # if rows are long: 64 x 256 @ 256 x 25600 runs at 89 GFLOP/s instead of 130.
                vector = builder.urem(number, v.index(PRODUCT_VECTORS))
                ahead = v.sum(j, v.times(v.lanes, v.sum(vector, v.index(PRODUCT_VECTORS))))
                tile(k, j, ahead, _PRODUCT_ROWS, VB, masked=masked)
            with otherwise, loop(builder, zero, K) as k:
                tile(k, j, j, 1, VB, masked=masked)

    # Tiles of as many whole vectors as fit into the registers, and one tile for the rest. Masks would take registers
    # from the sums.
    most = v.index(PRODUCT_VECTORS * v.lanes)
    whole = builder.sdiv(N, most)
    with loop(builder, zero, whole) as number:
        tiles(builder.mul(number, most), PRODUCT_VECTORS, masked=False)
    done = builder.mul(whole, most)
    vectors = v.blocks(builder.sub(N, done), v.index(v.lanes))
    for VB in range(1, PRODUCT_VECTORS + 1):
        with builder.if_then(builder.icmp_signed("==", vectors, v.index(VB))):
            tiles(done, VB, masked=True)


def _plain_transpose(x, turned):
    """turned = x^T. The rows of both are contiguous."""
    turned[...] = x.T


@vectorised(_plain_transpose, like="x")
def transpose(v, builder, x, turned):
    zero, lanes = v.index(0), v.index(v.lanes)
    count, length = x.shape

    def turn(i: Any, j: Any) -> None:
        """Transpose a square that lies inside."""
        rows = [v.load(x.at(v.sum(i, v.index(lane)), j)) for lane in range(v.lanes)]
        for lane, turned_row in enumerate(v.transposed(rows)):
            v.store(turned_row, turned.at(v.sum(j, v.index(lane)), i))

    # Squares at the ends overlap those before them: with AVX2 2 to 4 times as fast as masked squares.
    last_i, last_j = builder.sub(count, lanes), builder.sub(length, lanes)
    with builder.if_else(builder.icmp_signed(">=", v.smaller(last_i, last_j), zero)) as (then, otherwise):
        with then, loop(builder, zero, v.blocks(count, lanes)) as row:
            i = v.smaller(builder.mul(row, lanes), last_i)
            with loop(builder, zero, v.blocks(length, lanes)) as column:
                turn(i, v.smaller(builder.mul(column, lanes), last_j))
        with otherwise, loop(builder, zero, count) as i, loop(builder, zero, length) as j:
            builder.store(builder.load(x.at(i, j)), turned.at(j, i))


def _plain_copy_rows(source, to, adds):
    """to = source, or to += source. Both are (rows, length) with contiguous rows."""
    if adds:
        to += source
    else:
        to[...] = source


@vectorised(_plain_copy_rows, like="source", constants=("adds",))
def copy_rows(v, builder, source, to, adds):
    rows, length = to.shape
    # Takes a third of the time of a plain loop, which handles the ends of its short rows number by number.
    with loop(builder, v.index(0), rows) as row:

        def copy(j: Any, mask: Any) -> None:
            numbers = v.load(source.at(row, j), 0, mask)
            if adds:
                numbers = builder.fadd(numbers, v.load(to.at(row, j), 0, mask))
            v.store(numbers, to.at(row, j), 0, mask)

        v.cover(length, copy, again=not adds)


def _plain_copy_columns(source, to, VB):
    """to = source. Both are (rows, VB * lanes) with contiguous rows."""
    to[...] = source


@vectorised(_plain_copy_columns, like="source", constants=("VB",))
def copy_columns(v, builder, source, to, VB):
    zero = v.index(0)
    # For 16 columns twice as fast as `copy_rows`, which finds out for each row how it ends.
    with loop(builder, zero, to.shape[0]) as row:
        for b in range(VB):
            v.store(v.load(source.at(row, zero), b), to.at(row, zero), b)
