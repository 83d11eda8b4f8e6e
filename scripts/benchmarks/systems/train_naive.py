#!/usr/bin/env python3
"""The paper's network as one writes it first: formulas in numpy, samples first, a new array for every result.

It stands for the paper's first version (its Table I), and trains no other network. N: samples, C: channels, K: filters,
H, W: rows and columns of an input, P, Q: those of an output.
"""

import contract
import numpy as np
from threadpoolctl import threadpool_limits

Array = np.ndarray
Params = list[dict[str, Array]]


def conv_forward(x: Array, weight: Array, bias: Array) -> Array:
    """y[n, k, p, q] = bias[k] + sum over c, r, s of weight[k, c, r, s] * x[n, c, p + r, q + s]."""
    (N, _, H, W), K = x.shape, len(weight)
    y = np.zeros((N, K, H - 2, W - 2), x.dtype)
    for p, q in np.ndindex(H - 2, W - 2):
        y[:, :, p, q] = np.einsum("ncrs,kcrs->nk", x[:, :, p : p + 3, q : q + 3], weight) + bias
    return y


def conv_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
    """Gradients of the loss with respect to weight and x."""
    dweight, dx = np.zeros_like(weight), np.zeros_like(x)
    for p, q in np.ndindex(dy.shape[2:]):
        dweight += np.einsum("nk,ncrs->kcrs", dy[:, :, p, q], x[:, :, p : p + 3, q : q + 3])
        dx[:, :, p : p + 3, q : q + 3] += np.einsum("nk,kcrs->ncrs", dy[:, :, p, q], weight)
    return dweight, dx


def pool_forward(x: Array) -> tuple[Array, Array]:
    """The largest number of each window of 2 x 2, and where it stood."""
    N, C, H, W = x.shape
    y, position = np.zeros((N, C, H // 2, W // 2), x.dtype), np.zeros((N, C, H // 2, W // 2), int)
    for p, q in np.ndindex(H // 2, W // 2):
        window = x[:, :, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].reshape(N, C, 4)
        position[:, :, p, q] = window.argmax(2)
        y[:, :, p, q] = window.max(2)
    return y, position


def pool_backward(x: Array, position: Array, dy: Array) -> Array:
    """dx is dy where the largest number stood, zero elsewhere."""
    dx = np.zeros_like(x)
    for p, q in np.ndindex(dy.shape[2:]):
        for tap in range(4):
            dx[:, :, 2 * p + tap // 2, 2 * q + tap % 2] = np.where(position[:, :, p, q] == tap, dy[:, :, p, q], 0)
    return dx


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def gradients_of(params: Params, images: Array, labels: Array) -> tuple[float, Params]:
    """The mean loss of a minibatch, and the gradients of the parameters.

    Args:
        params: {"weight", "bias"} of two convolutions and two dense layers.
        images: (N, 28, 28) float32, labels: (N,).
    """
    conv1, conv2, hidden, last = params
    N = len(images)
    x0 = images[:, np.newaxis]
    y1 = relu(conv_forward(x0, conv1["weight"], conv1["bias"]))
    x1, position1 = pool_forward(y1)
    y2 = relu(conv_forward(x1, conv2["weight"], conv2["bias"]))
    x2, position2 = pool_forward(y2)
    x3 = x2.reshape(N, -1)
    x4 = relu(x3 @ hidden["weight"].T + hidden["bias"])
    logits = x4 @ last["weight"].T + last["bias"]
    logits = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(N), labels]).mean()

    dlogits = (probabilities - np.eye(10, dtype=np.float32)[labels]) / np.float32(N)
    dx4 = dlogits @ last["weight"] * (x4 > 0)
    dx2 = (dx4 @ hidden["weight"]).reshape(x2.shape)
    dy2 = pool_backward(y2, position2, dx2) * (y2 > 0)
    dweight2, dx1 = conv_backward(x1, conv2["weight"], dy2)
    dy1 = pool_backward(y1, position1, dx1) * (y1 > 0)
    dweight1, _ = conv_backward(x0, conv1["weight"], dy1)
    return float(loss), [
        {"weight": dweight1, "bias": dy1.sum((0, 2, 3))},
        {"weight": dweight2, "bias": dy2.sum((0, 2, 3))},
        {"weight": dx4.T @ x3, "bias": dx4.sum(0)},
        {"weight": dlogits.T @ x4, "bias": dlogits.sum(0)},
    ]


class Naive(contract.Trainer):
    """Plain SGD on one thread."""

    def __init__(self, task: contract.Task) -> None:
        self.task, self.versions = task, {}
        if task.options.network != "paper":
            raise contract.NotInstalled("only the paper's network is written in numpy here")
        self.reset()

    def reset(self) -> None:
        self._params = [{name: v.copy() for name, v in layer.items()} for layer in self.task.start_values()]

    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        images, labels = self.task.float_sets[0]
        rate, losses = np.float32(self.task.options.learning_rate), []
        with threadpool_limits(1, user_api="blas"), contract.Meter() as meter:
            for epoch in range(1, epochs + 1):
                for chosen in self.task.minibatches(samples, epoch):
                    loss, gradients = gradients_of(self._params, images[chosen, 0], labels[chosen])
                    for layer, dlayer in zip(self._params, gradients, strict=True):
                        for name in layer:
                            layer[name] -= rate * dlayer[name]
                    losses.append(loss)
        return meter.seconds, losses

    def logits(self, images: Array) -> Array:
        for layer in self._params[:2]:
            images, _ = pool_forward(relu(conv_forward(images, layer["weight"], layer["bias"])))
        hidden, last = self._params[2:]
        features = relu(images.reshape(len(images), -1) @ hidden["weight"].T + hidden["bias"])
        return features @ last["weight"].T + last["bias"]


if __name__ == "__main__":
    contract.main("numpy", ("formulas",), Naive)
