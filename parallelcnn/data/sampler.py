"""The order of the samples: shuffling, minibatches, and shards.

Every rank computes the same permutation from (seed, epoch). Only `shard` depends on the rank.
"""

from typing import Any, Protocol, TypeVar

import numpy as np

Array = np.ndarray
Some = TypeVar("Some", np.ndarray, list[Any])


def shuffle(n_samples: int, seed: int, epoch: int) -> Array:
    """The order of the samples in an epoch, the same on every rank. Epochs count from 1."""
    return np.random.default_rng((seed, epoch)).permutation(n_samples)


class SampleOrder(Protocol):
    """Interface of samplers: the samples of a training, in order, the same on every rank. Epochs count from 1.

    Attributes:
        key: 64-bit key of the random numbers in the epoch of the last minibatch; see `kernels.random`.
    """

    key: int

    def after(self, samples_seen: int) -> tuple[int, Array]:
        """The epoch and the minibatch that follow the first `samples_seen` samples."""

    def epoch_of(self, samples_seen: int) -> int:
        """The epoch of the last of the first `samples_seen` samples, at least 1."""

    def samples_in(self, epochs: int) -> int:
        """Number of samples in the first `epochs` epochs."""

    def steps_in(self, epochs: int) -> int:
        """Number of minibatches in the first `epochs` epochs."""


class Sampler:
    """The default `SampleOrder`: all samples in every epoch, in a random order that depends on the seed and the epoch.

    Args:
        n_samples: number of samples in an epoch.
        batch_size: samples in a minibatch over all ranks.
        seed: seed of the random orders.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int) -> None:
        self._n_samples, self._batch_size, self._seed = n_samples, batch_size, seed
        self._order, self._order_of = np.empty(0, np.intp), 0
        self.key = 0

    def after(self, samples_seen: int) -> tuple[int, Array]:
        epochs, seen = divmod(samples_seen, self._n_samples)
        if self._order_of != epochs + 1:
            self._order, self._order_of = shuffle(self._n_samples, self._seed, epochs + 1), epochs + 1
            self.key = int(np.random.SeedSequence((self._seed, epochs + 1)).generate_state(1, np.uint64)[0])
        return self._order_of, self._order[seen : seen + self._batch_size]

    def epoch_of(self, samples_seen: int) -> int:
        return -(-samples_seen // self._n_samples)

    def samples_in(self, epochs: int) -> int:
        return epochs * self._n_samples

    def steps_in(self, epochs: int) -> int:
        return epochs * -(-self._n_samples // self._batch_size)


def shard(samples: Some, index: int, count: int) -> Some:
    """Shard `index` of a minibatch, or of a list, that is cut into `count` shards of nearly equal size. If there are
    more shards than samples, some are empty.
    """
    return samples[len(samples) * index // count : len(samples) * (index + 1) // count]
