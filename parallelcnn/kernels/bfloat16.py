"""Convolution and matrix products of numbers rounded to bfloat16, with sums in float32, in AMX's tiles; see `_amx`.

The sums of one pixel, 32 filters and 32 samples are a product of matrices:

    y[k, p, q, i] = bias[k] + sum over r, s, c of
        weight[k, c, r, s] * x[c, p * row_stride + r, q * column_stride + s, i]

The image is copied once into pairs of channels, (rows, columns * channels / 2, n), with zeros around it. Then what a
row of a window sees are neighbouring rows of memory, for any stride, so that a product takes its factors from where
they are. The input gradient is a forward pass over dy. A block of 16 pairs may reach beyond the window, where weights
are zero: if a number there is infinite or NaN, so is the output, also of a window that does not see it.

The weight gradient sums over pixels and samples, so its factors are pairs of samples, one of them transposed:

    dweight[k, c, r, s] = sum over p, q, i of
        dy[k, p, q, i] * x[c, p * row_stride + r, q * column_stride + s, i]

GFLOP/s of one core (Intel Xeon with AMX, whose float32 product of 512 x 512 runs at 145), n = 32, forwards without and
with the copy of the image, and weight gradient without and with the copies:

    64 -> 64 channels, 32 x 32, 3 x 3         855, 723    1017, 674
    128 -> 128, 16 x 16, 3 x 3               1066, 958     909, 758
    256 -> 256, 8 x 8, 3 x 3                  941, 890    1015, 906
    64 -> 128, 32 x 32, 3 x 3, stride 2       844, 633     593, 430
    64 -> 256, 16 x 16, 1 x 1                 271, 243     589, 248
"""

import numpy as np
from numba import config, int64

from ._amx import PANEL, ROWS, add_products, configure_tiles, has_amx, release_tiles
from ._bfloat16_packing import (
    pack_channels,
    pack_filters,
    pack_numbers,
    pack_samples,
    pack_transposed,
    pair_of,
    rounded_bits,
    unpack,
)
from ._jit import kernel, kernel_part

# With 2 to 8 places, 4 to 12 blocks and 4 to 16 pixels the speed of most convolutions changes by less than a tenth.
PLACES = 4  # neighbouring pixels that are computed at once
_BLOCKS = 6  # of 16 pairs, which are summed at once
_PIXELS = 8  # of the weight gradient, which are summed at once
_CHANNELS = 16  # that are copied at once: each is read from other memory pages
_WEIGHT_BYTES = 1 << 19  # of filters that stay in the second cache beside the image


def is_fast() -> bool:
    """Whether this process can run these kernels: with AMX, or where nothing is compiled."""
    return bool(config.DISABLE_JIT) or has_amx()


