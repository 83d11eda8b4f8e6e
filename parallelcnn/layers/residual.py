"""Residual connection: adds the output of some layers to their input."""

from collections.abc import Iterable
from dataclasses import dataclass

from parallelcnn.errors import ShapeError
from parallelcnn.kernels.adding import add
from parallelcnn.kernels.copying import copy

from .base import Array, Buffer, Layer, Parameter, Shape, Step


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    """Residual connection: y = x + layers(x) (He et al. 2016, arXiv:1512.03385, eq. 1).

    The parameters of the layers inside are named as in PyTorch's Sequential: "0.weight", "0.bias", "1.weight", ...

    Args:
        layers: a tuple of layers, first to last. Together they must keep the shape.

    Shapes: any -> the same.

    Example:
        >>> Residual((Conv2D(16, 3, padding="same", activation="relu"), Conv2D(16, 3, padding="same")))
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        is_list = isinstance(self.layers, Iterable) and not isinstance(self.layers, str)
        layers = tuple(self.layers) if is_list else ()
        if not layers or not all(isinstance(layer, Layer) for layer in layers):
            raise ShapeError(f"Residual takes a tuple of at least one layer, got {self.layers!r}")
        object.__setattr__(self, "layers", layers)

    @property
    def mixes_samples(self) -> bool:  # type: ignore[override]
        return any(layer.mixes_samples for layer in self.layers)

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = self._shapes(input_shape)[-1]
        if shape != input_shape:
            raise ShapeError(f"{self}: the layers inside must keep the shape {input_shape}, got {shape}")
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        inside = [(i, layer.parameters(shape)) for i, (layer, shape) in enumerate(self.inner_layers(input_shape))]
        return {f"{i}.{name}": one for i, parameters in inside for name, one in parameters.items()}

    def buffers(self, input_shape: Shape) -> dict[str, Buffer]:
        inside = [(i, layer.buffers(shape)) for i, (layer, shape) in enumerate(self.inner_layers(input_shape))]
        return {f"{i}.{name}": one for i, buffers in inside for name, one in buffers.items()}

    def multiply_adds(self, input_shape: Shape) -> int:
        return sum(layer.multiply_adds(shape) for layer, shape in self.inner_layers(input_shape))

    def forward(self, step: Step, x: Array) -> Array:
        inside, needs_input_gradient = x, step.needs_input_gradient
        backward: list[str] = []  # names of the layers in the backward pass, last to first
        for i, (layer, shape) in enumerate(self.inner_layers(x.shape[:-1])):
            inside = step.forward(str(i), layer, inside, needs_input_gradient=needs_input_gradient)
            needs_input_gradient = needs_input_gradient or bool(layer.parameters(shape))
            if needs_input_gradient:
                backward.insert(0, str(i))
        # A new array: the layer before may still need x for its backward pass, and the last layer inside may need its
        # output.
        y = step.array(x.shape[:-1])
        step.call(add, x.reshape(x.size), inside.reshape(x.size), y.reshape(x.size))
        step.save(backward)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        """Add the gradients of both uses of x: the first layer inside and the sum."""
        (names,) = step.saved
        dx = None
        if step.needs_input_gradient:
            dx = step.array(dy.shape[:-1])
            step.call(copy, dy.reshape(dy.size), dx.reshape(dx.size))  # the layers inside may overwrite dy
        flowing: Array | None = dy
        for name in names:
            assert flowing is not None, "every layer but the first of `names` returns a gradient"
            flowing = step.backward(name, flowing)
        if dx is not None and flowing is not None:
            step.call(add, dx.reshape(dx.size), flowing.reshape(dx.size), dx.reshape(dx.size))
        return dx

    def inner_layers(self, input_shape: Shape) -> list[tuple[Layer, Shape]]:
        return list(zip(self.layers, self._shapes(input_shape)[:-1], strict=True))

    def _shapes(self, input_shape: Shape) -> list[Shape]:
        """Shapes of one sample before, between and after the layers inside."""
        shapes = [input_shape]
        for i, layer in enumerate(self.layers, start=1):
            try:
                shapes.append(layer.output_shape(shapes[-1]))
            except ShapeError as error:
                raise ShapeError(f"layer {i} of {len(self.layers)} in a Residual: {error}") from None
        return shapes
