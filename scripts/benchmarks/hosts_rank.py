"""The program of a rank of hosts.py: measure what a task file asks for. Rank 0 writes a file of results, JSON.

A task: {"settings": file of the emulated network, or null without ranks; "cases": [...]}. A case, by its "kind":

* "compute": seconds of a step of `network` for the first of `hosts` ranks of a minibatch of `batch_size`, no Allreduce;
* "latency", "allreduce", "step", "overlap": see the functions of this name. They have a `link`: latency [s] and rate
  [Gb/s], and a `dilation` D, as in Gupta et al. 2006, "To Infinity and Beyond: Time-Warped Network Emulation": the
  network runs with D times the latency and a D-th of the rate, and all times are divided by D.
"""

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from emulated_hosts import network_settings, set_network
from networks import NETWORKS

import parallelcnn as pc
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.training.compilation import compile_kernels
from parallelcnn.training.reduction import reducer_of
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import one_blas_thread

Array = np.ndarray
Case = dict[str, Any]
_SAMPLES = 4096
_LONG = 5  # times the seconds that were asked for


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    found = []
    with one_blas_thread():
        ranks = Ranks(None if task["settings"] is None else Path(task["settings"]))
        for network in sorted({case["network"] for case in task["cases"] if "network" in case}):
            # Ranks that compile kernels into the same cache at the same time have crashed numba programs.
            for rank in range(ranks.size):
                if rank == ranks.rank:
                    training(network)
                ranks.barrier()
        for case in task["cases"]:
            found.append(KINDS[case["kind"]](ranks, case))
    if ranks.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps({"found": found, "mpi": ranks.library, "hosts": ranks.names}))


class Ranks:
    """The ranks on the emulated hosts, as `Reducer.compute` takes them.

    Args:
        settings: those of the emulated network; None: there is only this process.
    """

    def __init__(self, settings: Path | None) -> None:
        self.rank, self.size, self.library, self.names = 0, 1, "", [socket.gethostname()]
        self._latency_here: float | None = None
        if settings is None:
            return
        # The host number decides, since the rank is known only when MPI runs, with threads that inherit the core.
        cores, number = sorted(os.sched_getaffinity(0)), int(socket.gethostname().removeprefix("host"))
        os.sched_setaffinity(0, {cores[(number - 1) % len(cores)]})
        from mpi4py import MPI

        self._settings, self._MPI, self._comm = network_settings(settings), MPI, MPI.COMM_WORLD
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self.library = MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0")
        self.names = self._comm.allgather(socket.gethostname())
        if self.rank != number - 1 or self._comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size() != 1:
            sys.exit(f"rank {self.rank} should be alone on host {self.rank + 1}, it is on host {number}")

    def barrier(self) -> None:
        """Wait for the other ranks, asleep, so that those on the same core go on computing."""
        if self.size > 1:
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(5e-4)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on all ranks."""
        return self._comm.bcast(value) if self.size > 1 else value

    def allreduce(self, array: Array) -> None:
        """As in training: MPI waits without leaving the core."""
        self._comm.Allreduce(self._MPI.IN_PLACE, array)

    def allreduce_in_turns(self, array: Array) -> None:
        """As `allreduce`, but leave the core to other ranks while waiting."""
        request = self._comm.Iallreduce(self._MPI.IN_PLACE, array)
        while not request.Test():
            os.sched_yield()

    def begin_allreduce(self, array: Array) -> Any:
        return self._comm.Iallreduce(self._MPI.IN_PLACE, array)

    def use_link(self, link: list[float], dilation: float) -> None:
        """Emulate this link, slower by the dilation. The latency that the machine itself needs is taken off."""
        latency, gigabits = link
        if self._latency_here is None:
            self._set(0, 10)
            self._latency_here = self.broadcast(self.ping_pong(8, 300))
        self._set(latency * dilation - self._latency_here, gigabits / dilation)

    def _set(self, latency: float, gigabits: float) -> None:
        self.barrier()
        if self.rank == 0:
            set_network(self._settings, latency, gigabits)
        self.barrier()

    def ping_pong(self, size: int, repeats: int) -> float:
        """Median of half a round trip between ranks 0 and 1 [s]; on other ranks 0."""
        array, times = np.zeros(size, np.uint8), [0.0]
        self.barrier()
        for _ in range(repeats if self.rank < 2 else 0):
            started = time.perf_counter()
            for sender in (0, 1):
                if self.rank == sender:
                    self._comm.Send(array, 1 - sender)
                else:
                    self._comm.Recv(array, 1 - self.rank)
            times.append((time.perf_counter() - started) / 2)
        self.barrier()
        return statistics.median(times[1:] or times)


class Periodic:
    """Ranks that sum only in every `period`-th step, so that steps are computed `period` times as slowly."""

    def __init__(self, ranks: Ranks, size: int, period: int, allreduce: Callable[[Array], None] | None) -> None:
        self.rank, self.size = ranks.rank, size
        self._period, self._allreduce, self._steps = period, allreduce, 0

    def allreduce(self, array: Array) -> None:
        self._steps += 1
        if self._steps % self._period == 0 and self._allreduce is not None:
            self._allreduce(array)


class Training:
    """Training steps of a network on random images, as `training.loop.Loop.step` does them, on one thread."""

    def __init__(self, network: str) -> None:
        layers, shape = NETWORKS[network]
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (_SAMPLES, *shape), np.uint8)
        self._data = pc.Dataset(images, rng.integers(0, 10, _SAMPLES), 10)
        self.network = pc.NetworkHandler(layers, shape, seed=0)
        self._optimizer, loss = pc.SGD(0.001), SoftmaxCrossEntropy()
        self._pool = ThreadPool(self.network.replicas(1))
        compile_kernels(self.network, self._data, self._optimizer, loss)
        self._reducer = reducer_of(self.network, self._pool, self._data, loss, None)
        self._rng, self._order = rng, np.zeros(0, np.intp)

    def step(self, batch_size: int, ranks: Any) -> None:
        if len(self._order) < batch_size:
            self._order = self._rng.permutation(_SAMPLES)
        minibatch, self._order = self._order[:batch_size], self._order[batch_size:]
        self._reducer.compute(minibatch, ranks, key=0, stop=0)
        self.network.update(self._optimizer, batch_size, 0, 1, self._pool.share)


training = cache(Training)


def compute(ranks: Ranks, case: Case) -> float:
    train = training(case["network"])
    alone = Periodic(ranks, case["hosts"], 1, None)
    return repeated(lambda: train.step(case["batch_size"], alone), case["seconds"], least=3)


def repeated(work: Callable[[], object], seconds: float, ranks: Ranks | None = None, least: int = 1) -> float:
    """Seconds of one call, the median of as many calls as take so long, after those that are not counted.

    A call that takes much longer is not repeated. With ranks, all of them call it, and do the same number of calls.
    """
    if ranks is not None:
        ranks.barrier()
    started = time.perf_counter()
    work()
    took = time.perf_counter() - started
    calls = 0 if took > _LONG * seconds else max(least, round(seconds / took))
    if ranks is not None:
        calls, took = ranks.broadcast((calls, took))
        ranks.barrier()
    if calls == 0:
        return took
    if took < seconds:
        work()  # ranks do not leave a barrier at the same moment, but an Allreduce
    moments = [time.perf_counter()]
    for _ in range(calls):
        work()
        moments.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(moments))


def latency(ranks: Ranks, case: Case) -> dict[str, float]:
    """Half a round trip [s] of 8 bytes, and the rate of 1 MiB [Gb/s], between two hosts, as MPI measures them."""
    dilation, size = case["dilation"], 1 << 20
    ranks.use_link(case["link"], dilation)
    ranks.ping_pong(size, 5)  # TCP opens its window
    large = ranks.ping_pong(size, 20) / dilation
    return {"latency": ranks.ping_pong(8, 200) / dilation, "rate": size * 8 / large / 1e9 if large else 0.0}


def allreduce(ranks: Ranks, case: Case) -> float:
    """Seconds of the Allreduce of a network's reduction buffer, or a part of it; nothing is computed meanwhile."""
    dilation = case["dilation"]
    ranks.use_link(case["link"], dilation)
    array = np.zeros(round(training(case["network"]).network.reduction_buffer.size * case["part"]), np.float32)
    call = ranks.allreduce if dilation == 1 else ranks.allreduce_in_turns
    return repeated(lambda: call(array), case["seconds"], ranks, least=5) / dilation


