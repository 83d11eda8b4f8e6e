"""The layout of arrays in one flat vector: their names, shapes and positions.

All parameters lie in one vector, those that are trained first. Their gradients lie in another vector with the same
layout. So one Allreduce, one update and one check serve all layers. Layers use named views.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from parallelcnn.layers.base import Array, Parameter, Shape


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
        return sum(math.prod(shape) for shape in self.shapes[layer].values())

    def views(self, flat: Array) -> tuple[dict[str, Array], ...]:
        """Cut `flat`, shape (size,), into named views, one dict per layer. Copies nothing."""
        views: tuple[dict[str, Array], ...] = tuple({} for _ in self.shapes)
        for slot in self.slots:
            views[slot.layer][slot.name] = flat[slot.start : slot.stop].reshape(slot.shape)
        return views


def decay_parts(parameters: Iterable[Parameter]) -> Array:
    """The parts of the vector of trained parameters to which weight decay applies or not, as optimisers take them.

    Args:
        parameters: all parameters, in the order of the layers.

    Returns:
        (parts, 3), int64: rows (start, stop, decays) that cover the vector, with decays 1 or 0.
    """
    parts: list[list[int]] = []
    start = 0
    for parameter in (one for one in parameters if one.trainable):
        stop, decays = start + math.prod(parameter.shape), int(parameter.weight_decay)
        if parts and parts[-1][2] == decays:
            parts[-1][1] = stop
        else:
            parts.append([start, stop, decays])
        start = stop
    return np.array(parts, np.int64).reshape(len(parts), 3)
