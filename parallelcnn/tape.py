"""The tape: both passes of a network for one number of samples, recorded once and replayed in every step.

This is reverse-mode automatic differentiation. The layers record their forward calls first to last, then their backward
calls last to first; see `layers.base`. They are recorded twice: first to learn which calls use which array, then with
every array at its final address. Arrays that are never needed at the same time share memory.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import numpy as np

from parallelcnn.call_list import join
from parallelcnn.errors import InputError
from parallelcnn.kernels.random import keys_of_samples
from parallelcnn.layers.base import Array, Call, Layer, Shape, Step
from parallelcnn.layers.step import Load, check_returned
from parallelcnn.resources import check_memory

_CACHE_LINE = 64  # bytes; see `aligned`
_OFTEN = 16  # predictions on one tape, after which it pays to join its calls, which takes some milliseconds


class LayerArrays(NamedTuple):
    """The arrays of one layer that are kept between steps, by name; see `Step`."""

    params: dict[str, Array]
    grads: dict[str, Array]
    buffers: dict[str, Array]
    statistics: dict[str, Array]


class Recordable(NamedTuple):
    """The input of a recording: the layers and their arrays.

    Attributes:
        layers: first to last.
        numbers: number of each layer, for random numbers.
        shapes: shapes of one sample before, between and after the layers.
        arrays: arrays of each layer.
        last_backward: index of the last layer of the backward pass. Its input gradient is not needed.
        dtype: type of the network's numbers.
        bfloat16: whether training multiplies numbers rounded to bfloat16; see `Step.bfloat16`.
    """

    layers: Sequence[Layer]
    numbers: Sequence[int]
    shapes: Sequence[Shape]
    arrays: Sequence[LayerArrays]
    last_backward: int
    dtype: np.dtype
    bfloat16: bool = False


class Plan(NamedTuple):
    """Memory plan of a tape: the offset of each array, in the order of allocation, and the total size [bytes]."""

    offsets: list[int]
    size: int


class Loading:
    """How to load samples and run the first layer at once; see `Step.load_by`.

    Args:
        calls: come first.
        load: writes y, the output of the first layer.
        y: (C, H, W, n).
        keys: (n,) uint64, of the samples, which `draw` writes; None if they are not used.
    """

    def __init__(self, calls: list[Call], load: Load, y: Array, keys: Array | None) -> None:
        self.load, self.y = load, y
        self._key, self._samples = np.zeros(1, np.uint64), np.zeros(y.shape[-1], np.int64)
        first = [] if keys is None else [partial(keys_of_samples, self._key, self._samples, keys)]
        self._calls: list[Call] = [*first, *calls]

    def join_calls(self) -> None:
        self._calls = join(self._calls)

    def draw(self, key: int, samples: Array) -> None:
        """Draw the random numbers of these samples, (n,) indices, in the pass with this key."""
        self._key[0], self._samples[...] = key, samples
        for call in self._calls:
            call()


class Tape:
    """The recorded passes for n samples.

    Args:
        recordable: the layers and their arrays.
        n: number of samples.
        training: whether to record a backward pass.
        plan: see `plan_tape`.
        memory: at least plan.size bytes, aligned to a cache line.

    Attributes:
        x: (*input_shape, n); the caller writes it before the forward pass.
        y: (*output_shape, n); the forward pass writes it.
        outputs: the output of each layer. Later layers may overwrite it, unless the plan is one without sharing.
        dy: the gradient with respect to y; the caller writes it before the backward pass.
        dx: the gradient with respect to x; the backward pass writes it. None if it is not needed.
        keys: (n,) uint64, a random key for each sample; the caller writes them before the forward pass. None if no
            layer uses them.
        loading: how to load samples and run the first layer at once; None if it cannot be done.
        label_shares: (n,), the share of each sample's own label, which the forward pass writes; None if labels are not
            mixed. See `Step.mix_labels`.
        forward_parts, backward_parts: the calls of each layer, in the order in which they run: the first of
            `backward_parts` is of the last layer.
        forward, backward: all calls of the pass, in order.
        forward_loaded: those of the forward pass behind the first layer; see `loading`.
    """

    def __init__(self, recordable: Recordable, n: int, plan: Plan, memory: Array, *, training: bool) -> None:
        recorder = _Recorder(n, recordable, _PlannedMemory(plan, memory), training=training)
        self.x, self.outputs, self.dy, self.dx = _record(recorder, recordable)
        self.y = self.outputs[-1]
        self.keys = recorder.keys if recorder.uses_keys else None
        self.loading, self.label_shares = recorder.loading, recorder.label_shares
        self.forward_parts, self.backward_parts = recorder.parts
        self.forward = [call for part in self.forward_parts for call in part]
        self.backward = [call for part in self.backward_parts for call in part]
        self.forward_loaded = self.forward[len(self.forward_parts[0]) :] if self.loading else []
        self._predictions = 0
        if training:
            self._join_calls()

    def count_prediction(self) -> None:
        """Join the calls of a tape for predictions when it has run often. Many run only once."""
        self._predictions += 1
        if self._predictions == _OFTEN:
            self._join_calls()

    def _join_calls(self) -> None:
        self.forward, self.backward = join(self.forward), join(self.backward)
        self.forward_loaded = join(self.forward_loaded)
        if self.loading is not None:
            self.loading.join_calls()


def plan_tape(recordable: Recordable, n: int, *, training: bool, shared: bool = True) -> Plan:
    """Find the lifetime of each array and plan their memory.

    Args:
        shared: whether arrays that are never needed at the same time share memory.

    Raises:
        ShapeError: if an array does not fit into memory, or a layer returns an array of another shape than it declares.
    """
    memory = _CountedMemory()
    _record(_Recorder(n, recordable, memory, training=training), recordable)
    return _place(memory.lifetimes(shared=shared))


def calls_of(recordable: Recordable, n: int, *, training: bool) -> list[Call]:
    """The calls of a tape, forward and then backward, without its memory: they must not be run."""
    recorder = _Recorder(n, recordable, _CountedMemory(), training=training)
    _record(recorder, recordable)
    return [call for parts in recorder.parts for part in parts for call in part]


def aligned(n_bytes: int) -> Array:
    """Allocate memory aligned to a cache line. If n is a multiple of 16, no vector then crosses a cache line
    (weight gradient of 6 -> 16 channels, n = 48: 138 GFLOP/s instead of 98).
    """
    memory = np.empty(n_bytes + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + n_bytes]


class _Memory(Protocol):
    """The memory from which a recording takes its arrays."""

    def take(self, n_bytes: int) -> Array: ...

    def note(self, position: int, value: Any) -> None:
        """Note that the arrays in `value` are used at this position of the tape."""


class _Recorder:
    """Collects the calls that layers record, and gives them arrays; see `layers.step.Recorder`."""

    def __init__(self, n: int, recordable: Recordable, memory: _Memory, *, training: bool) -> None:
        self.n, self.dtype, self.training = n, recordable.dtype, training
        self.bfloat16 = training and recordable.bfloat16
        self.uses_keys = False
        self._how_to_load: tuple[list[Call], Load, Array] | None = None
        self.label_shares: Array | None = None
        self._mixed_by: int | None = None
        self.parts: tuple[list[list[Call]], list[list[Call]]] = ([], [])  # forward, backward
        self._keys = np.zeros(n, np.uint64)
        self._memory = memory
        self._position = 0

    @property
    def keys(self) -> Array:
        self.uses_keys = True
        return self._keys

    @property
    def loading(self) -> Loading | None:
        """Known once all layers are recorded, since any of them may use the keys, which loading draws."""
        if self._how_to_load is None:
            return None
        return Loading(*self._how_to_load, self._keys if self.uses_keys else None)

    def add(self, call: Call) -> None:
        self.parts[bool(self.parts[1])][-1].append(call)
        self.use(call)

    def mix_labels(self, number: int, shares: Array) -> None:
        if self._mixed_by not in (None, number):
            raise InputError("a network takes one layer that mixes labels, such as MixUp, got another one")
        if self.label_shares is None:  # a layer that is recorded again, in backward, writes the same numbers
            self._mixed_by, self.label_shares = number, shares

    def load_by(self, calls: list[Call], load: Load, y: Array) -> None:
        self._how_to_load = calls, load, y

    def use(self, *values: Any) -> None:
        """Note a use of the arrays in `values` at the next position."""
        self._position += 1
        self._memory.note(self._position, values)

    def array(self, shape: Shape, dtype: np.dtype) -> Array:
        size = 1  # as a Python number, which does not overflow
        for length in shape:
            size *= int(length)
        return self._memory.take(size * dtype.itemsize).view(dtype).reshape(shape)


def _record(recorder: _Recorder, recordable: Recordable) -> tuple[Array, list[Array], Array, Array | None]:
    """Record all layers; returns (x, outputs, dy, dx)."""
    layers, shapes = recordable.layers, recordable.shapes
    x = recorder.array((*shapes[0], recorder.n), recorder.dtype)
    recorder.use(x)  # samples are loaded
    steps, outputs, y = [], [], x
    for i, layer in enumerate(layers):
        recorder.parts[0].append([])
        step = Step(recorder, recordable.arrays[i], i > recordable.last_backward, recordable.numbers[i])
        steps.append(step)
        y = layer.forward(step, y)
        check_returned(layer, "forward", y, (*shapes[i + 1], recorder.n))
        outputs.append(y)
    dy = recorder.array(y.shape, recorder.dtype)
    recorder.use(y, dy, recorder.label_shares)  # the loss is computed
    flowing: Array | None = dy
    for i in reversed(range(len(layers))):
        recorder.parts[1].append([])
        if recorder.training and i >= recordable.last_backward and flowing is not None:
            flowing = layers[i].backward(steps[i], flowing)
            if i > recordable.last_backward:
                check_returned(layers[i], "backward", flowing, (*shapes[i], recorder.n))
    if flowing is not None:
        recorder.use(flowing)
    return x, outputs, dy, flowing


class _PlannedMemory:
    """Arrays at the offsets of a plan."""

    def __init__(self, plan: Plan, memory: Array) -> None:
        self._offsets, self._memory = iter(plan.offsets), memory

    def take(self, n_bytes: int) -> Array:
        offset = next(self._offsets)
        return self._memory[offset : offset + n_bytes]

    def note(self, position: int, value: Any) -> None:
        return


class _CountedMemory:
    """Notes the uses of arrays. They all overlap in one piece of memory and are never written."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._owners: dict[int, tuple[Array, _Lifetime]] = {}
        self._end = 0

    def take(self, n_bytes: int) -> Array:
        if n_bytes > self._memory.nbytes:
            check_memory("the arrays of one layer", n_bytes)
            self._memory = np.empty(n_bytes, np.uint8)
        # From a memoryview, so that the new array is the base of all views into it.
        owner = np.frombuffer(self._memory.data, np.uint8, n_bytes) if n_bytes else np.empty(0, np.uint8)
        self._owners[id(owner)] = owner, _Lifetime(n_bytes)
        return owner

    def note(self, position: int, value: Any) -> None:
        self._end = position
        for array in _arrays_in(value):
            owner: Any = array
            while id(owner) not in self._owners and isinstance(owner.base, np.ndarray):
                owner = owner.base
            if id(owner) in self._owners:
                self._owners[id(owner)][1].note(position)

    def lifetimes(self, *, shared: bool) -> list["_Lifetime"]:
        """The lifetime of each array. An array that no call names lives all the time: a call may hold it otherwise."""
        lifetimes = [lifetime for _, lifetime in self._owners.values()]
        for lifetime in lifetimes:
            if lifetime.first == 0 or not shared:
                lifetime.first, lifetime.last = 1, self._end
        return lifetimes


