"""Matrix products with a transposed factor, for weight gradients."""

from ._jit import kernel_part
from ._tiles import PRODUCT_BYTES, product, transpose


def turned_shape(length: int, item_bytes: int) -> tuple[int, int]:
    """The shape of `turned` for rows of at most this length."""
    return length, PRODUCT_BYTES // item_bytes


@kernel_part
def transposed_product(a, b, turned, start, c):
    """c = start + a b^T. a: (M, L), b: (N, L), start and c: (M, N). turned: (`turned_shape`), overwritten.

    b is transposed as many rows at a time as a tile of the product has columns. Transposed as a whole, columns of a
    tile lie at large distances, which share a few places of the nearest cache: 64 x 256 x 256 run at 77 GFLOP/s
    instead of 93 (AMD Zen 3, AVX2).
    """
    for first in range(0, len(b), turned.shape[1]):
        last = min(first + turned.shape[1], len(b))
        some = turned[: b.shape[1], : last - first]
        transpose(b[first:last], some)
        product(a, some, start[:, first:last], c[:, first:last])
