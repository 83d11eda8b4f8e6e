"""The paper's network as one writes it first: formulas in numpy, samples first, a new array for every result.

It stands for the paper's first version (its Table I) and is the bottom of the ladder (`ladder.py`), whose next rung
changes nothing but the four functions in `Kernels`. Letters as in parallelcnn/kernels/__init__.py.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Params = list[dict[str, Array]]


class Kernels(NamedTuple):
    """How the layers with windows are computed; x: (N, C, H, W), weight: (K, C, 3, 3), y: (N, K, P, Q)."""

    conv_forward: Callable[[Array, Array, Array], Array]  # x, weight, bias -> y
    conv_backward: Callable[[Array, Array, Array], tuple[Array, Array]]  # x, weight, dy -> dweight, dx
    pool_forward: Callable[[Array], tuple[Array, Array]]  # x -> y, winner: 2 * row + column in the window of 2 x 2
    pool_backward: Callable[[Array, Array, Array], Array]  # x, winner, dy -> dx


def conv_forward(x: Array, weight: Array, bias: Array) -> Array:
    """y[n, k, p, q] = bias[k] + sum over c, r, s of weight[k, c, r, s] * x[n, c, p + r, q + s]."""
    (N, _, H, W), K = x.shape, len(weight)
    y = np.zeros((N, K, H - 2, W - 2), x.dtype)
    for p, q in np.ndindex(H - 2, W - 2):
        y[:, :, p, q] = np.einsum("ncrs,kcrs->nk", x[:, :, p : p + 3, q : q + 3], weight) + bias
    return y


def conv_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
    """The loss differentiated by weight and by x."""
    dweight, dx = np.zeros_like(weight), np.zeros_like(x)
    for p, q in np.ndindex(dy.shape[2:]):
        dweight += np.einsum("nk,ncrs->kcrs", dy[:, :, p, q], x[:, :, p : p + 3, q : q + 3])
        dx[:, :, p : p + 3, q : q + 3] += np.einsum("nk,kcrs->ncrs", dy[:, :, p, q], weight)
    return dweight, dx


def pool_forward(x: Array) -> tuple[Array, Array]:
    """The largest number of each window of 2 x 2, and where it stood."""
    N, C, H, W = x.shape
    y, winner = np.zeros((N, C, H // 2, W // 2), x.dtype), np.zeros((N, C, H // 2, W // 2), int)
    for p, q in np.ndindex(H // 2, W // 2):
        window = x[:, :, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].reshape(N, C, 4)
        winner[:, :, p, q] = window.argmax(2)
        y[:, :, p, q] = window.max(2)
    return y, winner


def pool_backward(x: Array, winner: Array, dy: Array) -> Array:
    """dx is dy where the largest number stood, zero elsewhere."""
    dx = np.zeros_like(x)
    for p, q in np.ndindex(dy.shape[2:]):
        for tap in range(4):
            dx[:, :, 2 * p + tap // 2, 2 * q + tap % 2] = np.where(winner[:, :, p, q] == tap, dy[:, :, p, q], 0)
    return dx


NUMPY = Kernels(conv_forward, conv_backward, pool_forward, pool_backward)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def gradients_of(kernels: Kernels, params: Params, images: Array, labels: Array) -> tuple[float, Params]:
    """The mean loss of a minibatch, and its derivative by the parameters.

    Args:
        params: {"weight", "bias"} of two convolutions and two dense layers.
        images: (N, 28, 28) float32, labels: (N,).
    """
    conv1, conv2, hidden, last = params
    N = len(images)
    x0 = images[:, np.newaxis]
    y1 = relu(kernels.conv_forward(x0, conv1["weight"], conv1["bias"]))
    x1, winner1 = kernels.pool_forward(y1)
    y2 = relu(kernels.conv_forward(x1, conv2["weight"], conv2["bias"]))
    x2, winner2 = kernels.pool_forward(y2)
    x3 = x2.reshape(N, -1)
    x4 = relu(x3 @ hidden["weight"].T + hidden["bias"])
    logits = x4 @ last["weight"].T + last["bias"]
    logits = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(N), labels]).mean()

    dlogits = (probabilities - np.eye(10, dtype=np.float32)[labels]) / np.float32(N)
    dx4 = dlogits @ last["weight"] * (x4 > 0)
    dx2 = (dx4 @ hidden["weight"]).reshape(x2.shape)
    dy2 = kernels.pool_backward(y2, winner2, dx2) * (y2 > 0)
    dweight2, dx1 = kernels.conv_backward(x1, conv2["weight"], dy2)
    dy1 = kernels.pool_backward(y1, winner1, dx1) * (y1 > 0)
    dweight1, _ = kernels.conv_backward(x0, conv1["weight"], dy1)
    return float(loss), [
        {"weight": dweight1, "bias": dy1.sum((0, 2, 3))},
        {"weight": dweight2, "bias": dy2.sum((0, 2, 3))},
        {"weight": dx4.T @ x3, "bias": dx4.sum(0)},
        {"weight": dlogits.T @ x4, "bias": dlogits.sum(0)},
    ]


def train(
    kernels: Kernels,
    params: Params,
    images: Array,
    labels: Array,
    minibatches: Iterable[Array],
    learning_rate: float,
) -> list[float]:
    """Plain SGD over the minibatches, which are indices of samples; changes the parameters, returns the losses."""
    losses = []
    for chosen in minibatches:
        loss, gradients = gradients_of(kernels, params, images[chosen], labels[chosen])
        for layer, dlayer in zip(params, gradients, strict=True):
            for name in layer:
                layer[name] -= np.float32(learning_rate) * dlayer[name]
        losses.append(loss)
    return losses


def evaluate(kernels: Kernels, params: Params, images: Array, labels: Array) -> tuple[float, float]:
    """(loss, accuracy)."""
    losses, right = [], []
    for start in range(0, len(images), 1000):
        some = images[start : start + 1000, np.newaxis]
        for layer in params[:2]:
            some, _ = kernels.pool_forward(relu(kernels.conv_forward(some, layer["weight"], layer["bias"])))
        features = relu(some.reshape(len(some), -1) @ params[2]["weight"].T + params[2]["bias"])
        logits = (features @ params[3]["weight"].T + params[3]["bias"]).astype(np.float64)
        wanted = labels[start : start + 1000]
        logits -= logits.max(1, keepdims=True)
        losses.append(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(wanted)), wanted])
        right.append(logits.argmax(1) == wanted)
    return float(np.concatenate(losses).mean()), float(np.concatenate(right).mean())
