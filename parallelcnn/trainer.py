"""Synchronous data-parallel training: the loop.

Every rank holds the same network and the same optimiser, computes the gradient of its share of each minibatch, and
takes the same step along the sum. Within a rank, a team of threads computes that gradient.

The loop does what the history says comes next. So it can begin in the middle: after a resume, and on the ranks that
are left when one is lost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from parallelcnn.comm import Communicator, abort_all_on_error, as_communicator, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import warn_of_scale
from parallelcnn.data.sampler import Sampler
from parallelcnn.errors import RankLostError
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.metrics import Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.profiling import Profiler
from parallelcnn.replica import LOSS, STOP
from parallelcnn.resilience.replica_check import ReplicaGuard, check_repair
from parallelcnn.resilience.watchdog import DEFAULT_TIMEOUT, Watch, check_timeout
from parallelcnn.training.agreement import check_replicas, describe_data
from parallelcnn.training.checkpoint import Checkpoint, CheckpointFolder, CheckpointSaver
from parallelcnn.training.compilation import compile_in_turns, compile_kernels
from parallelcnn.training.divergence import check_message, check_test_loss
from parallelcnn.training.evaluation import Evaluation, check_metrics, default_metrics, evaluate_by
from parallelcnn.training.history import History
from parallelcnn.training.preparation import check_fit, check_kinds, check_numbers, facts_of, start
from parallelcnn.training.reduction import Ranks, Reducer, check_grains, reducer_of
from parallelcnn.training.thread_pool import Team
from parallelcnn.training.threads import check_threads, choose_threads, one_blas_thread


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
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    comm: Any = None,
    *,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    evaluate_every: int | None = None,
    reporter: Reporter | None = None,
    threads: int | None = None,
    profiler: Profiler | None = None,
    grains: int | None = None,
    checkpoints: CheckpointFolder | None = None,
    resume: Checkpoint | None = None,
    leave: Callable[[], bool] | None = None,
    repair: str = "stop",
    timeout: float = DEFAULT_TIMEOUT,
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
        metrics: measured on the test set; accuracy unless given, if the labels are classes.
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
        repair: what to do if ranks are found, at the end of an epoch or before a checkpoint, not to hold the same
            parameters: "stop" with an error, take over what the "majority" holds, or go back to the last "checkpoint".
        timeout: how long a rank may wait for others, before a message names them and the job ends [s]; 0: for ever.

    Raises:
        InputError: for arguments outside their range, a data set that does not fit network and loss, or one that holds
            NaN or infinity.
        CheckpointError: if what `resume` holds is not a training of this network on these data.
        ReplicaMismatchError: if the ranks were not called with the same arguments, or no longer hold the same
            parameters.
        DivergenceError: if loss or gradient is no longer finite, on every rank in the same step.
        LaunchError: see `world`.
    """
    check_timeout(timeout)
    comm = as_communicator(comm, timeout)
    with Watch(comm, timeout):
        loss = loss or SoftmaxCrossEntropy()
        judges = default_metrics(network, test_set) if metrics is None else tuple(metrics)
        plan = {
            "metrics": judges,
            "layers": network.layers,
            "input_shape": network.input_shape,
            "dtype": network.dtype,
            "optimizer": optimizer,
            "epochs": epochs,
            "batch_size": batch_size,
            "evaluate_every": evaluate_every,
            "loss": loss,
            "profiler": repr(profiler),
            "grains": grains,
            "repair": repair,
        }

        def check() -> None:
            needed = ((train_set, Dataset), (test_set, Dataset), (optimizer, Optimizer))
            optional = ((profiler, Profiler), (checkpoints, CheckpointFolder), (resume, Checkpoint))
            check_kinds(needed, optional)
            check_numbers(epochs, batch_size, seed, evaluate_every, train_set)
            check_threads(threads)
            check_grains(grains)
            check_repair(repair, checkpoints)
            check_fit(network, train_set, loss)
            check_fit(network, test_set, loss)
            check_metrics(judges, network, test_set)
            train_set.check_numbers("training set")
            test_set.check_numbers("test set")
            if comm.rank == 0:
                warn_of_scale(train_set.input_range, test_set.input_range, stacklevel=4)

        comm.activity = "preparing to train"
        run_together(comm, check)
        seed, saves = comm.gather((seed, checkpoints is not None or resume is not None))[0]
        data = describe_data(comm, train_set=train_set, test_set=test_set) if saves or comm.size > 1 else {}
        check_replicas(comm, {**plan, "classes": (train_set.classes, test_set.classes), **data})

        def describe() -> dict[str, Any]:
            how = {"optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "seed": seed, "grains": grains}
            return facts_of(train_set, test_set, network, loss=loss, data=data, **how) if saves else {}

        facts = run_together(comm, describe)  # on every rank: any of them may have to save, once others are lost
        last_sample = epochs * len(train_set)
        history = start(comm, network, facts, resume, last_sample)
        network.input_range = train_set.input_range
        threads = choose_threads(comm, threads, network.multiply_adds(batch_size, training=True))
        run_together(comm, lambda: network.check_memory(threads))
        replicas = network.replicas(threads)
        ranks = comm
        # An overflow needs no warning: the loss shows it.
        with (
            network.being_trained(),
            abort_all_on_error(comm),
            one_blas_thread(),
            np.errstate(over="ignore", invalid="ignore"),
        ):
            network.prediction = getattr(loss, "prediction", "output")
            history.compile_seconds = compile_in_turns(
                comm, lambda: compile_kernels(network, train_set, optimizer, loss, grains, judges)
            )
            if profiler is not None:
                replicas, ranks, reporter = profiler.watch(network, replicas, comm, reporter)
            with Team(replicas) as team:
                saver = CheckpointSaver(comm, checkpoints, facts)
                loop = _Loop(
                    comm=comm,
                    ranks=ranks,
                    team=team,
                    network=network,
                    train_set=train_set,
                    test_set=test_set,
                    optimizer=optimizer,
                    loss=loss,
                    metrics=judges,
                    steps=epochs * -(-len(train_set) // batch_size),
                    sampler=Sampler(len(train_set), batch_size, seed),
                    reducer=reducer_of(network, team, train_set, loss, grains, history.exponents),
                    guard=ReplicaGuard(comm, network, history, repair, saver.folder),
                    history=history,
                    reporter=reporter,
                    saver=saver,
                    evaluate_every=evaluate_every,
                    last_sample=last_sample,
                    leave=leave or (lambda: False),
                )
                loop.run_to_the_end(without_lost_ranks=profiler is None)
            if profiler is not None:
                profiler.finish()
        return history


@dataclass
class _Loop:
    """The loop, and all that it has at hand; see `train`."""

    comm: Communicator
    ranks: Ranks
    team: Team
    network: NetworkHandler
    train_set: Dataset
    test_set: Dataset
    optimizer: Optimizer
    loss: Loss
    metrics: Sequence[Metric]
    steps: int
    sampler: Sampler
    reducer: Reducer
    guard: ReplicaGuard
    history: History
    reporter: Reporter | None
    saver: CheckpointSaver
    evaluate_every: int | None
    last_sample: int
    leave: Callable[[], bool]

    def run_to_the_end(self, *, without_lost_ranks: bool) -> None:
        """Take step after step; also without ranks that are lost on the way, where that was asked for."""
        if self.history.steps > 0:
            self._tell_resumed()
        while True:
            try:
                if self._stands_at_the_end():
                    self.comm.barrier()  # rank 0 may be lost while it saves: another one does so then
                    return
                self._step()
            except RankLostError:
                if not without_lost_ranks:
                    raise
                self.guard.go_on_without_the_lost()
                self.saver.recovered()
                self._tell_resumed()

    def _step(self) -> None:
        began = time.perf_counter()
        epoch, minibatch = self.sampler.after(self.history.samples_seen)
        self.comm.activity = "computing minibatch {} (epoch {})", self.history.steps + 1, epoch
        # Each rank may ask to leave (2), and rank 0 for a checkpoint (1): both travel with the sum.
        asked = 2 * bool(self.leave()) + self.saver.asks()
        self.reducer.compute(minibatch, self.ranks, key=self.sampler.key, stop=asked)
        self._record_minibatch(epoch, float(self.network.reduction_buffer[LOSS]), len(minibatch))
        check_message(self.network, self.history.steps, epoch)
        self.network.update(self.optimizer, len(minibatch), self.history.steps - 1, self.steps)
        asked = int(self.network.reduction_buffer[STOP])
        self.history.left, self.saver.time_is_up = asked >= 2, asked % 2 == 1
        self.history.train_seconds += time.perf_counter() - began

    def _stands_at_the_end(self) -> bool:
        """Whether there is no step to take any more; does before what is due between two steps."""
        history = self.history
        epoch_ended = history.samples_seen % len(self.train_set) == 0
        if self._evaluation_is_due(epoch_ended):
            self._record_evaluation(evaluate_by(self.team, self.test_set, self.comm, self.loss, self.metrics))
        began = time.perf_counter()
        due = self.saver.is_due(history, must=epoch_ended or history.left)
        if (epoch_ended or due) and self.guard.brings_back_an_earlier_state():
            self._tell_resumed()
            return False
        if due:
            self.comm.activity = "saving a checkpoint"
            self.saver.save(self.network, history)
        history.train_seconds += time.perf_counter() - began
        return history.samples_seen == self.last_sample or history.left

    def _evaluation_is_due(self, epoch_ended: bool) -> bool:
        steps, evaluations = self.history.steps, self.history.evaluations
        if steps == 0 or (evaluations and evaluations[-1][0] == steps):
            return False
        return epoch_ended or (self.evaluate_every is not None and steps % self.evaluate_every == 0)

    def _record_minibatch(self, epoch: int, loss: float, samples: int) -> None:
        self.history.losses.append(loss)
        self.history.samples_seen += samples
        if self.reporter is not None:
            self.reporter.minibatch(self.history.steps, epoch, loss, samples)

    def _record_evaluation(self, result: Evaluation) -> None:
        step, epoch = self.history.steps, -(-self.history.samples_seen // len(self.train_set))
        self.history.evaluations.append((step, epoch, result))
        if self.reporter is not None:
            self.reporter.evaluation(step, epoch, result, self.history)
        check_test_loss(result.loss, step, epoch)

    def _tell_resumed(self) -> None:
        resumed = getattr(self.reporter, "resumed", None)
        if resumed is not None:
            resumed(self.history)
