"""Two-dimensional convolution."""

import math
from dataclasses import dataclass
from functools import cache

from parallelcnn.activations import ActivationFunction, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels.conv2d import conv2d_backward_bias

from .base import Array, Layer, Parameter, Shape, Step, check_positive, initial_weight, pair
from .conv_algorithms import NO_BIAS, WindowAxis, Windows, as_rows, select


@dataclass(frozen=True, repr=False)
class Conv2D(Layer):
    """Two-dimensional convolution: y[k] = f(bias[k] + sum over c of weight[k, c] correlated with x[c]).

    Args:
        filters: number of output channels, K.
        kernel_size: rows and columns of the filter, (R, S), or one number for both.
        stride: step between windows, (rows, columns) or one number for both.
        padding: "valid": no padding. "same": zeros around the image such that stride 1 keeps the image size, and stride
            s gives ceil(size / s); an odd zero goes below and to the right, as in Keras. A number, or (rows, columns):
            that many zeros on each side.
        activation: name or `ActivationFunction` applied to the output.
        bias: whether to add a trainable bias to each output channel.

    Shapes: (C, H, W) -> (filters, P, Q) with P = (H + zeros above and below - R) div stride + 1, and Q likewise.
    """

    filters: int
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: str | int | tuple[int, int] = "valid"
    activation: str | ActivationFunction = "identity"
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "filters")
        pair(self, "kernel_size", self.kernel_size)
        pair(self, "stride", self.stride)
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
        K, C = self.filters, input_shape[0]
        initial = initial_weight(C * R * S, K * R * S, find_activation(self.activation))
        parameters = {"weight": Parameter((K, C, R, S), initial)}
        if self.bias:
            parameters["bias"] = Parameter((K,), weight_decay=False)
        return parameters

    def multiply_adds(self, input_shape: Shape) -> int:
        R, S = pair(self, "kernel_size", self.kernel_size)
        return math.prod(self.output_shape(input_shape)) * input_shape[0] * R * S

    def forward(self, step: Step, x: Array) -> Array:
        weight, bias = step.params["weight"], step.params.get("bias", NO_BIAS[step.dtype])
        y = step.array(self.output_shape(x.shape[:-1]))
        algorithm = select(windows_of(self, x.shape[:-1]), weight.shape, x.shape, y.shape, computed=y.shape)
        image = algorithm.forward(step, weight, bias, x, y)
        step.save(x, image, find_activation(self.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        x, image, kept = step.saved
        find_activation(self.activation).record_backward(step, kept, dy)
        if "bias" in step.grads:
            step.call(conv2d_backward_bias, as_rows(dy), step.grads["bias"])
        return self.record_gradients(step, x, image, dy)

    def record_gradients(self, step: Step, x: Array, image: Array, dy: Array) -> Array | None:
        """Record the gradients of the weights, bias and input, given dy before the activation."""
        weight, windows = step.params["weight"], windows_of(self, x.shape[:-1])
        shapes = weight.shape, x.shape, dy.shape
        if "weight" in step.grads:
            select(windows, *shapes, computed=dy.shape).weight_gradient(step, image, dy, step.grads["weight"])
        if not step.needs_input_gradient:
            return None
        dx = step.array(x.shape[:-1])
        select(windows, *shapes, computed=x.shape).input_gradient(step, weight, dy, dx)
        return dx


@cache
def windows_of(layer: Conv2D, input_shape: Shape) -> Windows:
    """The windows of the layer along rows and columns; ShapeError if it does not accept this input shape."""
    if len(input_shape) != 3:
        raise ShapeError(f"{layer} takes images (C, H, W), got {input_shape}")
    window = pair(layer, "kernel_size", layer.kernel_size)
    stride = pair(layer, "stride", layer.stride)
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
        axes.append(WindowAxis(window[i], stride[i] if outputs > 1 else 1, before, outputs))
    return Windows(*axes)
