"""Synchronous data-parallel training: the loop.

Every rank holds the same network and the same optimiser, computes the gradient of its share of each minibatch, and
takes the same step along the sum. Within a rank, a team of threads computes that gradient.
"""

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from parallelcnn.comm import Communicator, abort_all_on_error, as_communicator, choose_threads, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import grain, minibatches, shuffle
from parallelcnn.errors import DivergenceError, InputError, ReplicaMismatchError, ShapeError
from parallelcnn.evaluation import Evaluation, evaluate_by
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import SGD
from parallelcnn.profiling import Profiler
from parallelcnn.team import Team
from parallelcnn.threads import check_threads, one_blas_thread
from parallelcnn.worker import Worker


@dataclass
class History:
    """What happened, the same on every rank.

    Attributes:
        losses: of every minibatch, before its step.
        evaluations: (minibatches done, epoch, result on the test set) of every evaluation.
        samples_seen: samples trained on, counted as often as they came.
        train_seconds: the training loop alone: no compilation, no evaluation [s].
        compile_seconds: until the kernels were ready [s].
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, int, Evaluation]] = field(default_factory=list)
    samples_seen: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0


class Reporter(Protocol):
    """Is told what happens in training, as it happens."""

    def minibatch(self, step: int, epoch: int, loss: float, samples: int) -> None:
        """Minibatch number `step`, counted from 1 over all epochs, of `samples` samples, is done."""

    def evaluation(self, step: int, epoch: int, result: Evaluation, history: History) -> None:
        """The network was evaluated on the test set after minibatch `step`."""


def train(
    network: NetworkHandler,
    train_set: Dataset,
    test_set: Dataset,
    optimizer: SGD,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    comm: Any = None,
    *,
    loss: Loss | None = None,
    evaluate_every: int | None = None,
    reporter: Reporter | None = None,
    threads: int | None = None,
    profiler: Profiler | None = None,
) -> History:
    """Train a network, on one process or on many ranks, each on one thread or several.

    The result does not depend on how many they are, up to the rounding of float32 sums. It starts from rank 0's
    parameters, with the optimiser at rest. Collective: every rank of `comm` must call it, with the same arguments.

    Args:
        batch_size: samples in a minibatch over ALL ranks; the last minibatch of an epoch has what is left.
        seed: of the order of the samples, with the epoch; rank 0's counts.
        comm: None: all ranks that mpirun or srun started together, or this process alone if it was started without;
            or an mpi4py communicator.
        loss: softmax cross-entropy unless given.
        evaluate_every: evaluate on the test set after so many minibatches, and not only after each epoch.
        reporter: is told what happens, on the rank that hands one over.
        threads: of this rank; ranks may differ. None: its part of the cores that the ranks of its node may use, or
            fewer where a step has too little work for them.
        profiler: measures where the time goes.

    Raises:
        InputError: for arguments outside their range, or a data set that does not fit network and loss.
        ReplicaMismatchError: if the ranks were not called with the same arguments.
        DivergenceError: if the loss is no longer a finite number, on every rank in the same step.
        LaunchError: see `world`.
    """
    comm = as_communicator(comm)
    loss = loss or SoftmaxCrossEntropy()
    plan = {
        "layers": network.layers,
        "input_shape": network.input_shape,
        "dtype": network.dtype,
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": batch_size,
        "evaluate_every": evaluate_every,
        "loss": loss,
        "profiler": profiler,
    }

    def check() -> None:
        for value, kind in ((train_set, Dataset), (test_set, Dataset), (optimizer, SGD)):
            if not isinstance(value, kind):
                raise InputError(f"train takes a {kind.__name__}, got {value!r}")
        if not isinstance(profiler, Profiler | None):
            raise InputError(f"train takes a Profiler or None, got {profiler!r}")
        check_numbers(epochs, batch_size, seed, evaluate_every, train_set)
        check_threads(threads)
        check_fit(network, train_set, loss)
        check_fit(network, test_set, loss)

    run_together(comm, check)
    _check_replicas(comm, plan, train_set, test_set)
    seed = _start_from_rank_0(comm, network, seed)
    history = History()
    threads = choose_threads(comm, threads, network.multiply_adds(batch_size, training=True))
    run_together(comm, lambda: network.check_memory(threads))
    workers = network.workers(threads)
    ranks = comm
    # An overflow needs no warning: the loss shows it.
    with abort_all_on_error(comm), one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        history.compile_seconds = compile_in_turns(comm, lambda: compile_kernels(network, train_set, optimizer, loss))
        if profiler is not None:
            workers, ranks, reporter = profiler.watch(network, workers, comm, reporter)
        with Team(workers) as team:
            step = 0
            for epoch in range(1, epochs + 1):
                resumed = time.perf_counter()
                for minibatch in minibatches(shuffle(len(train_set), seed, epoch), batch_size):
                    share = grain(minibatch, comm.rank, comm.size)
                    compute_gradient_by(team, train_set, share, len(minibatch), loss)
                    ranks.sum_over_ranks(network.message)
                    network.update(optimizer)

                    step += 1
                    _record_minibatch(history, reporter, step, epoch, float(network.message[-1]), len(minibatch))
                    if evaluate_every and step % evaluate_every == 0:
                        history.train_seconds += time.perf_counter() - resumed
                        _record_evaluation(history, reporter, step, epoch, evaluate_by(team, test_set, comm, loss))
                        resumed = time.perf_counter()
                history.train_seconds += time.perf_counter() - resumed
                if not (history.evaluations and history.evaluations[-1][0] == step):
                    _record_evaluation(history, reporter, step, epoch, evaluate_by(team, test_set, comm, loss))
        if profiler is not None:
            profiler.finish()
    return history


def compute_gradient_by(team: Team, dataset: Dataset, samples: Array, batch_size: int, loss: Loss) -> None:
    """A rank's part of a step: each worker its grain, and the first one's message, the network's, becomes the sum."""
    team.run(lambda worker, some: compute_gradient(worker, dataset, some, batch_size, loss), samples)
    team.sum_messages()


