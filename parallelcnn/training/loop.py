"""The training loop. `Loop.step` is one step of synchronous data-parallel training; read it first.

Every rank holds the same network and the same optimiser. It computes the gradient of its shards of each minibatch. All
ranks make the same update of their parameters, from the sum of the gradients.

The history determines the next step. So the loop can start at any step: after a resume, and after a rank was lost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from parallelcnn.comm import Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import SampleOrder
from parallelcnn.errors import RankLostError
from parallelcnn.losses import Loss
from parallelcnn.metrics import Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.replica import LOSS, STOP
from parallelcnn.training.callbacks import Callbacks
from parallelcnn.training.divergence import check_finite, check_test_loss
from parallelcnn.training.evaluation import Evaluation, evaluate_by
from parallelcnn.training.history import History
from parallelcnn.training.reduction import Ranks, Reducer
from parallelcnn.training.thread_pool import ThreadPool

SAVE, END = 1, 2  # values at index STOP: rank 0 asks for a checkpoint, any rank asks to stop


class Safeguard(Protocol):
    """Interface for fault tolerance between two steps: replica check, checkpoints, recovery from a lost rank.

    All ranks call every method at the same step.
    """

    def asks_to_save(self) -> bool:
        """Whether this rank asks for a checkpoint after the next step."""

    def between_steps(self, *, epoch_ended: bool, save: bool) -> bool:
        """Check the replicas and save a checkpoint, if due; returns whether training went back to an earlier step.

        Args:
            save: whether a rank has asked for a checkpoint.
        """

    def recover(self) -> None:
        """Continue without the lost ranks; raises RankLostError if recovery is off."""


@dataclass
class Loop:
    """The training loop.

    Args:
        comm, ranks: the ranks. The gradient is summed over `ranks`, which a profiler may wrap.
        pool: this rank's threads, each with a replica of the network.
        sampler: the order of the samples.
        steps: number of minibatches of the whole training.
        last_sample: number of samples that training will have seen at its end.
        stop: called before every minibatch. When it returns true on any rank, all ranks stop after that minibatch.
        safeguard: replica check, checkpoints and recovery; None: no fault tolerance.
    """

    comm: Transport
    ranks: Ranks
    pool: ThreadPool
    network: NetworkHandler
    train_set: Dataset
    test_set: Dataset
    optimizer: Optimizer
    loss: Loss
    metrics: Sequence[Metric]
    sampler: SampleOrder
    reducer: Reducer
    history: History
    steps: int
    last_sample: int
    evaluate_every: int | None
    stop: Callable[[], bool]
    callbacks: Callbacks
    safeguard: Safeguard | None = None
    save_is_asked: bool = False
    _has_resumed: bool = field(default=False, init=False)  # since the ranks last agreed whether to stop
    _optimizer_now: Optimizer = field(init=False)  # `optimizer.after(history)`, as of the last evaluation or resume

    def __post_init__(self) -> None:
        self._optimizer_now = self.optimizer

    def run(self) -> None:
        """Run steps until the end of training, or until a rank asks to stop."""
        self.callbacks.train_begin()
        if self.history.steps > 0:
            self._resumed()
        while True:
            try:
                if self._is_over():
                    self.comm.barrier()  # if rank 0 is lost while it saves, another rank does so then
                    break
                self.step()
            except RankLostError:
                if self.safeguard is None:
                    raise
                self.safeguard.recover()
                self._resumed()
        self.network.take_average(self.optimizer)
        self.callbacks.train_end()

    def step(self) -> None:
        """Train on one minibatch."""
        began = time.perf_counter()
        history, network = self.history, self.network
        # The order of the samples is the same on every rank; the next batch_size of them are the minibatch.
        epoch, minibatch = self.sampler.after(history.samples_seen)
        self.comm.status = "computing minibatch {} (epoch {})", history.steps + 1, epoch
        # The threads of all ranks run load, forward, loss and backward on its shards. One Allreduce sums the gradients.
        asked = END * (self.stop() or self.callbacks.stop_is_asked)
        asked += SAVE * (self.safeguard is not None and self.safeguard.asks_to_save())
        self.reducer.compute(minibatch, self.ranks, key=self.sampler.key, stop=asked)
        loss, asked = float(network.reduction_buffer[LOSS]), int(network.reduction_buffer[STOP])
        # All ranks have the same sums, so all raise, or all make the same update.
        check_finite(network, history.steps + 1, epoch)
        network.update(self._optimizer_now, len(minibatch), history.steps, self.steps, self.pool.share)
        # If any rank has asked to save or stop, all ranks do so after this minibatch.
        history.stopped, self.save_is_asked = asked >= END, asked % END == SAVE
        self._record_minibatch(epoch, loss, len(minibatch))
        history.train_seconds += time.perf_counter() - began

    def _is_over(self) -> bool:
        """Evaluate, check and save between two steps, if due; returns whether training is over."""
        history = self.history
        epoch_ended = history.samples_seen == self.sampler.samples_in(self._epoch)
        evaluated = self._evaluation_is_due(epoch_ended)
        if evaluated:
            with self.network.averaged(self.optimizer):
                result = evaluate_by(self.pool, self.test_set, self.comm, self.loss, self.metrics)
            self._record_evaluation(result, epoch_ended=epoch_ended)
        began = time.perf_counter()
        if evaluated or self._has_resumed:  # then callbacks may ask to stop without a further minibatch
            history.stopped = any(self.comm.allgather(history.stopped or self.callbacks.stop_is_asked))
            self._has_resumed = False
        if self.safeguard is not None and self.safeguard.between_steps(
            epoch_ended=epoch_ended, save=self.save_is_asked
        ):
            # A stop was asked for after the step that training has gone back to. When repeated, it is asked for again.
            history.stopped = False
            self.callbacks.withdraw_stop()
            self._resumed()
            return False
        history.train_seconds += time.perf_counter() - began
        return history.samples_seen == self.last_sample or history.stopped

    @property
    def _epoch(self) -> int:
        """The epoch of the last minibatch, counted from 1; 0 before the first."""
        seen = self.history.samples_seen
        return 0 if seen == 0 else self.sampler.epoch_of(seen)

    def _evaluation_is_due(self, epoch_ended: bool) -> bool:
        steps, evaluations = self.history.steps, self.history.evaluations
        if steps == 0 or (evaluations and evaluations[-1][0] == steps):
            return False
        return epoch_ended or (self.evaluate_every is not None and steps % self.evaluate_every == 0)

    def _resumed(self) -> None:
        """Continue from the step in the history."""
        self._optimizer_now = self.optimizer.after(self.history)
        self.callbacks.resumed()
        self._has_resumed = True

    def _record_minibatch(self, epoch: int, loss: float, samples: int) -> None:
        self.history.losses.append(loss)
        self.history.samples_seen += samples
        self.callbacks.batch_end(self.history.steps, epoch, loss, samples)

    def _record_evaluation(self, result: Evaluation, *, epoch_ended: bool) -> None:
        step, epoch = self.history.steps, self._epoch
        self.history.evaluations.append((step, epoch, result))
        self._optimizer_now = self.optimizer.after(self.history)
        self.callbacks.test_end(step, epoch, result, epoch_ended=epoch_ended)
        check_test_loss(result.loss, step, epoch)
