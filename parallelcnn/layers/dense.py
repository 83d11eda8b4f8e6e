"""Fully connected layer."""

from dataclasses import dataclass

import numpy as np

from parallelcnn.activations import AnyActivation, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import dense as kernels

from .base import Array, Layer, Parameter, Shape, Step, check_positive, initial_weight
from .conv_algorithms import is_rounded, select
from .conv_windows import NO_BIAS, Algorithm, WindowAxis, Windows

# The kernels read arrays in place. If the arrays do not fit into the caches, numpy's products are faster, because they
# copy them into blocks first. Milliseconds on one core with a second cache of 2 MiB, units x features x samples:
#     forward:        1000 x 1000 x  256: 3.4 (numpy 3.5), 512 x 4096 x 512: 33 (15), 64 x 25088 x 32: 1.40 (1.07)
#     input gradient: 84 x 400 x 48: 0.025 (0.027), 84 x 400 x 128: 0.074 (0.067), 512 x 1024 x 50: 0.69 (0.52)
# The weight gradient uses panels: 512 x 4096 x 512: 13.7 (13.5), 84 x 400 x 1024: 0.52 (0.67).
# numpy's calls cannot be joined to others (`call_list.py`). For few units this costs as much as numpy saves: a step of
# 128 samples takes 1.09 ms either way, and a step of 400 samples on two threads takes 2.06 ms instead of 2.21.
_MOST_INPUT_BYTES = 2**20
_MOST_UNITS = 128

_ONE_PIXEL = Windows(WindowAxis(1, 1, 0, 1), WindowAxis(1, 1, 0, 1))


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """Fully connected layer: y = f(weight x + bias).

    Args:
        units: number of outputs.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.
        bias: whether to add a trainable bias to each output.

    Shapes: (features,) -> (units,). The weight has shape (units, features), as in PyTorch.

    Raises:
        ShapeError: if `units` is not a positive integer; when the network is built, if the input is not a vector.
        InputError: if the activation is not known.

    Example:
        >>> layers = (Flatten(), Dense(84, activation="relu"), Dense(10))
    """

    units: int
    activation: AnyActivation = "identity"
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "units")
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise ShapeError(f"{self} takes (features,), got {input_shape}: is a Flatten() missing before it?")
        return (self.units,)

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        features = input_shape[0]
        initial = initial_weight(features, self.units, find_activation(self.activation))
        parameters = {"weight": Parameter((self.units, features), initial)}
        if self.bias:
            parameters["bias"] = Parameter((self.units,), weight_decay=False)
        return parameters

    def multiply_adds(self, input_shape: Shape) -> int:
        return self.units * input_shape[0]

    def forward(self, step: Step, x: Array) -> Array:
        weight, bias = step.params["weight"], step.params.get("bias")
        y, convolution = step.array((self.units,)), _convolution(step)
        if convolution is not None:
            no_bias = NO_BIAS[step.dtype] if bias is None else bias
            seen = convolution.forward(step, _as_filters(weight), no_bias, _as_images(x), _as_images(y))
        else:
            seen, multiplied = x, x.nbytes > _MOST_INPUT_BYTES
            if multiplied:
                step.call(np.matmul, weight, x, out=y)
            step.call(kernels.dense_forward, weight, x, bias, multiplied, y)
        step.save(seen, convolution, find_activation(self.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        seen, convolution, kept = step.saved
        dbias = None if convolution is None else step.grads.get("bias")
        find_activation(self.activation).record_backward(step, kept, dy, dbias)
        if convolution is not None:
            return _record_convolution(step, convolution, seen, dy)
        weight, grads = step.params["weight"], step.grads
        panel = step.scratch((step.n, kernels.PANEL))
        if grads:
            step.call(kernels.dense_backward_params, dy, seen, panel, grads["weight"], grads.get("bias"))
        if not step.needs_input_gradient:
            return None
        dx = step.array(weight.shape[1:])
        if self.units <= _MOST_UNITS:
            step.call(kernels.dense_backward_input, weight, dy, panel, dx)
        else:
            step.call(np.matmul, weight.T, dy, out=dx)
        return dx


def _convolution(step: Step) -> Algorithm | None:
    """With factors rounded to bfloat16, the layer is a convolution of images of one pixel; None: with float32."""
    (units, features), n = step.params["weight"].shape, step.n
    weight, y = (units, features, 1, 1), (units, 1, 1, n)
    if not (step.bfloat16 and is_rounded(weight)):
        return None
    return select(_ONE_PIXEL, weight, (features, 1, 1, n), y, computed=y, rounds=True)


def _record_convolution(step: Step, convolution: Algorithm, seen: Array, dy: Array) -> Array | None:
    """Record the backward pass; `seen`: what the convolution returned in the forward pass."""
    weight, grads = step.params["weight"], step.grads
    if "weight" in grads:
        convolution.weight_gradient(step, seen, _as_images(dy), _as_filters(grads["weight"]))
    if not step.needs_input_gradient:
        return None
    dx = step.array(weight.shape[1:])
    convolution.input_gradient(step, _as_filters(weight), _as_images(dy), _as_images(dx))
    return dx


def _as_images(array: Array) -> Array:
    return array[:, None, None]


def _as_filters(weight: Array) -> Array:
    return weight[:, :, None, None]
