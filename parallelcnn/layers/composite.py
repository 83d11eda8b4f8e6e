"""Composite layers: layers that contain layers. `Sequential` runs them one after the other.

A composite declares the layers inside it, by name. Their parameters and buffers become its own, as "NAME.weight". So
composites can be nested to any depth.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from parallelcnn.errors import ShapeError

from .base import Array, Buffer, Layer, Parameter, Shape, Step

Layers = tuple[Layer, ...]
LayerOrLayers = Layer | Layers


class Composite(Layer):
    """Base class of layers that contain layers."""

    @property
    @abstractmethod
    def inside(self) -> dict[str, Layer]:
        """The layers inside, by name. If "a" is a name, no other name may begin with "a."."""

    @abstractmethod
    def input_shapes(self, input_shape: Shape) -> list[Shape]:
        """Input shapes of the layers inside, in their order."""

    @abstractmethod
    def map_rows(self, function: Callable[[Layers], Layers]) -> "Composite":
        """A copy with `function` applied to each row, a tuple of layers that run one after the other."""

    @property
    def mixes_samples(self) -> bool:  # type: ignore[override]
        return any(layer.mixes_samples for layer in self.inside.values())

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        return self._named(input_shape, lambda layer, shape: layer.parameters(shape))

    def buffers(self, input_shape: Shape) -> dict[str, Buffer]:
        return self._named(input_shape, lambda layer, shape: layer.buffers(shape))

    def _named(self, input_shape: Shape, find: Callable[[Layer, Shape], dict[str, Any]]) -> dict[str, Any]:
        inside = zip(self.inside, self.inner_layers(input_shape), strict=True)
        return {f"{name}.{key}": value for name, inner in inside for key, value in find(*inner).items()}

    def inner_layers(self, input_shape: Shape) -> list[tuple[Layer, Shape]]:
        return list(zip(self.inside.values(), self.input_shapes(input_shape), strict=True))

    def multiply_adds(self, input_shape: Shape) -> int:
        return sum(layer.multiply_adds(shape) for layer, shape in self.inner_layers(input_shape))

    def inner_backward_multiply_adds(
        self, name: str, input_shape: Shape, trained: Collection[str], *, needs_input_gradient: bool
    ) -> int:
        """Those of the layer of that name inside, given its input shape, and the names of trained parameters here."""
        mine = trained_inside(name, trained)
        if not mine and not needs_input_gradient:
            return 0  # see `Step.backward`
        return self.inside[name].backward_multiply_adds(input_shape, mine, needs_input_gradient=needs_input_gradient)


@dataclass(frozen=True, repr=False)
class Sequential(Composite):
    """Run layers one after the other: y = last(... second(first(x))).

    A `Sequential` is one layer, so that a function can return a block of layers. Parameters are named as in PyTorch's
    Sequential: "0.weight", "0.bias", "1.weight", ...

    Args:
        layers: a tuple of layers, first to last; empty: y = x.

    Shapes: that of the first layer's input -> that of the last layer's output.

    Raises:
        ShapeError: if `layers` is not a tuple of layers; when the network is built, if a layer does not accept the
            output of the layer before it.

    Example:
        >>> def block(filters):
        ...     return Sequential((Conv2D(filters, 3, padding="same", activation="relu"), MaxPool2D(2)))
        >>> NetworkHandler((block(8), block(16), Flatten(), Dense(10)), (1, 28, 28)).shapes[2]
        (16, 7, 7)
    """

    layers: Layers

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_row(self, "a tuple of layers", self.layers))

    @property
    def inside(self) -> dict[str, Layer]:
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def input_shapes(self, input_shape: Shape) -> list[Shape]:
        return self._shapes(input_shape)[:-1]

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._shapes(input_shape)[-1]

    def map_rows(self, function: Callable[[Layers], Layers]) -> Composite:
        return replace(self, layers=function(self.layers))

    def forward(self, step: Step, x: Array) -> Array:
        needs_input_gradient = step.needs_input_gradient
        for i, layer in enumerate(self.layers):
            replaced = takewhile(lambda j: isinstance(self.layers[j], Replaced), range(i + 1, len(self.layers)))
            also = [str(j) for j in replaced]
            x = step.forward(str(i), layer, x, needs_input_gradient=needs_input_gradient, also=also)
            needs_input_gradient = needs_input_gradient or step.trains(str(i))
        return x

    def backward(self, step: Step, dy: Array) -> Array | None:
        flowing: Array | None = dy
        for i in reversed(range(len(self.layers))):
            if flowing is not None:
                flowing = step.backward(str(i), flowing)
        return flowing

    def backward_multiply_adds(
        self, input_shape: Shape, trained: Collection[str], *, needs_input_gradient: bool
    ) -> int:
        total, needed = 0, needs_input_gradient
        for i, shape in enumerate(self._shapes(input_shape)[:-1]):
            total += self.inner_backward_multiply_adds(str(i), shape, trained, needs_input_gradient=needed)
            needed = needed or bool(trained_inside(str(i), trained))
        return total

    def _shapes(self, input_shape: Shape) -> list[Shape]:
        """Shapes of one sample before, between and after the layers."""
        shapes = [input_shape]
        for i, layer in enumerate(self.layers, start=1):
            place = f"layer {i} of {len(self.layers)} in a {type(self).__name__}"
            shapes.append(output_shape_in(place, layer, shapes[-1]))
        return shapes


@dataclass(frozen=True, repr=False)
class Replaced(Layer):
    """Takes the place of a layer whose work the layer before it does: y = x; see `fusions`."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, step: Step, x: Array) -> Array:
        return x

    def backward(self, step: Step, dy: Array) -> Array | None:
        return dy


def trained_inside(name: str, trained: Collection[str]) -> set[str]:
    """Of the names of trained parameters, those of the layer inside, by its own names."""
    return {one.removeprefix(f"{name}.") for one in trained if one.startswith(f"{name}.")}


def as_row(owner: Layer, rule: str, value: Any, at_least: int = 0) -> Layers:
    """A tuple of layers; ShapeError, which says what the owner takes, unless `value` is a list of layers."""
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    layers = tuple(value) if is_list else (None,)
    if len(layers) < at_least or not all(isinstance(layer, Layer) for layer in layers):
        raise ShapeError(f"{type(owner).__name__} takes {rule}, got {value!r}")
    return layers


def as_branch(owner: Layer, rule: str, value: Any) -> LayerOrLayers:
    """As `as_row`, for a layer or a tuple of layers. A tuple of one layer becomes the layer: it is the same branch."""
    layers = as_row(owner, rule, (value,) if isinstance(value, Layer) else value)
    return layers[0] if len(layers) == 1 else layers


def row_of(branch: LayerOrLayers) -> Layers:
    """The layers of a branch."""
    return (branch,) if isinstance(branch, Layer) else branch


def output_shape_in(place: str, layer: Layer, input_shape: Shape) -> Shape:
    """The output shape of a layer inside another; a ShapeError names the place."""
    try:
        return layer.output_shape(input_shape)
    except ShapeError as error:
        raise ShapeError(f"{place}: {error}") from None