class _Lifetime:
    """The first and last position of a tape at which an array is used; 0: not used yet."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.first = self.last = 0

    def note(self, position: int) -> None:
        self.first = self.first or position
        self.last = position

    def overlaps(self, other: "_Lifetime") -> bool:
        return self.first <= other.last and other.first <= self.last


def _arrays_in(value: Any) -> Iterator[Array]:
    """The arrays that a call can reach: in its arguments, as a method's object, or in a function's closure."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _arrays_in(one)
    elif isinstance(value, dict):
        yield from _arrays_in(list(value.values()))
    elif isinstance(value, partial):
        yield from _arrays_in([value.func, *value.args, *value.keywords.values()])
    elif isinstance(value, FunctionType):
        yield from _arrays_in([cell.cell_contents for cell in value.__closure__ or ()])
        yield from _arrays_in(value.__defaults__ or ())
    elif isinstance(getattr(value, "__self__", None), np.ndarray):
        yield value.__self__


def _place(lifetimes: list[_Lifetime]) -> Plan:
    """Find offsets such that arrays that live at the same time do not overlap. The largest array is placed first.

    This is "greedy by size", which is close to optimal for networks (Pisarchyk & Lee 2020, arXiv:2001.03288, section
    5).
    """
    placed: list[tuple[int, int, _Lifetime]] = []  # (offset, end, lifetime) by offset
    offsets = [0] * len(lifetimes)
    for i in sorted(range(len(lifetimes)), key=lambda i: -lifetimes[i].n_bytes):
        size = -(-lifetimes[i].n_bytes // _CACHE_LINE) * _CACHE_LINE
        offset = 0
        for start, end, other in placed:
            if start >= offset + size:
                break  # it fits before this array, and all later arrays start behind it
            if lifetimes[i].overlaps(other):
                offset = max(offset, end)
        offsets[i] = offset
        placed.append((offset, offset + size, lifetimes[i]))
        placed.sort(key=lambda one: one[:2])
    return Plan(offsets, max((end for _, end, _ in placed), default=0))
