"""Distributed evaluation, exact over ranks and threads: sums, divided once by the number of samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.arguments import check_methods, check_type, described
from parallelcnn.comm import Communicator, as_communicator, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import warn_of_another_range
from parallelcnn.data.sampler import grain
from parallelcnn.errors import InputError, nearest_name
from parallelcnn.layers.base import Array
from parallelcnn.losses import LOSS_METHODS, Loss, SoftmaxCrossEntropy
from parallelcnn.metrics import Accuracy, Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import Replica
from parallelcnn.training.agreement import check_replicas, describe_data
from parallelcnn.training.thread_pool import Team
from parallelcnn.training.threads import check_threads, choose_threads, one_blas_thread


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


def evaluate(
    network: NetworkHandler,
    dataset: Dataset,
    comm: Any = None,
    *,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Loss and metrics of a network, the same on every rank.

    Collective: every rank of `comm` must call it.

    Args:
        comm, threads: see `train`.
        loss: softmax cross-entropy unless given.
        metrics: accuracy unless given, if the labels are classes.

    Raises:
        ShapeError: if data set, network and loss do not fit together, or not into this machine's memory.
        DataError: if the data set holds NaN or infinity.
        InputError: for a number of threads below 1, or larger than machines have.
        ReplicaMismatchError: if the ranks were not called with the same arguments.
    """
    comm = as_communicator(comm)
    loss = loss or SoftmaxCrossEntropy()

    def check() -> tuple[Metric, ...]:
        check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
        check_type("dataset", dataset, Dataset, "Dataset(images, labels, classes)")
        check_methods("loss", loss, LOSS_METHODS, "SoftmaxCrossEntropy() or MeanSquaredError()")
        check_threads(threads)
        loss.check(network.output_shape, dataset.labels, dataset.classes)
        dataset.check_numbers()
        if comm.rank == 0:
            images = f"the images of {dataset.name}"
            warn_of_another_range(images, dataset.input_range, network.input_range, stacklevel=4)
        return as_metrics(metrics, network, dataset)

    judges = run_together(comm, check)
    if comm.size > 1:
        told = {"layers": network.layers, "loss": loss, "metrics": judges, "classes": dataset.classes}
        read = {"parameters": network.parameters_sha256(), **describe_data(comm, dataset=dataset)}
        check_replicas(comm, {**told, **read})
    threads = choose_threads(comm, threads, network.multiply_adds(len(dataset), training=False))
    run_together(comm, lambda: network.check_memory(threads))
    with network.idle_replicas(threads) as replicas, one_blas_thread(), Team(replicas) as team:
        for n in (1, replicas[0].block_size):  # compiles, and that is for one thread; see `compile_kernels`
            sums = np.zeros(1 + sum(metric.terms for metric in judges))
            run_block(replicas[0], dataset, np.zeros(n, np.intp), loss, judges, sums)
        return evaluate_by(team, dataset, comm, loss, judges)


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
    team: Team, dataset: Dataset, comm: Communicator, loss: Loss, metrics: Sequence[Metric] = ()
) -> Evaluation:
    """The same with a team of threads that is there already, for a data set that fits its network.

    Each thread of each rank takes some of the blocks that the samples are cut into; losses and the metrics' sums are
    added over all blocks, in order, and only then divided: the same bits, whoever takes which. Collective: every rank
    of `comm` must call it.
    """
    comm.activity = f"evaluating on {dataset.name}"
    size = team.replicas[0].block_size
    blocks = np.zeros((-(-len(dataset) // size), 1 + sum(metric.terms for metric in metrics)))

    def run_blocks(replica: Replica, numbers: Array) -> None:
        for number in numbers:
            samples = np.arange(number * size, min((number + 1) * size, len(dataset)))
            run_block(replica, dataset, samples, loss, metrics, blocks[number])

    team.run(run_blocks, grain(np.arange(len(blocks)), comm.rank, comm.size))
    comm.sum_over_ranks(blocks)  # of each row but one rank has anything but zeros
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