def compute_gradient(worker: Worker, dataset: Dataset, samples: Array, batch_size: int, loss: Loss) -> None:
    """One worker's part: its message becomes the sum over `samples` of gradient and loss, by `batch_size`."""
    for block in worker.blocks(samples):
        x = worker.load(dataset.images, block)
        output = worker.forward(x, training=True)
        doutput = worker.output_gradient(len(block))
        labels = worker.load_labels(dataset.labels, block)
        worker.message[-1] = loss.forward_backward(output, labels, batch_size, doutput)
        worker.backward(doutput)


def compile_kernels(network: NetworkHandler, dataset: Dataset, optimizer: SGD, loss: Loss) -> None:
    """Have every kernel of a training step compiled, or found in numba's cache, by running samples through it: one, and
    as many as are ever taken at once, since their number also decides how convolutions are computed.

    On one thread, before others start: what is compiled here serves all workers, whose arrays are of the same types.
    Changes no parameter.
    """
    for n in (1, network.worker.block_size):
        samples = np.zeros(n, np.intp)
        loss.count_correct(network.forward(network.load(dataset.images, samples)), dataset.labels[samples])
        with Team([network.worker]) as team:
            compute_gradient_by(team, dataset, samples, n, loss)
    optimizer.update(network.params.copy(), network.gradients, {})


def compile_in_turns(comm: Communicator, work: Callable[[], object]) -> float:
    """Do work that compiles: rank 0 first, then one rank of each other node, then the rest.

    So a cold cache is filled once, on whatever file system it lies, and ranks never write it at the same time, which
    has crashed numba programs (numba issues 4807 and 10128). Collective: every rank of `comm` must call it.

    Returns:
        How long it took [s].
    """
    started = time.perf_counter()
    first_on_node = comm.rank == comm.ranks_on_node()[0]
    my_turn = 0 if comm.rank == 0 else 1 if first_on_node else 2
    for turn in range(3 if comm.size > 1 else 1):
        run_together(comm, work if turn == my_turn else lambda: None)
    return time.perf_counter() - started


def check_numbers(
    epochs: int, batch_size: int, seed: int, evaluate_every: int | None = None, train_set: Dataset | None = None
) -> None:
    """Raise InputError for numbers that training could not start, or not end well, with."""
    numbers = {"epochs": (epochs, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
    if evaluate_every is not None:
        numbers["evaluate_every"] = (evaluate_every, 1)
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
    if train_set is not None and batch_size > len(train_set):
        raise InputError(
            f"batch_size must be at most {len(train_set)}, the samples of {train_set.name}, got {batch_size}"
        )


def check_fit(network: NetworkHandler, dataset: Dataset, loss: Loss | None = None) -> None:
    """Raise ShapeError unless the network takes the images of the data set and can learn its labels."""
    (loss or SoftmaxCrossEntropy()).check(network.output_shape, dataset.labels, dataset.classes)
    if network.input_shape != dataset.input_shape:
        raise ShapeError(
            f"the network takes inputs of shape {network.input_shape}, "
            f"but {dataset.name} holds images of shape {dataset.input_shape}"
        )


def _check_replicas(comm: Communicator, plan: dict[str, object], train_set: Dataset, test_set: Dataset) -> None:
    """Raise ReplicaMismatchError, on all ranks, unless all of them were called with the same arguments."""
    mine = {name: repr(value) for name, value in plan.items()}
    for name, dataset in (("train_set", train_set), ("test_set", test_set)):
        labels = zlib.crc32(dataset.labels.data)
        mine[name] = f"{dataset.images.dtype} of shape {dataset.images.shape}, labels with CRC-32 {labels:08x}"
    everyone = comm.gather(mine)
    for name in mine:
        for rank, theirs in enumerate(everyone):
            if theirs[name] != everyone[0][name]:
                raise ReplicaMismatchError(
                    f"all ranks must train the same: rank 0 has {name} {everyone[0][name]}, "
                    f"but rank {rank} has {theirs[name]}"
                ).together()


def _start_from_rank_0(comm: Communicator, network: NetworkHandler, seed: int) -> int:
    """Give every rank rank 0's parameters and an optimiser at rest; returns rank 0's seed."""
    comm.broadcast(network.params)
    network.rest_optimizer()
    return comm.gather(seed)[0]


def _record_minibatch(
    history: History, reporter: Reporter | None, step: int, epoch: int, loss: float, samples: int
) -> None:
    history.losses.append(loss)
    history.samples_seen += samples
    if reporter is not None:
        reporter.minibatch(step, epoch, loss, samples)
    _check_finite("loss", loss, step, epoch)


def _record_evaluation(history: History, reporter: Reporter | None, step: int, epoch: int, result: Evaluation) -> None:
    history.evaluations.append((step, epoch, result))
    if reporter is not None:
        reporter.evaluation(step, epoch, result, history)
    _check_finite("test loss", result.loss, step, epoch)


def _check_finite(what: str, loss: float, step: int, epoch: int) -> None:
    if not math.isfinite(loss):  # a sum over ranks: all of them raise here
        raise DivergenceError(
            f"the {what} of minibatch {step} (epoch {epoch}) is {loss}: training has diverged; "
            f"a smaller learning rate may help"
        ).together()
