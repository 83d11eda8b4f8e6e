"""Compile all kernels before the first step: on rank 0's node, then on the other nodes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import get_ident

import numpy as np
from numba.core.event import Event, Listener, install_listener

from parallelcnn.comm import Serial, Transport, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.kernels.finite import all_finite
from parallelcnn.kernels.moving_average import moving_average
from parallelcnn.losses import Loss
from parallelcnn.metrics import Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.training.compilation_shares import other_processes, share_with_ranks
from parallelcnn.training.evaluation import default_metrics, run_block, sizes_of_sums
from parallelcnn.training.reduction import reducer_of
from parallelcnn.training.thread_pool import ThreadPool


def compile_kernels(
    network: NetworkHandler,
    dataset: Dataset,
    optimizer: Optimizer,
    loss: Loss,
    reproducible: int | None = None,
    metrics: Sequence[Metric] | None = None,
    test_set: Dataset | None = None,
) -> None:
    """Compile every kernel of a training step, or load it from the cache, by running samples through the network: one
    sample and a full block, since the number of samples also decides the convolution algorithm.

    It runs on one thread, before others start. All replicas use the same kernels, since their arrays have the same
    types. No parameter changes.

    Args:
        test_set: None: like `dataset`. Other types of labels, and sample weights, take other kernels.
    """
    metrics = default_metrics(network, dataset, loss) if metrics is None else metrics
    for n in (1, network.replica.block_size):
        samples = np.zeros(n, np.intp)
        sums = map(np.zeros, sizes_of_sums(metrics))
        run_block(network.replica, dataset if test_set is None else test_set, samples, loss, metrics, *sums)
        with ThreadPool([network.replica]) as pool:
            reducer_of(network, pool, dataset, loss, reproducible).compute(samples, Serial(), key=0, stop=0)
            all_finite(network.reduction_buffer)
    optimizer.update(network.trained_params.copy(), network.gradients, {}, **network.update_options(optimizer))
    if network.buffers.size:
        moving_average(network.buffers.copy(), network.replica.statistics, network.buffers, 1)


def compile_in_turns(
    comm: Transport,
    work: Callable[[], object],
    network: NetworkHandler | None = None,
    threads: int | None = None,
    *,
    training: bool = True,
) -> float:
    """Run `work`, which compiles kernels, on one rank of rank 0's node first, then on one rank of each other node, then
    on the rest.

    So on a shared file system one node fills an empty cache, and on local ones each node fills its own. The ranks of a
    node share the network's kernels; a rank that is alone on its node starts other processes for that. A rank that
    waits for its turn already loads what the cache holds: with a full cache no rank waits.

    Collective: every rank of `comm` must call it.

    Args:
        network: the network whose kernels `work` uses; None: the work is not shared.
        threads: the number of cores that this rank may use; None: all that it can.
        training: whether `work` trains the network; otherwise it predicts.

    Returns:
        The time that it took [s].
    """
    started = time.perf_counter()
    comm.status = "compiling kernels"
    node = comm.ranks_on_node()
    is_first = comm.rank == node[0]
    my_turn = 0 if 0 in node else 1
    is_done = False

    def take_part(turn: int) -> None:
        nonlocal is_done
        if not is_done and turn <= my_turn and (comm.size > 1 or network is not None):
            is_done = _runs_without_compiling(work)
        if not is_done and turn >= my_turn + (not is_first):
            with other_processes(network if len(node) == 1 else None, threads, training=training):
                work()
            is_done = True
        if not is_done and turn == my_turn and network is not None:
            share_with_ranks(network, node.index(comm.rank), len(node), training=training)

    for turn in range(3 if comm.size > 1 else 1):
        run_together(comm, partial(take_part, turn))
    return time.perf_counter() - started


def _runs_without_compiling(work: Callable[[], object]) -> bool:
    """Run `work` to its end, or up to the first kernel that is not in the cache; whether it came to its end."""
    try:
        with install_listener("numba:compile", _Refusal()):
            work()
    except _NotInTheCache:
        return False
    return True


class _NotInTheCache(Exception):
    pass


class _Refusal(Listener):
    """Raises an exception before this thread compiles a kernel."""

    def __init__(self) -> None:
        self._thread = get_ident()

    def on_start(self, event: Event) -> None:
        if get_ident() == self._thread:
            raise _NotInTheCache

    def on_end(self, event: Event) -> None:
        pass


@contextlib.contextmanager
def interruptible_compilation(interrupt: Callable[[], bool]) -> Iterator[None]:
    """Context in which KeyboardInterrupt is raised once `interrupt` returns true, before this thread compiles a kernel.

    While LLVM compiles, an exception from a signal handler may be lost, or crash the process.
    """
    with install_listener("numba:compile", _Interrupter(interrupt)):
        yield


class _Interrupter(Listener):
    def __init__(self, interrupt: Callable[[], bool]) -> None:
        self._interrupt = interrupt
        self._depth = 0  # a kernel also compiles the functions that it calls
        self._thread = get_ident()

    def on_start(self, event: Event) -> None:
        if get_ident() == self._thread:
            self._depth += 1
            if self._depth == 1 and self._interrupt():
                raise KeyboardInterrupt

    def on_end(self, event: Event) -> None:
        if get_ident() == self._thread:
            self._depth -= 1
