"""The object on which a layer records its forward and backward calls.

A network is recorded once for each number of samples. The calls then run in every step, on the same arrays at the same
addresses. So a training step allocates nothing and looks nothing up.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from parallelcnn.errors import ShapeError

if TYPE_CHECKING:
    from .base import Layer

Array = np.ndarray
Arrays = dict[str, Array]
Shape = tuple[int, ...]
Call = Callable[[], object]
Load = Callable[[Array, Array, float], object]
T = TypeVar("T")


class Recorder(Protocol):
    """Interface through which a step records calls and gets arrays; see `tape`."""

    n: int
    dtype: np.dtype
    training: bool
    bfloat16: bool

    @property
    def keys(self) -> Array: ...

    def add(self, call: Call) -> None: ...

    def mix_labels(self, number: int, shares: Array) -> None: ...

    def load_by(self, calls: list[Call], load: "Load", y: Array) -> None: ...

    def array(self, shape: Shape, dtype: np.dtype) -> Array: ...


class Step:
    """One layer's part of a tape, passed to its `forward` and `backward`.

    Attributes:
        params: the layer's parameters, by name.
        grads: arrays of the parameters' shapes. Backward overwrites them with the gradients. A frozen parameter is not
            in `grads`; a layer that uses its gradient nevertheless gets an array that is not read.
        buffers: the layer's buffers, by name; read-only.
        statistics: arrays of the buffers' shapes. Forward overwrites them in training; see `Buffer`.
        needs_input_gradient: whether backward must return the gradient with respect to x.
        number: the layer's number in the network, for random numbers; see `keys`.
        saved: the values that forward passed to `save`.
    """

    def __init__(
        self,
        recorder: Recorder,
        arrays: tuple[Arrays, Arrays, Arrays, Arrays],
        needs_input_gradient: bool,
        number: int,
    ) -> None:
        self._recorder = recorder
        self.params, grads, self.buffers, self.statistics = arrays
        self.grads = _Gradients(self, grads)
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
    def bfloat16(self) -> bool:
        """Whether the factors of convolutions and dense layers are to be rounded to bfloat16: in training, if the
        network has this precision. Sums, and all other numbers, are of `dtype`.
        """
        return self._recorder.bfloat16

    @property
    def training(self) -> bool:
        """Whether the recording is for training, with a backward pass, or for prediction."""
        return self._recorder.training

    @property
    def keys(self) -> Array:
        """(n,) uint64: a random key for each sample, a function of (seed, epoch, sample); see `kernels.random`."""
        return self._recorder.keys

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """Record a call of a numba kernel, a numpy function with `out=`, or any function that writes to its arguments.

        Consecutive calls of kernels compiled with `nogil=True` become one call.
        """
        self._recorder.add(partial(function, *arguments, **named))

    def mix_labels(self, shares: Array) -> None:
        """Give each sample the labels of two: its own with the share shares[i], and with the rest of 1 that of the next
        sample; see `MixUp`.

        Args:
            shares: (n,), which the forward calls write.

        Raises:
            InputError: if another layer has done so.
        """
        self._recorder.mix_labels(self.number, shares)

    def load_by(self, calls: Sequence[tuple[Any, ...]], load: Load, y: Array) -> None:
        """Record how loading can compute the output y of the network's first layer, in place of its forward calls.

        Args:
            calls: each a function and its arguments, to be called before `load`.
            load: called with the arguments `images`, `indices` and `scale` of `kernels.load.load`.
        """
        self._recorder.load_by([partial(function, *arguments) for function, *arguments in calls], load, y)

    def array(self, shape: Shape, dtype: Any = None) -> Array:
        """A new array with the samples as its last axis, (*shape, n).

        Its memory is reused after the last call that uses it. Before the first call its contents are arbitrary.
        """
        return self._recorder.array((*shape, self.n), self.dtype if dtype is None else np.dtype(dtype))

    def scratch(self, shape: Shape, dtype: Any = None) -> Array:
        """As `array`, for an array of exactly this shape, without a sample axis."""
        return self._recorder.array(shape, self.dtype if dtype is None else np.dtype(dtype))

    def save(self, *values: Any) -> None:
        """Keep arrays or other values for backward, which finds them in `saved`."""
        self.saved = values

    def forward(
        self, name: str, layer: "Layer", x: Array, *, needs_input_gradient: bool = True, also: Sequence[str] = ()
    ) -> Array:
        """Record the forward pass of a layer inside this one; returns its output.

        A layer recorded again, in backward, has the same random numbers, and `backward` then uses its new arrays.

        Args:
            name: name of the inner layer. Its parameters and buffers are this layer's "NAME.weight", ...
            needs_input_gradient: whether any layer before it, inside this layer or outside, is trained; see `trains`.
            also: names of further inner layers whose arrays it uses, as "1.weight", ...; see `fusions`.
        """
        mine = self.params, self.grads, self.buffers, self.statistics
        arrays = tuple(merged([_below(one, part) for one in (name, *also)]) for part in mine)
        # The numbers of inner layers differ between containers, and from those of the network's own layers.
        place = list(self._inner).index(name) if name in self._inner else len(self._inner)
        number = ((self.number + 1) * _LAYERS_INSIDE + place) % _NUMBERS
        inner = Step(self._recorder, arrays, needs_input_gradient, number)  # type: ignore[arg-type]
        self._inner[name] = layer, inner, x.shape
        y = layer.forward(inner, x)
        check_returned(layer, "forward", y, (*layer.output_shape(x.shape[:-1]), self.n))
        return y

    def trains(self, name: str) -> bool:
        """Whether the layer of that name inside this one has parameters that are trained."""
        return bool(_below(name, self.grads))

    def backward(self, name: str, dy: Array) -> Array | None:
        """Record the backward pass of the layer of that name; see `forward`.

        Records nothing and returns None if neither the layer nor any layer before it is trained.
        """
        layer, inner, shape = self._inner[name]
        if not inner.needs_input_gradient and not inner.grads:
            return None
        dx = layer.backward(inner, dy)
        if inner.needs_input_gradient:
            check_returned(layer, "backward", dx, shape)
        return dx


class _Gradients(Arrays):
    """The gradients of a step, by name, without those of frozen parameters."""

    def __init__(self, step: Step, arrays: Arrays) -> None:
        super().__init__(arrays)
        self._step = step
        self._unread: Arrays = {}

    def __missing__(self, name: str) -> Array:
        if name not in self._unread:
            self._unread[name] = self._step.scratch(self._step.params[name].shape)
        return self._unread[name]


_LAYERS_INSIDE = 1001  # at most 1000 layers are inside one layer; odd, so that deep inside no digit is lost
_NUMBERS = 2**63  # limit of a kernel's integer argument


def check_returned(layer: "Layer", name: str, found: Any, shape: Shape) -> None:
    """Raise ShapeError unless a layer's method `name` has returned a contiguous array of this shape.

    `reshape` would copy a non-contiguous array while the tape is recorded, and no step would update the copy.
    """
    if not isinstance(found, np.ndarray) or found.shape != shape:
        what = f"an array of shape {found.shape}" if isinstance(found, np.ndarray) else repr(found)
        raise ShapeError(f"{layer}: {name} must return an array of shape {shape}, samples last, got {what}")
    if not found.flags.c_contiguous:
        raise ShapeError(
            f"{layer}: {name} must return a contiguous array, got one with strides of {found.strides} bytes: record a "
            f"copy into step.array(...)"
        )


def merged(some: Sequence[dict[str, T]]) -> dict[str, T]:
    """The arrays of neighbouring layers: those of the first by their names, those of the next as "1.weight", ..."""
    return {f"{i}.{name}" if i else name: array for i, named in enumerate(some) for name, array in named.items()}


def _below(name: str, arrays: Arrays) -> Arrays:
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
