"""Sums in 64-bit fixed point: integers, whose sum does not depend on the order of what is added.

A number x is held as the integer x * 2**48, so a unit is 3.6e-15, and what fits lies within +-2**15. Sums wrap where
nobody looks: each term must be so small that all of them together fit, and terms that are not are counted.
"""

from numba import float64, int64

from ._jit import exact_kernel

_UNITS = 2.0**48


@exact_kernel
def add_fixed_point(terms, largest, sums, left_out, is_first):
    """sums += terms in fixed point, or sums = terms if these are the first.

    A term that is not a number of at most `largest` in size is left out, and counted in `left_out`, of one place.
    """
    count = 0
    for i in range(terms.size):
        term = float64(terms[i])
        # Not `abs(term) > largest`, which a NaN is not.
        fits = abs(term) <= largest
        count += not fits
        # First terms are written, not added to zeros: of 100 samples' steps on two ranks that is 5 %.
        sums[i] = (0 if is_first else sums[i]) + (int64(term * _UNITS) if fits else 0)
    left_out[0] = (0 if is_first else left_out[0]) + count


@exact_kernel
def from_fixed_point(sums, numbers):
    """The nearest numbers to sums in fixed point."""
    for i in range(sums.size):
        numbers[i] = sums[i] * (1 / _UNITS)
