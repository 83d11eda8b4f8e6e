"""Residual connection: adds the output of some layers to their input."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from parallelcnn.activations import IDENTITY, AnyActivation, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels.adding import activated_kernels, add_to
from parallelcnn.kernels.copying import copy

from .base import Array, Layer, Shape, Step
from .composite import Composite, LayerOrLayers, Layers, Sequential, as_branch, as_row, output_shape_in, row_of

_SHORTCUT = "shortcut"


@dataclass(frozen=True, repr=False)
class Residual(Sequential):
    """Residual connection: y = f(shortcut(x) + layers(x)) (He et al. 2016, arXiv:1512.03385, eq. 1 and 2).

    The parameters of `layers` are named as in PyTorch's Sequential: "0.weight", "0.bias", "1.weight", ...; those of the
    shortcut "shortcut.0.weight", ...

    Args:
        layers: a tuple of layers, first to last.
        shortcut: a layer or a tuple of layers that give x the shape of the output of `layers`, such as a convolution of
            1 x 1 with a stride. None: x itself; then `layers` must keep the shape.
        activation: name, function of one number, or `ActivationFunction`, applied to the sum.

    Shapes: any -> the output shape of `layers`.

    Raises:
        ShapeError: if `layers` or `shortcut` are not such layers; when the network is built, if the two outputs that
            are added differ in shape, or a layer does not accept its input.
        InputError: if the activation is not known.

    Example:
        >>> Residual((Conv2D(16, 3, padding="same", activation="relu"), Conv2D(16, 3, padding="same")))
        Residual((Conv2D(16, 3, padding='same', activation='relu'), Conv2D(16, 3, padding='same')))
        >>> block = (Conv2D(32, 3, stride=2, padding=1, activation="relu"), Conv2D(32, 3, padding=1))
        >>> Residual(block, shortcut=Conv2D(32, 1, stride=2), activation="relu").output_shape((16, 8, 8))
        (32, 4, 4)
    """

    shortcut: LayerOrLayers | None = None
    activation: AnyActivation = "identity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_row(self, "a tuple of at least one layer", self.layers, at_least=1))
        if self.shortcut is not None:
            shortcut = as_branch(self, "None, a layer or a tuple of layers as its shortcut", self.shortcut)
            object.__setattr__(self, "shortcut", shortcut)
        find_activation(self.activation)

    @property
    def inside(self) -> dict[str, Layer]:
        shortcut = {} if self.shortcut is None else {_SHORTCUT: Sequential(row_of(self.shortcut))}
        return {**super().inside, **shortcut}

    def input_shapes(self, input_shape: Shape) -> list[Shape]:
        return super().input_shapes(input_shape) + ([] if self.shortcut is None else [input_shape])

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = super().output_shape(input_shape)
        if self.shortcut is None:
            if shape != input_shape:
                raise ShapeError(
                    f"{self}: the layers inside must keep the shape {input_shape}, got {shape}: is a shortcut missing?"
                )
            return shape
        added = output_shape_in("the shortcut of a Residual", self.inside[_SHORTCUT], input_shape)
        if shape != added:
            raise ShapeError(f"{self}: the shortcut must give the shape of the layers' output, {shape}, got {added}")
        return shape

    def backward_multiply_adds(
        self, input_shape: Shape, trained: Collection[str], *, needs_input_gradient: bool
    ) -> int:
        total = super().backward_multiply_adds(input_shape, trained, needs_input_gradient=needs_input_gradient)
        if self.shortcut is not None:
            total += self.inner_backward_multiply_adds(
                _SHORTCUT, input_shape, trained, needs_input_gradient=needs_input_gradient
            )
        return total

    def map_rows(self, function: Callable[[Layers], Layers]) -> Composite:
        shortcut = None if self.shortcut is None else function(row_of(self.shortcut))
        return replace(self, layers=function(self.layers), shortcut=shortcut)

    def forward(self, step: Step, x: Array) -> Array:
        through = super().forward(step, x)
        added = x
        if self.shortcut is not None:
            needs_input_gradient = step.needs_input_gradient
            added = step.forward(_SHORTCUT, self.inside[_SHORTCUT], x, needs_input_gradient=needs_input_gradient)
        # A new array: the layer before may need x for its backward pass, and the layers inside may need their outputs.
        y = step.array(through.shape[:-1])
        fused, after = find_activation(self.activation).fused()
        forward, _ = activated_kernels(fused.function, fused.derivative)
        step.call(forward, added.reshape(y.size), through.reshape(y.size), y.reshape(y.size))
        step.save(y, after.record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        """Add the gradients of both uses of x: the layers and the shortcut."""
        y, kept = step.saved
        fused, after = find_activation(self.activation).fused()
        after.record_backward(step, kept, dy)
        dx: Array | None = None
        if step.needs_input_gradient or step.trains(_SHORTCUT):
            dx = step.array(dy.shape[:-1])  # the layers inside may overwrite dy
            if fused is IDENTITY:
                step.call(copy, dy.reshape(dy.size), dx.reshape(dx.size))
            else:
                backward = activated_kernels(fused.function, fused.derivative)[1]
                step.call(backward, y.reshape(y.size), dy.reshape(dy.size), dx.reshape(dx.size))
        else:
            fused.record_backward(step, y, dy)
        through = super().backward(step, dy)
        if dx is not None and self.shortcut is not None:
            dx = step.backward(_SHORTCUT, dx)
        if dx is not None and through is not None:
            step.call(add_to, dx.reshape(dx.size), through.reshape(dx.size))
        return dx
