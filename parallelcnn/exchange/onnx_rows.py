"""Rows of layers that are read from an ONNX graph, in which neighbouring nodes are combined.

An activation becomes that of the layer before it, an added constant its bias, and the parts of group normalisation one
layer. What is left of factors and added constants of channels becomes a `BatchNorm`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction
from parallelcnn.layers import (
    Activation,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GroupNorm,
    Layer,
    LayerNorm,
    Normalize,
    Reshape,
    Sequential,
)
from parallelcnn.layers.base import Array, Shape

_EPSILON = BatchNorm().epsilon
# Parts of gelu, which occur only in between.
ERF, TWICE_GELU = ActivationFunction("erf", math.erf), ActivationFunction("twice gelu", lambda x: x)


class CannotImportError(Exception):
    """The model has something that no layer computes."""


@dataclass
class Item:
    """A layer and its arrays, by the layer's own names.

    Attributes:
        is_affine: whether it is a BatchNorm that stands for a factor and an added constant.
    """

    layer: Layer
    arrays: dict[str, Array] = field(default_factory=dict)
    is_affine: bool = False


class Row:
    """Layers that run one after the other.

    Attributes:
        items: the layers.
        shapes: the shapes of a sample before, between and after them.
    """

    def __init__(self, shape: Shape) -> None:
        self.items: list[Item] = []
        self.shapes = [shape]

    @property
    def shape(self) -> Shape:
        return self.shapes[-1]

    @property
    def last(self) -> Item:
        return self.items[-1] if self.items else Item(Sequential(()))

    def add(self, layer: Layer, arrays: Mapping[str, Array] | None = None, *, is_affine: bool = False) -> None:
        self.shapes.append(layer.output_shape(self.shape))
        self.items.append(Item(layer, dict(arrays or {}), is_affine))

    def remove(self) -> None:
        self.items.pop()
        self.shapes.pop()

    def activate(self, activation: str | ActivationFunction) -> None:
        """Add an activation function, to the last layer if that has none."""
        last = self.last
        if isinstance(activation, str) and getattr(last.layer, "activation", None) == "identity":
            changes: Any = {"activation": activation}
            last.layer = replace(last.layer, **changes)  # type: ignore[type-var]
        else:
            self.add(Activation(activation))

    def reshape(self, shape: Shape) -> None:
        """Give the sample another shape; of several such layers only the last counts."""
        if isinstance(self.last.layer, Reshape | Flatten):
            self.remove()
        if shape != self.shape:
            self.add(Flatten() if shape == (math.prod(self.shape),) else Reshape(shape))

    def multiply(self, factor: Any) -> None:
        """Multiply each channel by a number."""
        last = self.last
        if isinstance(last.layer, Activation) and last.layer.activation is TWICE_GELU and is_all(factor, 0.5):
            self.remove()
            self.activate("gelu")
        elif self._is_bare(BatchNorm, GroupNorm):
            last.arrays |= {name: last.arrays[name] * self.by_channel(factor, "Mul") for name in ("weight", "bias")}
        elif self._is_grouped():
            self._normalise(factor)
        else:
            self._add_affine(self.by_channel(factor, "Mul"), np.zeros(self.shape[:1]))

    def shift(self, added: Array) -> None:
        """Add a number to each channel."""
        last = self.last
        if self._is_bare(LayerNorm):
            last.arrays["bias"] = last.arrays["bias"] + np.broadcast_to(without_samples(added, self.shape), self.shape)
        elif self._is_bare(Conv2D, DepthwiseConv2D, Dense, BatchNorm, GroupNorm):
            before = last.arrays.get("bias", 0)
            last.arrays["bias"] = before + self.by_channel(added, "Add")
            if getattr(last.layer, "bias", None) is False:
                changes: Any = {"bias": True}
                last.layer = replace(last.layer, **changes)  # type: ignore[type-var]
        else:
            self._add_affine(np.ones(self.shape[:1]), self.by_channel(added, "Add"))

    def scale_input(self, factor: float) -> None:
        """Multiply the input of the first layer by a number. If that layer did the opposite, it is removed."""
        if not (self.items and self.items[0].is_affine):
            before = Row(self.shapes[0])
            before.multiply(np.float32(1))
            self.items[:0], self.shapes[:0] = before.items, before.shapes[:1]
        first: Any = self.items[0]
        first.arrays["weight"] = first.arrays["weight"] * factor
        if is_all(first.arrays["weight"], 1) and is_all(first.arrays["bias"], 0):
            if first.layer.activation == "identity":
                del self.items[0], self.shapes[0]
            else:
                self.items[0] = Item(Activation(first.layer.activation))

    def normalize_input(self) -> None:
        """Replace a factor and an added constant of the input by `Normalize`, which training does not change."""
        first: Any = self.items[0] if self.items else Item(Sequential(()))
        if first.is_affine and first.layer.activation == "identity" and (first.arrays["weight"] > 0).all():
            factor, added = (first.arrays[name].astype(np.float64) for name in ("weight", "bias"))
            self.items[0] = Item(Normalize(tuple((0 - added / factor).tolist()), tuple((1 / factor).tolist())))

    def _add_affine(self, factor: Array, added: Array) -> None:
        zeros = np.zeros(self.shape[:1])
        arrays = {"weight": factor, "bias": added, "running_mean": zeros, "running_var": zeros + (1 - _EPSILON)}
        self.add(BatchNorm(), arrays, is_affine=True)

    def _is_bare(self, *kinds: type[Layer]) -> bool:
        """Whether the last layer has one of these kinds, and no activation."""
        return type(self.last.layer) in kinds and getattr(self.last.layer, "activation", None) == "identity"

    def _is_grouped(self) -> bool:
        """Whether the last layers are a group normalisation with the groups as channels, as exported."""
        kinds = [type(item.layer) for item in self.items[-3:]]
        if kinds[:2] != [Reshape, GroupNorm] or kinds[2:] not in ([Reshape], [Flatten]):
            return False
        plain = self.items[-2].arrays
        if getattr(self.items[-2].layer, "activation", "identity") != "identity":
            return False
        return is_all(plain["weight"], 1) and is_all(plain["bias"], 0)

    def _normalise(self, factor: Array) -> None:
        """Replace the last layers by group or layer normalisation."""
        layer: Any = self.items[-2].layer
        shape = self.shape
        for _ in range(3):
            self.remove()
        self.reshape(shape)
        weight = without_samples(factor, self.shape)
        per_channel = weight.shape[1:] == (1,) * len(weight.shape[1:]) and len(self.shape) > 1
        if layer.groups == 1 and not per_channel:
            weight = np.broadcast_to(weight, self.shape)
            self.add(LayerNorm(layer.epsilon), {"weight": weight, "bias": np.zeros(self.shape)})
        else:
            weight = self.by_channel(factor, "Mul")
            self.add(GroupNorm(layer.groups, layer.epsilon), {"weight": weight, "bias": np.zeros_like(weight)})

    def by_channel(self, values: Array, operator: str) -> Array:
        """The values, one for each channel."""
        values = without_samples(values, self.shape)
        if values.shape[1:] != (1,) * len(values.shape[1:]) or values.shape[0] not in (1, self.shape[0]):
            raise CannotImportError(
                f"operator {operator} with a constant of shape {values.shape} on samples of shape {self.shape}, where "
                f"one number for each channel can be imported"
            )
        return np.broadcast_to(values.reshape(len(values)), self.shape[:1])

    def joined(self, within: str = "") -> tuple[tuple[Layer, ...], dict[str, Array]]:
        """The layers, and their arrays by their names in the network."""
        arrays = {f"{within}{i}.{name}": one for i, item in enumerate(self.items) for name, one in item.arrays.items()}
        return tuple(item.layer for item in self.items), arrays


def without_samples(values: Array, shape: Shape) -> Array:
    """A constant with as many axes as a sample, which broadcasts to the sample."""
    values = values.reshape((1,) * max(len(shape) - values.ndim, 0) + values.shape)
    while values.ndim > len(shape) and values.shape[0] == 1:
        values = values[0]
    if values.ndim != len(shape) or np.broadcast_shapes(values.shape, shape) != shape:
        raise CannotImportError(f"a constant of shape {values.shape} combined with samples of shape {shape}")
    return values


def is_all(values: Any, number: Any) -> bool:
    """Whether all values are the number, to float32 rounding."""
    return bool(np.allclose(values, number, rtol=1e-5, atol=1e-6))
