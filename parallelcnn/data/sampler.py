"""Which samples, in which order, for whom: permutation, minibatches, and their grains.

Nothing here depends on the rank that asks, but the last step: every rank computes the same permutation, from
(seed, epoch), and takes its grain of each minibatch.
"""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray


def shuffle(n_samples: int, seed: int, epoch: int) -> Array:
    """The order of the samples in an epoch, the same on every rank. Epochs count from 1."""
    return np.random.default_rng((seed, epoch)).permutation(n_samples)


def minibatches(order: Array, batch_size: int) -> Iterator[Array]:
    """Consecutive pieces of `order`, each `batch_size` long (the GLOBAL size) but the last, which has what is left."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def grain(samples: Array, index: int, count: int) -> Array:
    """Piece `index` of `count` pieces of a minibatch, as equal as can be; empty where there are more pieces than
    samples. Together the pieces are the minibatch.
    """
    return samples[len(samples) * index // count : len(samples) * (index + 1) // count]
