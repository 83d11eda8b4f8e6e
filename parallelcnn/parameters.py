"""The layout of arrays in one flat vector: their names, shapes and positions.

All parameters lie in one vector, those that are trained first. Their gradients lie in another vector with the same
layout. So one Allreduce, one update and one check serve all layers. Layers use named views.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.arguments import as_array
from parallelcnn.errors import InputError, ShapeError, UnknownNameError, nearest_name
from parallelcnn.layers.base import Array, Parameter, Shape
from parallelcnn.wording import listed

_NUMBERED = re.compile(r"(\d{1,6})(\..*)", re.ASCII | re.DOTALL)  # the name of an array: layer, and name in the layer
MOST_IN_A_ROW = 2**14  # elements: 64 kB in float32


class Slot(NamedTuple):
    """The position of one array in the vector."""

    layer: int
    name: str
    shape: Shape
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    @property
    def key(self) -> str:
        """The array's name in the network, as in PyTorch: "0.weight"."""
        return f"{self.layer}.{self.name}"


@dataclass(frozen=True)
class ArrayLayout:
    """The layout of the arrays of all layers in one vector.

    Args:
        shapes: for each layer, the shape of each array by name.
        frozen: (layer, name) of each array that is not trained. They come last in the vector.
    """

    shapes: tuple[dict[str, Shape], ...]
    frozen: frozenset[tuple[int, str]] = frozenset()

    @staticmethod
    def of(parameters: Iterable[Mapping[str, Parameter]]) -> "ArrayLayout":
        """The layout of the parameters that each layer declares."""
        parameters = list(parameters)
        return ArrayLayout(
            tuple({name: one.shape for name, one in some.items()} for some in parameters),
            frozenset(
                (i, name) for i, some in enumerate(parameters) for name, one in some.items() if not one.trainable
            ),
        )

    @property
    def trained(self) -> "ArrayLayout":
        """The layout of the arrays that are trained: the beginning of this one."""
        return ArrayLayout(
            tuple(
                {name: shape for name, shape in shapes.items() if (layer, name) not in self.frozen}
                for layer, shapes in enumerate(self.shapes)
            )
        )

    @property
    def slots(self) -> list[Slot]:
        """The slots of all arrays, in the order of the vector."""
        slots: list[Slot] = []
        start = 0
        keys = [(layer, name) for layer, shapes in enumerate(self.shapes) for name in shapes]
        for layer, name in sorted(keys, key=self.frozen.__contains__):
            slots.append(Slot(layer, name, self.shapes[layer][name], start))
            start = slots[-1].stop
        return slots

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(self.count(layer) for layer in range(len(self.shapes)))

    def count(self, layer: int) -> int:
        """Number of elements of one layer."""
        return sum(math.prod(map(int, shape)) for shape in self.shapes[layer].values())

    def views(self, flat: Array) -> tuple[dict[str, Array], ...]:
        """Cut `flat`, shape (size,), into named views, one dict per layer. Copies nothing."""
        views: tuple[dict[str, Array], ...] = tuple({} for _ in self.shapes)
        for slot in self.slots:
            views[slot.layer][slot.name] = flat[slot.start : slot.stop].reshape(slot.shape)
        return views

    def named(self, views: tuple[dict[str, Array], ...]) -> dict[str, Array]:
        """The views by their names in the network, in the order of the vector."""
        return {slot.key: views[slot.layer][slot.name] for slot in self.slots}


class NamedArrays(Mapping[str, Array]):
    """Arrays of a network by name. Names are as in PyTorch, such as "0.weight".

    Each array is a view into the network: to write to it changes the network, and training changes the array.
    Assignment, `arrays[name] = values`, converts the values to the network's type and copies them into the array.

    Raises:
        UnknownNameError: which is a KeyError, if there is no array of that name.
        ShapeError: on assignment, if the values have another shape than the array.
        InputError: on assignment, if the values are not finite numbers.

    Example:
        >>> network = NetworkHandler((Dense(3), Dense(2)), (4,))
        >>> network.parameters["1.weight"] = np.eye(2, 3)
        >>> network.parameters
        0.weight  (3, 4)
        0.bias    (3,)
        1.weight  (2, 3)
        1.bias    (2,)
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            known = list(self._arrays)
            raise UnknownNameError(f"the network has no array {name!r}: {nearest_name(str(name), known)}") from None

    def __setitem__(self, name: str, values: Any) -> None:
        set_values(name, self[name], values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        """A line with name and shape for each array."""
        width = max(map(len, self._arrays), default=0)
        return "\n".join(f"{name:<{width}}  {array.shape}" for name, array in self.items()) or "no arrays"


class Matching(NamedTuple):
    """Which arrays of a network were taken from elsewhere; see `NetworkHandler.load_parameters`.

    Attributes:
        taken: names of the arrays that were taken.
        missing: names of the network's arrays that were not given.
        other_shape: of the arrays that were given in another shape: their shape in the network, and the given one.
        unused: names of given arrays that the network does not have.
        shift: what was added to the numbers of the given layers.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: dict[str, tuple[Shape, Shape]]
    unused: tuple[str, ...]
    shift: int = 0

    @property
    def fits(self) -> bool:
        """Whether each array was taken, and no other was given."""
        return not (self.missing or self.other_shape or self.unused)

    def __str__(self) -> str:
        """What does not fit, in words."""
        shapes = [f"{name} {here} has shape {there} there" for name, (here, there) in self.other_shape.items()]
        parts = [
            f"{len(self.taken)} of {len(self.taken) + len(self.missing) + len(self.other_shape)} arrays fit",
            listed(shapes),
            f"missing there: {listed(self.missing)}" if self.missing else "",
            f"only there: {listed(self.unused)}" if self.unused else "",
            f"layer {self.shift} here is layer 0 there" if self.shift > 0 else "",
            f"layer 0 here is layer {-self.shift} there" if self.shift < 0 else "",
        ]
        return "; ".join(filter(None, parts))


