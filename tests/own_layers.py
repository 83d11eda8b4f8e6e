"""Layers as a user writes them, in one file: a moving average, in a buffer, and dropout, with random numbers."""

import math
from dataclasses import dataclass

import numpy as np

import parallelcnn as pc
from parallelcnn.kernels.random import uniform


@dataclass(frozen=True, repr=False)
class Centre(pc.Layer):
    """y = x - the mean of x over earlier minibatches."""

    momentum: float = 0.2

    def output_shape(self, input_shape):
        return input_shape

    def buffers(self, input_shape):
        return {"mean": pc.Buffer(input_shape, momentum=self.momentum)}

    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.call(np.subtract, x, step.buffers["mean"][..., np.newaxis], out=y)
        if step.training:
            step.call(np.sum, x, axis=-1, out=step.statistics["mean"])
        return y

    def backward(self, step, dy):
        return dy


@dataclass(frozen=True, repr=False)
class Dropout(pc.Layer):
    """In training, drop each number with probability `rate`, and divide the others by 1 - rate."""

    rate: float = 0.5

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, step, x):
        if not step.training:
            return x
        y, factor = step.array(x.shape[:-1]), step.array(x.shape[:-1])
        step.call(uniform, step.keys, step.number, factor.reshape(math.prod(x.shape[:-1]), step.n))
        step.call(np.greater_equal, factor, self.rate, out=factor)
        step.call(np.divide, factor, 1 - self.rate, out=factor)
        step.call(np.multiply, x, factor, out=y)
        step.save(factor)
        return y

    def backward(self, step, dy):
        (factor,) = step.saved
        step.call(np.multiply, dy, factor, out=dy)
        return dy


LAYERS = (
    Dropout(0.1),
    pc.Conv2D(3, 3, activation="relu"),
    pc.MaxPool2D(2),
    Centre(),
    Dropout(0.25),
    pc.Residual((pc.Conv2D(3, 3, padding="same", activation="tanh"), Dropout(), Centre(0.5))),
    pc.Flatten(),
    pc.Dense(5),
)


def network(seed=0):
    return pc.NetworkHandler(LAYERS, (1, 11, 9), seed)
