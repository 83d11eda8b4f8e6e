"""Matrix products of bfloat16 in the tile registers of Intel's Advanced Matrix Extensions (AMX).

A tile register holds 16 rows of 64 bytes. One instruction multiplies two tiles and adds the products to a third one:

    c[i, j] += sum over t < 16 of  a[i, t].low * b[t, j].low + a[i, t].high * b[t, j].high

a and b hold pairs of bfloat16, here as uint32, and c holds float32 (Intel, "Architecture Instruction Set Extensions
Programming Reference", chapter 3, TDPBF16PS). A core computes up to 512 products in a clock cycle, 16 times as many
as with AVX-512 in float32. bfloat16 is the upper half of a float32: 8 bits of precision, and the same range.
"""

import ctypes
import functools
import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config

from ._vectors import VECTOR_BYTES, loop, vectorised

ROWS = 16  # rows of a tile, and pairs or float32 of a row
PANEL = 2 * ROWS  # rows, and columns, of the sums that are computed at once: four tiles

_ARCH_PRCTL = 158  # number of the system call on x86-64
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18  # ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux's asm/prctl.h


@functools.cache
def has_amx() -> bool:
    """Whether this process can use the tiles. The first call asks Linux for permission, which holds for all threads."""
    for_this_machine = config.CPU_NAME in (None, "host") and config.CPU_FEATURES is None and VECTOR_BYTES == 64
    if not for_this_machine or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return False
    if not llvm.get_host_cpu_features().get("amx-bf16"):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def unpacked(pairs: np.ndarray) -> np.ndarray:
    """The numbers of pairs of bfloat16 as float32, on a new last axis: low, then high."""
    return np.stack([pairs << 16, pairs & 0xFFFF0000], -1).astype(np.uint32).view(np.float32)


def _plain_configure_tiles(sums):
    """Configure the tiles for `add_products`, until `release_tiles`. Both belong into one call of a kernel."""


@vectorised(_plain_configure_tiles, like="sums")
def configure_tiles(v, builder, sums):
    table = bytearray(64)
    table[0] = 1  # palette 1: eight tiles of at most 16 rows of 64 bytes
    for tile in range(8):
        table[16 + 2 * tile], table[48 + tile] = 64, ROWS
    place = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(ir.IntType(8), 64), table))
    _instruction(builder, "ldtilecfg", builder.bitcast(place, _BYTES))


def _plain_release_tiles(sums):
    """See `configure_tiles`."""


@vectorised(_plain_release_tiles, like="sums")
def release_tiles(v, builder, sums):
    _instruction(builder, "tilerelease")


def _plain_add_products(a, b, sums, begin, steps, adds, KB, NB):
    """sums[j] = a[0] B[j, 0] + a[1] B[j, 1] + ..., added to what it was if `adds`.

    B[j, t] are the 16 rows of b from begin + j * steps[0] + t * steps[1] on. Only the first 16 KB rows and 16 NB
    columns of sums[j] are computed. KB and NB are 1 or 2.

    a: (T, 32, 16) and b: (rows, 16 NB or more), pairs as uint32; sums: (J, 32, 32) float32.
    """
    K, N = ROWS * KB, ROWS * NB
    left = unpacked(a[:, :K])
    for j in range(len(sums)):
        first = [begin + j * steps[0] + t * steps[1] for t in range(len(a))]
        right = unpacked(np.stack([b[row : row + ROWS, :N] for row in first]))
        products = np.einsum("tkih,tinh->kn", left, right)
        sums[j, :K, :N] = sums[j, :K, :N] + products if adds else products


@vectorised(_plain_add_products, like="sums", constants=("KB", "NB"))
def add_products(v, builder, a, b, sums, begin, steps, adds, KB, NB):
    zero = v.index(0)
    a_stride, b_stride, c_stride = a.stride(1), b.stride(0), sums.stride(1)
    tiles = [(k, n) for k in range(KB) for n in range(NB)]
    c = {place: number for number, place in enumerate(tiles)}
    left, right = [4 + k for k in range(KB)], [6 + n for n in range(NB)]
    begins_anew = builder.icmp_signed("==", adds, zero)
    with loop(builder, zero, sums.shape[0]) as j:

        def sum_at(k: int, n: int) -> Any:
            return sums.at(j, v.index(ROWS * k), v.index(ROWS * n))

        with builder.if_else(begins_anew) as (then, otherwise):
            with then:
                for place in tiles:
                    _instruction(builder, "tilezero", c[place])
            with otherwise:
                for place in tiles:
                    _instruction(builder, "tileloadd64", c[place], sum_at(*place), c_stride)
        first = v.sum(begin, builder.mul(j, steps[0]))
        with loop(builder, zero, a.shape[0]) as t:
            row = v.sum(first, builder.mul(t, steps[1]))
            for k in range(KB):
                _instruction(builder, "tileloadd64", left[k], a.at(t, v.index(ROWS * k), zero), a_stride)
            for n in range(NB):
                _instruction(builder, "tileloadd64", right[n], b.at(row, v.index(ROWS * n)), b_stride)
            for k, n in tiles:
                _instruction(builder, "tdpbf16ps", c[k, n], left[k], right[n])
        for place in tiles:
            _instruction(builder, "tilestored64", c[place], sum_at(*place), c_stride)


_BYTES = ir.IntType(8).as_pointer()


def _instruction(builder: Any, name: str, *arguments: Any) -> None:
    """Generate one instruction of AMX. Python numbers are numbers of tiles."""
    given = [ir.IntType(8)(one) if isinstance(one, int) else one for one in arguments]
    given = [builder.bitcast(one, _BYTES) if isinstance(one.type, ir.PointerType) else one for one in given]
    kind = ir.FunctionType(ir.VoidType(), [one.type for one in given])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), given)
