"""Two-dimensional convolution."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cache

from parallelcnn.activations import AnyActivation, find_activation
from parallelcnn.errors import ShapeError

from .base import Array, Layer, Parameter, Shape, Step, check_positive, initial_weight, pair
from .conv_algorithms import select
from .conv_windows import NO_BIAS, Algorithm, WindowAxis, Windows


@dataclass(frozen=True, repr=False)
class Conv2D(Layer):
    """Two-dimensional convolution: y[k] = f(bias[k] + sum over c of weight[k, c] correlated with x[c]).

    The number of input channels is that of the layer before, so it is not an argument.

    Args:
        filters: number of output channels, K.
        kernel_size: rows and columns of the filter, (R, S), or one number for both.
        stride: distance between neighbouring windows, (rows, columns) or one number for both.
        padding: "valid": no padding. "same": zeros around the image such that stride 1 keeps the image size, and stride
            s gives ceil(size / s); an odd zero goes below and to the right, as in Keras. A number, or (rows, columns):
            that many zeros on each side.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.
        bias: whether to add a trainable bias to each output channel.
        groups: number of groups into which the input channels and the filters are cut. A filter reads only the channels
            of its own group (as in AlexNet, Krizhevsky et al. 2012, section 3.5). The number of input channels and
            `filters` must be divisible by it.
        dilation: distance between neighbouring weights of a filter, (rows, columns) or one number for both (Yu & Koltun
            2016, arXiv:1511.07122, eq. 2). A dilation above 1 needs stride 1.

    Shapes: (C, H, W) -> (filters, P, Q) with P = (H + zeros above and below - window) div stride + 1, where window =
    (R - 1) * dilation + 1, and Q likewise. The weight has shape (filters, C / groups, R, S), as in PyTorch.

    Raises:
        ShapeError: if an argument breaks its rule; when the network is built, if the input is not an image, its
            channels are not divisible by `groups`, or the window is larger than the padded image.
        InputError: if the activation is not known.

    Example:
        >>> Conv2D(16, 3, stride=2, padding=1, activation="relu").output_shape((3, 32, 32))
        (16, 16, 16)
    """

    filters: int
    kernel_size: int | tuple[int, int]
    _: KW_ONLY  # Conv2D(3, 8, 3), as PyTorch users write it, is refused
    stride: int | tuple[int, int] = 1
    padding: str | int | tuple[int, int] = "valid"
    activation: AnyActivation = "identity"
    bias: bool = True
    groups: int = 1
    dilation: int | tuple[int, int] = 1

    def __post_init__(self) -> None:
        check_positive(self, "filters")
        check_positive(self, "groups")
        pair(self, "kernel_size", self.kernel_size)
        stride, dilation = pair(self, "stride", self.stride), pair(self, "dilation", self.dilation)
        if max(dilation) > 1 and max(stride) > 1:
            raise ShapeError(f"{self}: a dilation above 1 takes stride 1, got stride={self.stride!r}")
        if self.filters % self.groups:
            raise ShapeError(f"{self}: filters must be divisible by groups={self.groups}, got {self.filters}")
        if isinstance(self.padding, str):
            if self.padding not in ("valid", "same"):
                raise ShapeError(f"{self}: padding must be 'valid', 'same' or a number, got {self.padding!r}")
        else:
            pair(self, "padding", self.padding, at_least=0)
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        rows, columns = windows_of(self, input_shape)
        return (self.filters, rows.outputs, columns.outputs)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        R, S = pair(self, "kernel_size", self.kernel_size)
        K, C = self.filters, input_shape[0] // self.groups
        initial = initial_weight(C * R * S, K // self.groups * R * S, find_activation(self.activation))
        parameters = {"weight": Parameter((K, C, R, S), initial)}
        if self.bias:
            parameters["bias"] = Parameter((K,), weight_decay=False)
        return parameters

    def multiply_adds(self, input_shape: Shape) -> int:
        R, S = pair(self, "kernel_size", self.kernel_size)
        return math.prod(self.output_shape(input_shape)) * (input_shape[0] // self.groups) * R * S

    def forward(self, step: Step, x: Array) -> Array:
        weight, bias = step.params["weight"], step.params.get("bias", NO_BIAS[step.dtype])
        y = step.array(self.output_shape(x.shape[:-1]))
        image = self._algorithm(step, x, y, computed=y).forward(step, weight, bias, x, y)
        step.save(x, image, find_activation(self.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        x, image, kept = step.saved
        find_activation(self.activation).record_backward(step, kept, dy, step.grads.get("bias"))
        return self.record_gradients(step, x, image, dy)

    def record_gradients(self, step: Step, x: Array, image: Array, dy: Array) -> Array | None:
        """Record the gradients of the weights, bias and input, given dy before the activation."""
        if "weight" in step.grads:
            algorithm = self._algorithm(step, x, dy, computed=dy)
            algorithm.weight_gradient(step, image, dy, step.grads["weight"])
        if not step.needs_input_gradient:
            return None
        dx = step.array(x.shape[:-1])
        self._algorithm(step, x, dy, computed=x).input_gradient(step, step.params["weight"], dy, dx)
        return dx

    def _algorithm(self, step: Step, x: Array, y: Array, computed: Array) -> Algorithm:
        windows, weight = windows_of(self, x.shape[:-1]), step.params["weight"]
        return select(windows, weight.shape, x.shape, y.shape, computed.shape, rounds=step.bfloat16)


def sides_of(layer: Conv2D, input_shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """The zeros around the image: ((above, below), (left, right)).

    A padding that is a number is the same on both sides, even if no window reaches the last zeros.
    """
    sides = []
    strides, sizes = pair(layer, "stride", layer.stride), input_shape[1:]
    for axis, stride, size in zip(windows_of(layer, input_shape), strides, sizes, strict=True):
        used = (axis.outputs - 1) * stride + (axis.window - 1) * axis.dilation + 1 - axis.before - size
        sides.append((axis.before, max(used, 0) if layer.padding == "same" else axis.before))
    return sides[0], sides[1]


@cache
def windows_of(layer: Conv2D, input_shape: Shape) -> Windows:
    """The windows of the layer along rows and columns; ShapeError if it does not accept this input shape."""
    if len(input_shape) != 3:
        raise ShapeError(f"{layer} takes images (C, H, W), got {input_shape}")
    if input_shape[0] % layer.groups:
        raise ShapeError(f"{layer}: the channels must be divisible by groups={layer.groups}, got {input_shape[0]}")
    taps, stride, dilation = (pair(layer, name, getattr(layer, name)) for name in ("kernel_size", "stride", "dilation"))
    window = [(taps[i] - 1) * dilation[i] + 1 for i in range(2)]
    axes = []
    for i, size in enumerate(input_shape[1:]):
        if layer.padding == "same":
            outputs = -(-size // stride[i])
            before = max((outputs - 1) * stride[i] + window[i] - size, 0) // 2
        else:
            before = 0 if layer.padding == "valid" else pair(layer, "padding", layer.padding, 0)[i]
            outputs = (size + 2 * before - window[i]) // stride[i] + 1
        if outputs < 1:
            padded = f" with {before} zeros on each side" if before else ""
            raise ShapeError(
                f"{layer}: a window of {window[0]} x {window[1]} is larger than the image, "
                f"{input_shape[1]} x {input_shape[2]}{padded}; it takes images at least as large as its window"
            )
        # With a single window the stride has no effect.
        axes.append(WindowAxis(taps[i], stride[i] if outputs > 1 else 1, before, outputs, dilation[i]))
    return Windows(*axes)
