"""Layers from plain numpy functions: the three of the guide."""

import numpy as np

import parallelcnn as pc


@pc.layer(scale=np.ones, shift=np.zeros)
def layer_norm(x, scale, shift, epsilon=1e-5):
    """Normalise each sample."""
    centred = x - x.mean()
    return scale * centred / np.sqrt(np.square(centred).mean() + epsilon) + shift


def weight(rows, columns):
    return pc.Parameter((rows, columns), lambda rng, shape: rng.normal(0, columns**-0.5, shape))


@pc.layer(
    down=lambda shape, ratio: weight(shape[0] // ratio, shape[0]),
    up=lambda shape, ratio: weight(shape[0], shape[0] // ratio),
)
def squeeze_excitation(x, down, up, ratio=4):
    hidden = np.maximum(down @ x.mean((1, 2)), 0)
    gate = 1 / (1 + np.exp(-(up @ hidden)))
    return x * gate[:, None, None]


@pc.layer(weights=lambda shape, degree: np.eye(degree + 1)[1])
def polynomial(x, weights, degree=3):
    return sum(weights[i] * x**i for i in range(degree + 1))
