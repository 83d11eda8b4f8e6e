"""Distributed evaluation, exact over ranks and threads: sums are divided once, by the number of samples."""

from collections.abc import Iterable, Sequence
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
    check_memory("the sums of the metrics", 8 * blocks * sum(metric.terms for metric in some))
    return some


def evaluate_by(
    pool: ThreadPool, dataset: Dataset, comm: Transport, loss: Loss, metrics: Sequence[Metric] = ()
) -> Evaluation:
    """Compute the loss and metrics with a pool of threads. Every rank returns the same values.

    The data set must fit the network. The samples are cut into blocks, which are distributed over the threads of all
    ranks. The sums of all blocks are added in order and then divided: the bits do not depend on the distribution.
    Collective: every rank of `comm` must call it.
    """
    comm.status = f"evaluating on {dataset.name}"
    size = pool.replicas[0].block_size
    blocks = np.zeros((-(-len(dataset) // size), 1 + sum(metric.terms for metric in metrics)))

    def run_blocks(replica: Replica, numbers: Array) -> None:
        for number in numbers:
            samples = np.arange(number * size, min((number + 1) * size, len(dataset)))
            run_block(replica, dataset, samples, loss, metrics, blocks[number])

    pool.run(run_blocks, shard(np.arange(len(blocks)), comm.rank, comm.size))
    comm.allreduce(blocks)  # each row is zero on all ranks but one
    total_loss, *sums = blocks.sum(axis=0)
    values: dict[str, Any] = {}
    for metric in metrics:
        values[metric.name] = as_value(metric.result(np.array(sums[: metric.terms]), len(dataset)))
        sums = sums[metric.terms :]
    accuracy = values.pop("accuracy", None)
    return Evaluation(float(total_loss / len(dataset)), accuracy, len(dataset), tuple(values.items()), dataset.role)


def run_block(
    replica: Replica, dataset: Dataset, samples: Array, loss: Loss, metrics: Sequence[Metric], sums: Array
) -> None:
    """Evaluate the samples of a block and add to its sums: the loss, then the terms of each metric."""
    output = replica.forward(replica.load(dataset.images, samples, fused=True))
    labels = replica.load_labels(dataset.labels, samples)
    at = 1
    for metric in metrics:
        metric.add(output, labels, sums[at : at + metric.terms])
        at += metric.terms
    unused = replica.output_gradient(len(samples), training=False)
    weight = replica.load_sample_weight(dataset.sample_weight, samples)
    sums[0] += loss.forward_backward(output, labels, 1, unused, *weight)
