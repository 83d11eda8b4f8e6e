"""Normalisation of each sample on its own: group and layer normalisation."""

import math
from dataclasses import dataclass

import numpy as np

from parallelcnn.activations import AnyActivation, find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import group_norm as kernels

from .base import Array, Layer, Parameter, Shape, Step, check_number, check_positive


@dataclass(frozen=True, repr=False)
class GroupNorm(Layer):
    """Group normalisation (Wu & He 2018, arXiv:1803.08494), as torch.nn.GroupNorm.

        y = f(weight * (x - mean) / sqrt(variance + epsilon) + bias)

    Mean and variance are those of a group of neighbouring channels of one sample; weight and bias are per channel. The
    samples of a minibatch do not influence each other.

    Args:
        groups: number of groups. It must divide the number of channels, or features.
        epsilon: added to the variance, above 0.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.

    Shapes: (C, H, W) or (features,) -> the same.

    Raises:
        ShapeError: if `groups` or `epsilon` is outside its range; when the network is built, if `groups` does not
            divide the number of channels.
        InputError: if the activation is not known.

    Example:
        >>> layers = (Conv2D(16, 3, bias=False), GroupNorm(4, activation="relu"), Flatten(), Dense(10))
    """

    groups: int
    epsilon: float = 1e-5
    activation: AnyActivation = "identity"

    def __post_init__(self) -> None:
        check_positive(self, "groups")
        check_number(self, "epsilon", self.epsilon)
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape[0] % self.groups != 0:
            raise ShapeError(f"{self}: groups must divide the number of channels, {input_shape[0]}")
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        return _parameters(input_shape[:1])

    def forward(self, step: Step, x: Array) -> Array:
        channels = (self.groups, len(x) // self.groups)
        return _record_forward(self, step, x, (*channels, math.prod(x.shape[1:-1])))

    def backward(self, step: Step, dy: Array) -> Array | None:
        return _record_backward(self, step, dy)


@dataclass(frozen=True, repr=False)
class LayerNorm(Layer):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450), as torch.nn.LayerNorm over a whole sample.

        y = f(weight * (x - mean) / sqrt(variance + epsilon) + bias)

    Mean and variance are those of all numbers of one sample; weight and bias have the shape of a sample. The samples of
    a minibatch do not influence each other.

    Args:
        epsilon: added to the variance, above 0.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.

    Shapes: any -> the same.

    Raises:
        ShapeError: if `epsilon` is outside its range.
        InputError: if the activation is not known.

    Example:
        >>> layers = (Flatten(), Dense(84), LayerNorm(activation="relu"), Dense(10))
    """

    epsilon: float = 1e-5
    activation: AnyActivation = "identity"

    def __post_init__(self) -> None:
        check_number(self, "epsilon", self.epsilon)
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        return _parameters(input_shape)

    def forward(self, step: Step, x: Array) -> Array:
        return _record_forward(self, step, x, (1, math.prod(x.shape[:-1]), 1))

    def backward(self, step: Step, dy: Array) -> Array | None:
        return _record_backward(self, step, dy)


def _parameters(shape: Shape) -> dict[str, Parameter]:
    return {"weight": Parameter(shape, 1.0, weight_decay=False), "bias": Parameter(shape, weight_decay=False)}


def _record_forward(layer: GroupNorm | LayerNorm, step: Step, x: Array, shape: Shape) -> Array:
    """shape: (groups, channels of a group, positions) of a sample; each channel has a weight and a bias."""
    y = step.array(x.shape[:-1])
    weight, bias = step.params["weight"].reshape(shape[:2]), step.params["bias"].reshape(shape[:2])
    sums = [step.scratch((step.n,), np.float64) for _ in range(2)]
    statistics = [step.array(shape[:1]) for _ in range(3)]
    grouped = (*shape, step.n)
    arguments = weight, bias, float(layer.epsilon), *sums, *statistics
    step.call(kernels.group_norm_forward, x.reshape(grouped), *arguments, y.reshape(grouped))
    kept = find_activation(layer.activation).record_forward(step, y)
    step.save(x.reshape(grouped), weight, statistics, kept)
    return y


def _record_backward(layer: GroupNorm | LayerNorm, step: Step, dy: Array) -> Array | None:
    x, weight, statistics, kept = step.saved
    find_activation(layer.activation).record_backward(step, kept, dy)
    sums = [step.scratch((step.n,), np.float64) for _ in range(2)]
    dweight, dbias = step.grads["weight"].reshape(weight.shape), step.grads["bias"].reshape(weight.shape)
    arguments = weight, *statistics, step.needs_input_gradient, *sums
    step.call(kernels.group_norm_backward, x, *arguments, dy.reshape(x.shape), dweight, dbias)
    return dy if step.needs_input_gradient else None
