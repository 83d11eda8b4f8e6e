"""What a layer records its passes on.

A network is recorded once for each number of samples; the calls then run in every step, on arrays that lie where they
lay when they were recorded. So a step allocates nothing and looks nothing up.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from parallelcnn.errors import ShapeError

if TYPE_CHECKING:
    from .base import Layer

Array = np.ndarray
Arrays = dict[str, Array]
Shape = tuple[int, ...]
Call = Callable[[], object]


class Recorder(Protocol):
    """Where a step puts what is recorded; see `tape`."""

    n: int
    dtype: np.dtype
    training: bool

    @property
    def keys(self) -> Array: ...

    def add(self, call: Call) -> None: ...

    def array(self, shape: Shape, dtype: np.dtype) -> Array: ...


class Step:
    """One layer's part of a tape: what its `forward` and `backward` work on.

    Attributes:
        params: the layer's parameters, by name.
        grads: arrays like the parameters, which backward overwrites with their gradients.
        buffers: the layer's buffers, by name; read only.
        statistics: arrays like the buffers, which forward overwrites in training; see `Buffer`.
        needs_input_gradient: whether backward must return the gradient with respect to x.
        number: the layer's number in the network, for random numbers; see `keys`.
        saved: what forward has passed to `save`.
    """

    def __init__(
        self,
        recorder: Recorder,
        arrays: tuple[Arrays, Arrays, Arrays, Arrays],
        needs_input_gradient: bool,
        number: int,
    ) -> None:
        self._recorder = recorder
        self.params, self.grads, self.buffers, self.statistics = arrays
        self.needs_input_gradient = needs_input_gradient
        self.number = number
        self.saved: tuple[Any, ...] = ()
        self._inner: dict[str, tuple[Layer, Step, Shape]] = {}

    @property
    def n(self) -> int:
        """Number of samples."""
        return self._recorder.n

    @property
    def dtype(self) -> np.dtype:
        """Type of the network's numbers."""
        return self._recorder.dtype

    @property
    def training(self) -> bool:
        """Whether this is recorded for training, with a backward pass, or for prediction."""
        return self._recorder.training

    @property
    def keys(self) -> Array:
        """(n,) uint64: a random key for each sample, a function of (seed, epoch, sample); see `kernels.random`."""
        return self._recorder.keys

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """Record a call: a numba kernel, a numpy function with `out=`, or any function that writes to its arguments.

        Neighbouring calls of kernels that are compiled with `nogil=True` become one call.
        """
        self._recorder.add(partial(function, *arguments, **named))

    def array(self, shape: Shape, dtype: Any = None) -> Array:
        """An array with the samples as its last axis, (*shape, n), for what the layer computes.

        Its memory is reused after the last call that uses it. Before the first it holds anything.
        """
        return self._recorder.array((*shape, self.n), self.dtype if dtype is None else np.dtype(dtype))

    def scratch(self, shape: Shape, dtype: Any = None) -> Array:
        """The same for an array of exactly this shape, however many samples."""
        return self._recorder.array(shape, self.dtype if dtype is None else np.dtype(dtype))

    def save(self, *values: Any) -> None:
        """Keep arrays, or anything else, for backward, which finds them in `saved`."""
        self.saved = values

    def forward(self, name: str, layer: "Layer", x: Array, *, needs_input_gradient: bool = True) -> Array:
        """Record the forward pass of a layer inside this one; returns its output.

        Args:
            name: what the layer is called inside; its parameters and buffers are this layer's "NAME.weight", ...
            needs_input_gradient: whether anything before it, inside this layer or before, has parameters.
        """
        arrays = tuple(_below(name, part) for part in (self.params, self.grads, self.buffers, self.statistics))
        # Numbers of layers inside one layer, inside another, and of the network's own differ.
        number = ((self.number + 1) * _LAYERS_INSIDE + len(self._inner)) % _NUMBERS
        inner = Step(self._recorder, arrays, needs_input_gradient, number)  # type: ignore[arg-type]
        self._inner[name] = layer, inner, x.shape
        y = layer.forward(inner, x)
        check_returned(layer, "forward", y, (*layer.output_shape(x.shape[:-1]), self.n))
        return y

    def backward(self, name: str, dy: Array) -> Array | None:
        """Record the backward pass of the layer of that name; see `forward`."""
        layer, inner, shape = self._inner[name]
        dx = layer.backward(inner, dy)
        if inner.needs_input_gradient:
            check_returned(layer, "backward", dx, shape)
        return dx


_LAYERS_INSIDE = 1000  # of one layer, at most
_NUMBERS = 2**63  # which a kernel takes


def check_returned(layer: "Layer", name: str, found: Any, shape: Shape) -> None:
    """Raise ShapeError unless what a layer's method of that name has returned is a contiguous array of that shape.

    Where it is not contiguous, `reshape` would make a copy when the tape is recorded, and no step would change it.
    """
    if not isinstance(found, np.ndarray) or found.shape != shape:
        what = f"an array of shape {found.shape}" if isinstance(found, np.ndarray) else repr(found)
        raise ShapeError(f"{layer}: {name} must return an array of shape {shape}, samples last, got {what}")
    if not found.flags.c_contiguous:
        raise ShapeError(
            f"{layer}: {name} must return a contiguous array, got one with strides of {found.strides} bytes: record a "
            f"copy into step.array(...)"
        )


def _below(name: str, arrays: Arrays) -> Arrays:
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
