"""Batch normalisation."""

import math
from dataclasses import dataclass

import numpy as np

from parallelcnn.activations import IDENTITY, AnyActivation, find_activation
from parallelcnn.kernels import batch_norm as kernels

from .base import Array, Buffer, Layer, Parameter, Shape, Step, check_number


@dataclass(frozen=True, repr=False)
class BatchNorm(Layer):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167), with PyTorch's names and defaults.

        y = f(weight * (x - mean) / sqrt(variance + epsilon) + bias)

    for each channel of an image, or each feature. In prediction, mean and variance are the running ones.

    In training they are those of a shard: over its samples, rows and columns, m values per channel, with the variance
    divided by m. This is "ghost batch normalisation" (Hoffer et al. 2017, arXiv:1705.08741). The shards depend on the
    batch size and on `reproducible`, but not on the number of ranks and threads. A shard with a single value per
    channel gives y = f(bias), where PyTorch raises an error; `train` warns if whole minibatches have shards of one
    sample.

    After each minibatch, of N samples in shards of n samples each,

        running_mean = (1 - momentum) * running_mean + momentum * (sum of n * mean) / N
        running_var = (1 - momentum) * running_var + momentum * (sum of n * variance * m / (m - 1)) / N

    with sums over the shards. For one shard these are PyTorch's. A shard without samples adds nothing; for a shard with
    a single value per channel, running_var takes the place of its unbiased variance, which does not exist.

    Args:
        momentum: the weight of the newest minibatch in the running statistics, in (0, 1].
        epsilon: added to the variance, above 0.
        activation: name, function of one number, or `ActivationFunction`, applied to the output.

    Shapes: (C, H, W) or (features,) -> the same.

    Raises:
        ShapeError: if `momentum` or `epsilon` is outside its range.
        InputError: if the activation is not known.

    Example:
        >>> layers = (Conv2D(16, 3, bias=False), BatchNorm(activation="relu"), Flatten(), Dense(10))
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    activation: AnyActivation = "identity"

    mixes_samples = True

    def __post_init__(self) -> None:
        check_number(self, "momentum", self.momentum, at_most=1)
        check_number(self, "epsilon", self.epsilon)
        find_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        shape = input_shape[:1]
        return {"weight": Parameter(shape, 1.0, weight_decay=False), "bias": Parameter(shape, weight_decay=False)}

    def buffers(self, input_shape: Shape) -> dict[str, Buffer]:
        shape, momentum = input_shape[:1], float(self.momentum)
        return {"running_mean": Buffer(shape, 0.0, momentum), "running_var": Buffer(shape, 1.0, momentum)}

    def forward(self, step: Step, x: Array) -> Array:
        y = step.array(x.shape[:-1])
        weight, bias, epsilon = step.params["weight"], step.params["bias"], float(self.epsilon)
        mean, variance = step.buffers["running_mean"], step.buffers["running_var"]
        inside, after = find_activation(self.activation).fused()
        if step.training:
            statistics = [step.scratch(x.shape[:1], np.float64) for _ in range(2)]
            sums = step.statistics["running_mean"], step.statistics["running_var"]
            arguments = weight, bias, epsilon, step.n, variance, *statistics, *sums
            step.call(kernels.forward_kernel(inside.function), _rows(x), *arguments, _rows(y))
            # The identity's derivative needs no y, whose memory is free earlier then.
            step.save(x, x if inside is IDENTITY else y, *statistics, after.record_forward(step, y))
        else:
            step.call(kernels.batch_norm_predict, _rows(x), weight, bias, epsilon, mean, variance, _rows(y))
            find_activation(self.activation).record_forward(step, y)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        # x is kept rather than (x - mean) / deviation, which the forward pass would have to write.
        x, y, mean, scale, kept = step.saved
        inside, after = find_activation(self.activation).fused()
        after.record_backward(step, kept, dy)
        needs_dx = step.needs_input_gradient
        arguments = step.params["weight"], mean, scale, needs_dx, _rows(dy), step.grads["weight"], step.grads["bias"]
        step.call(kernels.backward_kernel(inside.derivative), _rows(x), _rows(y), *arguments)
        return dy if needs_dx else None


def _rows(x: Array) -> Array:
    """A view with one row for each channel."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
