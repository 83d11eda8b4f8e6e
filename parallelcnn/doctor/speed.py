"""Checks of speed: compilation, other programs, the sum over ranks, a training step."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parallelcnn.comm import Serial, Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.doctor.finding import Finding
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import SGD
from parallelcnn.training.compilation import compile_in_turns, compile_kernels
from parallelcnn.training.reduction import reducer_of
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import one_blas_thread
from parallelcnn.wording import in_units

_SECONDS = 1.0  # of each measurement, about
_FEWEST, _MOST = 5, 300  # rounds of each
_LARGEST_PART = 1 / 3  # of a step, for the sum over ranks
_SHORT_MESSAGE = 8  # bytes
_SLOW_ANSWER = 1e-3  # for a short message [s]
_MOST_TAKEN = 0.2  # cores, by other programs
_IDLE = (3, 4)  # columns of a core in /proc/stat: idle, and idle but for a disk


@dataclass(frozen=True)
class Speed:
    """Medians, on the slowest rank [s]."""

    compiling: float  # until all kernels were ready
    short_sum: float  # of 8 bytes over all ranks
    sum: float  # of the network's gradients over all ranks
    step: float  # of a minibatch, on all ranks
    step_alone: float  # of the same minibatch on rank 0 alone, with as many threads; NaN if there is only one rank
    taken: float  # cores that other programs took from the ranks of a node meanwhile
    nbytes: int  # of the network's gradients


def measure(
    comm: Transport, network: NetworkHandler, dataset: Dataset, batch_size: int, threads: int, cores: Collection[int]
) -> Speed:
    """Compile the kernels, and take training steps. Collective: every rank of `comm` must call it.

    Args:
        cores: that the ranks of this node may use.
    """
    optimizer, loss = SGD(1e-6), SoftmaxCrossEntropy()
    minibatch = np.arange(batch_size)
    gradients = np.zeros_like(network.reduction_buffer)
    few_bytes = gradients[: _SHORT_MESSAGE // gradients.itemsize]
    alone = math.nan

    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        compiling = compile_in_turns(comm, lambda: compile_kernels(network, dataset, optimizer, loss), network)
        with ThreadPool(network.replicas(threads)) as pool:
            load = Load(cores, threads)
            reducer = reducer_of(network, pool, dataset, loss, None)

            def step(ranks: Transport) -> None:
                reducer.compute(minibatch, ranks, key=0, stop=0)
                network.update(optimizer, batch_size)

            short_sum = _median_seconds(comm, lambda: comm.allreduce(few_bytes))
            sum_seconds = _median_seconds(comm, lambda: comm.allreduce(gradients))
            together = _median_seconds(comm, lambda: step(comm))
            taken = load.taken(comm)
            if comm.size > 1 and comm.rank == 0:
                alone = _median_seconds(Serial(), lambda: step(Serial()))
            alone = comm.allgather(alone)[0]
    return Speed(compiling, short_sum, sum_seconds, together, alone, taken, gradients.nbytes)


def _median_seconds(comm: Transport, work: Callable[[], None]) -> float:
    """How long `work` takes when all ranks do it at once: the median of some rounds on the slowest rank [s]."""
    comm.barrier()
    slowest = max(comm.allgather(min(_seconds(work) for _ in range(_FEWEST))))
    rounds = int(np.clip(_SECONDS / slowest, _FEWEST, _MOST))
    comm.barrier()
    return max(comm.allgather(float(np.median([_seconds(work) for _ in range(rounds)]))))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Load:
    """Measures, from its creation on, how busy other programs keep the cores of this rank's node.

    Args:
        cores: that the ranks of the node may use.
        threads: of this rank.
    """

    def __init__(self, cores: Collection[int], threads: int) -> None:
        self._cores, self._threads = cores, threads
        self._began = self._now()

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), busy_seconds(self._cores)

    def taken(self, comm: Transport) -> float:
        """How many cores the ranks of a node lacked because of other programs, or, in a virtual machine, of other
        machines on the same host; of the node that lacked most. Collective: every rank of `comm` must call it.
        """
        seconds, own, busy = (now - then for now, then in zip(self._now(), self._began, strict=True))
        everyone = comm.allgather((own, self._threads))
        here = [everyone[rank] for rank in comm.ranks_on_node()]
        others = max(0.0, busy - sum(own for own, _ in here)) / seconds
        lacking = others + sum(threads for _, threads in here) - len(self._cores)
        return max(comm.allgather(min(others, max(0.0, lacking))))


def busy_seconds(cores: Collection[int], stat: Path = Path("/proc/stat")) -> float:
    """How long these cores have been busy since the machine was started; 0 if the system does not tell."""
    ticks = 0
    with contextlib.suppress(OSError, ValueError):
        for line in stat.read_text().splitlines():
            name, *counts = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
                # Beyond the eighth come the guests', which are in the first two already.
                ticks += sum(int(count) for i, count in enumerate(counts[:8]) if i not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")


def check_compilation(speed: Speed, new: int | None) -> Finding:
    """How long it took until all kernels were ready.

    Args:
        new: how many of them were compiled and kept; None: there is no cache.
    """
    if new is None:
        how = "all compiled, and none kept"
    else:
        how = f"{new} compiled and kept for next time" if new else "all found in the cache"
    return Finding("kernels", f"{speed.compiling:.1f} s, {how}")


def check_load(speed: Speed) -> Finding:
    """Whether other programs take cores from the ranks."""
    if speed.taken <= _MOST_TAKEN:
        return Finding("other programs", "take no core that the ranks need")
    found = (
        f"took the time of {speed.taken:.1f} cores that the ranks of a node need, which makes the times below longer"
    )
    return Finding("other programs", found, "run top to find them, or try again later")


def check_sum(speed: Speed, size: int, batch_size: int) -> Finding:
    """Whether the sum over ranks takes a small part of a step."""
    if size == 1:
        return Finding("Allreduce", "none, with one rank; mpirun -n 2 shows how long it takes")
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
        remedy += f"; but does MPI use the fast network? {_SHORT_MESSAGE} bytes should take microseconds"
    return Finding("Allreduce", found, remedy)


def check_step(speed: Speed, size: int, batch_size: int) -> Finding:
    """Whether the ranks together are faster than one of them."""
    found = f"{1e6 * speed.step:,.0f} us for a minibatch of {batch_size}, {batch_size / speed.step:,.0f} samples/s"
    if size == 1:
        return Finding("step", found)
    gain = speed.step_alone / speed.step
    remedy = "" if gain >= 1 else "a larger --batch-size, or fewer ranks; see the lines above"
    return Finding("step", f"{found}; {gain:.2g} times as fast as rank 0 alone", remedy)
