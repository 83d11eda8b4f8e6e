"""Distributed evaluation, exact over ranks and threads: sums are divided once, by the number of samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.arguments import described
from parallelcnn.comm import Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.errors import InputError, nearest_name
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss
from parallelcnn.metrics import Accuracy, BinaryAccuracy, Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import Replica
from parallelcnn.resources import check_memory
from parallelcnn.training.thread_pool import ThreadPool

_COUNTS_AT_ONCE = 8  # of a metric: of a few threads, of all ranks, and its result as tuples
Value = float | tuple[Any, ...]  # of a metric: a number, or nested tuples of numbers, which compare and hash


@dataclass(frozen=True)
class Evaluation:
    """The loss and metrics of a network on a data set. `evaluation["mean_absolute_error"]` returns a metric by name.

    A metric whose result is an array, such as `ConfusionMatrix`, is stored as nested tuples and returned as an array.

    Attributes:
        loss: mean over samples.
        accuracy: fraction of correctly classified samples, in [0, 1]; None if it was not measured.
        samples: number of samples.
        others: (name, value) of each other metric.
        role: the data set's: "test" or "val".
    """

    loss: float
    accuracy: float | None
    samples: int
    others: tuple[tuple[str, Value], ...] = ()
    role: str = "test"

    @property
    def set_name(self) -> str:
        """The evaluated set in messages: test or validation."""
        return {"val": "validation"}.get(self.role, self.role)

    def __getitem__(self, name: str) -> Any:
        values: dict[str, Any] = {"loss": self.loss, "accuracy": self.accuracy, **dict(self.others)}
        if name not in values:
            raise InputError(f"no metric {name!r} was measured: {nearest_name(name, list(values))}")
        return np.array(values[name]) if isinstance(values[name], tuple) else values[name]


def as_value(result: Any) -> Value:
    """A metric's result as it is stored: arrays and lists as nested tuples."""
    if isinstance(result, np.ndarray | np.generic):
        result = result.tolist()
    return tuple(map(as_value, result)) if isinstance(result, list | tuple) else result


def test_logs(step: int, epoch: int, result: Evaluation) -> dict[str, Any]:
    """The logs of `on_test_end`: numbers, and an array for each metric whose result is one."""
    values = {"loss": result.loss, "accuracy": result.accuracy, **{name: result[name] for name, _ in result.others}}
    known = {f"{result.role}_{name}": value for name, value in values.items() if value is not None}
    return {"step": step, "epoch": epoch, **known}


test_logs.__test__ = False  # type: ignore[attr-defined]  # for pytest, which would take it for a test


def default_metrics(network: NetworkHandler, dataset: Dataset, loss: Loss) -> tuple[Metric, ...]:
    """Accuracy, if the labels are classes and the network ends in a vector, or if the loss is binary."""
    if getattr(loss, "prediction", "output") == "sigmoid":
        return (BinaryAccuracy(),)
    return (Accuracy(),) if dataset.classes is not None and len(network.output_shape) == 1 else ()


def as_metrics(
    metrics: Sequence[Metric] | None, network: NetworkHandler, dataset: Dataset, loss: Loss
) -> tuple[Metric, ...]:
    """The metrics as a tuple; the default metrics for None.

    Raises:
        InputError: if they are not metrics, cannot be computed for the network and the data set, or need more memory
            than there is.
    """
    if metrics is None:
        return default_metrics(network, dataset, loss)
    some = tuple(metrics) if isinstance(metrics, Iterable) and not isinstance(metrics, str) else (None,)
    for metric in some:
        if not isinstance(metric, Metric):
            found = metrics if metric is None else metric
            raise InputError(f"metrics must be a sequence of Metric, such as [pc.Accuracy()], got {described(found)}")
        metric.check(network.output_shape, dataset.labels, dataset.classes)
    names = [metric.name for metric in some]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"metrics must have different names, got {names.count(name)} of the name {name!r}")
    blocks = -(-len(dataset) // network.replica.block_size)
    numbers = sum(metric.terms * (_COUNTS_AT_ONCE if metric.sums_are_counts else blocks) for metric in some)
    check_memory("the sums of the metrics", 8 * numbers)
    return some


def evaluate_by(
    pool: ThreadPool, dataset: Dataset, comm: Transport, loss: Loss, metrics: Sequence[Metric] = ()
) -> Evaluation:
    """Compute the loss and metrics with a pool of threads. Every rank returns the same values.

    The data set must fit the network. The samples are cut into blocks, which are distributed over the threads of all
    ranks. The sums of all blocks are added in order and then divided: the bits do not depend on the distribution.
    Counts are exact in any order, so each thread has one sum of them.
    Collective: every rank of `comm` must call it.
    """
    comm.status = f"evaluating on {dataset.name}"
    size = pool.replicas[0].block_size
    of_block, of_thread = sizes_of_sums(metrics)
    blocks = np.zeros((-(-len(dataset) // size), of_block))
    counts = {replica: np.zeros(of_thread) for replica in pool.replicas}

    def run_blocks(replica: Replica, numbers: Array) -> None:
        for number in numbers:
            samples = np.arange(number * size, min((number + 1) * size, len(dataset)))
            run_block(replica, dataset, samples, loss, metrics, blocks[number], counts[replica])

    pool.run(run_blocks, shard(np.arange(len(blocks)), comm.rank, comm.size))
    comm.allreduce(blocks)  # each row is zero on all ranks but one
    all_counts = sum(counts.values(), np.zeros(of_thread))
    if of_thread:
        comm.allreduce(all_counts)
    total = blocks.sum(axis=0)
    values: dict[str, Any] = {
        metric.name: as_value(metric.result(sums, len(dataset)))
        for metric, sums in zip(metrics, _places(metrics, total, all_counts), strict=True)
    }
    accuracy = values.pop("accuracy", None)
    return Evaluation(float(total[0] / len(dataset)), accuracy, len(dataset), tuple(values.items()), dataset.role)


def sizes_of_sums(metrics: Sequence[Metric]) -> tuple[int, int]:
    """How many sums each block has, the loss and the terms of metrics; and how many counts each thread has."""
    counts = sum(one.terms for one in metrics if one.sums_are_counts)
    return 1 + sum(one.terms for one in metrics) - counts, counts


def _places(metrics: Sequence[Metric], sums: Array, counts: Array) -> Iterator[Array]:
    """The part of `sums`, behind the loss, or of `counts` that belongs to each metric."""
    at = {False: 1, True: 0}
    for metric in metrics:
        start = at[metric.sums_are_counts]
        at[metric.sums_are_counts] = start + metric.terms
        yield (counts if metric.sums_are_counts else sums)[start : start + metric.terms]


def run_block(
    replica: Replica,
    dataset: Dataset,
    samples: Array,
    loss: Loss,
    metrics: Sequence[Metric],
    sums: Array,
    counts: Array,
) -> None:
    """Evaluate the samples of a block, and add to the block's sums and the thread's counts; see `sizes_of_sums`."""
    output = replica.forward(replica.load(dataset.images, samples, fused=True))
    labels = replica.load_labels(dataset.labels, samples)
    for metric, place in zip(metrics, _places(metrics, sums, counts), strict=True):
        metric.add(output, labels, place)
    unused = replica.output_gradient(len(samples), training=False)
    weight = replica.load_sample_weight(dataset.sample_weight, samples)
    sums[0] += loss.forward_backward(output, labels, 1, unused, *weight)
