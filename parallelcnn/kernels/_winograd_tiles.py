"""Tiles of the Winograd convolution, in vector instructions. See `winograd` for the algorithm, and `_tiles` for the two
versions of each tile, in numpy and in vector instructions.

A square holds up to `lanes` samples of side x side places; place (row, column) has number side * row + column. The
taps along a side of a window and the stride select the transforms.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ._vectors import VECTOR_BYTES, Strided, Vectors, loop, vectorised
from ._winograd_transforms import TRANSFORMS, WEIGHTS, Transform

# What is prefetched (gains on an AMD Zen 3): weights that many numbers before their use, products of 256 -> 256
# channels 1.1 times as fast; squares of an image that many channels before, passes up to 1.2 times as fast.
#
# What is prefetched to be written (gains on an Intel Xeon, 32 -> 64 and 64 -> 128 channels, stride 2, 48 samples):
# squares of the output, input gradients 1.15 to 1.24 times as fast; transformed squares of the next channel or sample,
# weight gradients 1.04 to 1.10 times, other passes 1.03 times; sums to which a weight gradient adds, 1.02 times.
_WEIGHTS_AHEAD, _CHANNELS_AHEAD = 256, 2


def _plain_input_square(x, place, seen, first, taps, stride, back):
    """Compute seen[:, c, first + lane], the transformed square of x that begins at `place`, for all channels c.

    x: (C, H, W, n), zero outside; an image, or if `back` the gradient of outputs. place: (row, column, sample). Lanes
    after the last sample are not written. seen: (places, C or more, columns).
    """
    transform, lanes = _of_input(taps, stride, back), VECTOR_BYTES // x.itemsize
    square = np.zeros((transform.before, transform.before, len(x), lanes), x.dtype)
    for to, row, column, samples in _inside(square, x, place):
        square[(*to, slice(None), slice(samples))] = x[:, row, column, place[2] : place[2] + samples]
    samples = min(lanes, x.shape[3] - place[2])
    seen[:, : len(x), first : first + samples] = _transformed(transform, square)[..., :samples]


@vectorised(_plain_input_square, like="x", constants=("taps", "stride", "back"))
def input_square(v, builder, x, place, seen, first, taps, stride, back):
    transform = _of_input(taps, stride, back)
    h, w, i = place
    n = x.shape[3]
    table, zeros = v.table(transform.before * transform.after), v.table(1)
    v.store(v.zero, zeros)

    def write(c: Any, *, masked: bool) -> None:
        def load(a: Any, b: Any) -> Any:
            row, column = v.sum(h, a), v.sum(w, b)
            v.prefetch(x.at(v.sum(c, v.index(_CHANNELS_AHEAD)), row, column, i))
            if masked:
                return v.load(x.at(c, row, column, i), 0, _mask(v, builder, row, column, i, x.shape))
            inside = _is_inside(builder, row, column, x.shape)
            return v.load(builder.select(inside, x.at(c, row, column, i), zeros))

        def store(a: Any, b: Any, vector: Any) -> None:
            e = v.sum(v.times(transform.after, a), b)
            v.store(vector, seen.at(e, c, first), 0, v.within(i, n) if masked else None)
            v.prefetch(seen.at(e, v.sum(c, v.index(1)), first), written=True)

        _looped(v, builder, transform, table, load, store)

    _each_channel(v, builder, i, x.shape, write)


def _of_input(taps: int, stride: int, back: bool) -> Transform:
    return TRANSFORMS[taps, stride].products_back if back else TRANSFORMS[taps, stride].image


def _plain_filter_squares(filters, weights, taps, stride):
    """Transform filters (taps * taps, number) to weights (36, number)."""
    weights[...] = _transformed(TRANSFORMS[taps, stride].filters, filters.reshape(taps, taps, -1))


@vectorised(_plain_filter_squares, like="filters", constants=("taps", "stride"))
def filter_squares(v, builder, filters, weights, taps, stride):
    def write(i: Any, mask: Any) -> None:
        square = [v.load(filters.at(v.index(tap), i), 0, mask) for tap in range(taps**2)]
        for e, vector in enumerate(_unrolled(v, TRANSFORMS[taps, stride].filters, square)):
            v.store(vector, weights.at(v.index(e), i), 0, mask)

    v.cover(filters.shape[1], write, again=True)


def _plain_filter_gradients(totals, taps, stride):
    """Transform gradients of `filter_squares` back, in place: taps * taps rows for 36. totals: (36, number)."""
    totals[: taps**2] = _transformed(TRANSFORMS[taps, stride].filters_back, totals.reshape(WEIGHTS, WEIGHTS, -1))


@vectorised(_plain_filter_gradients, like="totals", constants=("taps", "stride"))
def filter_gradients(v, builder, totals, taps, stride):
    def write(i: Any, mask: Any) -> None:
        square = [v.load(totals.at(v.index(e), i), 0, mask) for e in range(WEIGHTS**2)]
        for tap, vector in enumerate(_unrolled(v, TRANSFORMS[taps, stride].filters_back, square)):
            v.store(vector, totals.at(v.index(tap), i), 0, mask)

    v.cover(totals.shape[1], write, again=False)


def _plain_square_products(weights, seen, sums, KB, VB):
    """sums = weights^T seen. weights: (C + 1, KB), seen: (C + 1, VB * lanes), sums: (KB, VB * lanes). The last rows are
    not read.
    """
    sums[...] = weights[:-1].T @ seen[:-1]


@vectorised(_plain_square_products, like="seen", constants=("KB", "VB"))
def square_products(v, builder, weights, seen, sums, KB, VB):
    zero = v.index(0)

    def number(c: Any, k: int) -> Any:
        begin = weights.at(c, zero)
        if k == 0:
            v.prefetch(builder.gep(begin, [v.index(_WEIGHTS_AHEAD)]))
        return builder.gep(begin, [v.index(k)])

    totals = _products(v, builder, number, seen, v.sum(weights.shape[0], v.index(-1)), KB, VB)
    for i in range(KB):
        for b in range(VB):
            v.store(totals[i][b], sums.at(v.index(i), zero), b)


def _plain_output_square(sums, first, bias, y, place, taps, stride):
    """Compute the square of y[k] at `place`, for all k, from the products sums[:, k, first + lane].

    place: (row, column, sample); places outside y are skipped. sums: (places, K or more, columns). bias: (K,), or None:
    then y is the gradient of an image. Its squares overlap by a row and a column. The first row and column of a square
    are added to what the squares above and to the left have written, so squares are computed row by row.
    """
    transform, lanes, K = _of_output(taps, stride, bias), VECTOR_BYTES // y.itemsize, len(y)
    samples = min(lanes, y.shape[3] - place[2])
    square = sums[:, :K, first : first + samples].reshape(transform.before, transform.before, K, samples)
    outputs = _transformed(transform, square).reshape(transform.after, transform.after, K, samples)
    for (a, b), row, column, samples in _inside(outputs, y, place):
        to = y[:, row, column, place[2] : place[2] + samples]
        if bias is not None:
            to[...] = outputs[a, b][:, :samples] + bias[:, np.newaxis]
        elif a == 0 or b == 0:
            to += outputs[a, b][:, :samples]
        else:
            to[...] = outputs[a, b][:, :samples]


@vectorised(_plain_output_square, like="y", constants=("taps", "stride"))
def output_square(v, builder, sums, first, bias, y, place, taps, stride):
    transform = _of_output(taps, stride, bias)
    p, q, i = place
    n = y.shape[3]
    table, unused = v.table(transform.before * transform.after), v.table(1)
    v.store(v.zero, unused)

    def written(a: Any, b: Any, to: Any, mask: Any) -> Any:
        """What other squares have written to this place."""
        is_first = [builder.icmp_signed("==", place, v.index(0)) for place in (a, b)]
        return builder.select(builder.or_(*is_first), v.load(to, 0, mask), v.zero)

    def write(k: Any, *, masked: bool) -> None:
        k_bias = None if bias is None else v.splat(builder.load(bias.at(k)))

        def load(a: Any, b: Any) -> Any:
            begin = sums.at(v.sum(v.times(transform.before, a), b), k, first)
            return v.load(begin, 0, v.within(i, n) if masked else None)

        def store(a: Any, b: Any, vector: Any) -> None:
            row, column = v.sum(p, a), v.sum(q, b)
            to, mask = y.at(k, row, column, i), None
            ahead = y.at(v.sum(k, v.index(_CHANNELS_AHEAD)), row, column, i)
            v.prefetch(ahead, written=True)
            v.prefetch(builder.gep(ahead, [v.index(v.lanes - 1)]), written=True)  # it may lie on two cache lines
            if masked:
                mask = _mask(v, builder, row, column, i, y.shape)
            else:
                to = builder.select(_is_inside(builder, row, column, y.shape), to, unused)
            v.store(builder.fadd(vector, written(a, b, to, mask) if bias is None else k_bias), to, 0, mask)

        _looped(v, builder, transform, table, load, store)

    _each_channel(v, builder, i, y.shape, write)


def _of_output(taps: int, stride: int, bias: Any) -> Transform:
    transform = TRANSFORMS[taps, stride].image_back if bias is None else TRANSFORMS[taps, stride].products
    assert transform is not None
    return transform


def _plain_gradient_square(dy, place, turned, to, taps, stride):
    """Compute turned[:, t + lane, column + i]: the square of gradients dy[k + i] that begins at `place`, transformed to
    gradients of the products, with one sample per lane and for `lanes` filters i.

    place: (k, row, column, sample), zero outside. to: (t, column). The last filter replaces filters that do not exist.
    Lanes after the last sample are not written.
    """
    (k, *place), (t, column_to), K = place, to, len(dy)
    lanes, outputs = VECTOR_BYTES // dy.itemsize, TRANSFORMS[taps, stride].outputs
    filters = np.minimum(np.arange(k, k + lanes), K - 1)
    square = np.zeros((outputs, outputs, lanes, lanes), dy.dtype)
    for at, row, column, samples in _inside(square, dy, place):
        square[(*at, slice(None), slice(samples))] = dy[filters, row, column, place[2] : place[2] + samples]
    transformed = _transformed(TRANSFORMS[taps, stride].products_back, square)
    samples = min(lanes, dy.shape[3] - place[2])
    turned[:, t : t + samples, column_to : column_to + lanes] = transformed.swapaxes(1, 2)[:, :samples]


@vectorised(_plain_gradient_square, like="dy", constants=("taps", "stride"))
def gradient_square(v, builder, dy, place, turned, to, taps, stride):
    first_k, p, q, i = place
    t, column_to = to
    outputs = TRANSFORMS[taps, stride].outputs
    zero, last = v.index(0), v.sum(dy.shape[0], v.index(-1))
    filters = [v.smaller(v.sum(first_k, v.index(lane)), last) for lane in range(v.lanes)]
    table = v.table(outputs**2 * v.lanes)  # by place and sample

    with loop(builder, zero, v.unknown(outputs)) as a, loop(builder, zero, v.unknown(outputs)) as b:
        row, column = v.sum(p, a), v.sum(q, b)
        mask = _mask(v, builder, row, column, i, dy.shape)
        by_filter = [v.load(dy.at(k, row, column, i), 0, mask) for k in filters]
        for lane in range(v.lanes):  # of the next filters
            v.prefetch(dy.at(v.sum(first_k, v.index(v.lanes + lane)), row, column, i))
        begin = builder.gep(table, [v.times(v.lanes**2, v.sum(v.times(outputs, a), b))])
        for sample, vector in enumerate(v.transposed(by_filter)):
            v.store(vector, begin, sample)
    with loop(builder, zero, v.smaller(v.unknown(v.lanes), builder.sub(dy.shape[3], i))) as sample:
        begin = builder.gep(table, [v.times(v.lanes, sample)])
        square = [v.load(begin, e * v.lanes) for e in range(outputs**2)]
        for e, vector in enumerate(_unrolled(v, TRANSFORMS[taps, stride].products_back, square)):
            v.store(vector, turned.at(v.index(e), v.sum(t, sample), column_to))
            v.prefetch(turned.at(v.index(e), v.sum(t, sample, v.index(1)), column_to), written=True)


def _plain_add_gradient_products(seen, turned, totals, T, CB, VB):
    """totals += seen turned. seen: (CB, T), turned: (T or fewer, VB * lanes), totals: (CB, VB * lanes).

    Each product is summed separately first: this is more exact than one sum over all samples.
    """
    totals += seen[:, : len(turned)] @ turned


@vectorised(_plain_add_gradient_products, like="turned", constants=("T", "CB", "VB"))
def add_gradient_products(v, builder, seen, turned, totals, T, CB, VB):
    zero = v.index(0)

    def number(t: Any, c: int) -> Any:
        # A constant distance of the rows takes one register for all, where 16 rows would not have one each: products of
        # 16 channels and 16 filters run at 149 GFLOP/s instead of 67.
        return builder.gep(seen.at(zero, t), [v.index(c * T)])

    for c in range(CB):
        for b in range(VB):
            v.prefetch(totals.at(v.index(c), zero), b, written=True)
    sums = _products(v, builder, number, turned, turned.shape[0], CB, VB)
    for c in range(CB):
        begin = totals.at(v.index(c), zero)
        for b in range(VB):
            v.store(builder.fadd(v.load(begin, b), sums[c][b]), begin, b)


def _products(
    v: Vectors, builder: Any, number: Callable[[Any, int], Any], rows: Strided, count: Any, KB: int, VB: int
) -> list[list[Any]]:
    """KB rows k of VB vectors: the sum over i of the number at address number(i, k) times rows[i]."""
    zero = v.index(0)
    sums = [[v.variable(v.zero) for _ in range(VB)] for _ in range(KB)]
    with loop(builder, zero, count) as i:
        # Unrolled, it takes 2.6 times as long. The compiler unrolls it when it optimises a function a second time,
        # together with the one that calls it.
        v.keep_rolled()
        begin = rows.at(i, zero)

        def factor(k: int) -> Any:
            return v.splat(builder.load(number(i, k)))

        # Registers hold the sums, the shorter side of a tile, and one vector more. With AVX2's 16, a tile of 3 x 4 that
        # holds the longer side takes twice as long.
        if KB < VB:
            factors = [factor(k) for k in range(KB)]
            for b in range(VB):
                vector = v.load(begin, b)
                for k in range(KB):
                    v.add_product(sums[k][b], factors[k], vector)
        else:
            vectors = [v.load(begin, b) for b in range(VB)]
            for k in range(KB):
                one = factor(k)
                for b in range(VB):
                    v.add_product(sums[k][b], one, vectors[b])
    return [[v.value(total) for total in row_sums] for row_sums in sums]


def _transformed(transform, square):
    """The square (rows, columns, ...), transformed along rows and columns, as (places, ...)."""
    matrix = transform.matrix().astype(square.dtype)
    result = np.einsum("ea,ab...,fb->ef...", matrix, square, matrix)
    return result.reshape(-1, *square.shape[2:])


def _unrolled(v: Vectors, transform: Transform, square: list[Any]) -> list[Any]:
    """As `_transformed`, in vector instructions. The square and the result are lists of vectors, row by row."""
    columns = [transform.write(v, square[column :: transform.before]) for column in range(transform.before)]
    return [vector for row in zip(*columns, strict=True) for vector in transform.write(v, list(row))]


def _looped(
    v: Vectors,
    builder: Any,
    transform: Transform,
    table: Any,
    load: Callable[[Any, Any], Any],
    store: Callable[[Any, Any, Any], None],
) -> None:
    """As `_unrolled`, with a loop over columns and one over rows. It is as fast, with a quarter of the instructions to
    compile: registers do not hold a whole square in either case.

    Args:
        table: memory for (after, before) vectors.
        load: returns the vector at (row, column).
        store: stores the vector of (row, column).
    """
    zero, before, after = v.index(0), transform.before, transform.after
    with loop(builder, zero, v.unknown(before)) as column:
        vectors = transform.write(v, [load(v.index(row), column) for row in range(before)])
        for row, vector in enumerate(vectors):
            v.store(vector, builder.gep(table, [v.times(v.lanes, v.sum(v.index(row * before), column))]))
    with loop(builder, zero, v.unknown(after)) as row:
        begin = builder.gep(table, [v.times(v.lanes * before, row)])
        for column, vector in enumerate(transform.write(v, [v.load(begin, i) for i in range(before)])):
            store(row, v.index(column), vector)


def _each_channel(v: Vectors, builder: Any, i: Any, shape: Any, write: Callable[..., None]) -> None:
    """Call `write(channel, masked=...)` for all channels of an image (C, H, W, n), without masks if all samples of the
    vector from i on exist. Then `write` replaces the address of a place outside the image by that of a vector of
    zeros, or of one that is not used: with masks for these places too, 16 -> 16 channels of 32 x 32 take 1.2 to 1.5
    times as long (AMD Zen 3, AVX2).
    """
    C, _, _, n = shape
    whole = builder.icmp_signed("<=", v.sum(i, v.index(v.lanes)), n)
    with builder.if_else(whole) as (then, otherwise):
        with then, loop(builder, v.index(0), C) as channel:
            write(channel, masked=False)
        with otherwise, loop(builder, v.index(0), C) as channel:
            write(channel, masked=True)


def _mask(v: Vectors, builder: Any, row: Any, column: Any, i: Any, shape: Any) -> Any:
    """The mask of existing samples from i on; empty outside the image."""
    return v.within(i, builder.select(_is_inside(builder, row, column, shape), shape[3], v.index(0)))


def _is_inside(builder: Any, row: Any, column: Any, shape: Any) -> Any:
    _, H, W, _ = shape
    return builder.and_(builder.icmp_unsigned("<", row, H), builder.icmp_unsigned("<", column, W))


def _inside(square, image, place):
    """For each place of the square inside the image: its place in the square, its row and column in the image, and the
    number of samples.
    """
    _, H, W, n = image.shape
    h, w, i = place
    samples = max(0, min(square.shape[-1], n - i))
    for a, b in np.ndindex(*square.shape[:2]):
        if 0 <= h + a < H and 0 <= w + b < W:
            yield (a, b), h + a, w + b, samples
