"""The kernels once more, as slowly and plainly as their formulas; samples last, as there. Letters: kernels/__init__."""

import math

import numpy as np


def pad(x, top, bottom, left, right):
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def stride_and_padding(layer, input_shape):
    """(rows, columns) and (top, bottom, left, right) of a convolution; "same" as Keras pads."""
    stride = tuple(np.broadcast_to(layer.stride, 2))
    window = np.broadcast_to(layer.kernel_size, 2)
    if layer.padding == "valid":
        return stride, (0, 0, 0, 0)
    if layer.padding != "same":
        rows, columns = np.broadcast_to(layer.padding, 2)
        return stride, (rows, rows, columns, columns)
    zeros = []
    for size, r, s in zip(input_shape[1:], window, stride, strict=True):
        outputs = math.ceil(size / s)
        missing = max((outputs - 1) * s + r - size, 0)
        zeros += [math.floor(missing / 2), math.ceil(missing / 2)]
    return stride, tuple(zeros)


def conv2d_forward(x, weight, bias, stride, padding):
    """padding: (top, bottom, left, right)."""
    x = pad(x, *padding)
    (_, H, W, N), (K, _, R, S) = x.shape, weight.shape
    P, Q = (H - R) // stride[0] + 1, (W - S) // stride[1] + 1
    y = np.zeros((K, P, Q, N), x.dtype)
    for k in range(K):
        for p in range(P):
            for q in range(Q):
                window = x[:, p * stride[0] : p * stride[0] + R, q * stride[1] : q * stride[1] + S]
                y[k, p, q] = bias[k] + np.einsum("crsn,crs->n", window, weight[k])
    return y


def conv2d_backward(x, weight, dy, stride, padding):
    """(dweight, dbias, dx)."""
    top, bottom, left, right = padding
    padded = pad(x, *padding)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    (K, _, R, S), (_, P, Q, _) = weight.shape, dy.shape
    for k in range(K):
        for p in range(P):
            for q in range(Q):
                rows = slice(p * stride[0], p * stride[0] + R)
                columns = slice(q * stride[1], q * stride[1] + S)
                dweight[k] += np.einsum("crsn,n->crs", padded[:, rows, columns], dy[k, p, q])
                dpadded[:, rows, columns] += np.einsum("crs,n->crsn", weight[k], dy[k, p, q])
    H, W = padded.shape[1:3]
    return dweight, dy.sum((1, 2, 3)), dpadded[:, top : H - bottom, left : W - right]


def maxpool2d_forward(x, window, stride):
    """(y, winner)."""
    (C, H, W, N), (R, S) = x.shape, window
    P, Q = (H - R) // stride[0] + 1, (W - S) // stride[1] + 1
    y, winner = np.zeros((C, P, Q, N), x.dtype), np.zeros((C, P, Q, N), int)
    for c, p, q, i in np.ndindex(y.shape):
        taps = x[c, p * stride[0] : p * stride[0] + R, q * stride[1] : q * stride[1] + S, i].reshape(-1)
        winner[c, p, q, i] = np.argmax(taps)
        y[c, p, q, i] = taps[winner[c, p, q, i]]
    return y, winner


def maxpool2d_backward(x_shape, dy, winner, window, stride):
    dx = np.zeros(x_shape, dy.dtype)
    for c, p, q, i in np.ndindex(dy.shape):
        r, s = divmod(winner[c, p, q, i], window[1])
        dx[c, p * stride[0] + r, q * stride[1] + s, i] += dy[c, p, q, i]
    return dx


def softmax(logits):
    """(classes, n) -> (classes, n)."""
    e = np.exp(logits - logits.max(0, initial=-np.inf))
    return e / e.sum(0)


def softmax_cross_entropy(logits, labels, batch_size):
    """(sum of losses, dlogits)."""
    probabilities = softmax(logits)
    chosen = probabilities[labels, np.arange(len(labels))]
    onehot = np.zeros_like(logits)
    onehot[labels, np.arange(len(labels))] = 1
    return -np.log(chosen).sum(), (probabilities - onehot) / batch_size


def mean_squared_error(outputs, targets, batch_size):
    """targets: (n, outputs). (sum of losses, doutputs)."""
    error = outputs - targets.T
    return (error**2).mean(0).sum(), 2 * error / (len(outputs) * batch_size)


def load(images, indices, scale):
    return (images.reshape(len(images), -1)[indices] * scale).T


def activation(name, x):
    """f(x) from its definition, in float64."""
    x = np.asarray(x, np.float64)
    sigmoid = 1 / (1 + np.exp(-x))
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return {
        "identity": x,
        "relu": np.where(x > 0, x, 0),
        "leaky_relu": np.where(x > 0, x, 0.01 * x),
        "sigmoid": sigmoid,
        "tanh": np.tanh(x),
        "softplus": np.log1p(np.exp(x)),
        "gelu": 0.5 * x * (1 + erf(x / np.sqrt(2))),
        "swish": x * sigmoid,
        "mish": x * np.tanh(np.log1p(np.exp(x))),
        "relu6": np.clip(x, 0, 6),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "selu": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "hard_sigmoid": np.clip(x + 3, 0, 6) / 6,
        "hard_swish": x * np.clip(x + 3, 0, 6) / 6,
    }[name]
