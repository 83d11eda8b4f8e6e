"""Pack filters into blocks, one per tile of a forward pass, with weights in the order in which tiles read them."""

from ._jit import kernel_part
from ._vectors import REGISTERS

SUMS = 24 if REGISTERS >= 32 else 12  # registers for the sums of a tile; the other registers hold factors
MOST_VECTORS = 4  # per row of a tile


def even_block(size: int, largest: int) -> int:
    """The block size that cuts `size` into as few blocks of at most `largest` as possible, of nearly equal size."""
    blocks = -(-size // largest)
    return -(-size // blocks)


def block_size(channels: int) -> int:
    """The number of channels per block, such that at least three vectors of a tile share a weight."""
    return even_block(channels, SUMS // 3)


def packed_size(filters: int, channels: int, rows: int, columns: int) -> int:
    """The size of a forward kernel's array of packed weights."""
    block = block_size(filters)
    return -(-filters // block) * block * (1 + channels * rows * columns)


def vectors_of(block: int) -> int:
    """The number of vectors of a row that a tile of `block` channels computes."""
    return min(SUMS // block, MOST_VECTORS)


@kernel_part
def pack(weight, bias, KB, memory):
    """Pack weights in the order in which tiles read them: for each block of KB filters k the biases, and then for every
    c, r and s the weights[k, c, r, s]. The last block may overlap the one before it.

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
