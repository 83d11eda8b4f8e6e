"""Activations by name, and the value that a user's own becomes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import FunctionType

import numpy as np
from numba.core.errors import NumbaError

from parallelcnn.errors import InputError, nearest_name
from parallelcnn.kernels import activations as kernels
from parallelcnn.kernels.copying import copy

Array = np.ndarray


@dataclass(frozen=True)
class ActivationFunction:
    """An element-wise function and its derivative.

    Args:
        name: what a layer prints.
        function: x -> f(x), of one number, in Python that numba compiles (`math` and `numpy` functions).
        derivative: x -> f'(x), likewise; or y -> f'(x) with y = f(x) if `derivative_of_output`.
        derivative_of_output: the derivative is written in terms of the output, so that x need not be kept.
        rectifier: half of its inputs come out as nearly nothing, so that start values are He's instead of Glorot's.
        never_decreases: a larger x never has a smaller f(x), so that f may come after a maximum instead of before.

    Example:
        >>> bent = ActivationFunction("bent", lambda x: x + abs(x) / 2, lambda x: 1.5 if x > 0 else 0.5)
    """

    name: str
    function: Callable[[float], float]
    derivative: Callable[[float], float]
    derivative_of_output: bool = False
    rectifier: bool = False
    never_decreases: bool = False

    def __post_init__(self) -> None:
        for part in ("function", "derivative"):
            if not callable(getattr(self, part)):
                raise InputError(f"activation {self.name!r}: {part} must be a function, got {getattr(self, part)!r}")

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def forward(self, y: Array, kept: Array | None) -> None:
        """Replace y by f(y). `kept`, like y, receives what `backward` needs; see `keeps_input`."""
        for call in self.forward_calls(y, kept):
            call()

    def backward(self, kept: Array, dy: Array) -> None:
        """Multiply dy by the derivative; `kept` is the output, or the input if `keeps_input`."""
        for call in self.backward_calls(kept, dy):
            call()

    def forward_calls(self, y: Array, kept: Array | None) -> Iterator[Callable[[], object]]:
        """What `forward` does, one after the other."""
        if kept is not None:
            yield partial(copy, y.reshape(y.size), kept.reshape(kept.size))
        yield partial(self._kernel(0), y.reshape(y.size))

    def backward_calls(self, kept: Array, dy: Array) -> Iterator[Callable[[], object]]:
        """What `backward` does, one after the other."""
        yield partial(self._kernel(1), kept.reshape(kept.size), dy.reshape(dy.size))

    @property
    def keeps_input(self) -> bool:
        """Whether `backward` needs the input x, rather than the output y."""
        return not self.derivative_of_output

    def _kernel(self, direction: int) -> Callable[..., None]:
        """What applies the function (0) or the derivative (1)."""
        if getattr(self.function, "__module__", None) == kernels.__name__:
            return kernels.builtin_kernels(self.function, self.derivative)[direction]
        return partial(self._run, direction)

    def _run(self, direction: int, *arrays: Array) -> None:
        """Apply a user's function or derivative."""
        try:
            kernels.user_kernels(_plain(self.function), _plain(self.derivative))[direction](*arrays)
        except NumbaError as error:
            which = ("function", "derivative")[direction]
            lines = [line.strip() for line in str(error).splitlines()]
            reason = next((line for line in lines if line and not line.startswith(_NO_REASON)), type(error).__name__)
            raise InputError(f"activation {self.name!r}: numba cannot compile its {which}: {reason}") from error


# How lines of numba's errors begin that do not say what is wrong.
_NO_REASON = ("Failed in", "During", "File", "resolving", "-", "\x1b", "No conversion", "Traceback")


@cache
def _plain(function: Callable[[float], float]) -> Callable[[float], float]:
    """A Python function that does the same: numba takes no compiled or built-in one, such as math.tanh, as such."""
    function = getattr(function, "py_func", function)
    return function if isinstance(function, FunctionType) else lambda x: function(x)


class _Identity(ActivationFunction):
    """f(x) = x: nothing to do, nothing to keep."""

    def forward_calls(self, y: Array, kept: Array | None) -> Iterator[Callable[[], object]]:
        return iter(())

    def backward_calls(self, kept: Array, dy: Array) -> Iterator[Callable[[], object]]:
        return iter(())


ACTIVATIONS: dict[str, ActivationFunction] = {
    "identity": _Identity("identity", lambda x: x, lambda y: 1.0, derivative_of_output=True),
    "relu": ActivationFunction(
        "relu",
        kernels.relu,
        kernels.relu_derivative_of_output,
        derivative_of_output=True,
        rectifier=True,
        never_decreases=True,
    ),
    "leaky_relu": ActivationFunction(
        "leaky_relu",
        kernels.leaky_relu,
        kernels.leaky_relu_derivative_of_output,
        derivative_of_output=True,
        rectifier=True,
        never_decreases=True,
    ),
    "sigmoid": ActivationFunction(
        "sigmoid",
        kernels.sigmoid,
        kernels.sigmoid_derivative_of_output,
        derivative_of_output=True,
        never_decreases=True,
    ),
    "tanh": ActivationFunction(
        "tanh", kernels.tanh, kernels.tanh_derivative_of_output, derivative_of_output=True, never_decreases=True
    ),
    "softplus": ActivationFunction(
        "softplus", kernels.softplus, kernels.softplus_derivative, rectifier=True, never_decreases=True
    ),
    "gelu": ActivationFunction("gelu", kernels.gelu, kernels.gelu_derivative, rectifier=True),
    "swish": ActivationFunction("swish", kernels.swish, kernels.swish_derivative, rectifier=True),
}


def find_activation(activation: str | ActivationFunction) -> ActivationFunction:
    """The activation of that name; an `ActivationFunction` is its own.

    Raises:
        InputError: if the name is not known.
    """
    if isinstance(activation, ActivationFunction):
        return activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(f"no activation {activation!r}: {nearest_name(str(activation), list(ACTIVATIONS))}")
    return ACTIVATIONS[activation]