def named_in_order(given: Mapping[str, Any], *layouts: ArrayLayout) -> dict[str, Any]:
    """The arrays by the names of a network's arrays, in the order of a `state_dict` of PyTorch.

    Args:
        layouts: of the network's parameters and buffers.
    """
    names = []
    for i, shapes in enumerate(zip(*(layout.shapes for layout in layouts), strict=True)):
        keys = [key for some in shapes for key in some]
        owners = dict.fromkeys(key.rpartition(".")[0] for key in keys)  # the layers inside, in their order
        names += [f"{i}.{key}" for owner in owners for key in keys if key.rpartition(".")[0] == owner]
    further = (f"one more, {name}" for name in list(given)[len(names) :])
    return dict(zip([*names[: len(given)], *further], given.values(), strict=True))


def take_matching(arrays: NamedArrays, given: Mapping[str, Any], *, strict: bool) -> Matching:
    """Copy given values into the arrays of the same name and shape; see `NetworkHandler.load_parameters`."""
    given = {name: as_array(f"array {name!r}", values, "an array of numbers") for name, values in given.items()}
    matching = _match(arrays, given)
    if strict and not matching.fits:
        raise ShapeError(f"the parameters do not fit the network: {matching}")
    first, first_given = _first_layer(arrays), _first_layer(given)
    if not strict and first != first_given:
        shifted = _match(arrays, _shifted(given, first - first_given), first - first_given)
        matching = max(matching, shifted, key=lambda one: len(one.taken))
        given = _shifted(given, matching.shift)
    before = {name: arrays[name].copy() for name in matching.taken}
    try:
        for name in matching.taken:
            set_values(f"array {name!r}", arrays[name], given[name])
    except InputError:
        for name, values in before.items():
            arrays[name][...] = values
        raise
    return matching


def _match(arrays: Mapping[str, Array], given: Mapping[str, Array], shift: int = 0) -> Matching:
    """What fits by name and shape."""
    shapes = {name: (arrays[name].shape, given[name].shape) for name in arrays if name in given}
    other_shape = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    return Matching(
        tuple(name for name in shapes if name not in other_shape),
        tuple(name for name in arrays if name not in shapes),
        other_shape,
        tuple(name for name in given if name not in shapes),
        shift,
    )


def _first_layer(names: Iterable[str]) -> int:
    """The number of the first layer that arrays of these names belong to."""
    return min((int(found[1]) for found in map(_NUMBERED.fullmatch, names) if found), default=0)


def _shifted(given: Mapping[str, Array], shift: int) -> dict[str, Array]:
    """The arrays by their names if `shift` is added to the numbers of their layers."""
    return {_NUMBERED.sub(lambda found: f"{int(found[1]) + shift}{found[2]}", name): given[name] for name in given}


def set_values(what: str, array: Array, values: Any) -> None:
    """Copy values into an array; InputError or ShapeError unless they are finite numbers and have its shape."""
    values = as_array(what, values, "an array of numbers")
    if values.shape != array.shape:
        raise ShapeError(f"{what} must have shape {array.shape}, got {values.shape}")
    with np.errstate(over="ignore"):  # a number that is too large for the network's type is refused
        values = values.astype(array.dtype)
    if not np.isfinite(values).all():
        raise InputError(f"{what} must hold finite numbers of {array.dtype}, got others")
    array[...] = values


def decay_parts(parameters: Iterable[Parameter]) -> Array:
    """The parts of the vector of trained parameters to which weight decay applies or not, as optimisers take them.

    Args:
        parameters: all parameters, in the order of the layers.

    Returns:
        (parts, 3), int64: rows (start, stop, decays) that cover the vector, with decays 1 or 0.
    """
    parts: list[tuple[int, int, int]] = []
    start = 0
    for parameter in (one for one in parameters if one.trainable):
        stop, decays = start + math.prod(parameter.shape), int(parameter.weight_decay)
        if parts and parts[-1][2] == decays:
            start = parts.pop()[0]
        parts.append((start, stop, decays))
        start = stop
    return in_rows(parts)


def in_rows(parts: Iterable[tuple[int, int, int]]) -> Array:
    """Parts (start, stop, decays) of a vector, as rows of at most `MOST_IN_A_ROW` elements, which threads share."""
    rows = [
        (first, min(first + MOST_IN_A_ROW, stop), decays)
        for start, stop, decays in parts
        for first in range(start, stop, MOST_IN_A_ROW)
    ]
    return np.array(rows, np.int64).reshape(len(rows), 3)
