"""Dual numbers: a value and its slope, the derivative with respect to one variable.

A function that is called with `variable(x)` returns f(x) and f'(x), whatever operations, branches and loops it contains
("forward mode": Griewank & Walther 2008, Evaluating Derivatives, section 3.1). Numba compiles the rules below for the
type of `_dual_type.py`. Without numba (NUMBA_DISABLE_JIT) they run on the Python class.

Conventions: |x| and max(x, 0) have slope 0 at 0. Where a variable equals a constant, max and min take the constant's
slope, 0; of two equal variables the first. floor, round and sign have slope 0.
"""

import math
import operator
from typing import Any

import numpy as np

_TWO_OVER_SQRT_PI = 2 / math.sqrt(math.pi)
_LOG_2, _LOG_10 = math.log(2), math.log(10)
_LARGE = 1e300


class NotDifferentiable(TypeError):
    """A function without a rule was called with a dual number. Its argument is the call, such as int(x)."""


class Dual:
    """A dual number in Python; the operators are defined at the end of this file."""

    __slots__ = ("slope", "value")
    __array_ufunc__ = None  # so that a numpy number on the left leaves the operation to this class

    def __init__(self, value, slope):
        # numpy's numbers overflow, and divide by 0, as compiled ones do.
        self.value, self.slope = np.float64(value), np.float64(slope)

    def __bool__(self):
        raise NotDifferentiable("bool(x)")

    def __abs__(self):
        return _abs(self)


def variable(x):
    """The dual number of the variable itself."""
    return Dual(x, 1.0)


def value(y):
    """The value of a function's result; see `slope`."""
    return y.value if isinstance(y, Dual) else y


def slope(y):
    """The slope of a function's result, which is a plain number if the function is constant."""
    return y.slope if isinstance(y, Dual) else 0.0


# The rules. They call numpy's functions, which return infinity or NaN where those of `math` would raise without numba.


def _exp(a):
    e = np.exp(a.value)
    return Dual(e, min(e, _LARGE) * a.slope)  # not infinite: 1 / (1 + exp(-x)) would have the slope 0 * infinity


def _expm1(a):
    return Dual(np.expm1(a.value), min(np.exp(a.value), _LARGE) * a.slope)


def _tanh(a):
    t = np.tanh(a.value)
    return Dual(t, (1 - t * t) * a.slope)


def _sqrt(a):
    root = np.sqrt(a.value)
    return Dual(root, 0.5 * a.slope / root)


def _abs(a):
    return Dual(abs(a.value), a.slope if a.value > 0 else -a.slope if a.value < 0 else 0.0)


def _erf(a):
    return Dual(math.erf(a.value), _TWO_OVER_SQRT_PI * np.exp(-a.value * a.value) * a.slope)


def _erfc(a):
    return Dual(math.erfc(a.value), -_TWO_OVER_SQRT_PI * np.exp(-a.value * a.value) * a.slope)


UNARY: dict[Any, Any] = {
    (operator.neg,): lambda a: Dual(-a.value, -a.slope),
    (operator.pos, float): lambda a: a,
    (abs, math.fabs, np.abs, np.fabs): _abs,
    (math.exp, np.exp): _exp,
    (math.expm1, np.expm1): _expm1,
    (math.log, np.log): lambda a: Dual(np.log(a.value), a.slope / a.value),
    (math.log1p, np.log1p): lambda a: Dual(np.log1p(a.value), a.slope / (1 + a.value)),
    (math.log2, np.log2): lambda a: Dual(np.log2(a.value), a.slope / (a.value * _LOG_2)),
    (math.log10, np.log10): lambda a: Dual(np.log10(a.value), a.slope / (a.value * _LOG_10)),
    (math.sqrt, np.sqrt): _sqrt,
    (np.square,): lambda a: Dual(a.value * a.value, 2 * a.value * a.slope),
    (math.tanh, np.tanh): _tanh,
    (math.sinh, np.sinh): lambda a: Dual(np.sinh(a.value), np.cosh(a.value) * a.slope),
    (math.cosh, np.cosh): lambda a: Dual(np.cosh(a.value), np.sinh(a.value) * a.slope),
    (math.sin, np.sin): lambda a: Dual(np.sin(a.value), np.cos(a.value) * a.slope),
    (math.cos, np.cos): lambda a: Dual(np.cos(a.value), -np.sin(a.value) * a.slope),
    (math.atan, np.arctan): lambda a: Dual(np.arctan(a.value), a.slope / (1 + a.value * a.value)),
    (math.asinh, np.arcsinh): lambda a: Dual(np.arcsinh(a.value), a.slope / np.sqrt(1 + a.value * a.value)),
    (math.erf,): _erf,
    (math.erfc,): _erfc,
    (math.floor, np.floor): lambda a: Dual(np.floor(a.value), 0.0),
    (math.ceil, np.ceil): lambda a: Dual(np.ceil(a.value), 0.0),
    (math.trunc, np.trunc): lambda a: Dual(np.trunc(a.value), 0.0),
    (round, np.rint): lambda a: Dual(np.rint(a.value), 0.0),
    (np.sign,): lambda a: Dual(np.sign(a.value), 0.0),
    (math.isnan, np.isnan): lambda a: np.isnan(a.value),
    (math.isinf, np.isinf): lambda a: np.isinf(a.value),
    (math.isfinite, np.isfinite): lambda a: np.isfinite(a.value),
}


