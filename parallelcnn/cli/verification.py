"""`--verify`: compare the gradients of all ranks with those of one, on the given network and data."""

import numpy as np

from parallelcnn.comm import Serial, Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import Sampler, shard
from parallelcnn.errors import ReplicaMismatchError
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.replica import LOSS
from parallelcnn.training.reduction import compute_shard, default_shards, reducer_of
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import one_blas_thread

Array = np.ndarray

# What guide/promises-and-limits.md promises for one step. A bound for the parameters after many steps would be exceeded
# in some trainings: rounding grows.
_BOUND = 2e-6


def verify(
    network: NetworkHandler,
    dataset: Dataset,
    optimizer: Optimizer,
    batch_size: int,
    seed: int,
    comm: Transport,
    *,
    steps: int,
    loss: Loss,
    threads: int,
    reproducible: int | None,
) -> str:
    """Train some minibatches on all ranks. In each step, compare loss and gradient with those of one rank alone.

    Does not change the network. Collective: every rank of `comm` must call it.

    Args:
        steps: number of minibatches.
        threads: of each rank; the rank that computes alone uses one.
        reproducible: number of shards, with which the bits must be equal; None: the numbers must be close.

    Returns:
        the result, as a sentence.

    Raises:
        ReplicaMismatchError: on every rank, if they differ.
    """
    before = {name: vector.copy() for name, vector in network.state.items()}
    start = network.params.copy()
    comm.broadcast(start)
    network.params = start
    network.reset_optimizer()
    sampler, seen = Sampler(len(dataset), batch_size, seed), 0
    what = f"{steps} minibatches on {comm.size} x {threads} threads and on one"
    same_bits, largest = True, 0.0
    with (
        network.being_trained(),
        one_blas_thread(),
        np.errstate(over="ignore", invalid="ignore"),
        ThreadPool(network.replicas(threads)) as pool,
        ThreadPool(network.replicas(1)) as one_thread,
    ):
        together = reducer_of(network, pool, dataset, loss, reproducible)
        alone = reducer_of(network, one_thread, dataset, loss, reproducible)
        for step in range(steps):
            _, minibatch = sampler.after(seen)
            seen += len(minibatch)
            scale = _largest_absolute_sum(network, dataset, minibatch, comm, loss, sampler.key)
            alone.compute(minibatch, Serial(), key=sampler.key, stop=0)
            expected = network.reduction_buffer.copy()
            together.compute(minibatch, comm, key=sampler.key, stop=0)
            found = network.reduction_buffer
            same_bits = same_bits and np.array_equal(found, expected)
            difference = float(np.abs(network.gradients - expected[: network.gradients.size]).max(initial=0)) / scale
            largest = max(largest, difference)
            close = difference <= _BOUND and abs(found[LOSS] - expected[LOSS]) <= _BOUND * abs(expected[LOSS])
            bad = sum(comm.allgather(not (same_bits if reproducible is not None else close)))
            if bad:
                raise ReplicaMismatchError(
                    f"{what}: in minibatch {step + 1} the gradients differ by {difference:.2g} of the largest one, and "
                    f"the losses are {found[LOSS]:.7g} and {expected[LOSS]:.7g}, on {bad} of {comm.size} ranks"
                ).together()
            network.update(optimizer, len(minibatch), step, steps)
    network.set_state(before)
    return f"{what}: the same {'bits' if same_bits else f'gradients, up to {largest:.1e} of the largest'}"


def _largest_absolute_sum(
    network: NetworkHandler, dataset: Dataset, minibatch: Array, comm: Transport, loss: Loss, key: int
) -> float:
    """The largest value in the sum of the samples' absolute gradients; if layers mix samples, of the shards'.

    Rounding errors of a sum are relative to its terms, not to the sum, which may be small because terms cancel.
    """
    pieces = default_shards(len(minibatch)) if network.mixes_samples else len(minibatch)
    total = np.zeros(network.gradients.size)
    for number in shard(np.arange(pieces), comm.rank, comm.size):
        samples = shard(minibatch, number, pieces)
        compute_shard(network.replica, dataset, samples, len(minibatch), loss, key)
        total += np.abs(network.gradients)
    comm.allreduce(total)
    return max(float(total.max(initial=0)), float(np.finfo(np.float32).tiny))
