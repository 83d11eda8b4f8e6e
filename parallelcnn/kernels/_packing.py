"""Filters in blocks, one for each tile of a forward pass, and their weights in the order in which tiles read them."""

from ._jit import kernel
from ._vectors import REGISTERS

SUMS = 24 if REGISTERS >= 32 else 12  # of a tile: the other registers hold what is multiplied
MOST_VECTORS = 4  # of a tile's rows


def even_block(size: int, largest: int) -> int:
    """In blocks of how many to take so many: as few blocks as possible, of equal size or nearly so."""
    blocks = -(-size // largest)
    return -(-size // blocks)


def block_size(channels: int) -> int:
    """Into blocks of how many to cut so many channels: at least three vectors of a tile share a weight."""
    return even_block(channels, SUMS // 3)


def packed_size(filters: int, channels: int, rows: int, columns: int) -> int:
    """How many numbers a forward kernel needs room for, to bring its weights into order."""
    block = block_size(filters)
    return -(-filters // block) * block * (1 + channels * rows * columns)


def vectors_of(block: int) -> int:
    """Vectors of a row that a tile of so many channels computes."""
    return min(SUMS // block, MOST_VECTORS)


@kernel
def pack(weight, bias, KB, memory):
    """Weights in the order in which tiles read them: for each block of KB filters k its biases, and then for every
    c, r and s its weights[k, c, r, s]. The last block overlaps the one before it where it must.

    bias: (K,), or (0,) for zeros; memory: (`packed_size`,). Returns (blocks, KB * (1 + C * R * S)).
    """
    K, C, R, S = weight.shape
    blocks, size = -(-K // KB), KB * (1 + C * R * S)
    packed = memory[: blocks * size].reshape(blocks, size)
    for block in range(packed.shape[0]):
        k0 = min(block * KB, K - KB)
        for k in range(KB):
            packed[block, k] = bias[k0 + k] if bias.size else packed.dtype.type(0)
        i = KB
        for c in range(C):
            for r in range(R):
                for s in range(S):
                    for k in range(KB):
                        packed[block, i] = weight[k0 + k, c, r, s]
                        i += 1
    return packed
