"""Derivatives of scalar functions by dual numbers, and the check of a function before it is used.

The check calls the function in Python: it takes 1 to 40 ms and compiles nothing. The loops are compiled when they first
run, in 0.1 to 0.4 s for the forward and 0.2 to 0.5 s for the backward pass (Zen 4, one core); the rules of an operation
are compiled once in a process.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.errors import InputError
from parallelcnn.kernels._dual import Dual as Dual
from parallelcnn.kernels._dual import NotDifferentiable, slope, value, variable
from parallelcnn.kernels._rebinding import for_python

Function = Callable[[float], float]

# From the smallest size on, so that the error names the smallest x. Kinks are usually at round numbers, which are left
# out, except for 0, where nothing but finiteness is checked.
_SIZES = np.geomspace(1e-3, 1e3, 50)
_GRID = (0.0, *(sign * size for size in _SIZES for sign in (1, -1)))
_STEP = 6e-6  # of a difference, relative to x: the cube root of float64's resolution
_LARGEST = float(np.finfo(np.float32).max)
_RTOL, _ATOL = 1e-4, 1e-6


class _Point(NamedTuple):
    """A function at x: its value, its slope by dual numbers (None: unknown), and differences to the left and right."""

    x: float
    value: float
    slope: float | None
    left: float
    right: float


def check_derivative(what: str, function: Function, derivative: Function | None, of_output: bool = False) -> None:
    """Check that a function and its derivative are finite and agree, for x from -1000 to 1000.

    The derivative is compared with differences of the function, and with dual numbers. At a kink, any number between
    the slopes on both sides is accepted. A function that Python cannot call is not checked: numba compiles it or not.

    Args:
        what: the beginning of error messages.
        function: x -> f(x).
        derivative: x -> f'(x), or y -> f'(x) if `of_output`; None: by dual numbers.

    Raises:
        InputError: if it fails; the message names x. Or if the function calls one that has no rule, such as int(x) or
            math.gamma(x), and there is no derivative.
    """
    try:
        points = _points(_by_dual(function))
    except NotDifferentiable as error:
        if derivative is None:
            raise InputError(
                f"{what}: {error} cannot be differentiated: write the function without it, or give a derivative, "
                f"ActivationFunction(name, function, derivative)"
            ) from None
        points = _points(_by_value(function))
    for point in points:
        _require_finite(what, "it", point.x, point.value)
        if derivative is None and point.slope is not None:
            _require_derivative(what, point, point.slope)
    if derivative is not None:
        arguments = [point.value if of_output else point.x for point in points]
        try:
            given = _points(_by_dual(derivative), arguments)
        except NotDifferentiable:
            given = _points(_by_value(derivative), arguments)
        for point, found in zip(points, given, strict=False):  # there may be none
            _require_derivative(what, point, found.value)


def check_monotonic(what: str, function: Function) -> None:
    """Raise InputError if the function decreases anywhere on the grid, by more than rounding."""
    points = sorted((point.x, point.value) for point in _points(_by_value(function)))
    for (_, before), (x, now) in pairwise(points):
        if now < before - _ATOL - 1e-9 * abs(before):
            raise InputError(f"{what}: monotonic=True, but it decreases to {now:.6g} at x = {x:.6g}")


def require_rules(what: str, function: Callable[..., Any], x: float, *others: float) -> None:
    """Raise InputError if the function, called with a variable x and constants, calls one that has no rule."""
    try:
        with np.errstate(all="ignore"):
            for_python(function)(variable(x), *others)
    except NotDifferentiable as error:
        raise InputError(f"{what}: {error} cannot be differentiated: write the function without it") from None
    except Exception:  # numba will say what is wrong with it
        return


# Lines of numba's errors that begin so do not say what is wrong.
_NO_REASON = ("Failed in", "During", "File", "resolving", "-", "\x1b", "No conversion", "Traceback")


def compile_reason(error: Exception) -> str:
    """The line of an error of numba's that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(_NO_REASON)), type(error).__name__)


Evaluation = Callable[[float], tuple[float, float | None]]


def _by_dual(function: Function) -> Evaluation:
    """x -> value and slope. Infinity or NaN instead of exceptions, as in compiled code."""
    in_python = for_python(function)

    def evaluate(x: float) -> tuple[float, float | None]:
        y: Any = in_python(variable(x))
        return float(value(y)), float(slope(y))

    return evaluate


def _by_value(function: Function) -> Evaluation:
    """As `_by_dual`, for functions without a rule, whose slopes are not known."""
    return lambda x: (float(function(np.float64(x))), None)


def _points(evaluate: Evaluation, grid: Sequence[float] = _GRID) -> list[_Point]:
    """The function at each x; no points if Python cannot call it."""
    points = []
    with np.errstate(all="ignore"):
        for x in grid:
            h = max(abs(x), 1e-3) * _STEP
            try:
                (value, by_dual), (below, _), (above, _) = (evaluate(x + step) for step in (0, -h, h))
            except NotDifferentiable:
                raise
            except Exception:  # numba will say what is wrong with it
                return []
            points.append(_Point(x, value, by_dual, (value - below) / h, (above - value) / h))
    return points


def _require_finite(what: str, which: str, x: float, number: float) -> None:
    if not abs(number) <= _LARGEST:
        raise InputError(
            f"{what}: {which} must be finite for x from -1000 to 1000, also as float32, and is {number:.6g} at "
            f"x = {x:.6g}: write it such that nothing overflows or divides by 0, for example with exp(-abs(x))"
        )


def _require_derivative(what: str, point: _Point, found: float) -> None:
    """Raise InputError unless the derivative is finite, between the two differences, and equal to the dual number if
    that is finite. At 0, where many functions have a kink or a step, the derivative only needs to be finite.
    """
    _require_finite(what, "its derivative", point.x, found)
    if point.x == 0:
        return
    low, high = min(point.left, point.right), max(point.left, point.right)
    rounding = _ATOL + _RTOL * abs(found) + 1e-15 * abs(point.value) / (abs(point.x) * _STEP)
    if not low - rounding <= found <= high + rounding:
        raise InputError(
            f"{what}: its derivative must be the slope of the function: at x = {point.x:.6g} it is {found:.6g}, but "
            f"differences give {(low + high) / 2:.6g}"
        )
    if point.slope is not None and abs(found - point.slope) > rounding:
        raise InputError(
            f"{what}: its derivative must be the slope of the function: at x = {point.x:.6g} it is {found:.6g}, but "
            f"the dual number gives {point.slope:.6g}"
        )
