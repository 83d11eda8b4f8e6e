"""Tiles of the Winograd convolution, in vector instructions. See `winograd` for the algorithm, and `_tiles` for the two
versions of each tile, in numpy and in vector instructions.

A square of 4 x 4 vectors holds `lanes` samples of 4 x 4 places. Place (row, column) has number 4 * row + column.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ._vectors import VECTOR_BYTES, Strided, Vectors, loop, vectorised

# Matrices of the transforms, applied to the rows of a square and then to its columns.
_OF_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # 4 x 4 places of an image
_OF_PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # 4 x 4 products to 2 x 2 outputs
_OF_GRADIENT = _OF_PRODUCTS.T  # 2 x 2 gradients to 4 x 4


def _plain_input_square(x, place, seen, slot):
    """Compute seen[:, c, lanes of the slot], the transformed square of x that begins at `place`, for all channels c.

    x: (C, H, W, n), zero outside. place: (row, column, sample). seen: (16, C or more, slots * lanes).
    """
    lanes = VECTOR_BYTES // x.itemsize
    square = np.zeros((4, 4, len(x), lanes), x.dtype)
    for to, row, column, samples in _inside(square, x, place):
        square[(*to, slice(None), slice(samples))] = x[:, row, column, place[2] : place[2] + samples]
    seen[:, : len(x), slot * lanes : (slot + 1) * lanes] = _transformed(_OF_INPUT, square)


@vectorised(_plain_input_square, like="x")
def input_square(v, builder, x, place, seen, slot):
    h, w, i = place
    zero, (C, H, W, n) = v.index(0), x.shape
    first = v.times(v.lanes, slot)
    places = _places(v, h, w, 4)
    masks = _masks(v, builder, places, i, x.shape)

    def transform(masks: Any) -> None:
        with loop(builder, zero, C) as c:
            square = [
                v.load(x.at(c, row, column, i), 0, mask) for (row, column), mask in zip(places, masks, strict=True)
            ]
            for e, vector in enumerate(_written(builder, _OF_INPUT, square)):
                v.store(vector, seen.at(v.index(e), c, first), 0)

    whole = builder.icmp_signed("<=", v.sum(i, v.index(v.lanes)), n)
    for begin, size in ((h, H), (w, W)):
        whole = builder.and_(whole, builder.icmp_signed(">=", begin, zero))
        whole = builder.and_(whole, builder.icmp_signed("<=", v.sum(begin, v.index(4)), size))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            transform([None] * 16)
        with otherwise:
            transform(masks)


def _plain_square_products(weights, seen, sums, KB, VB):
    """sums = weights^T seen. weights: (C, KB), seen: (C or more, VB * lanes), sums: (KB, VB * lanes)."""
    sums[...] = weights.T @ seen[: len(weights)]


@vectorised(_plain_square_products, like="seen", constants=("KB", "VB"))
def square_products(v, builder, weights, seen, sums, KB, VB):
    zero = v.index(0)
    totals = _products(v, builder, lambda c, i: weights.at(c, v.index(i)), seen, weights.shape[0], KB, VB)
    for i in range(KB):
        for b in range(VB):
            v.store(totals[i][b], sums.at(v.index(i), zero), b)


def _plain_output_square(sums, slot, bias, y, place):
    """Compute 2 x 2 places of y[k + i], for all i, from the products sums[:, i, lanes of the slot].

    place: (k, row, column, sample); places outside y are skipped. sums: (16, KB, slots * lanes), bias: (K,).
    """
    k, *place = place
    lanes, KB = VECTOR_BYTES // y.itemsize, sums.shape[1]
    square = sums[:, :, slot * lanes : (slot + 1) * lanes].reshape(4, 4, KB, lanes)
    outputs = _transformed(_OF_PRODUCTS, square).reshape(2, 2, KB, lanes) + bias[k : k + KB, np.newaxis]
    for at, row, column, samples in _inside(outputs, y, place):
        y[k : k + KB, row, column, place[2] : place[2] + samples] = outputs[at][:, :samples]


@vectorised(_plain_output_square, like="y")
def output_square(v, builder, sums, slot, bias, y, place):
    first_k, p, q, i = place
    places = _places(v, p, q, 2)
    masks = _masks(v, builder, places, i, y.shape)
    first = v.times(v.lanes, slot)
    with loop(builder, v.index(0), sums.shape[1]) as number:
        k = v.sum(first_k, number)
        square = [v.load(sums.at(v.index(e), number, first), 0) for e in range(16)]
        k_bias = v.splat(builder.load(bias.at(k)))
        outputs = _written(builder, _OF_PRODUCTS, square)
        for output, (row, column), mask in zip(outputs, places, masks, strict=True):
            v.store(builder.fadd(output, k_bias), y.at(k, row, column, i), 0, mask)


def _plain_gradient_square(dy, place, turned, to):
    """Compute turned[:, t + lane, column + i]: the 2 x 2 gradients dy[k + i] that begin at `place`, transformed to
    gradients of the products, with one sample per lane and for `lanes` filters i.

    place: (k, row, column, sample), zero outside. to: (t, column). The last filter replaces filters that do not exist.
    """
    (k, *place), (t, column_to), K = place, to, len(dy)
    lanes = VECTOR_BYTES // dy.itemsize
    filters = np.minimum(np.arange(k, k + lanes), K - 1)
    square = np.zeros((2, 2, lanes, lanes), dy.dtype)
    for at, row, column, samples in _inside(square, dy, place):
        square[(*at, slice(None), slice(samples))] = dy[filters, row, column, place[2] : place[2] + samples]
    turned[:, t : t + lanes, column_to : column_to + lanes] = _transformed(_OF_GRADIENT, square).swapaxes(1, 2)


@vectorised(_plain_gradient_square, like="dy")
def gradient_square(v, builder, dy, place, turned, to):
    first_k, p, q, i = place
    t, column_to = to
    last = v.sum(dy.shape[0], v.index(-1))
    filters = [v.smaller(v.sum(first_k, v.index(lane)), last) for lane in range(v.lanes)]
    places = _places(v, p, q, 2)
    masks = _masks(v, builder, places, i, dy.shape)
    by_sample = [
        v.transposed([v.load(dy.at(k, row, column, i), 0, mask) for k in filters])
        for (row, column), mask in zip(places, masks, strict=True)
    ]
    for sample, square in enumerate(zip(*by_sample, strict=True)):
        for e, vector in enumerate(_written(builder, _OF_GRADIENT, square)):
            v.store(vector, turned.at(v.index(e), v.sum(t, v.index(sample)), column_to), 0)


def _plain_add_gradient_products(seen, turned, totals, CB, VB):
    """totals += seen turned. seen: (CB, T), turned: (T, VB * lanes), totals: (CB, VB * lanes).

    Each product over T is summed separately first: this is more exact than one sum over all samples.
    """
    totals += seen @ turned


@vectorised(_plain_add_gradient_products, like="turned", constants=("CB", "VB"))
def add_gradient_products(v, builder, seen, turned, totals, CB, VB):
    sums = _products(v, builder, lambda t, c: seen.at(v.index(c), t), turned, turned.shape[0], CB, VB)
    for c in range(CB):
        begin = totals.at(v.index(c), v.index(0))
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


def _written(builder: Any, matrix: Any, square: Any) -> list[Any]:
    """As `_transformed`, in vector instructions. The square and the result are lists of vectors, row by row."""
    size = matrix.shape[1]

    def combined(vectors: list[Any]) -> list[Any]:
        results = []
        for factors in matrix:
            added = [vector for factor, vector in zip(factors, vectors, strict=True) if factor > 0]
            result = None
            for vector in added:
                result = vector if result is None else builder.fadd(result, vector)
            for factor, vector in zip(factors, vectors, strict=True):
                if factor < 0:
                    result = builder.fneg(vector) if result is None else builder.fsub(result, vector)
            results.append(result)
        return results

    columns = [combined([square[size * row + column] for row in range(size)]) for column in range(size)]
    return [vector for row in range(len(matrix)) for vector in combined([column[row] for column in columns])]


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


def _places(v: Vectors, h: Any, w: Any, size: int) -> list[tuple[Any, Any]]:
    """Row and column of each place of a square that begins at (h, w)."""
    return [(v.sum(h, v.index(a)), v.sum(w, v.index(b))) for a in range(size) for b in range(size)]


def _masks(v: Vectors, builder: Any, places: list[tuple[Any, Any]], i: Any, shape: Any) -> list[Any]:
    """For each place, the mask of existing samples from i on; empty outside the image."""
    _, H, W, n = shape
    masks = []
    for row, column in places:
        inside = builder.and_(builder.icmp_unsigned("<", row, H), builder.icmp_unsigned("<", column, W))
        masks.append(v.within(i, builder.select(inside, n, v.index(0))))
    return masks
