"""exp, tanh and their relatives, such that the compiler can vectorise the loops that call them.

For float32 on processors with fused multiply-add they are arithmetic only. The library's functions are called for every
number: tanh of numbers in the nearest cache takes 10 ns for each, this one 0.5 (Intel Xeon, AVX-512).

Where exp(x) - 1 and the like would lose digits, near zero, they are Taylor polynomials.

Functions without an underscore are those to call. Where nothing is compiled, they are what runs.
"""

import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic, overload

_LOWEST = -87.0  # below it exp is 0: it would have fewer digits than other numbers
# log(2) = _LOG_2_HIGH + _LOG_2_LOW. Products of the first one with integers are exact (Cody & Waite 1980).
_LOG_2_HIGH, _LOG_2_LOW = 0.693359375, math.log(2) - 0.693359375
_NEAR_ZERO = 0.25


def _has_fused_multiply_add() -> bool:
    features = llvm.get_host_cpu_features()
    return config.CPU_NAME in (None, "host") and bool(features.get("fma") or features.get("neon"))


_HAS_FUSED_MULTIPLY_ADD = _has_fused_multiply_add()


def in_float32(function: Callable[[float], float]) -> Callable[[Any], Any]:
    """Decorator for the arithmetic that replaces a function of `math` in kernels, for float32."""

    def decorate(arithmetic: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @overload(function)
        def choose(x):
            return arithmetic if x == types.float32 and _HAS_FUSED_MULTIPLY_ADD else function

        return arithmetic

    return decorate


def exp_of_negative(x):
    """exp(x) for x <= 0."""
    return math.exp(x)


def expm1_of_negative(x):
    """exp(x) - 1 for x <= 0."""
    return math.expm1(x)


def hyperbolic_tangent(x):
    return math.tanh(x)


def log1p_of_fraction(x):
    """log(1 + x) for 0 <= x <= 1."""
    return math.log1p(x)


@in_float32(exp_of_negative)
def _exp(x):
    return _exp_of_float32(x)


_EXPM1 = tuple(types.float32(1 / math.factorial(degree)) for degree in range(2, 8))
_TANH = tuple(types.float32(b) for b in (-1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925))
_ARTANH = tuple(types.float32(1 / degree) for degree in range(3, 16, 2))


@in_float32(expm1_of_negative)
def _expm1(x):
    a2, a3, a4, a5, a6, a7 = _EXPM1
    polynomial = a2 + x * (a3 + x * (a4 + x * (a5 + x * (a6 + x * a7))))
    return x + x * x * polynomial if x > -_NEAR_ZERO else exp_of_negative(x) - types.float32(1)


@in_float32(hyperbolic_tangent)
def _tanh(x):
    b1, b2, b3, b4, b5 = _TANH
    size, square, one = abs(x), x * x, types.float32(1)
    e = exp_of_negative(types.float32(-2) * size)
    far = (one - e) / (one + e)
    near = size + size * square * (b1 + square * (b2 + square * (b3 + square * (b4 + square * b5))))
    result = near if size < _NEAR_ZERO else far
    return -result if x < 0 else result


@in_float32(log1p_of_fraction)
def _log1p(x):
    """2 artanh(s) with s = x / (2 + x), at most 1/3, and the power series of artanh."""
    c3, c5, c7, c9, c11, c13, c15 = _ARTANH
    s = x / (types.float32(2) + x)
    z = s * s
    series = c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * (c13 + z * c15)))))
    return types.float32(2) * (s + s * z * series)


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
