"""Synchronous data-parallel training: the loop.

Every rank holds the same network and the same optimiser, computes the gradient of its share of each minibatch, and
takes the same step along the sum. Within a rank, a team of threads computes that gradient.

The loop does what the history says comes next. So it can begin in the middle: after a resume, and on the ranks that
are left when one is lost.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from parallelcnn.checkpoint import Checkpoint, CheckpointFolder
from parallelcnn.comm import abort_all_on_error, as_communicator, choose_threads, run_together
from parallelcnn.compilation import compile_in_turns, compile_kernels
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import Sampler
from parallelcnn.divergence import check_message, check_test_loss
from parallelcnn.errors import RankLostError
from parallelcnn.evaluation import Evaluation, evaluate_by
from parallelcnn.history import History
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import SGD
from parallelcnn.preparation import check_fit, check_kinds, check_numbers, check_replicas, facts_of, start
from parallelcnn.profiling import Profiler
from parallelcnn.replicas import ReplicaGuard, check_repair
from parallelcnn.summation import check_grains, summation_of
from parallelcnn.team import Team
from parallelcnn.threads import check_threads, one_blas_thread
from parallelcnn.worker import LEAVE, LOSS


class Reporter(Protocol):
    """Is told what happens in training, as it happens."""

    def minibatch(self, step: int, epoch: int, loss: float, samples: int) -> None:
        """Minibatch number `step`, counted from 1 over all epochs, of `samples` samples, is done."""

    def evaluation(self, step: int, epoch: int, result: Evaluation, history: History) -> None:
        """The network was evaluated on the test set after minibatch `step`."""

    # def resumed(self, history: History) -> None, for reporters that have it, too: training goes on from what the
    # history says, after a resume, after a rank was lost, or after the ranks went back to a checkpoint.


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
    grains: int | None = None,
    checkpoints: CheckpointFolder | None = None,
    resume: Checkpoint | None = None,
    leave: Callable[[], bool] | None = None,
    repair: str = "stop",
) -> History:
    """Train a network, on one process or on many ranks, each on one thread or several.

    The result does not depend on how many they are: up to the rounding of float32 sums, or with `grains` to the bit. It
    starts from rank 0's parameters, with the optimiser at rest, or from a checkpoint. Where a rank is lost and MPI can
    go on without (Open MPI's mpirun --with-ft ulfm), the others take over its part.

    Collective: every rank of `comm` must call it, with the same arguments.

    Args:
        batch_size: samples in a minibatch over ALL ranks; the last minibatch of an epoch has what is left.
        seed: of the order of the samples, with the epoch; rank 0's counts.
        comm: None: all ranks that mpirun or srun started together, or this process alone if it was started without;
            or an mpi4py communicator.
        loss: softmax cross-entropy unless given.
        evaluate_every: evaluate on the test set after so many minibatches, and not only after each epoch.
        reporter: is told what happens, on the ranks that hand one over.
        threads: of this rank; ranks may differ. None: its part of the cores that the ranks of its node may use, or
            fewer where a step has too little work for them.
        profiler: measures where the time goes.
        grains: reproducible sums: every minibatch is cut into so many pieces, whoever computes them. For the same
            number of them the result has the same bits on any number of ranks and threads.
        checkpoints: where to save, and how often.
        resume: go on from there instead of from the beginning; rank 0's counts.
        leave: is asked after every minibatch; once it says yes on one rank, all of them save and leave at the same one.
        repair: what to do if ranks are found, at the end of an epoch, not to hold the same parameters: "stop" with an
            error, take over what the "majority" holds, or go back to the last "checkpoint" before.

    Raises:
        InputError: for arguments outside their range, or a data set that does not fit network and loss.
        CheckpointError: if what `resume` holds is not a training of this network on these data.
        ReplicaMismatchError: if the ranks were not called with the same arguments, or no longer hold the same
            parameters.
        DivergenceError: if loss or gradient is no longer finite, on every rank in the same step.
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
        "grains": grains,
        "repair": repair,
    }

    def check() -> None:
        needed = ((train_set, Dataset), (test_set, Dataset), (optimizer, SGD))
        optional = ((profiler, Profiler), (checkpoints, CheckpointFolder), (resume, Checkpoint))
        check_kinds(needed, optional)
        check_numbers(epochs, batch_size, seed, evaluate_every, train_set)
        check_threads(threads)
        check_grains(grains)
        check_repair(repair, checkpoints)
        check_fit(network, train_set, loss)
        check_fit(network, test_set, loss)

    comm.activity = "preparing to train"
    run_together(comm, check)
    check_replicas(comm, plan, train_set, test_set)
    seed = comm.gather(seed)[0]

    def describe() -> dict[str, Any]:
        if comm.rank != 0 or (checkpoints is None and resume is None):
            return {}
        how = {"loss": loss, "optimizer": optimizer, "epochs": epochs, "batch_size": batch_size}
        return facts_of(train_set, test_set, network, **how, seed=seed, grains=grains)

    facts = run_together(comm, describe)
    last_sample = epochs * len(train_set)
    history = start(comm, network, facts, resume, last_sample)
    threads = choose_threads(comm, threads, network.multiply_adds(batch_size, training=True))
    run_together(comm, lambda: network.check_memory(threads))
    workers = network.workers(threads)
    sampler = Sampler(len(train_set), batch_size, seed)
    ranks = comm
    # An overflow needs no warning: the loss shows it.
    with abort_all_on_error(comm), one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        history.compile_seconds = compile_in_turns(
            comm, lambda: compile_kernels(network, train_set, optimizer, loss, grains)
        )
        if profiler is not None:
            workers, ranks, reporter = profiler.watch(network, workers, comm, reporter)
        if history.steps > 0:
            _tell_resumed(reporter, history)
        with Team(workers) as team:
            summation = summation_of(network, team, train_set, loss, grains)
            guard = ReplicaGuard(comm, network, history, repair, checkpoints)
            while True:
                try:
                    epoch_ended = history.samples_seen % len(train_set) == 0
                    if _evaluation_is_due(history, evaluate_every, epoch_ended):
                        _record_evaluation(history, reporter, evaluate_by(team, test_set, comm, loss), len(train_set))
                    if epoch_ended and guard.brings_back_an_earlier_state():
                        _tell_resumed(reporter, history)
                        continue
                    if checkpoints is not None and comm.rank == 0:
                        comm.activity = "saving a checkpoint"
                        checkpoints.save_if_due(facts, network, history, epoch_ended or history.left)
                    if history.samples_seen == last_sample or history.left:
                        comm.confirm()
                        break
                    began = time.perf_counter()
                    epoch, minibatch = sampler.after(history.samples_seen)
                    comm.activity = "computing minibatch {} (epoch {})", history.steps + 1, epoch
                    summation.compute(minibatch, ranks, leave=leave is not None and leave())
                    _record_minibatch(history, reporter, epoch, float(network.message[LOSS]), len(minibatch))
                    check_message(network, history.steps, epoch)
                    network.update(optimizer)
                    history.left = bool(network.message[LEAVE])
                    history.train_seconds += time.perf_counter() - began
                except RankLostError:
                    if profiler is not None:
                        raise
                    guard.go_on_without_the_lost()
                    _tell_resumed(reporter, history)
        if profiler is not None:
            profiler.finish()
    return history


def _tell_resumed(reporter: Reporter | None, history: History) -> None:
    resumed = getattr(reporter, "resumed", None)
    if resumed is not None:
        resumed(history)


def _evaluation_is_due(history: History, every: int | None, epoch_ended: bool) -> bool:
    if history.steps == 0 or (history.evaluations and history.evaluations[-1][0] == history.steps):
        return False
    return epoch_ended or (every is not None and history.steps % every == 0)


def _record_minibatch(history: History, reporter: Reporter | None, epoch: int, loss: float, samples: int) -> None:
    history.losses.append(loss)
    history.samples_seen += samples
    if reporter is not None:
        reporter.minibatch(history.steps, epoch, loss, samples)


def _record_evaluation(history: History, reporter: Reporter | None, result: Evaluation, epoch_samples: int) -> None:
    step, epoch = history.steps, -(-history.samples_seen // epoch_samples)
    history.evaluations.append((step, epoch, result))
    if reporter is not None:
        reporter.evaluation(step, epoch, result, history)
    check_test_loss(result.loss, step, epoch)
