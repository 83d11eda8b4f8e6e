"""Zeros around an image."""

from dataclasses import dataclass

from parallelcnn.errors import ShapeError
from parallelcnn.kernels.padding import crop, pad

from .base import Array, Layer, Shape, Step, pair
from .pooling import image_shape


@dataclass(frozen=True, repr=False)
class ZeroPad2D(Layer):
    """Add rows and columns of zeros around an image, as Keras's ZeroPadding2D.

    Args:
        padding: a number, for all sides; (rows, columns), for each of two opposite sides; or
            ((top, bottom), (left, right)).

    Shapes: (C, H, W) -> (C, top + H + bottom, left + W + right).

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if the input is not an image.

    Example:
        >>> ZeroPad2D(((0, 1), (0, 1))).output_shape((3, 31, 31))
        (3, 32, 32)
    """

    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 1

    def __post_init__(self) -> None:
        # PyTorch's order is (left, right, top, bottom): a flat tuple of four would be taken for either.
        if isinstance(self.padding, tuple) and len(self.padding) != 2:
            raise ShapeError(
                f"{self}: padding must be a number, (rows, columns) or ((top, bottom), (left, right)), "
                f"got {self.padding!r}"
            )
        sides_of_padding(self)

    def output_shape(self, input_shape: Shape) -> Shape:
        C, H, W = image_shape(self, input_shape)
        (top, bottom), (left, right) = sides_of_padding(self)
        return (C, top + H + bottom, left + W + right)

    def forward(self, step: Step, x: Array) -> Array:
        y = step.array(self.output_shape(x.shape[:-1]))
        (top, _), (left, _) = sides_of_padding(self)
        step.call(pad, x, top, left, y)
        step.save(x.shape[:-1])
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        if not step.needs_input_gradient:
            return None
        (input_shape,) = step.saved
        (top, _), (left, _) = sides_of_padding(self)
        dx = step.array(input_shape)
        step.call(crop, dy, top, left, dx)
        return dx


def sides_of_padding(layer: ZeroPad2D) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right))."""
    rows, columns = layer.padding if isinstance(layer.padding, tuple) else (layer.padding, layer.padding)
    return pair(layer, "padding", rows, at_least=0), pair(layer, "padding", columns, at_least=0)
