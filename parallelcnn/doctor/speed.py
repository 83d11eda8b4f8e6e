"""Checks of speed: compilation, the sum over ranks, a step of training."""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from parallelcnn.comm import Serial, Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.doctor.finding import Finding, in_units
from parallelcnn.doctor.load import Load
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import SGD
from parallelcnn.training.compilation import compile_in_turns, compile_kernels
from parallelcnn.training.reduction import reducer_of
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import one_blas_thread

_SECONDS = 1.0  # of each measurement, about
_FEWEST, _MOST = 5, 300  # rounds of each
_LARGEST_PART = 1 / 3  # of a step that sums over ranks may take unremarked
_SHORT_MESSAGE = 8  # bytes
_MOST_TAKEN = 0.2  # of a core, unremarked
_SLOW_ANSWER = 1e-3  # [s] for these


@dataclass(frozen=True)
class Speed:
    """Medians, on the slowest rank [s].

    Attributes:
        compiling: until all kernels were ready.
        short_sum: of 8 bytes over all ranks.
        sum: of the network's gradients over all ranks.
        step: a minibatch, on all ranks.
        step_alone: the same minibatch on rank 0 alone, with as many threads; NaN where it is alone anyway.
        taken: cores that other programs took from the ranks of a node meanwhile.
        nbytes: of the network's gradients.
    """

    compiling: float
    short_sum: float
    sum: float
    step: float
    step_alone: float
    taken: float
    nbytes: int


def measure(
    comm: Transport,
    network: NetworkHandler,
    dataset: Dataset,
    batch_size: int,
    threads: int,
    cores: Collection[int],
) -> Speed:
    """Compile, and take steps that lead nowhere. Collective: every rank of `comm` must call it.

    Args:
        cores: that the ranks of this node may use.
    """
    optimizer, loss = SGD(1e-6), SoftmaxCrossEntropy()
    minibatch = np.arange(batch_size)
    message = np.zeros_like(network.reduction_buffer)

    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        compiling = compile_in_turns(comm, lambda: compile_kernels(network, dataset, optimizer, loss))
        with ThreadPool(network.replicas(threads)) as pool:
            load = Load(cores, threads)
            reducer = reducer_of(network, pool, dataset, loss, None)

            def step(ranks: Transport) -> None:
                reducer.compute(minibatch, ranks, key=0, stop=0)
                network.update(optimizer)

            short_sum = _median_seconds(comm, lambda: comm.allreduce(message[: _SHORT_MESSAGE // message.itemsize]))
            sum_seconds = _median_seconds(comm, lambda: comm.allreduce(message))
            together = _median_seconds(comm, lambda: step(comm))
            taken = load.taken(comm)
            alone = math.nan
            if comm.size > 1:
                alone = _median_seconds(Serial(), lambda: step(Serial())) if comm.rank == 0 else alone
                alone = comm.allgather(alone)[0]
    return Speed(compiling, short_sum, sum_seconds, together, alone, taken, message.nbytes)


def _median_seconds(comm: Transport, work: Callable[[], None]) -> float:
    """How long `work` takes, all ranks doing it at once: the median of some rounds on the slowest rank [s]."""
    comm.barrier()
    first = [_seconds(work) for _ in range(_FEWEST)]
    slowest = max(comm.allgather(min(first)))
    rounds = int(np.clip(_SECONDS / slowest, _FEWEST, _MOST))
    comm.barrier()
    return max(comm.allgather(float(np.median([_seconds(work) for _ in range(rounds)]))))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def check_compilation(speed: Speed, new: int | None) -> Finding:
    """How long kernels took to be ready.

    Args:
        new: how many of them were compiled and kept; None: there is nowhere to keep any.
    """
    if new is None:
        how = "all compiled, and kept nowhere"
    else:
        how = f"{new} compiled and kept for next time" if new else "all found in the cache"
    return Finding("kernels", f"{speed.compiling:.1f} s, {how}")


def check_load(speed: Speed) -> Finding:
    """Whether other programs leave the ranks their cores."""
    if speed.taken > _MOST_TAKEN:
        return Finding(
            "other programs",
            f"took {speed.taken:.1f} cores' time that the ranks of a node need, and the times below are longer for it",
            "look with top what they are, or come back later",
        )
    return Finding("other programs", "leave the ranks their cores")


def check_sum(speed: Speed, size: int, batch_size: int) -> Finding:
    """Whether the sum over ranks is short beside the rest of a step."""
    if size == 1:
        return Finding("Allreduce", "none, with one rank; under mpirun -n 2 this tells how long it takes")
    rate = speed.nbytes / speed.sum / 1e9
    part = min(1.0, speed.sum / speed.step)
    found = (
        f"{1e6 * speed.short_sum:,.0f} us for {_SHORT_MESSAGE} bytes, {1e6 * speed.sum:,.0f} us for the gradients' "
        f"{in_units(speed.nbytes)} ({rate:.2g} GB/s): {100 * part:.0f} % of a step"
    )
    if part <= _LARGEST_PART:
        return Finding("Allreduce", found)
    compute = max(speed.step - speed.sum, 0.1 * speed.sum)
    enough = batch_size * math.ceil(speed.sum * (1 / _LARGEST_PART - 1) / compute)
    remedy = f"--batch-size {enough}, or fewer ranks"
    if speed.short_sum > _SLOW_ANSWER:
        remedy += f"; but does MPI take the fast network? {_SHORT_MESSAGE} bytes should take microseconds"
    return Finding("Allreduce", found, remedy)


def check_step(speed: Speed, size: int, batch_size: int) -> Finding:
    """Whether the ranks together are quicker than one of them."""
    found = f"{1e6 * speed.step:,.0f} us for a minibatch of {batch_size}, {batch_size / speed.step:,.0f} samples/s"
    if size == 1:
        return Finding("step", found)
    gain = speed.step_alone / speed.step
    found += f"; {gain:.2g} times as fast as rank 0 alone"
    if gain < 1:
        return Finding("step", found, "a larger --batch-size, or fewer ranks; see the lines above")
    return Finding("step", found)
