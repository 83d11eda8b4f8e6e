"""Sums in 64-bit fixed point: integers, whose sum does not depend on the order of what is added.

The vector is cut into segments, each with an exponent e of its own: a number x is held as the integer x * 2**(48 - e).
So a unit is 2**(e - 48), and what fits lies within +-2**(e + 15). Sums wrap where nobody looks: each term must be so
small that all of them together fit. Terms that are too large, and terms that lose some of their 24 bits, are counted.
"""

import math

from numba import float64, int64

from ._jit import exact_kernel

_BITS = 48  # of a number of size 2**e
_ALL_BITS = 2.0**23  # units; from here on a float32 is held exactly


@exact_kernel
def add_fixed_point(terms, starts, exponents, largest, sums, counts, is_first):
    """sums += terms in fixed point, or sums = terms if these are the first.

    terms: flat; starts: (segments + 1,), where each segment begins, and the end; exponents: (segments,);
    largest: what a term may be, divided by 2**e; counts: (4, segments), added to: terms that are not finite, that are
    too large, that are held exactly, and that are not; of the first two nothing is added to the sums.
    """
    for segment in range(exponents.size):
        scale = math.ldexp(1.0, _BITS - exponents[segment])
        most = largest * math.ldexp(1.0, _BITS)
        infinite = large = exact = rounded = 0
        for i in range(starts[segment], starts[segment + 1]):
            term = float64(terms[i]) * scale
            size = abs(term)
            fits = size <= most  # not `size > most`, which a NaN is not
            infinite += not size < math.inf
            large += not fits
            exact += size >= _ALL_BITS
            rounded += (size > 0) & (size < _ALL_BITS)
            # First terms are written, not added to zeros: of 100 samples' steps on two ranks that is 5 %.
            sums[i] = (0 if is_first else sums[i]) + (int64(term) if fits else 0)
        counts[0, segment] += infinite
        counts[1, segment] += large - infinite
        counts[2, segment] += exact
        counts[3, segment] += rounded


@exact_kernel
def from_fixed_point(sums, starts, exponents, numbers, bits):
    """The nearest numbers to sums in fixed point; bits: (segments,), of the largest sum of each, 0 if all are 0."""
    for segment in range(exponents.size):
        unit = math.ldexp(1.0, exponents[segment] - _BITS)
        largest = int64(0)
        for i in range(starts[segment], starts[segment + 1]):
            numbers[i] = sums[i] * unit
            largest = max(largest, abs(sums[i]))
        count = 0
        while largest > 0:
            largest >>= 1
            count += 1
        bits[segment] = count
