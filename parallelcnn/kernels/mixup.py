"""Mixtures of pairs of samples. The partner of sample i is the next one; that of the last is the first."""

import math

from numba import uint64

from ._jit import kernel
from ._mix import mix, unit


@kernel
def draw_shares(keys, number, alpha, shares):
    """shares[i] = a random number from the symmetric beta distribution with both parameters alpha; shares: (n,).

    Devroye 1996, "Random variate generation in one line of code", the generator of the symmetric beta distribution,
    written such that no number overflows.
    """
    for i in range(keys.size):
        key = mix(keys[i], number)
        power = (1 - unit(key, 0)) ** (1 / alpha)
        square = (1 - power) * math.cos(2 * math.pi * unit(key, 1)) ** 2
        half = 0.5 * math.sqrt(square / (power + square)) if square > 0 else 0.0
        shares[i] = 0.5 - half if mix(key, 2) >> uint64(63) else 0.5 + half


@kernel
def mix_samples(x, shares, y):
    """y[f, i] = shares[i] * x[f, i] + (1 - shares[i]) * (x of the partner)[f]; x, y: (features, n)."""
    features, n = x.shape
    one = x.dtype.type(1)
    for f in range(features):
        for i in range(n - 1):
            y[f, i] = shares[i] * x[f, i] + (one - shares[i]) * x[f, i + 1]
        if n > 0:
            y[f, n - 1] = shares[n - 1] * x[f, n - 1] + (one - shares[n - 1]) * x[f, 0]


@kernel
def mix_samples_backward(dy, shares, dx):
    """The gradient of `mix_samples` with respect to x."""
    features, n = dy.shape
    one = dy.dtype.type(1)
    for f in range(features):
        if n > 0:
            dx[f, 0] = shares[0] * dy[f, 0] + (one - shares[n - 1]) * dy[f, n - 1]
        for i in range(1, n):
            dx[f, i] = shares[i] * dy[f, i] + (one - shares[i - 1]) * dy[f, i - 1]


@kernel
def partners(labels, shares, sample_weight, others, weights):
    """others[i] = the label of the partner of sample i; weights[0, i] and weights[1, i] = the weights of both labels.

    labels, others: (n,) or (n, outputs). sample_weight: (n,), by which the weights are multiplied, each by that of the
    sample whose label it is; None: all 1. weights: (2, n).
    """
    n = len(labels)
    for i in range(n):
        partner = i + 1 if i + 1 < n else 0
        if labels.ndim == 1:
            others[i] = labels[partner]
        else:
            for k in range(labels.shape[1]):
                others[i, k] = labels[partner, k]
        weights[0, i], weights[1, i] = shares[i], 1 - shares[i]
        if sample_weight is not None:
            weights[0, i] *= sample_weight[i]
            weights[1, i] *= sample_weight[partner]
