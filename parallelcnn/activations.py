"""Activation functions: the built-in ones by name, and a class for your own."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import FunctionType
from typing import Any, Protocol

import numpy as np
from numba.core.errors import NumbaError

from parallelcnn.autodiff.dual import check_derivative, check_monotonic, compile_reason
from parallelcnn.errors import InputError, nearest_name
from parallelcnn.kernels import _activation_functions as functions
from parallelcnn.kernels import activations as kernels
from parallelcnn.kernels._dual import NotDifferentiable
from parallelcnn.kernels.adding import channel_sums
from parallelcnn.kernels.copying import copy

Array = np.ndarray


class Recording(Protocol):
    """The part of a `Step` that an activation uses."""

    @property
    def training(self) -> bool: ...

    def array(self, shape: tuple[int, ...]) -> Array: ...

    def call(self, function: Callable[..., Any], *arguments: Any) -> None: ...


@dataclass(frozen=True)
class ActivationFunction:
    """An activation function: a function applied element by element, its derivative, and its properties.

    When a network is built, the derivative is compared with differences of the function; see `autodiff.dual`.

    Args:
        name: the name that layers print.
        function: x -> f(x) for one number, in Python that numba can compile (`math` and `numpy` functions).
        derivative: x -> f'(x), likewise; or y -> f'(x) with y = f(x) if `derivative_of_output`. None: the compiled loop
            differentiates the function with dual numbers.
        derivative_of_output: whether the derivative is a function of the output; then x is not kept.
        relu_like: whether to use He initialisation of the weights (Glorot otherwise).
        monotonic: whether f never decreases; then it may be applied after max-pooling instead of before.

    Raises:
        InputError: if a function is not callable or not hashable, or `derivative_of_output` is given without a
            derivative; when a network is built, if function and derivative are not finite or do not agree.

    Example:
        >>> bent = ActivationFunction("bent", lambda x: x + abs(x) / 2, monotonic=True)
        >>> layer = Dense(84, activation=bent)
    """

    name: str
    function: Callable[[float], float]
    derivative: Callable[[float], float] | None = None
    derivative_of_output: bool = False
    relu_like: bool = False
    monotonic: bool = False

    def __post_init__(self) -> None:
        if self.derivative is None and self.derivative_of_output:
            raise InputError(f"activation {self.name!r}: derivative_of_output=True needs a derivative, got None")
        for part in ("function",) if self.derivative is None else ("function", "derivative"):
            if not callable(getattr(self, part)):
                raise InputError(f"activation {self.name!r}: {part} must be a function, got {getattr(self, part)!r}")
            try:
                hash(getattr(self, part))
            except TypeError:
                raise InputError(
                    f"activation {self.name!r}: {part} must be hashable, and {getattr(self, part)!r} is not: write a "
                    f"function (a dataclass is hashable with frozen=True)"
                ) from None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def record_forward(self, step: Recording, y: Array) -> Array:
        """Record y = f(y), in place; returns the array that `record_backward` needs: x if it is kept, otherwise y."""
        kept = y
        if step.training and self.keeps_input:
            kept = step.array(y.shape[:-1])
            step.call(copy, y.reshape(y.size), kept.reshape(y.size))
        step.call(self.kernels()[0], y.reshape(y.size))
        return kept

    def record_backward(self, step: Recording, kept: Array, dy: Array, dbias: Array | None = None) -> None:
        """Record dy *= f', in place, and then dbias[k] = the sum of dy[k]: the gradient of a bias of each channel.

        Args:
            kept: the output, or the input if `keeps_input`.
            dy: (K, ...), contiguous.
            dbias: (K,), or None.
        """
        if dbias is None:
            step.call(self.kernels()[1], kept.reshape(kept.size), dy.reshape(dy.size))
        elif self._is_built_in():
            kernel = kernels.backward_sums_kernel(self.function, self.derivative)
            step.call(kernel, _by_channel(kept), _by_channel(dy), dbias)
        else:
            self.record_backward(step, kept, dy)
            IDENTITY.record_backward(step, kept, dy, dbias)

    @property
    def keeps_input(self) -> bool:
        """Whether `backward` needs the input x, rather than the output y."""
        return not self.derivative_of_output

    def fused(self) -> "tuple[ActivationFunction, ActivationFunction]":
        """Two functions: one for the loops of another kernel, and one for a pass of its own after that kernel.

        One of them is this activation, the other the identity. Another kernel can apply an activation whose function
        and derivative are compiled with the kernels, and whose derivative needs the output alone.
        """
        in_loops = self.derivative_of_output and _is_in_kernels(self.function) and _is_in_kernels(self.derivative)
        return (self, IDENTITY) if in_loops else (IDENTITY, self)

    def kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Two functions of flat arrays: (y) sets y = f(y); (x or y, dy) multiplies dy by the derivative."""
        if self._is_built_in():
            return kernels.builtin_kernels(self.function, self.derivative)
        return partial(self._run, 0), partial(self._run, 1)

    def _is_built_in(self) -> bool:
        return all(part is None or _is_in_kernels(part) for part in (self.function, self.derivative))

    def check(self) -> None:
        """Raise InputError unless function and derivative are finite and agree; see `check_derivative`."""
        if ACTIVATIONS.get(self.name) != self:
            _check(self)

    def _run(self, direction: int, *arrays: Array) -> None:
        """Apply a user's function or derivative."""
        parts = [None if part is None else _plain(part) for part in (self.function, self.derivative)]
        which = "derivative" if direction == 1 and self.derivative is not None else "function"
        try:
            kernels.user_kernels(*parts)[direction](*arrays)
        except (NumbaError, NotDifferentiable) as error:
            reason = compile_reason(error)
            names = getattr(getattr(getattr(self, which), "__code__", None), "co_names", ())
            if "where" in names:
                reason = "np.where makes an array: write `a if condition else b`, x is one number"
            raise InputError(f"activation {self.name!r}: numba cannot compile its {which}: {reason}") from error


