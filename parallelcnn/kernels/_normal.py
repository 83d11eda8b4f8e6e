"""The normal distribution, such that the compiler can vectorise the loops that call it; see `_elementary`.

For float32 gelu of 200,000 numbers takes 101 us instead of 2,076, its derivative 155 us instead of 4,717.
"""

import math

from numba import types

from ._elementary import exp_of_negative, in_float32

_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)


def cumulative(x):
    """The probability that a normally distributed number is below x."""
    return 0.5 * (1 + math.erf(x * _SQRT_HALF))


@in_float32(cumulative)
def _cumulative(x):
    """Abramowitz & Stegun 1964, eq. 7.1.26: at most 0.75e-7 away, 2.3e-7 with rounding. Where the probability is small,
    so is the error.
    """
    size = abs(x) * types.float32(_SQRT_HALF)
    one = types.float32(1)
    t = one / (one + types.float32(0.3275911) * size)
    polynomial = types.float32(-1.453152027) + t * types.float32(1.061405429)
    polynomial = types.float32(1.421413741) + t * polynomial
    polynomial = types.float32(-0.284496736) + t * polynomial
    polynomial = types.float32(0.254829592) + t * polynomial
    above = types.float32(0.5) * t * polynomial * exp_of_negative(-size * size)
    return above if x < 0 else one - above


def density(x):
    """The density of the normal distribution."""
    return _DENSITY_AT_0 * math.exp(-0.5 * x * x)


@in_float32(density)
def _density(x):
    return types.float32(_DENSITY_AT_0) * exp_of_negative(types.float32(-0.5) * x * x)
