"""exp and the normal distribution, such that the compiler can vectorise the loops that call them.

For float32 on processors with fused multiply-add they are arithmetic only. The library's functions are called for every
number: gelu of 200,000 numbers takes 101 us instead of 2,076, its derivative 155 us instead of 4,717.
"""

import math
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic, overload

_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)
_LOWEST = -87.0  # below it exp is 0: it would have fewer digits than other numbers
# log(2) = _LOG_2_HIGH + _LOG_2_LOW. Products of the first one with integers are exact (Cody & Waite 1980).
_LOG_2_HIGH, _LOG_2_LOW = 0.693359375, math.log(2) - 0.693359375


def _has_fused_multiply_add() -> bool:
    features = llvm.get_host_cpu_features()
    return config.CPU_NAME in (None, "host") and bool(features.get("fma") or features.get("neon"))


_VECTORISED = _has_fused_multiply_add()


def exp_of_negative(x):
    """exp(x) for x <= 0."""
    return math.exp(x)


@overload(exp_of_negative)
def _choose_exp(x):
    if x == types.float32 and _VECTORISED:
        return lambda x: _exp_of_float32(x)
    return lambda x: math.exp(x)


def cumulative(x):
    """The probability that a normally distributed number is below x."""
    return 0.5 * (1 + math.erf(x * _SQRT_HALF))


@overload(cumulative)
def _choose_cumulative(x):
    if x != types.float32 or not _VECTORISED:
        return lambda x: 0.5 * (1 + math.erf(x * _SQRT_HALF))

    def from_exp(x):
        """Abramowitz & Stegun 1964, eq. 7.1.26: at most 0.75e-7 away, 2.3e-7 with rounding. Where the probability is
        small, so is the error.
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

    return from_exp


def density(x):
    """The density of the normal distribution."""
    return _DENSITY_AT_0 * math.exp(-0.5 * x * x)


@overload(density)
def _choose_density(x):
    if x == types.float32:
        return lambda x: types.float32(_DENSITY_AT_0) * exp_of_negative(types.float32(-0.5) * x * x)
    return lambda x: _DENSITY_AT_0 * math.exp(-0.5 * x * x)


@intrinsic
def _exp_of_float32(_, x):
    """exp(x) = 2^n exp(r) with |r| <= log(2) / 2, and a polynomial for exp(r). NaN remains NaN."""
    return types.float32(x), _generate_exp


def _generate_exp(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    (x,) = arguments
    number, integer = ir.FloatType(), ir.IntType(32)

    def constant(value: float) -> Any:
        return ir.Constant(number, value)

    def fma(a: Any, b: Any, c: Any) -> Any:
        # Calls of this function are not reordered, as sums in kernels are.
        return builder.fma(a, b, c)

    bounded = builder.select(builder.fcmp_ordered("<", x, constant(_LOWEST)), constant(_LOWEST), x)
    rint = builder.module.declare_intrinsic("llvm.rint", [number])
    n = builder.call(rint, [builder.fmul(bounded, constant(1 / math.log(2)))])
    r = fma(n, constant(-_LOG_2_LOW), fma(n, constant(-_LOG_2_HIGH), bounded))
    # Taylor's polynomial. The first omitted term is below 1.2e-8.
    total = constant(1 / math.factorial(7))
    for degree in range(6, -1, -1):
        total = fma(total, r, constant(1 / math.factorial(degree)))
    bits = builder.shl(builder.add(builder.fptosi(n, integer), ir.Constant(integer, 127)), ir.Constant(integer, 23))
    result = builder.fmul(total, builder.bitcast(bits, number))
    result = builder.select(builder.fcmp_ordered("<", x, bounded), constant(0.0), result)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)
