"""Tiles: the innermost loops of convolution and pooling, in vector instructions.

Each tile is implemented twice. The plain version defines in numpy what the tile computes, and runs when compilation is
off (NUMBA_DISABLE_JIT). The other version generates vector instructions, with the sums in registers. Sizes in capitals
(S, KB, VB, ...) are compile-time constants.

See `conv2d` for rows, phases and starts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ._vectors import REGISTERS, Strided, Vectors, loop, vectorised

_BORDER = 2  # vectors of a tile that may lie partly outside


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
    zero = v.index(0)
    (C, _, row_length), length = x.shape, y.shape[2]
    starts = _starts(v, S, column_stride, *columns)
    weights = packed.at(block, zero)

    def tile(j: Any, vectors: int, *, masked: bool) -> None:
        """Compute `vectors` vectors of KB channels, from place j of the row on."""
        sums = [[v.variable(v.splat(v.number(weights, i))) for _ in range(vectors)] for i in range(KB)]
        at = [builder.add(j, start) for start in starts]
        inside = [v.masks(begin, row_length, vectors, masked=masked) for begin in at]
        with loop(builder, zero, C) as c, loop(builder, first, last) as r:
            x_row = x.at(c, builder.add(row, r), zero)
            tap = builder.add(builder.mul(c, R), r)
            tap_weights = builder.gep(weights, [builder.add(v.index(KB), builder.mul(tap, v.index(S * KB)))])
            for s in range(S):
                begin = builder.gep(x_row, [at[s]])
                seen = [v.load(begin, b, inside[s][b]) for b in range(vectors)]
                for i in range(KB):
                    weight = v.splat(v.number(tap_weights, s * KB + i))
                    for b in range(vectors):
                        v.add_product(sums[i][b], weight, seen[b])
        wanted = v.masks(j, length, vectors, masked=masked)
        for i in range(KB):
            begin = y.at(builder.add(k, v.index(i)), p, j)
            for b in range(vectors):
                v.store(v.value(sums[i][b]), begin, b, wanted[b])

    # A border, whole tiles whose taps all lie inside, a border.
    inside_from, inside_to = _inside(v, starts, row_length, length)
    border, whole = v.index(_BORDER * v.lanes), v.index(VB * v.lanes)
    before = v.blocks(v.smaller(inside_from, length), border)
    whole_from = builder.mul(before, border)
    count = v.larger(builder.sdiv(builder.sub(inside_to, whole_from), whole), zero)
    whole_to = builder.add(whole_from, builder.mul(count, whole))
    with loop(builder, zero, before) as number:
        tile(builder.mul(number, border), _BORDER, masked=True)
    with loop(builder, zero, count) as number:
        tile(builder.add(whole_from, builder.mul(number, whole)), VB, masked=False)
    with loop(builder, zero, v.blocks(builder.sub(length, whole_to), border)) as number:
        tile(builder.add(whole_to, builder.mul(number, border)), _BORDER, masked=True)


def _plain_weight_gradient_tile(x, dy, zeros, dweight, tile, rows, columns, adds, S, column_stride, KB, CB, RB):
    """Compute dweight[k : k + KB, c : c + CB, r : r + RB]; if `adds`, add to dweight.

    tile: (first channel of dy, k, c, r). rows: (row_stride, top). columns: (left, phase, n). zeros: a row of zeros, for
    rows outside the image.
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