def image_shape(channels: int, rows: int, columns: int, n: int) -> tuple[int, int, int, int]:
    """The shape of an image in pairs of channels, of rows x columns with the zeros around it: (blocks of 32 samples,
    rows, columns * pairs + 16, 32). The last block of pairs of a row may reach 15 pairs beyond its window.
    """
    return -(-n // PANEL), rows, columns * -(-channels // 2) + ROWS, PANEL


def weights_shape(filters: int, channels: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """The shape of packed filters: (blocks of 32 filters, blocks of 16 pairs in all rows of a window, 32, 16)."""
    return -(-filters // PANEL), rows * -(-columns * -(-channels // 2) // ROWS), PANEL, ROWS


def samples_shape(channels: int, rows: int, columns: int, n: int) -> tuple[int, ...]:
    """The shape of dy in pairs of samples: (blocks of 32 samples, rows, blocks of 32 channels, columns, 32, 16)."""
    return -(-n // PANEL), rows, -(-channels // PANEL), columns, PANEL, ROWS


def transposed_shape(channels: int, rows: int, columns: int, n: int) -> tuple[int, ...]:
    """The shape of x in pairs of samples, transposed, of rows x columns with the zeros around it: (blocks of 32
    samples, rows, columns * 16, channels in whole tiles).
    """
    return -(-n // PANEL), rows, columns * ROWS, -(-channels // ROWS) * ROWS


@kernel_part
def _add(a, b, sums, begin, steps, adds, rows, columns):
    """`add_products` for so many rows and columns of the sums."""
    if rows > ROWS:
        if columns > ROWS:
            add_products(a, b, sums, begin, steps, adds, 2, 2)
        else:
            add_products(a, b, sums, begin, steps, adds, 2, 1)
    elif columns > ROWS:
        add_products(a, b, sums, begin, steps, adds, 1, 2)
    else:
        add_products(a, b, sums, begin, steps, adds, 1, 1)


@kernel_part
def _write_zeros(copy, row, is_inside, before, behind):
    """Write zeros to a row of a copy of an image, except from `before` to `behind` if the row is inside the image."""
    if is_inside:
        copy[:, row, :before] = 0
        copy[:, row, behind:] = 0
    else:
        copy[:, row] = 0


@kernel
def bfloat16_image(x, top, left, image):
    """Copy x, (C, H, W, n), into pairs of channels with zeros around it; image: (`image_shape`) uint32."""
    C, H, W, n = x.shape
    pairs = (C + 1) // 2
    parts, rows, length, _ = image.shape
    columns = (length - ROWS) // pairs
    for row in range(rows):
        h = row - top
        is_inside = 0 <= h < H
        _write_zeros(image, row, is_inside, left * pairs, min(left + W, columns) * pairs)
        for c in range(0, C if is_inside else 0, _CHANNELS):
            for part in range(parts):
                i = part * PANEL
                some = x[c : min(c + _CHANNELS, C), h, :, i : min(i + PANEL, n)]
                for w in range(min(W, columns - left)):
                    first = (left + w) * pairs + c // 2
                    pack_channels(some[:, w], image[part, row, first : first + (len(some) + 1) // 2])


@kernel_part
def _pack_weights(weight, packed):
    """The filters in blocks of 16 pairs: packed[panel, block, k] are 16 pairs of filter 32 * panel + k."""
    K, C, R, S = weight.shape
    row_blocks = packed.shape[1] // R
    pairs = (C + 1) // 2
    is_contiguous = weight.strides[1] == weight.itemsize
    if R == S == 1 and (is_contiguous or weight.strides[0] == weight.itemsize):
        # A matrix, or a transposed one. Number by number, 3 x 1024 x 1024 numbers take 3.6 ms instead of 0.9.
        for k in range(0, K, PANEL):
            filters = weight[k : min(k + PANEL, K), :, 0, 0]
            for block in range(row_blocks):
                some = filters[:, block * 2 * ROWS : min((block + 1) * 2 * ROWS, C)]
                if is_contiguous:
                    pack_samples(some, packed[k // PANEL, block])
                else:
                    pack_filters(some.T, packed[k // PANEL, block])
        return
    packed[:, row_blocks - 1 :: row_blocks] = 0  # the last block of a row may not be full
    for k in range(K):
        for c in range(0, pairs, ROWS):
            # All taps of a few channels, which are in the same cache lines.
            for r in range(R):
                for s in range(S):
                    taps = weight[k, 2 * c : min(2 * (c + ROWS), C), r, s]
                    block, j = divmod(s * pairs + c, ROWS)
                    if j == 0 and len(taps) == 2 * ROWS:
                        pack_numbers(taps, packed[k // PANEL, r * row_blocks + block, k % PANEL])
                        continue
                    for pair in range((len(taps) + 1) // 2):
                        block, j = divmod(s * pairs + c + pair, ROWS)
                        high = taps[2 * pair + 1] if 2 * pair + 1 < len(taps) else taps.dtype.type(0)
                        packed[k // PANEL, r * row_blocks + block, k % PANEL, j] = pair_of(taps[2 * pair], high)


@kernel_part
def _sum_window(image, filters, sums, begin, steps, count, samples):
    """sums[j] = the products of the filters and what the window from place begin + j * steps[0] on sees.

    image: (rows of the window, columns * pairs + 16, 32), filters: (blocks, 32, 16); count: number of filters.
    """
    R = len(image)
    row_blocks = len(filters) // R
    for r in range(R):
        for block in range(0, row_blocks, _BLOCKS):
            some = filters[r * row_blocks + block : r * row_blocks + min(block + _BLOCKS, row_blocks)]
            _add(some, image[r], sums, begin + block * ROWS, steps, r + block, count, samples)


@kernel
def bfloat16_forward(image, weight, bias, packed, sums, steps, y):
    """y = bias + the convolution of the image; see above.

    image: (`image_shape`), weight: (K, C, R, S), bias: (K,) or (0,), steps: (first row, first column, row_stride,
    column_stride), y: (K, P, Q, n). packed: (`weights_shape`) and sums: (PLACES, 32, 32), overwritten.
    """
    K, P, Q, n = y.shape
    _, C, R, _ = weight.shape
    top, left, row_stride, column_stride = steps
    pairs = (C + 1) // 2
    _pack_weights(weight, packed)
    panels = len(packed)
    # Of many filters one panel takes the whole image before the next one, so that it stays in the second cache.
    together = panels if packed.size * 4 <= _WEIGHT_BYTES else 1
    configure_tiles(sums)
    for first_panel in range(0, panels, together):
        for p in range(P):
            row = top + p * row_stride
            for part in range(len(image)):
                i = part * PANEL
                samples = min(PANEL, n - i)
                for q in range(0, Q, PLACES):
                    places = min(PLACES, Q - q)
                    begin, between = (left + q * column_stride) * pairs, (column_stride * pairs, int64(ROWS))
                    for panel in range(first_panel, min(first_panel + together, panels)):
                        k = panel * PANEL
                        filters = min(PANEL, K - k)
                        seen = image[part, row : row + R]
                        _sum_window(seen, packed[panel], sums[:places], begin, between, filters, samples)
                        unpack(sums, bias[k : k + filters], y[k : k + filters, p, q : q + places, i : i + samples])
    release_tiles(sums)


@kernel
def bfloat16_samples(dy, pairs):
    """Copy dy, (K, P, Q, n), into pairs of samples; pairs: (`samples_shape`) uint32."""
    K, P, Q, n = dy.shape
    for p in range(P):
        for k in range(0, K, _CHANNELS):
            for part in range(len(pairs)):
                i = part * PANEL
                some = dy[k : min(k + _CHANNELS, K), p, :, i : min(i + PANEL, n)]
                to = pairs[part, p, k // PANEL, :, k % PANEL :]
                for q in range(Q):
                    pack_samples(some[:, q], to[q])


@kernel
def bfloat16_transposed(x, top, left, pairs):
    """Copy x, (C, H, W, n), into transposed pairs of samples with zeros around it; pairs: (`transposed_shape`)."""
    C, H, W, n = x.shape
    _, rows, length, _ = pairs.shape
    for row in range(rows):
        h = row - top
        is_inside = 0 <= h < H
        _write_zeros(pairs, row, is_inside, left * ROWS, (left + W) * ROWS)
        for c in range(0, C if is_inside else 0, _CHANNELS):
            for part in range(len(pairs)):
                i = part * PANEL
                some = x[c : min(c + _CHANNELS, C), h, :, i : min(i + PANEL, n)]
                for w in range(min(W, length // ROWS - left)):
                    pack_transposed(some[:, w], pairs[part, row, (left + w) * ROWS : (left + w + 1) * ROWS, c:])


@kernel
def bfloat16_weight_gradient(dy_pairs, x_pairs, sums, strides, dweight):
    """dweight = the sum over pixels and samples; see above.

    dy_pairs: (`samples_shape`), x_pairs: (`transposed_shape`), strides: (row_stride, column_stride), dweight: (K, C, R,
    S). sums: (R, S, 32, 32), overwritten.
    """
    K, C, R, S = dweight.shape
    parts, P, panels, Q, _, _ = dy_pairs.shape
    row_stride, column_stride = strides
    if parts == 0:  # no samples
        dweight[...] = 0
        return
    configure_tiles(sums)
    for panel in range(panels):
        k = panel * PANEL
        filters = min(PANEL, K - k)
        for c in range(0, C, PANEL):
            channels = min(PANEL, C - c)
            for part in range(parts):
                for p in range(P):
                    for q in range(0, Q, _PIXELS):
                        some = dy_pairs[part, p, panel, q : min(q + _PIXELS, Q)]
                        for r in range(R):
                            seen = x_pairs[part, p * row_stride + r, :, c:]
                            first, steps = q * column_stride * ROWS, (int64(ROWS), column_stride * ROWS)
                            _add(some, seen, sums[r], first, steps, part + p + q, filters, channels)
            for row in range(filters):
                for r in range(R):
                    for s in range(S):
                        for column in range(channels):
                            dweight[k + row, c + column, r, s] = sums[r, s, row, column]
    release_tiles(sums)


@kernel
def bfloat16_rounded(x, y):
    """y = x rounded to bfloat16; both flat and float32."""
    bits = y.view(np.uint32)
    for i in range(x.size):
        bits[i] = rounded_bits(x[i])
