"""Reduction: from a minibatch to its summed gradient, over shards, threads and ranks, in one Allreduce.

`FloatReducer` is the fastest. Its rounding depends on how many threads and ranks there are. `FixedPointReducer` cuts
every minibatch into the same shards, whoever computes them, and adds integers: the same bits on any number of threads
and ranks.
"""

from functools import partial
from typing import Protocol

import numpy as np

from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.errors import InputError
from parallelcnn.kernels.fixed_point import add_fixed_point, from_fixed_point
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import LOSS, STOP, Replica
from parallelcnn.training.thread_pool import ThreadPool

_SHARD_SIZE = 32  # samples, as in Goyal et al. 2017 (arXiv:1706.02677), for layers that mix samples
_MOST_SHARDS = 2**14

# Of fixed point: a sum of a segment may be 2**(e + 15); half of it keeps clear of the edge.
_LARGEST_SUM = 2.0**14
_WANTED_BITS = 54  # of a segment's largest sum, after its exponent was changed
_FEWEST_BITS = 42  # before it is
_LOWEST, _HIGHEST = -140, 120  # exponents that float32 can need


class Ranks(Protocol):
    """What a reducer needs to know of ranks; see `Transport`."""

    rank: int
    size: int

    def allreduce(self, array: Array) -> None: ...


class Reducer(Protocol):
    """Computes the gradient of a minibatch and sums it."""

    def compute(self, minibatch: Array, ranks: Ranks, *, key: int, stop: int) -> None:
        """Make the network's reduction buffer that of the whole minibatch, on every rank.

        Collective: every rank must call it.

        Args:
            minibatch: (batch_size,), indices of samples, on every rank all of them.
            key: of the random numbers of this epoch.
            stop: this rank's number, at least 0, for the place STOP, which receives the sum over ranks.
        """


def compute_shard(
    replica: Replica, dataset: Dataset, samples: Array, batch_size: int, loss: Loss, key: int = 0
) -> None:
    """One shard: the replica's reduction buffer becomes the gradient, statistics and loss of these samples.

    Args:
        batch_size: samples in the minibatch over all ranks, by which the loss divides.
    """
    for block in replica.blocks(samples):
        x = replica.load(dataset.images, block, training=True, key=key)
        output = replica.forward(x, training=True)
        labels = replica.load_labels(dataset.labels, block)
        doutput = replica.output_gradient(len(block))
        replica.reduction_buffer[LOSS] = loss.forward_backward(output, labels, batch_size, doutput)
        replica.backward(doutput)


class FloatReducer:
    """Sums of floating-point numbers.

    Each thread of each rank takes a shard of its own. Where layers mix samples the shards are cut alike on any number
    of ranks and threads, and each thread takes some of them.
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
    """Sums in fixed point over shards of the minibatch.

    Each parameter, and the loss, has an exponent of its own, which follows the size of its sums from step to step.
    These sums are the same on all ranks, and so are the exponents. A step in which terms do not fit, or in which none
    of a parameter's terms keeps its bits, is computed again with other exponents.

    Args:
        shards: how many; it decides the bits of the result.
        exponents: of each segment, kept up to date; part of what a training resumes from. Empty: zeros.
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
        self._exponents[...] = self._kept or 0  # those of the step before, also where training went back to it
        while True:
            total = self._sum(minibatch, ranks, key=key, stop=stop)
            infinite, large, exact, rounded = total.counts
            if infinite.any() or (large[self._exponents >= _HIGHEST] > 0).any():
                # Leave what is infinite or NaN in the reduction buffer, for the check that follows.
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
    """A replica's sums: of the terms, of the places STOP, and the counts of `add_fixed_point`, in one vector."""

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
        """Make `numbers` the sum of what was added, which may be nothing."""
        if self._is_empty:
            self.terms[...] = 0
        self.stop[0] = 0


def segment_starts(network: NetworkHandler) -> Array:
    """Where the segments of the reduction buffer begin that have exponents of their own, and where the last one ends:
    each parameter, each statistic, and the loss.
    """
    parameters, statistics = network.layout.slots, network.buffer_layout.slots
    starts = [slot.start for slot in parameters] + [network.layout.size + slot.start for slot in statistics]
    end = network.layout.size + network.buffer_layout.size
    return np.array([*starts, end, end + 1], np.int64)


def default_shards(batch_size: int) -> int:
    """How many shards a minibatch is cut into where layers mix samples: the power of two nearest to 32 samples each."""
    return 1 << max(round(float(np.log2(max(batch_size / _SHARD_SIZE, 1)))), 0)


def check_reproducible(shards: int | None) -> None:
    """Raise InputError unless that is a number of shards, or None."""
    if shards is None:
        return
    if isinstance(shards, bool) or not isinstance(shards, int | np.integer) or not 1 <= shards <= _MOST_SHARDS:
        raise InputError(f"reproducible must be an integer from 1 to {_MOST_SHARDS:,}, got {shards!r}")


def reducer_of(
    network: NetworkHandler,
    pool: ThreadPool,
    dataset: Dataset,
    loss: Loss,
    shards: int | None,
    exponents: list[int] | None = None,
) -> Reducer:
    """A `FixedPointReducer` over so many shards; a `FloatReducer` for None.

    Args:
        exponents: kept up to date, so that a training can resume with them; empty at first.
    """
    if shards is None:
        return FloatReducer(network, pool, dataset, loss)
    return FixedPointReducer(network, pool, dataset, loss, shards, [] if exponents is None else exponents)
