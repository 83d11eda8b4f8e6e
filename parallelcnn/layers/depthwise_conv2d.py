"""Depthwise two-dimensional convolution: each channel has its own filters."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cache, partial
from typing import Any

from parallelcnn.activations import AnyActivation
from parallelcnn.errors import ShapeError

from .base import Array, Layer, Parameter, Shape, Step, check_positive
from .conv2d import Conv2D


@dataclass(frozen=True, repr=False)
class DepthwiseConv2D(Layer):
    """Depthwise convolution: each channel is correlated with its own filters (Howard et al. 2017, MobileNets,
    arXiv:1704.04861, eq. 3). It is a `Conv2D` with as many groups as channels.

    Args:
        kernel_size: rows and columns of the filters, (R, S), or one number for both.
        multiplier: number of filters of each channel, as `depth_multiplier` in Keras.
        stride, padding, activation, bias, dilation: as in `Conv2D`.

    Shapes: (C, H, W) -> (C * multiplier, P, Q). The weight has shape (C * multiplier, 1, R, S), as in PyTorch.

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if the input is not an image, or the
            window is larger than the padded image.
        InputError: if the activation is not known.

    Example:
        >>> layers = (DepthwiseConv2D(3, padding="same", activation="relu"), Conv2D(64, 1, activation="relu"))
    """

    kernel_size: int | tuple[int, int]
    _: KW_ONLY
    multiplier: int = 1
    stride: int | tuple[int, int] = 1
    padding: str | int | tuple[int, int] = "valid"
    activation: AnyActivation = "identity"
    bias: bool = True
    dilation: int | tuple[int, int] = 1

    def __post_init__(self) -> None:
        check_positive(self, "multiplier")
        _convolution.__wrapped__(self, channels=1)  # checks the other fields, also of an equal layer as 3.0 for 3

    def output_shape(self, input_shape: Shape) -> Shape:
        return _named(self, self.as_conv2d(input_shape).output_shape, input_shape)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        return self.as_conv2d(input_shape).parameters(input_shape)

    def multiply_adds(self, input_shape: Shape) -> int:
        return self.as_conv2d(input_shape).multiply_adds(input_shape)

    def forward(self, step: Step, x: Array) -> Array:
        return self.as_conv2d(x.shape[:-1]).forward(step, x)

    def backward(self, step: Step, dy: Array) -> Array | None:
        return _convolution(self, len(dy) // self.multiplier).backward(step, dy)

    def as_conv2d(self, input_shape: Shape) -> Conv2D:
        """The convolution with groups that this layer is for that input."""
        if len(input_shape) != 3:
            raise ShapeError(f"{self} takes images (C, H, W), got {input_shape}")
        return _convolution(self, input_shape[0])


@cache
def _convolution(layer: DepthwiseConv2D, channels: int) -> Conv2D:
    names = "kernel_size", "stride", "padding", "activation", "bias", "dilation"
    arguments = {name: getattr(layer, name) for name in names}
    return _named(layer, partial(Conv2D, channels * layer.multiplier, groups=channels, **arguments))


def _named(layer: DepthwiseConv2D, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function; a ShapeError names this layer instead of the convolution."""
    try:
        return function(*arguments)
    except ShapeError as error:
        raise ShapeError(f"{layer}: {str(error).partition('): ')[2]}") from None