@vectorised(_plain_weight_gradient_tile, like="dy", constants=("S", "column_stride", "KB", "CB", "RB"))
def weight_gradient_tile(v, builder, x, dy, zeros, dweight, tile, rows, columns, adds, S, column_stride, KB, CB, RB):
    channel, k, c, r = tile
    row_stride, top = rows
    zero, lanes = v.index(0), v.index(v.lanes)
    (_, H, row_length), (_, P, length) = x.shape, dy.shape
    starts = _starts(v, S, column_stride, *columns)
    inside_from, inside_to = _inside(v, starts, row_length, length)
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

        def add_products(j: Any, *, masked: bool) -> None:
            wanted = v.within(j, length) if masked else None
            dys = [v.load(builder.gep(dy_row, [j]), 0, wanted) for dy_row in dy_rows]
            at = [builder.add(j, start) for start in starts]
            inside = [builder.and_(v.within(begin, row_length), wanted) if masked else None for begin in at]
            for (ci, ri), x_row in x_rows.items():
                for s in range(S):
                    seen = v.load(builder.gep(x_row, [at[s]]), 0, inside[s])
                    for i in range(KB):
                        v.add_product(sums[i, ci, ri, s], dys[i], seen)

        with loop(builder, zero, v.blocks(length, lanes)) as number:
            j = builder.mul(number, lanes)
            begins_inside = builder.icmp_signed(">=", j, inside_from)
            ends_inside = builder.icmp_signed("<=", builder.add(j, lanes), inside_to)
            with builder.if_else(builder.and_(begins_inside, ends_inside)) as (then, otherwise):
                with then:
                    add_products(j, masked=False)
                with otherwise:
                    add_products(j, masked=True)
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
    with _each_vector(v, builder, y, pool_stride) as (q, w, i, wanted):
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
    with _each_vector(v, builder, dy, pool_stride) as (q, w, i, wanted):
        gradient = v.load(dy.at(c, p, q, i), 0, wanted)
        won = v.load_integers(winner.at(c, p, q, i), wanted)
        for tap in range(R * S):
            to = dx.at(channel, builder.add(h, v.index(tap // S)), builder.add(w, v.index(tap % S)), i)
            here = builder.select(builder.icmp_signed("==", won, v.integers(v.index(tap))), gradient, v.zero)
            v.store(builder.fadd(v.load(to, 0, wanted), here) if adds else here, to, 0, wanted)


@contextmanager
def _each_vector(v: Vectors, builder: Any, y: Strided, pool_stride: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Loop over the windows q of a row of y, (C, P, Q, n), and over vectors of samples. Yields q, the first column of
    the window, the first sample, and the mask of samples that exist.
    """
    _, _, Q, n = y.shape
    zero, lanes = v.index(0), v.index(v.lanes)
    with loop(builder, zero, Q) as q, loop(builder, zero, v.blocks(n, lanes)) as number:
        i = builder.mul(number, lanes)
        yield q, builder.mul(q, pool_stride), i, v.within(i, n)


# Tiles of a matrix product: 24 sums in 32 registers or 12 in 16. Wider tiles load less: one number of a for each row,
# one vector of b for each column of vectors. A single tile of 4 vectors covers the 50 samples of a rank.
_PRODUCT_ROWS = 6
_PRODUCT_VECTORS = 4 if REGISTERS >= 32 else 2


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

    def tile(k: Any, j: Any, ahead: Any, KB: int, VB: int) -> None:
        """Compute VB vectors of KB rows, from c[k, j] on. ahead: the column of b to prefetch meanwhile."""
        rows = [builder.add(k, v.index(i)) for i in range(KB)]
        inside = v.masks(j, N, VB, masked=True)
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

    def tiles(j: Any, VB: int) -> None:
        """Compute VB vectors of all rows. The last block of rows may overlap the one before it."""
        block = v.index(_PRODUCT_ROWS)
        with builder.if_else(builder.icmp_signed(">=", K, block)) as (then, otherwise):
            with then, loop(builder, zero, v.blocks(K, block)) as number:
                k = v.smaller(builder.mul(number, block), builder.sub(K, block))
                # Each block of rows prefetches another vector of b for the next tiles. Without this, b arrives late
                # if rows are long: 64 x 256 @ 256 x 25600 runs at 89 GFLOP/s instead of 130.
                vector = builder.urem(number, v.index(_PRODUCT_VECTORS))
                ahead = v.sum(j, v.times(v.lanes, v.sum(vector, v.index(_PRODUCT_VECTORS))))
                tile(k, j, ahead, _PRODUCT_ROWS, VB)
            with otherwise, loop(builder, zero, K) as k:
                tile(k, j, j, 1, VB)

    # Tiles of as many vectors as fit into the registers, and one tile for the rest.
    vectors, most = v.blocks(N, v.index(v.lanes)), v.index(_PRODUCT_VECTORS)
    whole = builder.sdiv(vectors, most)
    with loop(builder, zero, whole) as number:
        tiles(v.times(_PRODUCT_VECTORS * v.lanes, number), _PRODUCT_VECTORS)
    for VB in range(1, _PRODUCT_VECTORS):
        with builder.if_then(builder.icmp_signed("==", builder.srem(vectors, most), v.index(VB))):
            tiles(v.times(_PRODUCT_VECTORS * v.lanes, whole), VB)


def _plain_transpose(x, turned):
    """turned = x^T. The rows of both are contiguous."""
    turned[...] = x.T


@vectorised(_plain_transpose, like="x")
def transpose(v, builder, x, turned):
    zero, lanes = v.index(0), v.index(v.lanes)
    count, length = x.shape
    last = builder.sub(count, v.index(1))
    with loop(builder, zero, v.blocks(count, lanes)) as row, loop(builder, zero, v.blocks(length, lanes)) as column:
        i, j = builder.mul(row, lanes), builder.mul(column, lanes)
        i_inside, j_inside = v.within(i, count), v.within(j, length)
        # The last row replaces rows that do not exist; it is not stored for them.
        rows = [v.load(x.at(v.smaller(v.sum(i, v.index(lane)), last), j), 0, j_inside) for lane in range(v.lanes)]
        for lane, turned_row in enumerate(v.transposed(rows)):
            to = v.sum(j, v.index(lane))
            with builder.if_then(builder.icmp_signed("<", to, length)):
                v.store(turned_row, turned.at(to, i), 0, i_inside)


def _plain_copy_rows(source, to, adds):
    """to = source, or to += source. Both are (rows, length) with contiguous rows."""
    if adds:
        to += source
    else:
        to[...] = source


@vectorised(_plain_copy_rows, like="source", constants=("adds",))
def copy_rows(v, builder, source, to, adds):
    zero, lanes = v.index(0), v.index(v.lanes)
    rows, length = to.shape
    whole = builder.sdiv(length, lanes)
    rest = builder.mul(whole, lanes)
    wanted = v.within(rest, length)

    def copy(row: Any, j: Any, mask: Any) -> None:
        numbers = v.load(source.at(row, j), 0, mask)
        if adds:
            numbers = builder.fadd(numbers, v.load(to.at(row, j), 0, mask))
        v.store(numbers, to.at(row, j), 0, mask)

    # Takes a third of the time of a plain loop, which handles the ends of its short rows number by number.
    with loop(builder, zero, rows) as row:
        with loop(builder, zero, whole) as number:
            copy(row, builder.mul(number, lanes), None)
        with builder.if_then(builder.icmp_signed("<", rest, length)):
            copy(row, rest, wanted)
