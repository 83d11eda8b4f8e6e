"""Prefetch the numbers that a loop over long arrays reads and writes next:

    for first in range(0, y.size, AT_ONCE):
        prefetch(x, first)
        prefetch(y, first)
        for i in numbers_from(first, y.size):
            y[i] = ...

A processor that computes much for each number does not look far ahead by itself, and it waits for a cache line before
it writes a part of it. Gains on one core of an Intel Xeon, for arrays that are not in the nearest caches: gelu and its
derivative 2.1 to 0.6 and 2.4 to 0.9 ns for each number; in ResNet-20, 100 samples, batch normalisation forwards 1.4
times as fast, adding 1.4 times, relu's derivative after an addition 1.3 times. Batch normalisation backwards gains
nothing.
"""

from numba import uint64

from ._jit import kernel_part
from ._vectors import loop, vectorised

AT_ONCE = 512  # numbers
_AHEAD = 1024  # numbers between the ones that are used and the ones that are prefetched
_LINE_BYTES = 64


@kernel_part
def numbers_from(first, size):
    """The range from first to first + AT_ONCE, or to size if that is less.

    It is unsigned: loops that index from the end for a negative number do not become vector instructions.
    """
    return range(uint64(first), uint64(min(first + AT_ONCE, size)))


def _plain_prefetch(x, first):
    """Fetch AT_ONCE numbers of x, which is flat, from x[first + _AHEAD] on. They may lie beyond its end."""


@vectorised(_plain_prefetch, like="x")
def prefetch(v, builder, x, first):
    per_line = _LINE_BYTES * 8 // x.dtype.bitwidth
    with loop(builder, v.index(0), v.index(AT_ONCE // per_line)) as line:
        v.prefetch(x.at(v.sum(first, v.index(_AHEAD), v.times(per_line, line))))
