"""Reverse-mode differentiation of numpy code: a plain function of arrays is traced, and recorded with its derivative.

The function is called once, with arrays that hold no numbers. Each of their operations records the numpy calls that
compute it on a `Step`. The derivative is recorded in the reverse order, by rules that are functions of such arrays
themselves; see `derivatives`.

The function sees one sample. Each array has one more axis, the last: the samples, or a single element for what is the
same for all samples, such as a parameter. numpy aligns shapes at the end, so operations broadcast as for one sample.
"""

import math
import os
import string
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallelcnn.errors import InputError, ShapeError

from .array_functions import FUNCTIONS
from .contraction import SAMPLES, Recording, broadcast, contiguous, quietly, record_product
from .derivatives import COMPARISONS, DERIVATIVES, LOGICAL, STEPS, Rule
from .reduction import without_repetitions
from .traced_array import Array, Shape, Traced

_LARGEST_EXPONENT = 16  # up to which powers are products; np.power takes 30 times as long as a product


class Trace:
    """One call of a function with traced arrays, recorded on a step.

    Args:
        step: where to record.

    Attributes:
        constants: the numbers and arrays of the function's own.
        multiply_adds: of the products of matrices, for the samples of the step.
    """

    def __init__(self, step: Recording) -> None:
        self.step = step
        self.constants: list[Array] = []
        self.multiply_adds = 0
        self._operations: list[tuple[Traced, tuple[Traced, ...], tuple[Rule, ...]]] = []
        self._is_backward = False

    def run(self, what: object, function: Callable[..., Any], x: Traced, arguments: dict[str, Any]) -> Traced:
        """Call function(x, **arguments), and record the calls that compute its result.

        Raises:
            InputError: if it does what is not possible. The message begins with `what` and names the user's line.
            ShapeError: if shapes do not fit together, or the result is no array.
        """
        try:
            result = function(x, **arguments)
            if isinstance(result, tuple | list):
                raise InputError(f"the result must be one array, got a {type(result).__name__}")
            y = self.as_numbers(self.as_traced(result))
        except Exception as error:
            reason = f"{error}" if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            kind = ShapeError if isinstance(error, ShapeError) else InputError
            raise kind(f"{what}: {_place(error)}{reason}") from error
        if y.ndim == 0 or y.size == 0:
            raise ShapeError(f"{what}: the result must be an array, with at least one axis, got shape {y.shape}")
        return y

    def backward(self, y: Traced, dy: Array, variables: Sequence[Traced]) -> list[Array | None]:
        """Record the derivative; returns the gradient of each variable, which may be a view. None: it is zero.

        Args:
            y: the result of `run`.
            dy: the gradient with respect to it, (*shape, n). It is not overwritten.
        """
        self._is_backward = True
        self._add_gradient(y, Traced(self, dy))
        for result, arguments, rules in reversed(self._operations):
            if result.gradient is not None:
                for argument, rule in zip(arguments, rules, strict=True):
                    if argument.needs_gradient:
                        self._add_gradient(argument, rule(result.gradient, result, *arguments))
        return [None if one.gradient is None else one.gradient.array for one in variables]

    def _add_gradient(self, variable: Traced, part: Traced) -> None:
        part = part.summed_as(variable)
        variable.gradient = part if variable.gradient is None else variable.gradient + part

    def record(self, array: Array, arguments: tuple[Traced, ...], *rules: Rule) -> Traced:
        """The result of an operation, with a rule for each argument; none: its slope is 0. See `derivatives`."""
        needs_gradient = any(one.needs_gradient for one in arguments) and bool(rules) and not self._is_backward
        y = Traced(self, array, needs_gradient)
        if needs_gradient:
            self._operations.append((y, arguments, rules))
        return y

    def call(self, function: Any, arguments: Any, named: Any) -> Any:
        """Call one of numpy's functions of whole arrays; see `array_functions`."""
        if function not in FUNCTIONS:
            raise _without_rule(function)
        return FUNCTIONS[function](*arguments, **named)

    def apply(self, ufunc: Any, method: str, operands: Sequence[Any], named: dict[str, Any]) -> Traced:
        """Call one of numpy's functions of elements; see `derivatives`."""
        if "out" in named:
            raise InputError("x += y and out=x are not possible: write x = x + y, which makes a new array")
        if method != "__call__" or named:
            raise InputError(f"np.{ufunc.__name__} is possible without options only, as np.{ufunc.__name__}(x, ...)")
        arguments = tuple(map(self.as_traced, operands))
        if ufunc in LOGICAL:
            if any(one.dtype != bool for one in arguments):
                raise InputError(f"np.{LOGICAL[ufunc].__name__} takes conditions, such as x > 0")
            return self.record(self.elementwise(LOGICAL[ufunc], arguments, bool), arguments)
        if ufunc in (np.add, np.subtract, np.negative) and all(one.dtype == bool for one in arguments):
            raise InputError(
                "+ and - take no conditions only, whose sum would be a condition: write a | b, a ^ b or ~a"
            )
        arguments = tuple(map(self.as_numbers, arguments))
        if ufunc is np.matmul:
            return self.matmul(*arguments)
        if ufunc is np.power and arguments[1].is_constant and arguments[1].ndim == 0:
            return self.power(arguments[0], float(operands[1]))
        if ufunc in COMPARISONS:
            return self.record(self.elementwise(ufunc, arguments, bool), arguments)
        if ufunc not in DERIVATIVES and ufunc not in STEPS:
            raise _without_rule(ufunc)
        return self.record(self.elementwise(ufunc, arguments, self.step.dtype), arguments, *DERIVATIVES.get(ufunc, ()))

    def power(self, a: Traced, exponent: float) -> Traced:
        """a ** exponent"""
        if exponent in (0, 1):
            return a if exponent else self.as_traced(np.ones(a.shape))
        if exponent in (0.5, -1):
            ufunc: Any = np.sqrt if exponent == 0.5 else np.reciprocal
            return ufunc(a)
        if exponent in range(2, _LARGEST_EXPONENT + 1):
            base: Any = Traced(self, a.array)
            half: Any = self.power(base, exponent // 2)
            array = (half * half if exponent % 2 == 0 else half * half * base).array
        else:
            array = self.elementwise(np.power, (a, self.as_traced(exponent)), self.step.dtype)
        return self.record(array, (a,), lambda g, y, a: g * (exponent * a ** (exponent - 1)))

    def matmul(self, a: Traced, b: Traced) -> Traced:
        """a @ b"""
        if a.ndim == 0 or b.ndim == 0:
            raise ShapeError(f"@ takes arrays with at least one axis, got shapes {a.shape} and {b.shape}")
        batch = string.ascii_uppercase[: max(a.ndim - 2, b.ndim - 2, 0)]
        left = batch[len(batch) - (a.ndim - 2) :] + "ij" if a.ndim > 1 else "j"
        right = batch[len(batch) - (b.ndim - 2) :] + "jk" if b.ndim > 1 else "j"
        result = batch + ("i" if a.ndim > 1 else "") + ("k" if b.ndim > 1 else "")
        for label in batch:  # an axis of length 1 is broadcast
            if label in left and label in right:
                i, j = left.index(label), right.index(label)
                if a.shape[i] == 1 != b.shape[j]:
                    a, left = a.squeeze(i), left.replace(label, "")
                elif b.shape[j] == 1 != a.shape[i]:
                    b, right = b.squeeze(j), right.replace(label, "")
        return self.product(a, left, b, right, result)

    def product(self, a: Traced, left: str, b: Traced, right: str, result: str) -> Traced:
        """np.einsum("LEFT,RIGHT->RESULT", a, b). Each label is in two of the three."""
        a, b = self.as_numbers(a), self.as_numbers(b)
        sizes: dict[str, int] = {}
        for label, size in zip(left + right, a.shape + b.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise ShapeError(f"shapes {a.shape} and {b.shape} do not fit together in a product of matrices")
        left, right = _with_samples(left, a), _with_samples(right, b)
        result += SAMPLES if SAMPLES in left + right else ""
        self.multiply_adds += math.prod(sizes.values()) * max(a.array.shape[-1], b.array.shape[-1])

        def recorded(a: Traced, of_a: str, b: Traced, of_b: str, labels: str) -> Array:
            factors = [one.array if SAMPLES in of_one else one.array[..., 0] for one, of_one in ((a, of_a), (b, of_b))]
            y = record_product(self.step, factors[0], of_a, factors[1], of_b, labels)
            return y if SAMPLES in labels else y[..., np.newaxis]

        return self.record(
            recorded(a, left, b, right, result),
            (a, b),
            lambda g, y, a, b: Traced(self, recorded(g, result, b, right, left)),
            lambda g, y, a, b: Traced(self, recorded(a, left, g, result, right)),
        )

    def elementwise(self, ufunc: Any, arguments: Sequence[Traced], dtype: Any) -> Array:
        """Record a call of a function of elements. What is the same along an axis is computed once.

        All arrays of the call are contiguous: numpy would allocate buffers for others.
        """
        self.check_broadcasting(arguments)
        arrays = [without_repetitions(one.array) for one in arguments]
        shape = np.broadcast_shapes(*(one.shape for one in arrays))
        y = self.step.scratch(shape, dtype)
        free = [y] if y.dtype == self.step.dtype else []
        for i, array in enumerate(arrays):
            if array.size == 1:
                arrays[i] = array.reshape(())
            elif array.shape != shape or not array.flags.c_contiguous:
                arrays[i] = free.pop() if free else self.step.scratch(shape, array.dtype)
                self.step.call(np.copyto, arrays[i], array)
        self.step.call(quietly, ufunc, *arrays, out=y)
        return broadcast(y, np.broadcast_shapes(*(one.array.shape for one in arguments)))

    def check_broadcasting(self, arguments: Sequence[Traced]) -> None:
        """Raise ShapeError unless the arrays can be broadcast to one shape."""
        shapes = [one.shape for one in arguments]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise ShapeError(f"shapes {' and '.join(map(str, shapes))} of one sample do not fit together") from None

    def placed(self, shape: Shape, parts: Sequence[tuple[Any, Traced]]) -> Traced:
        """An array of this shape, with its axis of samples, that holds parts at some places and zeros elsewhere."""
        y = self.step.scratch(shape)
        if sum(y[places].size for places, _ in parts) < y.size:
            self.step.call(np.copyto, y, 0.0)
        for places, part in parts:
            self.step.call(np.copyto, y[places], part.array)
        return Traced(self, y)

    def contiguous(self, array: Array) -> Array:
        """The array, or a recorded copy, if it is not contiguous."""
        return contiguous(self.step, array)

    def as_traced(self, value: Any) -> Traced:
        """The value, or a number or an array of the function's own as a traced array."""
        if isinstance(value, Traced):
            if value.trace is not self:
                raise InputError("an array of an earlier call of the function cannot be used")
            return value
        array = np.asarray(float(value) if type(value) is int else value)
        if array.dtype.kind not in "biuf":
            raise InputError(f"an array must hold real numbers, got {array.dtype} from {type(value).__name__}")
        self.constants.append(array)
        with np.errstate(over="ignore"):
            numbers = array if array.dtype == bool else array.astype(self.step.dtype)
        return Traced(self, numbers[..., np.newaxis], is_constant=True)

    def as_numbers(self, a: Traced) -> Traced:
        """A condition as numbers, 1 for true and 0 for false; anything else as it is."""
        if a.dtype != bool:
            return a
        y = self.step.scratch(a.array.shape)
        self.step.call(np.copyto, y, a.array)
        return Traced(self, y, is_constant=a.is_constant)


class Rehearsal:
    """A step for one sample that records nothing, to find out the shapes of a function."""

    n, dtype = 1, np.dtype(np.float64)

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        return

    def scratch(self, shape: Shape, dtype: Any = None) -> Array:
        return np.empty(shape, self.dtype if dtype is None else dtype)


def _with_samples(labels: str, factor: Traced) -> str:
    return labels if factor.array.shape[-1] == 1 else labels + SAMPLES


def _without_rule(function: Any) -> InputError:
    module = (getattr(function, "__module__", None) or "numpy").replace("numpy", "np", 1)
    name = f"{module}.{function.__name__}"
    return InputError(f"{name} cannot be differentiated here: see `parallelcnn guide differentiation`")


def _place(error: Exception) -> str:
    """The line of the user's code that raised the error, for messages."""
    ours = (os.path.dirname(os.path.dirname(__file__)), os.path.dirname(np.__file__), "<__array_function__")
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
    if not frames:
        return ""
    return f"line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)}, `{frames[-1].line}`: "
