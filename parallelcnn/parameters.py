"""The layout of arrays in one flat vector: their names, shapes and positions.

All parameters lie in one vector, and their gradients in another with the same layout. So one Allreduce, one update and
one check serve all layers. Layers use named views.
"""

import math
from collections.abc import Iterable
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
    """

    shapes: tuple[dict[str, Shape], ...]

    @property
    def slots(self) -> list[Slot]:
        """The slots of all arrays, in the order of the vector."""
        slots: list[Slot] = []
        start = 0
        for layer, shapes in enumerate(self.shapes):
            for name, shape in shapes.items():
                slots.append(Slot(layer, name, shape, start))
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
    """The parts of the vector to which weight decay applies or not, as optimisers take them.

    Args:
        parameters: all parameters, in the order of the vector.

    Returns:
        (parts, 3), int64: rows (start, stop, decays) that cover the vector, with decays 1 or 0.
    """
    parts: list[list[int]] = []
    start = 0
    for parameter in parameters:
        stop, decays = start + math.prod(parameter.shape), int(parameter.weight_decay)
        if parts and parts[-1][2] == decays:
            parts[-1][1] = stop
        else:
            parts.append([start, stop, decays])
        start = stop
    return np.array(parts, np.int64).reshape(len(parts), 3)
