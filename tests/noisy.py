"""A layer of a user's with all that a layer can have: a parameter, a buffer and random numbers, in one file."""

from dataclasses import dataclass

import numpy as np

import parallelcnn as pc
from parallelcnn.kernels.random import uniform


@dataclass(frozen=True, repr=False)
class Noisy(pc.Layer):
    """y = weight * mask * (x - mean): a moving average of x is subtracted, and some features of each sample dropped."""

    rate: float = 0.25

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return {"weight": pc.Parameter(input_shape, initial=1.0)}

    def buffers(self, input_shape):
        return {"mean": pc.Buffer(input_shape, momentum=0.2)}

    def forward(self, step, x):
        y, mask = step.array(x.shape[:-1]), step.array(x.shape[:-1])
        if step.training:
            step.call(np.sum, x, axis=-1, out=step.statistics["mean"])
            step.call(uniform, step.keys, step.number, mask.reshape(mask.size // max(step.n, 1), step.n))
            step.call(np.greater_equal, mask, np.float32(self.rate), out=mask)
        else:
            step.call(mask.fill, 1 - self.rate)
        step.call(np.subtract, x, step.buffers["mean"][..., np.newaxis], out=y)
        step.call(np.multiply, y, mask, out=mask)
        step.call(np.multiply, step.params["weight"][..., np.newaxis], mask, out=y)
        step.save(mask, x)
        return y

    def backward(self, step, dy):
        masked, x = step.saved
        step.call(np.einsum, "...n,...n->...", dy, masked, out=step.grads["weight"])
        if not step.needs_input_gradient:
            return None
        dx = step.array(x.shape[:-1])
        step.call(_times_mask, dy, masked, x, step.buffers["mean"], step.params["weight"], dx)
        return dx


def _times_mask(dy, masked, x, mean, weight, dx):
    centred = x - mean[..., np.newaxis]
    np.multiply(dy, weight[..., np.newaxis] * (masked == centred), out=dx)


LAYERS = (pc.Conv2D(3, 3, activation="relu"), pc.MaxPool2D(2), Noisy(), pc.Flatten(), Noisy(0.4), pc.Dense(5))


def network(seed=0, dtype=np.float32):
    return pc.NetworkHandler(LAYERS, (1, 11, 9), seed, dtype)
