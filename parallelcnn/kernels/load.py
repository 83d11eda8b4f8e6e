"""Load samples from a data set for the first layer: gather, scale and transpose in one pass, also with windows."""

from typing import Any

import numpy as np

from ._jit import exact_kernel, kernel
from ._vectors import VECTOR_BYTES, loop, vectorised

AT_ONCE = 64  # samples; their images of some KiB are prefetched into the second cache
_LINE_BYTES = 64  # of a cache line
_unsigned = np.uint64  # unsigned indices need no check for negative values


@kernel
def all_within(indices, count):
    """Whether every index lies in [0, count); numpy's minimum and maximum took 1 % of a step."""
    for i in range(indices.size):  # noqa: SIM110 (numba compiles no generator here)
        if not 0 <= indices[i] < count:
            return False
    return True


@kernel
def load(images, indices, scale, x):
    """x[f, i] = images[indices[i], f] * scale; images: (N, features), x: (features, n).

    Squares of features and samples are transposed in registers. For 50 images of 28 x 28 out of 60,000 this takes 12
    us; number by number it takes 28 us. In training the images are not in a cache: this takes 33 us, and with
    prefetching 17 us.
    """
    features, N = x.shape
    lanes = VECTOR_BYTES // x.itemsize
    whole = features - features % lanes
    for first in range(0, N, AT_ONCE):
        last = min(first + AT_ONCE, N)
        for i in range(first, last):
            prefetch_row(images, indices[i], 0)
        for f in range(0, whole, lanes):
            for i in range(first, last, lanes):
                load_tile(images, indices, scale, x, (f, i))
    for i in range(N):
        for f in range(_unsigned(whole), _unsigned(features)):
            x[f, _unsigned(i)] = images[indices[i], f] * scale


def _plain_load_tile(images, indices, scale, x, tile):
    """Compute x[f : f + lanes, i : i + lanes], for existing samples."""
    f, i = tile
    lanes = VECTOR_BYTES // x.itemsize
    x[f : f + lanes, i : i + lanes] = images[indices[i : i + lanes], f : f + lanes].T * scale


@vectorised(_plain_load_tile, like="x")
def load_tile(v, builder, images, indices, scale, x, tile):
    f, i = tile
    N = x.shape[1]
    last = builder.sub(N, v.index(1))
    rows = []
    for lane in range(v.lanes):
        sample = builder.add(i, v.index(lane))
        # In lanes without a sample the last sample is loaded, but not stored.
        sample = builder.select(builder.icmp_signed("<", sample, last), sample, last)
        index = v.argument(indices.dtype, builder.load(indices.at(sample)))
        rows.append(v.load_as(images.at(index, f), images.dtype))
    factor = v.splat(scale)
    columns = [builder.fmul(column, factor) for column in v.transposed(rows)]

    def store(mask: Any) -> None:
        for lane, column in enumerate(columns):
            v.store(column, x.at(builder.add(f, v.index(lane)), i), 0, mask)

    v.with_mask_if_needed(i, N, store)


