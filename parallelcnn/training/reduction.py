"""Gradient reduction: compute the gradient of a minibatch and sum it over shards, threads and ranks, in one Allreduce.

`FloatReducer` is the fastest. Its rounding depends on the number of threads and ranks. `FixedPointReducer` cuts every
minibatch into the same shards and adds integers: the same bits on any number of threads and ranks.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.kernels.fixed_point import add_fixed_point, from_fixed_point
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import LOSS, STOP, Replica
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.wording import plural

# Samples in a shard of layers that mix samples, as in Goyal et al. 2017 (arXiv:1706.02677), and the fewest. With batch
# statistics of 32, 16 and 8 samples, ResNet-50 has 23.6, 23.7 and 24.8 % errors on ImageNet (Wu & He 2018,
# arXiv:1803.08494, table 2). With 16, two cores can share a minibatch of 32.
_SHARD_SIZE, _SMALLEST_SHARD = 32, 16
_MOST_SHARDS = 2**14

# Fixed point: the sum of a segment may reach 2**(e + 15). Half of that leaves a margin.
_LARGEST_SUM = 2.0**14
_WANTED_BITS = 54  # of a segment's largest sum, after its exponent has changed
_FEWEST_BITS = 42  # with fewer bits the exponent changes
_LOWEST, _HIGHEST = -140, 120  # range of exponents for float32


class Ranks(Protocol):
    """The part of `Transport` that a reducer uses."""

    rank: int
    size: int

    def allreduce(self, array: Array) -> None: ...


class Reducer(Protocol):
    """Interface of gradient reducers."""

    def compute(self, minibatch: Array, ranks: Ranks, *, key: int, stop: int) -> None:
        """Compute the network's reduction buffer for the whole minibatch, summed over all ranks.

        Collective: every rank must call it.

        Args:
            minibatch: (batch_size,), indices of all samples of the minibatch, the same on every rank.
            key: key of the random numbers of this epoch.
            stop: a number of at least 0. Its sum over ranks is stored at index STOP.
        """


def compute_shard(
    replica: Replica, dataset: Dataset, samples: Array, batch_size: int, loss: Loss, key: int = 0
) -> None:
    """Compute the gradient, statistics and loss of a shard; they overwrite the replica's reduction buffer.

    Args:
        batch_size: samples in the minibatch over all ranks; the loss divides by it.
    """
    for block in replica.blocks(samples):
        x = replica.load(dataset.images, block, training=True, key=key, fused=True)
        output = replica.forward(x, training=True)
        labels = replica.load_labels(dataset.labels, block)
        weight = replica.load_sample_weight(dataset.sample_weight, block)
        doutput = replica.output_gradient(len(block))
        replica.reduction_buffer[LOSS] = replica.loss(loss, output, labels, batch_size, doutput, *weight)
        replica.backward(doutput)


class FloatReducer:
    """Sums floating-point numbers.

    Each thread of each rank computes one shard. If layers mix samples, the shards are the same on any number of ranks
    and threads, and each thread computes some of them.
    """

    def __init__(self, network: NetworkHandler, pool: ThreadPool, dataset: Dataset, loss: Loss) -> None:
        self._network, self._pool, self._dataset, self._loss = network, pool, dataset, loss
        self._mixes_samples = network.mixes_samples

    def compute(self, minibatch: Array, ranks: Ranks, *, key: int, stop: int) -> None:
        if self._mixes_samples:
            shards = default_shards(len(minibatch))
            take = partial(self._take_shards, minibatch, shards, key)
            self._pool.run(take, shard(np.arange(shards), ranks.rank, ranks.size))
        else:
            take = partial(self._take, len(minibatch), key)
            self._pool.run(take, shard(minibatch, ranks.rank, ranks.size))
        self._pool.sum_reduction_buffers()
        self._network.reduction_buffer[STOP] = stop
        ranks.allreduce(self._network.reduction_buffer)

    def _take(self, batch_size: int, key: int, replica: Replica, samples: Array) -> None:
        compute_shard(replica, self._dataset, samples, batch_size, self._loss, key)

    def _take_shards(self, minibatch: Array, shards: int, key: int, replica: Replica, numbers: Array) -> None:
        for samples in replica.summed(shard(minibatch, number, shards) for number in numbers):
            self._take(len(minibatch), key, replica, samples)


class FixedPointReducer:
    """Sums fixed-point numbers over shards of the minibatch: the same bits on any number of threads and ranks.

    Each segment of the reduction buffer, which is a parameter, a statistic or the loss, has its own exponent, which
    follows the size of its sums from step to step. The sums are the same on all ranks, and so are the exponents. A step
    is repeated with other exponents if terms do not fit, or if none of a segment's terms keeps all its bits.

    Args:
        shards: number of shards. The bits of the result depend on it.
        exponents: exponent of each segment, updated in place and saved in checkpoints. Empty: zeros.
    """

    def __init__(
        self, network: NetworkHandler, pool: ThreadPool, dataset: Dataset, loss: Loss, shards: int, exponents: list[int]
    ) -> None:
        self._network, self._pool, self._dataset, self._loss = network, pool, dataset, loss
        self._shards, self._kept = shards, exponents
        self._starts = segment_starts(network)
        self._exponents = np.zeros(len(self._starts) - 1, np.int64)
        if len(exponents) not in (0, len(self._exponents)):
            raise InputError(f"reproducible sums take {len(self._exponents)} exponents, got {len(exponents)}")
        self._floats = FloatReducer(network, pool, dataset, loss)
        self._sums = {replica: _Sums(self._starts, _LARGEST_SUM / shards) for replica in pool.replicas}
        self._bits = np.zeros_like(self._exponents)

    def compute(self, minibatch: Array, ranks: Ranks, *, key: int, stop: int) -> None:
        self._exponents[...] = self._kept or 0  # of the previous step, also if training went back to it
        while True:
            total = self._sum(minibatch, ranks, key=key, stop=stop)
            infinite, large, exact, rounded = total.counts
            if infinite.any() or (large[self._exponents >= _HIGHEST] > 0).any():
                # Put the infinite and NaN values into the reduction buffer, for the check that follows.
                self._floats.compute(minibatch, ranks, key=key, stop=stop)
                return
            too_small = (rounded > 0) & (exact == 0) & (self._exponents > _LOWEST)
            if not large.any() and not too_small.any():
                break
            change = np.where(large > 0, 16, np.where(too_small, -24, 0))
            np.clip(self._exponents + change, _LOWEST, _HIGHEST, out=self._exponents)
        buffer = self._network.reduction_buffer
        from_fixed_point(total.terms, self._starts, self._exponents, buffer, self._bits)
        buffer[STOP] = total.stop[0]
        moved = (self._bits > 0) & (self._bits < _FEWEST_BITS)
        np.clip(self._exponents + np.where(moved, self._bits - _WANTED_BITS, 0), _LOWEST, _HIGHEST, out=self._exponents)
        self._kept[:] = self._exponents.tolist()

    def _sum(self, minibatch: Array, ranks: Ranks, *, key: int, stop: int) -> "_Sums":
        def take(replica: Replica, numbers: Array) -> None:
            sums = self._sums[replica]
            sums.clear()
            for number in numbers:
                samples = shard(minibatch, number, self._shards)
                if len(samples) > 0:
                    compute_shard(replica, self._dataset, samples, len(minibatch), self._loss, key)
                    sums.add(replica.reduction_buffer, self._exponents)
            sums.finish()

        self._pool.run(take, shard(np.arange(self._shards), ranks.rank, ranks.size))
        first, *others = (self._sums[replica] for replica in self._pool.replicas)
        for other in others:
            np.add(first.numbers, other.numbers, out=first.numbers)
        first.stop[0] = stop
        ranks.allreduce(first.numbers)
        return first


class _Sums:
    """The sums of one replica in one vector: of the terms, of STOP, and the counts of `add_fixed_point`."""

    def __init__(self, starts: Array, largest: float) -> None:
        size, segments = starts[-1], len(starts) - 1
        self.numbers = np.zeros(size + 1 + 4 * segments, np.int64)
        self.terms, self.stop, counts = np.split(self.numbers, [size, size + 1])
        self.counts = counts.reshape(4, segments)
        self._starts, self._largest = starts, largest
        self._is_empty = True

    def clear(self) -> None:
        self.counts[...] = 0
        self._is_empty = True

    def add(self, terms: Array, exponents: Array) -> None:
        """Add the reduction buffer of a shard."""
        add_fixed_point(terms, self._starts, exponents, self._largest, self.terms, self.counts, self._is_empty)
        self._is_empty = False

    def finish(self) -> None:
        """Complete `numbers`, also if nothing was added."""
        if self._is_empty:
            self.terms[...] = 0
        self.stop[0] = 0


def segment_starts(network: NetworkHandler) -> Array:
    """Start of each segment of the reduction buffer that has its own exponent, and the end of the last one. Segments
    are each trained parameter, each statistic, and the loss.
    """
    parameters, statistics = network.layout.trained, network.buffer_layout
    starts = [slot.start for slot in parameters.slots] + [parameters.size + slot.start for slot in statistics.slots]
    end = parameters.size + statistics.size
    return np.array([*starts, end, end + 1], np.int64)


def default_shards(batch_size: int) -> int:
    """The number of shards of a minibatch if layers mix samples: a power of two, with about 32 samples per shard; at
    least two shards for 32 samples or more.
    """
    shards = 1 << max(round(float(np.log2(max(batch_size / _SHARD_SIZE, 1)))), 0)
    return max(shards, 2) if batch_size >= 2 * _SMALLEST_SHARD else shards


def check_reproducible(shards: int | None) -> None:
    """Raise InputError unless `shards` is a valid number of shards, or None."""
    if shards is None:
        return
    if isinstance(shards, bool) or not isinstance(shards, int | np.integer) or not 1 <= shards <= _MOST_SHARDS:
        raise InputError(f"reproducible must be an integer from 1 to {_MOST_SHARDS:,}, got {shards!r}")


def warn_of_small_shards(network: NetworkHandler, batch_size: int, shards: int | None, *, stacklevel: int) -> None:
    """Warn if layers mix samples and a shard of a whole minibatch holds only one: a variance over it would be zero, and
    there would be nothing to mix it with.
    """
    count = default_shards(batch_size) if shards is None else shards
    if network.mixes_samples and batch_size < 2 * count:
        name = "batch_size" if shards is None else f"with reproducible={shards}, batch_size"
        warnings.warn(
            f"{name} should be at least {2 * count} for layers that mix samples, such as BatchNorm and "
            f"MixUp, got {batch_size}: each shard of a minibatch needs at least two samples",
            TrainingWarning,
            stacklevel=stacklevel + 1,
        )


def fixed_shards(network: NetworkHandler, batch_size: int, shards: int | None) -> int | None:
    """The number of shards of a minibatch; None if every thread gets one."""
    return default_shards(batch_size) if shards is None and network.mixes_samples else shards


def warn_of_idle_threads(threads: Sequence[int], fixed: int | None, shards: int | None, *, stacklevel: int) -> None:
    """Warn if there are more threads than shards of a minibatch.

    Args:
        threads: of each rank.
        fixed: see `fixed_shards`.
        shards: asked for; None: the default.
    """
    if fixed is None or sum(threads) <= fixed:
        return
    cut, remedy = "layers that mix samples, such as BatchNorm, cut", "a larger batch_size"
    if shards is not None:
        cut, remedy = f"reproducible={shards} cuts", "a larger number for reproducible"
    workers = f"{plural(len(threads), 'rank')} of {plural(threads, 'thread')}"
    warnings.warn(
        f"{cut} a minibatch into {plural(fixed, 'shard')}, each for one thread, so {sum(threads) - fixed} of "
        f"{sum(threads)} threads ({workers}) have nothing to do: use {remedy}, or fewer processes or threads",
        TrainingWarning,
        stacklevel=stacklevel + 1,
    )


def reducer_of(
    network: NetworkHandler,
    pool: ThreadPool,
    dataset: Dataset,
    loss: Loss,
    shards: int | None,
    exponents: list[int] | None = None,
) -> Reducer:
    """A `FixedPointReducer` with this number of shards; a `FloatReducer` for None.

    Args:
        exponents: updated in place, so that training can resume with them; empty at first.
    """
    if shards is None:
        return FloatReducer(network, pool, dataset, loss)
    return FixedPointReducer(network, pool, dataset, loss, shards, [] if exponents is None else exponents)
