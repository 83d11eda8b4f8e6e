"""Names, shapes and places of arrays in one flat vector.

All parameters lie in one vector, and their gradients in another of the same layout. So one Allreduce, one update, one
array in a file and one check serve every layer, and a layer sees named views.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from parallelcnn.layers.base import Array, Shape


class Slot(NamedTuple):
    """The place of one array."""

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
    """Where each array of each layer lies.

    Args:
        shapes: for each layer, name -> shape.
    """

    shapes: tuple[dict[str, Shape], ...]

    @property
    def slots(self) -> list[Slot]:
        """All places, in the order of the vector."""
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
        """How many numbers one layer has."""
        return sum(math.prod(shape) for shape in self.shapes[layer].values())

    def views(self, flat: Array) -> tuple[dict[str, Array], ...]:
        """Cut `flat`, shape (size,), into named views, one dict per layer. Copies nothing."""
        views: tuple[dict[str, Array], ...] = tuple({} for _ in self.shapes)
        for slot in self.slots:
            views[slot.layer][slot.name] = flat[slot.start : slot.stop].reshape(slot.shape)
        return views
