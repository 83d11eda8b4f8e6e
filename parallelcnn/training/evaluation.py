"""Distributed evaluation, exact over ranks and threads: sums, divided once by the number of samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parallelcnn.arguments import described
from parallelcnn.comm import Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.errors import InputError, nearest_name
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss
from parallelcnn.metrics import Accuracy, Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import Replica
from parallelcnn.training.thread_pool import ThreadPool


@dataclass(frozen=True)
class Evaluation:
    """Loss and metrics over a whole data set; `evaluation["mean_absolute_error"]` is that metric.

    Attributes:
        loss: mean over samples.
        accuracy: share of samples that are classified right, in [0, 1]; None where it was not measured.
        samples: how many there were.
        others: (name, value) of each further metric.
    """

    loss: float
    accuracy: float | None
    samples: int
    others: tuple[tuple[str, float], ...] = ()

    def __getitem__(self, name: str) -> float | None:
        values = {"loss": self.loss, "accuracy": self.accuracy, **dict(self.others)}
        if name not in values:
            raise InputError(f"no metric {name!r} was measured: {nearest_name(name, list(values))}")
        return values[name]


def default_metrics(network: NetworkHandler, dataset: Dataset) -> tuple[Metric, ...]:
    """Accuracy, if the labels are classes and the network ends in a vector."""
    return (Accuracy(),) if dataset.classes is not None and len(network.output_shape) == 1 else ()


def as_metrics(metrics: Sequence[Metric] | None, network: NetworkHandler, dataset: Dataset) -> tuple[Metric, ...]:
    """These metrics, or the default ones for None.

    Raises:
        InputError: unless they are metrics that can judge the network on the data set.
    """
    if metrics is None:
        return default_metrics(network, dataset)
    some = tuple(metrics) if isinstance(metrics, Iterable) and not isinstance(metrics, str) else (None,)
    for metric in some:
        if not isinstance(metric, Metric):
            found = metrics if metric is None else metric
            raise InputError(f"metrics must be a sequence of Metric, such as [pc.Accuracy()], got {described(found)}")
        metric.check(network.output_shape, dataset.labels, dataset.classes)
    return some


def evaluate_by(
    pool: ThreadPool, dataset: Dataset, comm: Transport, loss: Loss, metrics: Sequence[Metric] = ()
) -> Evaluation:
    """Loss and metrics, the same on every rank, computed by a pool of threads, for a data set that fits its network.

    Each thread of each rank takes some of the blocks that the samples are cut into; losses and the metrics' sums are
    added over all blocks, in order, and only then divided: the same bits, whoever takes which. Collective: every rank
    of `comm` must call it.
    """
    comm.status = f"evaluating on {dataset.name}"
    size = pool.replicas[0].block_size
    blocks = np.zeros((-(-len(dataset) // size), 1 + sum(metric.terms for metric in metrics)))

    def run_blocks(replica: Replica, numbers: Array) -> None:
        for number in numbers:
            samples = np.arange(number * size, min((number + 1) * size, len(dataset)))
            run_block(replica, dataset, samples, loss, metrics, blocks[number])

    pool.run(run_blocks, shard(np.arange(len(blocks)), comm.rank, comm.size))
    comm.allreduce(blocks)  # of each row but one rank has anything but zeros
    total_loss, *sums = blocks.sum(axis=0)
    values: dict[str, float] = {}
    for metric in metrics:
        values[metric.name] = metric.result(np.array(sums[: metric.terms]), len(dataset))
        sums = sums[metric.terms :]
    accuracy = values.pop("accuracy", None)
    return Evaluation(float(total_loss / len(dataset)), accuracy, len(dataset), tuple(values.items()))


def run_block(
    replica: Replica, dataset: Dataset, samples: Array, loss: Loss, metrics: Sequence[Metric], sums: Array
) -> None:
    """Add to the sums of a block: the loss, then the terms of each metric."""
    output = replica.forward(replica.load(dataset.images, samples))
    labels = replica.load_labels(dataset.labels, samples)
    at = 1
    for metric in metrics:
        metric.add(output, labels, sums[at : at + metric.terms])
        at += metric.terms
    unused = replica.output_gradient(len(samples), training=False)
    sums[0] += loss.forward_backward(output, labels, 1, unused)
