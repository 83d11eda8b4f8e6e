"""Layers whose parameters training does not change."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from parallelcnn.arguments import check_integer
from parallelcnn.errors import InputError, ShapeError

from .base import Array, Buffer, Layer, Parameter, Shape, Step


@dataclass(frozen=True, repr=False)
class Frozen(Layer):
    """A layer whose parameters training does not change, as with `trainable = False` in Keras.

    The gradients of its parameters are neither computed nor sent, and no optimiser updates them. The backward pass
    ends at the first layer that is trained. The parameters keep their names, and are in model files, in checkpoints and
    in `network.params`, where they come last.

    It is a wrapper, because a layer cannot be changed. So it can freeze any layer, also a composite or a layer of your
    own. Buffers inside, such as the running statistics of `BatchNorm`, are still updated, and `Dropout` still drops
    numbers, as in PyTorch with `requires_grad=False`.

    Args:
        layer: any layer.

    Shapes: those of the layer.

    Raises:
        ShapeError: if `layer` is not a layer.

    Example:
        All layers of a model but the last are frozen, and the last one is replaced:

        >>> old = NetworkHandler((Conv2D(8, 3, activation="relu"), Flatten(), Dense(10)), (1, 8, 8))
        >>> new = NetworkHandler((*map(Frozen, old.layers[:-1]), Dense(3)), old.input_shape)
        >>> print(new.load_parameters(old.parameters, strict=False))
        2 of 4 arrays fit; 2.weight (3, 288) has shape (10, 288) there, 2.bias (3,) has shape (10,) there
        >>> new.trained_params.size
        867
    """

    layer: Layer

    def __post_init__(self) -> None:
        if not isinstance(self.layer, Layer):
            raise ShapeError(f"Frozen takes a layer, got {self.layer!r}: to freeze several, map(Frozen, layers)")

    @property
    def mixes_samples(self) -> bool:  # type: ignore[override]
        return self.layer.mixes_samples

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.layer.output_shape(input_shape)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        parameters = self.layer.parameters(input_shape)
        return {name: replace(parameter, trainable=False) for name, parameter in parameters.items()}

    def buffers(self, input_shape: Shape) -> dict[str, Buffer]:
        return self.layer.buffers(input_shape)

    def inner_layers(self, input_shape: Shape) -> list[tuple[Layer, Shape]]:
        return self.layer.inner_layers(input_shape)

    def multiply_adds(self, input_shape: Shape) -> int:
        return self.layer.multiply_adds(input_shape)

    def backward_multiply_adds(
        self, input_shape: Shape, trained: Collection[str], *, needs_input_gradient: bool
    ) -> int:
        return self.layer.backward_multiply_adds(input_shape, trained, needs_input_gradient=needs_input_gradient)

    def forward(self, step: Step, x: Array) -> Array:
        return self.layer.forward(step, x)

    def backward(self, step: Step, dy: Array) -> Array | None:
        return self.layer.backward(step, dy)


def freeze(layers: Iterable[Layer], first: int) -> tuple[Layer, ...]:
    """The layers with the first ones frozen.

    Args:
        first: how many layers to freeze, from the beginning.

    Raises:
        InputError: if `first` is not an integer from 0 to the number of layers.

    Example:
        >>> freeze((Conv2D(8, 3), Flatten(), Dense(10)), 1)
        (Frozen(Conv2D(8, 3)), Flatten(), Dense(10))
    """
    layers = tuple(layers)
    check_integer("first", first, 0)
    if first > len(layers):
        raise InputError(f"at most all {len(layers)} layers of the network can be frozen, got {first}")
    frozen = (layer if isinstance(layer, Frozen) else Frozen(layer) for layer in layers[:first])
    return (*frozen, *layers[first:])


def thawed(layer: Layer) -> Layer:
    """The layer that is frozen: the tape knows which parameters are trained, whatever layer runs."""
    return thawed(layer.layer) if type(layer) is Frozen else layer
