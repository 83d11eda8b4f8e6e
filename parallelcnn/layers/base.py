"""Base class of layers. A layer holds only hyperparameters, and records its two passes on a `Step`.

Shapes are those of one sample, (C, H, W) or (features,). Arrays have one more axis, the samples, last and contiguous.
"""

import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Self

import numpy as np

from parallelcnn.activations import ActivationFunction
from parallelcnn.errors import InputError, ShapeError, nearest_name
from parallelcnn.wording import function_name

from .step import Array as Array
from .step import Call as Call
from .step import Shape as Shape
from .step import Step as Step

Initialiser = Callable[[np.random.Generator, Shape], Array]

_LARGEST = 1e30  # a number that also float32 can hold


@dataclass(frozen=True)
class Parameter:
    """A parameter of a layer: an array that training changes, unless it is frozen.

    Args:
        shape: shape of the array.
        initial: the initial value of every element; or a function (rng, shape) -> array.
        weight_decay: whether an optimiser's weight decay applies to it.
        trainable: whether training changes it; see `Frozen`.

    Raises:
        ShapeError: if the shape is not a tuple of integers of at least 0.
    """

    shape: Shape
    initial: float | Initialiser = 0.0
    weight_decay: bool = True
    trainable: bool = True

    def __post_init__(self) -> None:
        _check_lengths("Parameter", self.shape)


@dataclass(frozen=True)
class Buffer:
    """An array that is not trained: a moving average over minibatches.

    In training a layer writes the sum over its samples into `step.statistics[name]`. The update then sets

        buffer = (1 - momentum) * buffer + momentum * (sum over the minibatch) / (samples in the minibatch)

    which is the same on any number of ranks and threads.

    Args:
        shape: shape of the array.
        initial: the value of every element before training.
        momentum: the weight of the newest minibatch, in (0, 1], as in PyTorch.

    Raises:
        ShapeError: if an argument is outside its range.
    """

    shape: Shape
    initial: float = 0.0
    momentum: float = 0.1

    def __post_init__(self) -> None:
        _check_lengths("Buffer", self.shape)
        if not (_is_number(self.momentum) and 0 < self.momentum <= 1):
            raise ShapeError(f"Buffer: momentum must be a number above 0 and at most 1, got {self.momentum!r}")
        if not (_is_number(self.initial) and abs(self.initial) <= _LARGEST):
            raise ShapeError(f"Buffer: initial must be a finite number, got {self.initial!r}")


class Layer(ABC):
    """Base class of layers. Subclass it, best as a frozen dataclass, to add your own; test it with `gradient_check`.

    A layer owns no arrays. It prints as its constructor call.

    Attributes:
        mixes_samples: whether an output depends on more than one sample of a shard, as in batch normalisation.
    """

    mixes_samples = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        _check_arguments(cls, args, kwargs)
        return super().__new__(cls)

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one output sample. Called when the network is built.

        Raises:
            ShapeError: if the layer does not accept this input shape.
        """

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        """The parameters, by name. Default: none."""
        return {}

    def buffers(self, input_shape: Shape) -> dict[str, Buffer]:
        """The moving averages that the layer keeps, by name; see `Buffer`. Default: none."""
        return {}

    def inner_layers(self, input_shape: Shape) -> "list[tuple[Layer, Shape]]":
        """The layers inside this one, each with its input shape, for summaries. Default: none."""
        return []

    def multiply_adds(self, input_shape: Shape) -> int:
        """Number of multiply-adds of the forward pass for one sample, by definition, whatever the algorithm.

        It is used for profiles and to choose the number of threads.
        """
        return 0

    def backward_multiply_adds(
        self, input_shape: Shape, trained: Collection[str], *, needs_input_gradient: bool
    ) -> int:
        """As `multiply_adds`, for the backward pass. Default: as many as forwards for the gradients of the parameters,
        if any is trained, and again for that of the input.

        Args:
            trained: names of the parameters that are trained.
            needs_input_gradient: see `Step`.
        """
        return self.multiply_adds(input_shape) * (bool(trained) + needs_input_gradient)

    @abstractmethod
    def forward(self, step: Step, x: Array) -> Array:
        """Record the calls that compute the output; returns the array, (*output_shape, n), that will hold it.

        This method computes nothing. It runs when a tape is recorded, and the recorded calls run in every step. It must
        record the same calls each time, for any number of samples including 0. The calls must not write to x.
        """

    @abstractmethod
    def backward(self, step: Step, dy: Array) -> Array | None:
        """Record the calls that overwrite `step.grads` and compute the gradient with respect to the input.

        Args:
            dy: the gradient with respect to the output. The calls may overwrite it.

        Returns:
            the array, of the shape of x, that will hold the input gradient; None if not `step.needs_input_gradient`.
        """

    def __repr__(self) -> str:
        """The shortest constructor call of this layer."""
        described: dict[str, Any] = {f.name: f.default for f in fields(self)} if is_dataclass(self) else {}
        arguments = []
        for name in [*described, *(name for name in vars(self) if name not in described)]:
            value, default = getattr(self, name), described.get(name, MISSING)
            if name in described and default is MISSING:
                arguments.append(written(value))
            elif not _is_same(value, default):
                arguments.append(f"{name}={written(value)}")
        return f"{type(self).__name__}({', '.join(arguments)})"


def _check_arguments(kind: type[Layer], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise InputError if a layer's constructor has too many arguments by position, or one that it does not know."""
    by_position, by_name, takes_any = _arguments_of(kind)
    if len(args) > len(by_position) and not takes_any:
        message = f"{kind.__name__} takes {', '.join(by_position) or 'no argument'} by position"
        named = [f"{name}={written(value)}" for name, value in zip(by_name, args[len(by_position) :], strict=False)]
        if named:
            message += f" and others by name, as {', '.join(named)}, but not a number of input channels"
        raise InputError(f"{message}, got {kind.__name__}({', '.join(map(written, args))})")
    known = [*by_position, *by_name]
    for name in kwargs:
        if name not in known and not takes_any:
            rule = nearest_name(name, known) if known else "it takes none"
            raise InputError(f"{kind.__name__} has no argument {name!r}: {rule}")


