"""Check the layers of a network: their shapes, their activations, and the arrays that they declare."""

import operator
from collections.abc import Iterable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.arguments import described
from parallelcnn.errors import ShapeError
from parallelcnn.layers.base import Buffer, Layer, Parameter, Shape
from parallelcnn.layers.frozen import thawed
from parallelcnn.parameters import ArrayLayout

Declared = list[tuple[dict[str, Parameter], dict[str, Buffer]]]


def declare(layers: tuple[Layer, ...], shapes: tuple[Shape, ...]) -> tuple[Declared, ArrayLayout, ArrayLayout]:
    """The parameters and buffers that the layers declare, and their layouts. Allocates nothing."""
    inputs = zip(layers, shapes[:-1], strict=True)
    declared = [(layer.parameters(shape), layer.buffers(shape)) for layer, shape in inputs]
    parameters = ArrayLayout.of(some for some, _ in declared)
    buffers = ArrayLayout(tuple({name: one.shape for name, one in some.items()} for _, some in declared))
    return declared, parameters, buffers


def as_layers(layers: Any) -> tuple[Layer, ...]:
    """The layers of a network as a tuple.

    Raises:
        ShapeError: if `layers` holds anything else.
    """
    if isinstance(layers, Layer | str) or not isinstance(layers, Iterable):
        hint = f": write {layers.__name__}()" if isinstance(layers, FunctionType) else ""
        raise ShapeError(f"a network takes a tuple of layers, got {described(layers)}{hint}")
    layers = tuple(layers)
    for position, layer in enumerate(layers, start=1):
        if not isinstance(layer, Layer):
            hint = f": write {layer.__name__}(...)" if isinstance(layer, type) and issubclass(layer, Layer) else ""
            raise ShapeError(f"layer {position} of the network must be a Layer, got {described(layer)}{hint}")
    return layers


def chain_shapes(layers: tuple[Layer, ...], input_shape: Sequence[int]) -> tuple[Shape, ...]:
    """Shapes of one sample before, between and after the layers.

    Raises:
        ShapeError: if a layer does not accept the output of the layer before it.
    """
    if not layers:
        raise ShapeError("a network takes at least one layer, got none")
    shapes = [_checked_input_shape(input_shape)]
    for position, layer in enumerate(layers, start=1):
        if hasattr(layer, "param_shapes") or hasattr(layer, "cache_shapes"):
            raise ShapeError(
                f"layer {position} of {len(layers)}: {layer} is written for parallelcnn 0.1, whose layers computed on "
                f"arrays; now they record their calls: see `parallelcnn guide custom-layers`"
            )
        try:
            shape = layer.output_shape(shapes[-1])
        except ShapeError as error:
            raise ShapeError(f"layer {position} of {len(layers)}: {error}") from None
        if not (isinstance(shape, tuple) and all(isinstance(size, int | np.integer) and size > 0 for size in shape)):
            raise ShapeError(f"layer {position} of {len(layers)}: {layer} says that its output has shape {shape!r}")
        shapes.append(tuple(map(int, shape)))
    return tuple(shapes)


def _checked_input_shape(input_shape: Sequence[int]) -> Shape:
    try:
        shape = tuple(operator.index(size) for size in input_shape)
    except TypeError:
        shape = ()
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ShapeError(f"input_shape must be (C, H, W) or (features,) of positive integers, got {input_shape!r}")
    return shape


def check_activations(layer: Layer, input_shape: Shape) -> None:
    """Check the functions of the user's own in a layer, and in layers inside it; see `ActivationFunction.check`."""
    layer = thawed(layer)
    activation = getattr(layer, "activation", None)
    is_ours = type(layer).__module__.startswith("parallelcnn.")  # a user's layer may call anything its activation
    if isinstance(activation, ActivationFunction) or (is_ours and activation is not None):
        find_activation(activation).check()
    for inner, shape in layer.inner_layers(input_shape):
        check_activations(inner, shape)