def _divide(a, b):
    quotient = a.value / b.value
    return Dual(quotient, (a.slope - quotient * b.slope) / b.value)


def _divide_plain(a, b):
    quotient = a / b.value
    return Dual(quotient, -quotient * b.slope / b.value)


def _power(a, b):
    power = a.value**b.value
    return Dual(power, b.value * a.value ** (b.value - 1) * a.slope + power * np.log(a.value) * b.slope)


def _power_of_dual(a, b):
    return Dual(a.value**b, b * a.value ** (b - 1) * a.slope if b != 0 else 0.0)


def _power_of_plain(a, b):
    power = a**b.value
    return Dual(power, power * np.log(a) * b.slope if power != 0 else 0.0)


def _modulo(a, b):
    return Dual(a.value % b.value, a.slope - np.floor(a.value / b.value) * b.slope)


# For two dual numbers; for a plain number on the right; for a plain number on the left.
BINARY: dict[Any, Any] = {
    (operator.add, operator.iadd): (
        lambda a, b: Dual(a.value + b.value, a.slope + b.slope),
        lambda a, b: Dual(a.value + b, a.slope),
        lambda a, b: Dual(a + b.value, b.slope),
    ),
    (operator.sub, operator.isub): (
        lambda a, b: Dual(a.value - b.value, a.slope - b.slope),
        lambda a, b: Dual(a.value - b, a.slope),
        lambda a, b: Dual(a - b.value, -b.slope),
    ),
    (operator.mul, operator.imul): (
        lambda a, b: Dual(a.value * b.value, a.slope * b.value + a.value * b.slope),
        lambda a, b: Dual(a.value * b, a.slope * b),
        lambda a, b: Dual(a * b.value, a * b.slope),
    ),
    (operator.truediv, operator.itruediv): (_divide, lambda a, b: Dual(a.value / b, a.slope / b), _divide_plain),
    (operator.pow, operator.ipow, pow, math.pow, np.power): (_power, _power_of_dual, _power_of_plain),
    (operator.floordiv, operator.ifloordiv): (
        lambda a, b: Dual(a.value // b.value, 0.0),
        lambda a, b: Dual(a.value // b, 0.0),
        lambda a, b: Dual(a // b.value, 0.0),
    ),
    (operator.mod, operator.imod): (
        _modulo,
        lambda a, b: Dual(a.value % b, a.slope),
        lambda a, b: Dual(a % b.value, -np.floor(a / b.value) * b.slope),
    ),
    (max, np.maximum, np.fmax): (
        lambda a, b: b if b.value > a.value else a,
        lambda a, b: Dual(b, 0.0) if b >= a.value else a,
        lambda a, b: b if b.value > a else Dual(a, 0.0),
    ),
    (min, np.minimum, np.fmin): (
        lambda a, b: b if b.value < a.value else a,
        lambda a, b: Dual(b, 0.0) if b <= a.value else a,
        lambda a, b: b if b.value < a else Dual(a, 0.0),
    ),
    (operator.lt,): (lambda a, b: a.value < b.value, lambda a, b: a.value < b, lambda a, b: a < b.value),
    (operator.le,): (lambda a, b: a.value <= b.value, lambda a, b: a.value <= b, lambda a, b: a <= b.value),
    (operator.gt,): (lambda a, b: a.value > b.value, lambda a, b: a.value > b, lambda a, b: a > b.value),
    (operator.ge,): (lambda a, b: a.value >= b.value, lambda a, b: a.value >= b, lambda a, b: a >= b.value),
    (operator.eq,): (lambda a, b: a.value == b.value, lambda a, b: a.value == b, lambda a, b: a == b.value),
    (operator.ne,): (lambda a, b: a.value != b.value, lambda a, b: a.value != b, lambda a, b: a != b.value),
}

# For Python: the function that takes the place of each function above, for plain and dual numbers.
IN_PYTHON: dict[Any, Any] = {}


def _define(function, rules):
    """`rules`: for each combination of dual numbers among the arguments."""

    def in_python(*arguments):
        duals = tuple(isinstance(one, Dual) for one in arguments)
        if not any(duals):
            return function(*arguments)
        if duals not in rules:
            raise NotDifferentiable(f"{function.__name__} with {len(arguments)} arguments")
        return rules[duals](*arguments)

    IN_PYTHON[function] = in_python


for _functions, _rule in UNARY.items():
    for _function in _functions:
        _define(_function, {(True,): _rule})
for _functions, _rules in BINARY.items():
    for _function in _functions:
        _define(_function, dict(zip(((True, True), (True, False), (False, True)), _rules, strict=True)))

for _name in ("neg", "pos", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Dual, f"__{_name}__", IN_PYTHON[getattr(operator, _name)])
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _operator = IN_PYTHON[getattr(operator, _name)]
    setattr(Dual, f"__{_name}__", _operator)
    setattr(Dual, f"__r{_name}__", lambda b, a, operator=_operator: operator(a, b))