def step(ranks: Ranks, case: Case) -> float:
    """Seconds of a training step.

    `share` ranks compute on one core, each at a share-th of its speed. With a dilation of share * period, `period`
    steps are computed for every Allreduce.
    """
    train, dilation = training(case["network"]), case["dilation"]
    ranks.use_link(case["link"], dilation)
    period, batch_size = max(dilation // case["share"], 1), case["batch_size"]
    periodic = Periodic(ranks, ranks.size, period, ranks.allreduce if dilation == 1 else ranks.allreduce_in_turns)

    def work() -> None:
        for _ in range(period):
            train.step(batch_size, periodic)

    return repeated(work, case["seconds"], ranks) / dilation


def overlap(ranks: Ranks, case: Case) -> dict[str, float]:
    """Seconds of a step whose Allreduce begins at its end, and of one that has the whole step to hide in.

    The second sums a buffer that is ready when the step begins. No order of the gradients can hide more.
    """
    train, batch_size = training(case["network"]), case["batch_size"]
    ranks.use_link(case["link"], 1)
    array = np.zeros_like(train.network.reduction_buffer)
    alone = Periodic(ranks, ranks.size, 1, None)

    def after() -> None:
        train.step(batch_size, alone)
        ranks.allreduce(array)

    def meanwhile() -> None:
        request = ranks.begin_allreduce(array)
        train.step(batch_size, alone)
        request.Wait()

    return {
        "after": repeated(after, case["seconds"], ranks),
        "meanwhile": repeated(meanwhile, case["seconds"], ranks),
        "none": repeated(lambda: train.step(batch_size, alone), case["seconds"], ranks),
    }


KINDS: dict[str, Callable[[Ranks, Case], Any]] = {
    "compute": compute,
    "latency": latency,
    "allreduce": allreduce,
    "step": step,
    "overlap": overlap,
}

if __name__ == "__main__":
    main()
