"""The derivatives of numpy's element-wise functions, for `tracing`.

Each rule takes the gradient g of the result y, y, and the function's arguments, and returns the gradient of one
argument. Rules are written as users write functions: with numpy, for traced arrays, which broadcast.

Conventions: as in `kernels._dual`. |x| and maximum(x, 0) have slope 0 at 0; where a variable equals a constant, maximum
and minimum take the constant's slope, 0; of two equal variables the first. sign, floor and round have slope 0.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Rule = Callable[..., Any]


def _growth(g: Any, e: Any) -> Any:
    """g * e, where e = exp(x) may be infinite: 1 / (1 + exp(-x)) would have the gradient 0 * infinity."""
    return g * np.minimum(e, np.finfo(e.dtype).max)


def _power_of_base(g: Any, y: Any, a: Any, b: Any) -> Any:
    return g * np.where(b == 0, 0, b * np.power(a, b - 1))


def _power_of_exponent(g: Any, y: Any, a: Any, b: Any) -> Any:
    return g * y * np.log(np.where(a == 0, 1, a))


# One rule for each argument.
DERIVATIVES: dict[Any, tuple[Rule, ...]] = {
    np.positive: (lambda g, y, a: g,),
    np.negative: (lambda g, y, a: -g,),
    np.absolute: (lambda g, y, a: g * np.sign(a),),
    np.fabs: (lambda g, y, a: g * np.sign(a),),
    np.reciprocal: (lambda g, y, a: -g * np.square(y),),
    np.square: (lambda g, y, a: g * 2 * a,),
    np.sqrt: (lambda g, y, a: g / 2 / y,),
    np.exp: (lambda g, y, a: _growth(g, y),),
    np.expm1: (lambda g, y, a: _growth(g, y + 1),),
    np.log: (lambda g, y, a: g / a,),
    np.log1p: (lambda g, y, a: g / (1 + a),),
    np.log2: (lambda g, y, a: g / math.log(2) / a,),
    np.log10: (lambda g, y, a: g / math.log(10) / a,),
    np.tanh: (lambda g, y, a: g * (1 - np.square(y)),),
    np.sinh: (lambda g, y, a: g * np.cosh(a),),
    np.cosh: (lambda g, y, a: g * np.sinh(a),),
    np.sin: (lambda g, y, a: g * np.cos(a),),
    np.cos: (lambda g, y, a: -g * np.sin(a),),
    np.arctan: (lambda g, y, a: g / (1 + np.square(a)),),
    np.arcsinh: (lambda g, y, a: g / np.sqrt(1 + np.square(a)),),
    np.add: (lambda g, y, a, b: g, lambda g, y, a, b: g),
    np.subtract: (lambda g, y, a, b: g, lambda g, y, a, b: -g.summed_as(b)),
    np.multiply: (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
    # Sums over the axes along which b is broadcast come first: they make the arrays smaller.
    np.divide: (lambda g, y, a, b: g / b, lambda g, y, a, b: -(g * y).summed_as(b) / b),
    np.power: (_power_of_base, _power_of_exponent),
    np.remainder: (lambda g, y, a, b: g, lambda g, y, a, b: -g * np.floor(a / b)),
    np.logaddexp: (lambda g, y, a, b: g * np.exp(a - y), lambda g, y, a, b: g * np.exp(b - y)),
    np.maximum: (
        lambda g, y, a, b: np.where(a > b if b.is_constant else a >= b, g, 0),
        lambda g, y, a, b: np.where(b > a, g, 0),
    ),
    np.minimum: (
        lambda g, y, a, b: np.where(a < b if b.is_constant else a <= b, g, 0),
        lambda g, y, a, b: np.where(b < a, g, 0),
    ),
}

# Functions with slope 0.
STEPS: set[Any] = {np.sign, np.floor, np.ceil, np.trunc, np.rint, np.floor_divide}

# Functions whose result is true or false: of numbers, and of conditions.
COMPARISONS: set[Any] = {
    *(np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal),
    *(np.isnan, np.isinf, np.isfinite),
}
LOGICAL: dict[Any, Any] = {
    **{one: one for one in (np.logical_and, np.logical_or, np.logical_xor, np.logical_not)},
    np.bitwise_and: np.logical_and,
    np.bitwise_or: np.logical_or,
    np.bitwise_xor: np.logical_xor,
    np.invert: np.logical_not,
}