def _is_in_kernels(function: Callable[[float], float] | None) -> bool:
    return getattr(function, "__module__", None) == functions.__name__


@cache
def _check(activation: ActivationFunction) -> None:
    what, derivative = f"activation {activation.name!r}", activation.derivative
    check_derivative(what, activation.function, derivative, activation.derivative_of_output)
    if activation.monotonic:
        check_monotonic(what, activation.function)


@cache
def _plain(function: Callable[[float], float]) -> Callable[[float], float]:
    """An equivalent plain Python function: numba does not take compiled or built-in ones, such as math.tanh, here."""
    function = getattr(function, "py_func", function)
    return function if isinstance(function, FunctionType) else lambda x: function(x)


def _by_channel(array: Array) -> Array:
    """View (K, ..., n) as (K, numbers of a channel). The size is explicit: numpy cannot infer -1 if n = 0."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


class _Identity(ActivationFunction):
    """f(x) = x. Records no calls for it and keeps no arrays."""

    def record_forward(self, step: Recording, y: Array) -> Array:
        return y

    def record_backward(self, step: Recording, kept: Array, dy: Array, dbias: Array | None = None) -> None:
        if dbias is not None:
            step.call(channel_sums, _by_channel(dy), dbias)


IDENTITY = _Identity("identity", functions.identity, functions.identity_derivative_of_output, derivative_of_output=True)
ACTIVATIONS: dict[str, ActivationFunction] = {
    "identity": IDENTITY,
    "relu": ActivationFunction(
        "relu",
        functions.relu,
        functions.relu_derivative_of_output,
        derivative_of_output=True,
        relu_like=True,
        monotonic=True,
    ),
    "leaky_relu": ActivationFunction(
        "leaky_relu",
        functions.leaky_relu,
        functions.leaky_relu_derivative_of_output,
        derivative_of_output=True,
        relu_like=True,
        monotonic=True,
    ),
    "sigmoid": ActivationFunction(
        "sigmoid",
        functions.sigmoid,
        functions.sigmoid_derivative_of_output,
        derivative_of_output=True,
        monotonic=True,
    ),
    "tanh": ActivationFunction(
        "tanh", functions.tanh, functions.tanh_derivative_of_output, derivative_of_output=True, monotonic=True
    ),
    "softplus": ActivationFunction(
        "softplus", functions.softplus, functions.softplus_derivative, relu_like=True, monotonic=True
    ),
    "gelu": ActivationFunction("gelu", functions.gelu, functions.gelu_derivative, relu_like=True),
    "swish": ActivationFunction("swish", functions.swish, functions.swish_derivative, relu_like=True),
    "mish": ActivationFunction("mish", functions.mish, functions.mish_derivative, relu_like=True),
    "relu6": ActivationFunction(
        "relu6",
        functions.relu6,
        functions.relu6_derivative_of_output,
        derivative_of_output=True,
        relu_like=True,
        monotonic=True,
    ),
    "elu": ActivationFunction(
        "elu",
        functions.elu,
        functions.elu_derivative_of_output,
        derivative_of_output=True,
        relu_like=True,
        monotonic=True,
    ),
    "selu": ActivationFunction(
        "selu", functions.selu, functions.selu_derivative_of_output, derivative_of_output=True, monotonic=True
    ),
    "hard_sigmoid": ActivationFunction(
        "hard_sigmoid",
        functions.hard_sigmoid,
        functions.hard_sigmoid_derivative_of_output,
        derivative_of_output=True,
        monotonic=True,
    ),
    "hard_swish": ActivationFunction(
        "hard_swish", functions.hard_swish, functions.hard_swish_derivative, relu_like=True
    ),
}


# A name, a function of one number, or an `ActivationFunction`.
AnyActivation = str | Callable[[float], float] | ActivationFunction


def find_activation(activation: AnyActivation) -> ActivationFunction:
    """The activation function of that name, or of a plain function; an `ActivationFunction` is returned as it is.

    Raises:
        InputError: if the name is not known, or the function is not hashable.
    """
    if isinstance(activation, ActivationFunction):
        return activation
    if callable(activation) and not isinstance(activation, type):
        return ActivationFunction(getattr(activation, "__name__", type(activation).__name__), activation)
    if isinstance(activation, type):
        raise InputError(
            f"an activation must be a name, a function of one number or an ActivationFunction, got {activation}"
        )
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(f"no activation {activation!r}: {nearest_name(str(activation), list(ACTIVATIONS))}")
    return ACTIVATIONS[activation]
