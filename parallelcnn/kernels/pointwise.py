"""Convolution with filters of 1 x 1 as matrix products. Their rows are very long: all numbers of an image.

GFLOP/s of one core for 64 -> 64 and 64 -> 256 channels of 16 x 16, n = 100, where a product of 512 x 512 runs at 146:

                        these        PyTorch      tiles over rows (`conv2d`)   numpy's products
    forward             129, 133     143, 146     65, 55                       102, 119
    weight gradient      92, 104      93, 104     60, 55                        80, 107
    input gradient      122, 117     149, 154     58, 41                       101,  94
"""

from ._jit import kernel, kernel_part
from ._tiles import PRODUCT_BYTES, PRODUCT_VECTORS, copy_columns, copy_rows, product, transpose
from ._transposed_product import transposed_product, turned_shape
from ._vectors import VECTOR_BYTES

PANEL = 256  # numbers of each row at a time

# From this number of channels and filters on, these are faster than tiles over rows. With copied columns (AMD Zen 3) 16
# -> 32 channels of 32 x 32, stride 2, run at 50, 43 and 73 GFLOP/s instead of 37, 35 and 55, and 8 -> 16 at 40, 33 and
# 42 instead of 47, 43 and 52.
LEAST_CHANNELS = 16 if VECTOR_BYTES < 64 else 32


def panel_shape(item_bytes: int) -> tuple[int, int]:
    """The shape of the weight gradient's panel."""
    return turned_shape(PANEL, item_bytes)


def columns_shape(rows: int, length: int, item_bytes: int) -> tuple[int, int]:
    """The shape of `columns` for a factor of this shape: as wide as a tile if the columns of a tile are copied together
    before its product, else empty.

    Rows at a distance of a power of two share a few places of the caches. A tile of AVX2 is as narrow as a cache line,
    and reads them again for every 6 filters: with copies 64 -> 64 channels, 16 x 16, n = 32 run at 84 instead of 40
    GFLOP/s (AMD Zen 3; n = 100: 83 and 38). Tiles of AVX-512 are four cache lines wide, and gain only where the second
    cache has too few places as well (Intel Xeon, n = 32, forwards and input gradient): 64 -> 256 channels, 16 x 16, 148
    to 173 and 142 to 137, 256 -> 64, 8 x 8, 133 to 141 and 150 to 182. Elsewhere they lose 5 to 10 %.
    """
    copies = VECTOR_BYTES < 64 or length * item_bytes % 8192 == 0
    return rows, PRODUCT_BYTES // item_bytes if copies else 0


@kernel_part
def _product(a, b, start, columns, c):
    """c = start + a b, see `_tiles.product`. columns: (`columns_shape`), overwritten."""
    length, at_once = b.shape[1], columns.shape[1]
    if at_once == 0:
        product(a, b, start, c)
        return
    for first in range(0, length, at_once):
        last = min(first + at_once, length)
        some = columns[:, : last - first]
        if last - first == PRODUCT_BYTES // b.itemsize:
            copy_columns(b[:, first:last], some, PRODUCT_VECTORS)
        else:
            copy_rows(b[:, first:last], some, False)
        product(a, some, start, c[:, first:last])


@kernel
def pointwise_forward(x, weight, bias, columns, y):
    """y = weight x + bias. x: (C, H * W * n), weight: (K, C), bias: (K,) or None, y: (K, H * W * n)."""
    _product(weight, x, bias, columns, y)


@kernel
def pointwise_weight_gradient(x, dy, panel, sums, dweight):
    """dweight = dy x^T. panel: (`panel_shape`) and sums: (2, K, C), overwritten."""
    length = x.shape[1]
    before, after = sums[0], sums[1]
    after[:] = 0
    for first in range(0, length, PANEL):
        last = min(first + PANEL, length)
        # Not in place: if the last block of rows overlaps the one before it, it would add twice.
        before, after = after, before
        transposed_product(dy[:, first:last], x[:, first:last], panel, before, after)
    copy_rows(after, dweight, False)


@kernel
def pointwise_backward_input(dy, weight, turned, columns, dx):
    """dx = weight^T dy. turned: (C, K), overwritten."""
    transpose(weight, turned)
    _product(turned, dy, None, columns, dx)