@exact_kernel
def load_windows(images, indices, scale, windows, mean, factor, places, x):
    """x[c, p, q, i] = (w * scale - mean[c]) * factor[c], w = (the window of image indices[i])[c, p, q].

    images: (N, C * H * W), x: (C, H, W, n); windows: see `windows`, whose `take_windows` after `load` gives the same
    bits. places: (AT_ONCE, 4) int64, overwritten.

    Squares of columns and samples are transposed in registers, as in `load`; what is read backwards is reversed there.
    """
    C, H, W, n = x.shape
    lanes = VECTOR_BYTES // x.itemsize
    for start in range(0, n, AT_ONCE):
        stop = min(start + AT_ONCE, n)
        fit = 0  # a bit for each vector of samples
        for first in range(start, stop, lanes):
            fits = lanes <= W
            for i in range(first, min(first + lanes, n)):
                prefetch_row(images, indices[i], 1)
                # What is read outside of a row, and is not used, lies in this image or the ones beside it.
                is_near = abs(windows[2, i]) + 2 * W <= C * H * W
                fits = fits and is_near and 0 < indices[i] < len(images) - 1
            fit |= int(fits) << (first - start)
        for p in range(H):
            for lane in range(min(AT_ONCE, n - start + lanes - 1)):
                # In lanes without a sample the last sample is loaded, but not stored.
                i = min(start + lane, n - 1)
                row, column, step = windows[0, i] + windows[1, i] * p, windows[2, i], windows[3, i]
                is_row = 0 <= row < H
                places[lane, 0] = (indices[i] * C * H + (row if is_row else 0)) * W + column
                places[lane, 1] = -1 if step > 0 else 0
                # Column q is inside the image if 0 <= column + step * q < W: these are from where, and how many.
                places[lane, 2] = column if step > 0 else W - 1 - column
                places[lane, 3] = W if is_row else 0
            for c in range(C):
                for first in range(start, stop, lanes):
                    if fit >> (first - start) & 1:
                        for q in range(0, W - lanes, lanes):
                            load_window_tile(images, scale, places, mean, factor, x, (c, p, q, first, first - start))
                        last = W - lanes
                        load_window_tile(images, scale, places, mean, factor, x, (c, p, last, first, first - start))
                        continue
                    for i in range(first, min(first + lanes, n)):
                        place, is_forwards, begin, size = places[i - start]
                        step = 1 if is_forwards else -1
                        for q in range(W):
                            value = x.dtype.type(0)
                            if 0 <= begin + q < size:
                                image, number = divmod(place + step * q, C * H * W)
                                value = x.dtype.type(images[image, number + c * H * W])
                            x[c, p, q, i] = (value * scale - mean[c]) * factor[c]


def _plain_load_window_tile(images, scale, places, mean, factor, x, tile):
    """Compute x[c, p, q : q + lanes, first : first + lanes], for existing samples; places: see `load_windows`."""
    c, p, q, first, first_lane = tile
    _, H, W, n = x.shape
    lanes = VECTOR_BYTES // x.itemsize
    columns = np.arange(q, q + lanes)
    numbers = images.reshape(images.size)
    for lane in range(min(lanes, n - first)):
        place, is_forwards, begin, size = places[first_lane + lane]
        step = 1 if is_forwards else -1
        inside = (begin + columns >= 0) & (begin + columns < size)
        values = np.where(inside, numbers[place + c * H * W + step * columns], 0).astype(x.dtype)
        x[c, p, q : q + lanes, first + lane] = (values * scale - mean[c]) * factor[c]


@vectorised(_plain_load_window_tile, like="x")
def load_window_tile(v, builder, images, scale, places, mean, factor, x, tile):
    c, p, q, first, first_lane = tile
    _, H, W, N = x.shape
    channel = builder.mul(builder.mul(c, H), W)
    forwards_by = builder.add(channel, q)
    backwards_by = builder.sub(builder.sub(channel, q), v.index(v.lanes - 1))
    start = places.at(first_lane, v.index(0))
    rows = []
    for lane in range(v.lanes):
        place, is_forwards, begin, size = (v.number(start, 4 * lane + k) for k in range(4))
        place = v.sum(place, backwards_by, builder.and_(is_forwards, builder.sub(forwards_by, backwards_by)))
        loaded = v.load_as(images.at(v.index(0), place), images.dtype)
        loaded = v.either(is_forwards, loaded, v.backwards(loaded))
        rows.append(builder.select(v.within(builder.add(begin, q), size), loaded, v.zero))
    scales, means, factors = v.splat(scale), v.splat(builder.load(mean.at(c))), v.splat(builder.load(factor.at(c)))
    columns = [
        builder.fmul(builder.fsub(builder.fmul(column, scales), means), factors) for column in v.transposed(rows)
    ]

    def store(mask: Any) -> None:
        for lane, column in enumerate(columns):
            v.store(column, x.at(c, p, builder.add(q, v.index(lane)), first), 0, mask)

    v.with_mask_if_needed(first, N, store)


def _plain_prefetch_row(array, row, margin):
    """Prefetch a whole row into the caches, and so many cache lines before and behind it."""


@vectorised(_plain_prefetch_row, like="array")
def prefetch_row(v, builder, array, row, margin):
    per_line = v.index(_LINE_BYTES * 8 // array.dtype.bitwidth)
    with loop(builder, builder.neg(margin), builder.add(v.blocks(array.shape[1], per_line), margin)) as line:
        v.prefetch(array.at(row, builder.mul(line, per_line)))