@cache
def _arguments_of(kind: type[Layer]) -> tuple[list[str], list[str], bool]:
    """Arguments that a class takes by position, those that it takes by name only, and whether it takes any others."""
    if kind.__init__ is object.__init__:  # which accepts everything, because `Layer` has a __new__
        return [], [], False
    _, *arguments = inspect.signature(kind.__init__).parameters.values()
    by_name = [one.name for one in arguments if one.kind is one.KEYWORD_ONLY]
    any_others = [one for one in arguments if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    by_position = [one.name for one in arguments if one not in any_others and one.kind is not one.KEYWORD_ONLY]
    return by_position, by_name, bool(any_others)


def _is_same(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(default, np.ndarray):
        return value is default
    return bool(value == default)


def written(value: Any) -> str:
    """A value as Python code. numpy integers would print as np.int64(3), arrays on many lines, and functions with their
    address, which differs between ranks.
    """
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, type):
        return function_name(value)
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return f"({', '.join(map(written, value))}{comma})"
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return f"<{value.dtype} array of shape {value.shape}>"
    return repr(value.item() if isinstance(value, np.generic | np.ndarray) else value)


def _check_lengths(owner: str, shape: Any) -> None:
    """Raise ShapeError unless `shape` is a tuple of integers of at least 0."""
    lengths = shape if isinstance(shape, tuple) else (None,)
    if not all(isinstance(one, int | np.integer) and one >= 0 for one in lengths):
        raise ShapeError(f"{owner}: shape must be a tuple of integers of at least 0, got {shape!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_positive(layer: Layer, name: str) -> None:
    """Raise ShapeError unless the layer's field `name` is a positive integer, which is stored as an int: the numbers of
    numpy's smaller types overflow in products.
    """
    object.__setattr__(layer, name, check_integer(layer, name, getattr(layer, name), at_least=1))


def check_integer(layer: Layer, name: str, value: Any, at_least: int) -> int:
    """The value as an int; ShapeError, naming the layer, unless it is an integer of at least `at_least`."""
    rule = "a positive integer" if at_least == 1 else f"an integer of at least {at_least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not at_least <= number < 2**31:
        raise ShapeError(f"{layer}: {name} must be {rule}, got {value!r}")
    return number


def check_number(layer: Layer, name: str, value: Any, at_most: float | None = None) -> None:
    """Raise ShapeError, naming the layer, unless the value is a finite number above 0 and not above `at_most`."""
    if not _is_number(value) or not 0 < value <= (_LARGEST if at_most is None else at_most):
        rule = "a finite number above 0" if at_most is None else f"a number above 0 and at most {at_most}"
        raise ShapeError(f"{layer}: {name} must be {rule}, got {value!r}")


def pair(layer: Layer, name: str, value: Any, at_least: int = 1) -> tuple[int, int]:
    """(rows, columns) of a field that holds a pair, or one number for both."""
    rows, columns = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    return check_integer(layer, name, rows, at_least), check_integer(layer, name, columns, at_least)


def initial_weight(fan_in: int, fan_out: int, activation: ActivationFunction) -> Initialiser:
    """He initialisation for relu-like activations, N(0, 2 / fan_in) (He et al. 2015, arXiv:1502.01852, eq. 10);
    otherwise Glorot initialisation, uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).
    """
    if activation.relu_like:
        return lambda rng, shape: rng.normal(0.0, np.sqrt(2 / fan_in), shape)
    limit = np.sqrt(6 / (fan_in + fan_out))
    return lambda rng, shape: rng.uniform(-limit, limit, shape)
