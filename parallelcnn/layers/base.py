"""What a layer is: a frozen value of hyperparameters that says which arrays it needs and works on those handed in.

Shapes speak of one sample, (C, H, W) or (features,); an array has one axis more, the samples, last and contiguous.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction
from parallelcnn.errors import ShapeError

Array = np.ndarray
Arrays = dict[str, Array]
Shape = tuple[int, ...]
Call = Callable[[], object]


@dataclass(frozen=True, repr=False)
class Layer(ABC):
    """One step of a network. Subclass it as a frozen dataclass to add your own, and let `gradient_check` judge it.

    A layer holds no arrays: the `NetworkHandler` allocates parameters, gradients, outputs and caches once, and hands
    them in. It prints as its constructor call.
    """

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one output sample.

        Raises:
            ShapeError: if the layer does not take such an input. Asked once, when the network is built.
        """

    def param_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Names and shapes of the parameters; none unless overridden."""
        return {}

    def init_params(self, params: Arrays, rng: np.random.Generator) -> None:
        """Fill the parameters, zeros before, with start values drawn from `rng`."""
        return

    def cache_shapes(self, input_shape: Shape) -> dict[str, Any]:
        """What backward needs beside x and y, and scratch: name -> shape per sample, or (shape per sample, dtype).

        Arrays get the samples as their last axis and, unless a dtype is named, the network's dtype. They hold
        anything when forward is called, and in backward what forward left there.
        """
        return {}

    def scratch_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Further arrays of the cache, as large as it says here, however many samples, of the network's dtype.

        What they hold may be lost between forward and backward.
        """
        return {}

    def multiply_adds(self, input_shape: Shape) -> int:
        """Multiplications with addition that the outputs of one sample take by definition, whatever the algorithm.

        The gradient by the parameters takes as many again, and so does the gradient by the input. Profiles ask, and
        whoever decides on how many threads to run. 0, unless overridden, for layers that do not multiply by parameters.
        """
        return 0

    @abstractmethod
    def forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> None:
        """Write y, the output for x, and what backward needs into cache. Any number of samples, 0 included."""

    @abstractmethod
    def backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> None:
        """Overwrite grads and dx with the loss differentiated by params and x, given dy, by y.

        dx is None where nobody needs it, before the first layer. dy is yours: it may be overwritten.
        """

    def bind_forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> list[Call]:
        """`forward` of these arrays as calls to make one after the other, in every step."""
        return [partial(self.forward, params, x, y, cache, training=training)]

    def bind_backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> list[Call]:
        """`backward` of these arrays as calls to make one after the other, in every step."""
        return [partial(self.backward, params, grads, x, y, cache, dy, dx)]

    def __repr__(self) -> str:
        """The constructor call, as short as it can be written."""
        arguments = []
        for f in fields(self):
            value = _as_python(getattr(self, f.name))
            if f.default is MISSING:
                arguments.append(repr(value))
            elif value != f.default:
                arguments.append(f"{f.name}={value!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"


class BoundLayer(Layer):
    """A layer whose passes are calls that depend on arrays and their shapes alone: kernels with their arguments.

    A network lists them once for each number of samples. So a step of the paper's network takes 505 us (50 samples),
    where finding kernels and making views in every step took 555; and on two threads, which wait for each other's
    Python, 860 instead of 1030 (100 samples).
    """

    @abstractmethod
    def forward_calls(self, params: Arrays, x: Array, y: Array, cache: Arrays) -> Iterator[Call]:
        """What `forward` does, one after the other."""

    @abstractmethod
    def backward_calls(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> Iterator[Call]:
        """What `backward` does, one after the other."""

    def forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> None:
        for call in self.forward_calls(params, x, y, cache):
            call()

    def backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> None:
        for call in self.backward_calls(params, grads, x, y, cache, dy, dx):
            call()

    # A subclass may override `forward` or `backward` themselves, which then run as they are.

    def bind_forward(self, params: Arrays, x: Array, y: Array, cache: Arrays, *, training: bool) -> list[Call]:
        if type(self).forward is not BoundLayer.forward:
            return super().bind_forward(params, x, y, cache, training=training)
        return list(self.forward_calls(params, x, y, cache))

    def bind_backward(
        self, params: Arrays, grads: Arrays, x: Array, y: Array, cache: Arrays, dy: Array, dx: Array | None
    ) -> list[Call]:
        if type(self).backward is not BoundLayer.backward:
            return super().bind_backward(params, grads, x, y, cache, dy, dx)
        return list(self.backward_calls(params, grads, x, y, cache, dy, dx))


def _as_python(value: Any) -> Any:
    """The same number as Python writes it: numpy's integers print as np.int64(3)."""
    if isinstance(value, tuple):
        return tuple(map(_as_python, value))
    return value.item() if isinstance(value, np.generic) else value


def check_positive(layer: Layer, name: str) -> None:
    """Raise ShapeError unless that field of the layer is a positive integer."""
    check_integer(layer, name, getattr(layer, name), at_least=1)


def check_integer(layer: Layer, name: str, value: Any, at_least: int) -> int:
    """The value as an int; ShapeError, naming the layer, unless it is an integer of at least that size."""
    rule = "a positive integer" if at_least == 1 else f"an integer of at least {at_least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not at_least <= number < 2**31:
        raise ShapeError(f"{layer}: {name} must be {rule}, got {value!r}")
    return number


def pair(layer: Layer, name: str, value: Any, at_least: int = 1) -> tuple[int, int]:
    """(rows, columns) of a field that is one number for both or a pair."""
    rows, columns = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    return check_integer(layer, name, rows, at_least), check_integer(layer, name, columns, at_least)


def draw_start_values(
    weight: Array,
    fan_in: int,
    fan_out: int,
    activation: ActivationFunction,
    rng: np.random.Generator,
) -> None:
    """He's start values for rectifiers, N(0, 2 / fan_in) (He et al. 2015, arXiv:1502.01852, eq. 10); Glorot's else,
    uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).
    """
    if activation.rectifier:
        weight[...] = rng.normal(0.0, np.sqrt(2 / fan_in), weight.shape)
    else:
        limit = np.sqrt(6 / (fan_in + fan_out))
        weight[...] = rng.uniform(-limit, limit, weight.shape)
