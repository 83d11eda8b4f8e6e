"""Tiles of the Winograd convolution, in vector instructions. See `winograd` for the algorithm, and `_tiles` for the two
versions of each tile, in numpy and in vector instructions.

A square of 6 x 6 vectors holds `lanes` samples of 6 x 6 places. Place (row, column) has number 6 * row + column.

The transforms evaluate polynomials at 0, a, -a, b, -b and infinity. With the usual points 1 and 2 (Lavin & Gray), sums
over 64 channels have a relative error of 1.7e-6; with 5/8 and 3/2, 0.8e-6. Points of the form c and 1/c are good ones
(S. A. Alam et al., "Winograd Convolution for Deep Neural Networks: Efficient Point Selection", arXiv:2201.10369);
these are nearly so, and all factors of the transforms of images and products are exact in float32.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._vectors import VECTOR_BYTES, Strided, Vectors, loop, vectorised

SIDE, OUTPUTS = 6, 4  # places, and outputs, along the side of a square
PLACES = SIDE**2
A, B = 0.625, 1.5

# Matrices of the transforms, applied to the rows of a square and then to its columns.
_OF_INPUT = np.array(  # 6 x 6 places of an image
    [
        [A**2 * B**2, 0, -(A**2) - B**2, 0, 1, 0],
        [0, -A * B**2, -(B**2), A, 1, 0],
        [0, A * B**2, -(B**2), -A, 1, 0],
        [0, -B * A**2, -(A**2), B, 1, 0],
        [0, B * A**2, -(A**2), -B, 1, 0],
        [0, A**2 * B**2, 0, -(A**2) - B**2, 0, 1],
    ]
)
_OF_PRODUCTS = np.array(  # 6 x 6 products to 4 x 4 outputs
    [
        [1, 1, 1, 1, 1, 0],
        [0, A, -A, B, -B, 0],
        [0, A**2, A**2, B**2, B**2, 0],
        [0, A**3, -(A**3), B**3, -(B**3), 1],
    ]
)
_OF_GRADIENT = _OF_PRODUCTS.T  # 4 x 4 gradients to 6 x 6

# The product of the distances of each point from the other finite points; the same for A and -A.
_AT_ZERO, _AT_A, _AT_B = A**2 * B**2, 2 * A**2 * (A**2 - B**2), 2 * B**2 * (B**2 - A**2)
_OF_FILTER = np.array(  # 3 x 3 taps to 6 x 6
    [
        [1 / _AT_ZERO, 0, 0],
        [1 / _AT_A, A / _AT_A, A**2 / _AT_A],
        [1 / _AT_A, -A / _AT_A, A**2 / _AT_A],
        [1 / _AT_B, B / _AT_B, B**2 / _AT_B],
        [1 / _AT_B, -B / _AT_B, B**2 / _AT_B],
        [0, 0, 1],
    ]
)


def _plain_input_square(x, place, seen, slot):
    """Compute seen[:, c, lanes of the slot], the transformed square of x that begins at `place`, for all channels c.

    x: (C, H, W, n), zero outside. place: (row, column, sample). seen: (36, C or more, slots * lanes).
    """
    lanes = VECTOR_BYTES // x.itemsize
    square = np.zeros((SIDE, SIDE, len(x), lanes), x.dtype)
    for to, row, column, samples in _inside(square, x, place):
        square[(*to, slice(None), slice(samples))] = x[:, row, column, place[2] : place[2] + samples]
    seen[:, : len(x), slot * lanes : (slot + 1) * lanes] = _transformed(_OF_INPUT, square)


@vectorised(_plain_input_square, like="x")
def input_square(v, builder, x, place, seen, slot):
    h, w, i = place
    zero, (C, H, W, n) = v.index(0), x.shape
    first = v.times(v.lanes, slot)
    table = v.table(PLACES)

    def transform(c: Any, *, masked: bool) -> None:
        def load(a: Any, b: Any) -> Any:
            row, column = v.sum(h, a), v.sum(w, b)
            mask = _mask(v, builder, row, column, i, x.shape) if masked else None
            return v.load(x.at(c, row, column, i), 0, mask)

        def store(a: Any, b: Any, vector: Any) -> None:
            v.store(vector, seen.at(v.sum(v.times(SIDE, a), b), c, first), 0)

        _looped(v, builder, _input_transform, table, load, store)

    whole = builder.icmp_signed("<=", v.sum(i, v.index(v.lanes)), n)
    for begin, size in ((h, H), (w, W)):
        whole = builder.and_(whole, builder.icmp_signed(">=", begin, zero))
        whole = builder.and_(whole, builder.icmp_signed("<=", v.sum(begin, v.index(SIDE)), size))
    with builder.if_else(whole) as (then, otherwise):
        with then, loop(builder, zero, C) as c:
            transform(c, masked=False)
        with otherwise, loop(builder, zero, C) as c:
            transform(c, masked=True)


def _plain_filter_squares(taps, weights):
    """Transform filters. taps: (9, filters), weights: (36, filters)."""
    weights[...] = _transformed(_OF_FILTER, taps.reshape(3, 3, -1))


@vectorised(_plain_filter_squares, like="taps")
def filter_squares(v, builder, taps, weights):
    _, size = taps.shape
    with loop(builder, v.index(0), v.blocks(size, v.index(v.lanes))) as number:
        i = v.times(v.lanes, number)
        inside = v.within(i, size)
        square = [v.load(taps.at(v.index(tap), i), 0, inside) for tap in range(9)]
        for e, vector in enumerate(_unrolled(v, _filter_transform, square)):
            v.store(vector, weights.at(v.index(e), i), 0, inside)


def _plain_filter_gradients(totals):
    """Transform gradients of `filter_squares` back, in place: nine rows for 36. totals: (36, filters)."""
    totals[:9] = _transformed(_OF_FILTER.T, totals.reshape(SIDE, SIDE, -1))


@vectorised(_plain_filter_gradients, like="totals")
def filter_gradients(v, builder, totals):
    _, size = totals.shape
    with loop(builder, v.index(0), v.blocks(size, v.index(v.lanes))) as number:
        i = v.times(v.lanes, number)
        inside = v.within(i, size)
        square = [v.load(totals.at(v.index(e), i), 0, inside) for e in range(PLACES)]
        for tap, vector in enumerate(_unrolled(v, _filter_gradient_transform, square)):
            v.store(vector, totals.at(v.index(tap), i), 0, inside)


def _plain_square_products(weights, seen, sums, KB, VB):
    """sums = weights seen. weights: (KB, C), seen: (C or more, VB * lanes), sums: (KB, VB * lanes)."""
    sums[...] = weights @ seen[: weights.shape[1]]


@vectorised(_plain_square_products, like="seen", constants=("KB", "VB"))
def square_products(v, builder, weights, seen, sums, KB, VB):
    zero = v.index(0)
    totals = _products(v, builder, lambda c, i: weights.at(v.index(i), c), seen, weights.shape[1], KB, VB)
    for i in range(KB):
        for b in range(VB):
            v.store(totals[i][b], sums.at(v.index(i), zero), b)


def _plain_output_square(sums, slot, bias, y, place):
    """Compute 4 x 4 places of y[k], for all k, from the products sums[:, k, lanes of the slot].

    place: (row, column, sample); places outside y are skipped. sums: (36, K or more, slots * lanes), bias: (K,).
    """
    lanes, K = VECTOR_BYTES // y.itemsize, len(y)
    square = sums[:, :K, slot * lanes : (slot + 1) * lanes].reshape(SIDE, SIDE, K, lanes)
    outputs = _transformed(_OF_PRODUCTS, square).reshape(OUTPUTS, OUTPUTS, K, lanes) + bias[:, np.newaxis]
    for at, row, column, samples in _inside(outputs, y, place):
        y[:, row, column, place[2] : place[2] + samples] = outputs[at][:, :samples]


@vectorised(_plain_output_square, like="y")
def output_square(v, builder, sums, slot, bias, y, place):
    p, q, i = place
    first = v.times(v.lanes, slot)
    table = v.table(PLACES)
    with loop(builder, v.index(0), y.shape[0]) as k:
        k_bias = v.splat(builder.load(bias.at(k)))

        def load(a: Any, b: Any) -> Any:
            return v.load(sums.at(v.sum(v.times(SIDE, a), b), k, first), 0)

        def store(a: Any, b: Any, vector: Any) -> None:
            row, column = v.sum(p, a), v.sum(q, b)
            mask = _mask(v, builder, row, column, i, y.shape)
            v.store(builder.fadd(vector, k_bias), y.at(k, row, column, i), 0, mask)

        _looped(v, builder, _product_transform, table, load, store)


def _plain_gradient_square(dy, place, turned, to):
    """Compute turned[:, t + lane, column + i]: the 4 x 4 gradients dy[k + i] that begin at `place`, transformed to
    gradients of the products, with one sample per lane and for `lanes` filters i.

    place: (k, row, column, sample), zero outside. to: (t, column). The last filter replaces filters that do not exist.
    """
    (k, *place), (t, column_to), K = place, to, len(dy)
    lanes = VECTOR_BYTES // dy.itemsize
    filters = np.minimum(np.arange(k, k + lanes), K - 1)
    square = np.zeros((OUTPUTS, OUTPUTS, lanes, lanes), dy.dtype)
    for at, row, column, samples in _inside(square, dy, place):
        square[(*at, slice(None), slice(samples))] = dy[filters, row, column, place[2] : place[2] + samples]
    turned[:, t : t + lanes, column_to : column_to + lanes] = _transformed(_OF_GRADIENT, square).swapaxes(1, 2)


@vectorised(_plain_gradient_square, like="dy")
def gradient_square(v, builder, dy, place, turned, to):
    first_k, p, q, i = place
    t, column_to = to
    zero, last = v.index(0), v.sum(dy.shape[0], v.index(-1))
    filters = [v.smaller(v.sum(first_k, v.index(lane)), last) for lane in range(v.lanes)]
    table = v.table(OUTPUTS**2 * v.lanes)  # by place and sample

    with loop(builder, zero, v.unknown(OUTPUTS)) as a, loop(builder, zero, v.unknown(OUTPUTS)) as b:
        row, column = v.sum(p, a), v.sum(q, b)
        mask = _mask(v, builder, row, column, i, dy.shape)
        by_filter = [v.load(dy.at(k, row, column, i), 0, mask) for k in filters]
        begin = builder.gep(table, [v.times(v.lanes**2, v.sum(v.times(OUTPUTS, a), b))])
        for sample, vector in enumerate(v.transposed(by_filter)):
            v.store(vector, begin, sample)
    with loop(builder, zero, v.unknown(v.lanes)) as sample:
        begin = builder.gep(table, [v.times(v.lanes, sample)])
        square = [v.load(begin, e * v.lanes) for e in range(OUTPUTS**2)]
        for e, vector in enumerate(_unrolled(v, _gradient_transform, square)):
            v.store(vector, turned.at(v.index(e), v.sum(t, sample), column_to), 0)


def _plain_add_gradient_products(seen, turned, totals, T, CB, VB):
    """totals += seen turned. seen: (CB, T), turned: (T, VB * lanes), totals: (CB, VB * lanes).

    Each product over T is summed separately first: this is more exact than one sum over all samples.
    """
    totals += seen @ turned


@vectorised(_plain_add_gradient_products, like="turned", constants=("T", "CB", "VB"))
def add_gradient_products(v, builder, seen, turned, totals, T, CB, VB):
    zero = v.index(0)

    def number(t: Any, c: int) -> Any:
        # A constant distance of the rows takes one register for all, where 16 rows would not have one each: products of
        # 16 channels and 16 filters run at ... GFLOP/s instead of 67.
        return builder.gep(seen.at(zero, t), [v.index(c * T)])

    sums = _products(v, builder, number, turned, v.index(T), CB, VB)
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
        begin = rows.at(i, zero)
        vectors = [v.load(begin, b) for b in range(VB)]
        for k, row_sums in enumerate(sums):
            factor = v.splat(builder.load(number(i, k)))
            for total, vector in zip(row_sums, vectors, strict=True):
                v.add_product(total, factor, vector)
    return [[v.value(total) for total in row_sums] for row_sums in sums]


def _transformed(matrix, square):
    """matrix square matrix^T, for a square (rows, columns, ...), as (places, ...)."""
    result = np.einsum("ea,ab...,fb->ef...", matrix.astype(square.dtype), square, matrix.astype(square.dtype))
    return result.reshape(-1, *square.shape[2:])


def _unrolled(v: Vectors, transform: Callable[..., list[Any]], square: list[Any]) -> list[Any]:
    """As `_transformed`, in vector instructions. The square and the result are lists of vectors, row by row."""
    side = math.isqrt(len(square))
    columns = [transform(v, square[column::side]) for column in range(side)]
    return [vector for row in zip(*columns, strict=True) for vector in transform(v, row)]


def _looped(
    v: Vectors,
    builder: Any,
    transform: Callable[..., list[Any]],
    table: Any,
    load: Callable[[Any, Any], Any],
    store: Callable[[Any, Any, Any], None],
) -> None:
    """As `_unrolled`, with a loop over columns and one over rows: the compiler spends a fifth of the instructions, and
    registers hold all vectors at hand.

    Args:
        table: memory for a square.
        load: returns the vector at (row, column).
        store: stores the vector of (row, column).
    """
    zero, rows = v.index(0), 0
    with loop(builder, zero, v.unknown(SIDE)) as column:
        vectors = transform(v, [load(v.index(row), column) for row in range(SIDE)])
        rows = len(vectors)
        for row, vector in enumerate(vectors):
            v.store(vector, builder.gep(table, [v.times(v.lanes, v.sum(v.index(row * SIDE), column))]))
    with loop(builder, zero, v.unknown(rows)) as row:
        begin = builder.gep(table, [v.times(v.lanes * SIDE, row)])
        for column, vector in enumerate(transform(v, [v.load(begin, i) for i in range(SIDE)])):
            store(row, v.index(column), vector)


def _input_transform(v: Vectors, x: list[Any]) -> list[Any]:
    """_OF_INPUT x. The rows of A and -A differ in the sign of x[1] and x[3] only, and those of B and -B too."""
    results = [v.plus(x[4], -(A**2) - B**2, x[2], A**2 * B**2, x[0])]
    for point, other in ((A, B), (B, A)):
        even, odd = (v.plus(x[i + 2], -(other**2), x[i]) for i in (2, 1))
        results += [v.plus(even, point, odd), v.plus(even, -point, odd)]
    return [*results, v.plus(x[5], -(A**2) - B**2, x[3], A**2 * B**2, x[1])]


def _product_transform(v: Vectors, y: list[Any]) -> list[Any]:
    """_OF_PRODUCTS y."""
    sum_a, less_a, sum_b, less_b = _sums_and_differences(v, y)
    return [
        v.plus(y[0], 1, sum_a, 1, sum_b),
        v.plus(v.zero, A, less_a, B, less_b),
        v.plus(v.zero, A**2, sum_a, B**2, sum_b),
        v.plus(y[5], A**3, less_a, B**3, less_b),
    ]


def _gradient_transform(v: Vectors, g: list[Any]) -> list[Any]:
    """_OF_GRADIENT g."""
    results = [g[0]]
    for point in (A, B):
        even, odd = v.plus(g[0], point**2, g[2]), v.plus(g[1], point**2, g[3])
        results += [v.plus(even, point, odd), v.plus(even, -point, odd)]
    return [*results, g[3]]


def _filter_transform(v: Vectors, g: list[Any]) -> list[Any]:
    """_OF_FILTER g."""
    results = [v.plus(v.zero, 1 / _AT_ZERO, g[0])]
    for point, distances in ((A, _AT_A), (B, _AT_B)):
        even = v.plus(v.zero, 1 / distances, v.plus(g[0], point**2, g[2]))
        results += [v.plus(even, point / distances, g[1]), v.plus(even, -point / distances, g[1])]
    return [*results, g[2]]


def _filter_gradient_transform(v: Vectors, y: list[Any]) -> list[Any]:
    """_OF_FILTER^T y."""
    sum_a, less_a, sum_b, less_b = _sums_and_differences(v, y)
    return [
        v.plus(v.zero, 1 / _AT_ZERO, y[0], 1 / _AT_A, sum_a, 1 / _AT_B, sum_b),
        v.plus(v.zero, A / _AT_A, less_a, B / _AT_B, less_b),
        v.plus(y[5], A**2 / _AT_A, sum_a, B**2 / _AT_B, sum_b),
    ]


def _sums_and_differences(v: Vectors, y: list[Any]) -> list[Any]:
    """Sum and difference of the values at A and -A, and of those at B and -B."""
    return [v.plus(y[i], sign, y[i + 1]) for i in (1, 3) for sign in (1, -1)]


def _mask(v: Vectors, builder: Any, row: Any, column: Any, i: Any, shape: Any) -> Any:
    """The mask of existing samples from i on; empty outside the image."""
    _, H, W, n = shape
    inside = builder.and_(builder.icmp_unsigned("<", row, H), builder.icmp_unsigned("<", column, W))
    return v.within(i, builder.select(inside, n, v.index(0)))


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
