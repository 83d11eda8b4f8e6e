"""What a network predicts for a test set: counts of right and wrong answers, and the worst mistakes.

Ranks and threads share the work. What travels between ranks are sums and each rank's few worst mistakes.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from parallelcnn.comm import Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import Replica
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import one_blas_thread

Array = np.ndarray

MISTAKES = 24  # kept
_MOST_CLASSES = 2000  # of a confusion matrix: 32 MB for each thread
_POINTS = 400  # of a scatter plot
_BINS = 41  # of a histogram; odd, so that one is centred on 0
_HISTOGRAM_WIDTH = 4  # root mean squared errors on each side of 0


@dataclass(frozen=True)
class Mistake:
    """A sample that was predicted wrongly.

    Attributes:
        sample: its position in the data set.
        true, predicted: classes; for labels that do not exclude each other the label, and whether it is predicted; for
            regression the target and the output with the largest error.
        weight: what makes it bad: the probability of what was predicted, or the absolute error.
    """

    sample: int
    true: float
    predicted: float
    weight: float


class Predictions(Protocol):
    """What is counted of predictions of one kind. Each thread counts its own samples."""

    mistakes: list[Mistake]

    def add(self, outputs: Array, labels: Array, samples: Array) -> None:
        """Count some samples.

        Args:
            outputs: (outputs, n), the network's output before any softmax.
            labels: (n,) or (n, outputs).
            samples: (n,) positions in the data set.
        """

    def combine(self, others: Sequence[Self], comm: Transport) -> None:
        """Add the counts of the other threads and ranks. Collective: every rank of `comm` must call it."""


class ClassPredictions:
    """Counts of samples by class.

    Args:
        classes: number of classes.
        prediction: see `NetworkHandler`.

    Attributes:
        counts: (3, classes): samples of each class that are predicted as it, samples predicted as it, samples of it.
        matrix: (classes, classes), samples of class i (row) predicted as class j; None for more than 2,000 classes.
        mistakes: the mistakes that the network was most confident of, worst first.
        has_probabilities: whether their weights are probabilities; otherwise they are outputs.
    """

    def __init__(self, classes: int, prediction: str) -> None:
        self.counts = np.zeros((3, classes), np.int64)
        self.matrix = np.zeros((classes, classes), np.int64) if classes <= _MOST_CLASSES else None
        self.mistakes: list[Mistake] = []
        self.has_probabilities = prediction in ("softmax", "sigmoid")
        self._prediction = prediction

    @property
    def wrong(self) -> int:
        """Number of samples predicted wrongly."""
        return int(self.counts[2].sum() - self.counts[0].sum())

    def add(self, outputs: Array, labels: Array, samples: Array) -> None:
        if len(outputs) == 1 and self._prediction == "sigmoid":  # the output of class 1; that of class 0 is then 0
            outputs = np.concatenate([np.zeros_like(outputs), outputs])
        predicted = outputs.argmax(axis=0)
        for counts, of in zip(self.counts, (predicted[predicted == labels], predicted, labels), strict=True):
            counts += np.bincount(of, minlength=len(counts))
        if self.matrix is not None:
            np.add.at(self.matrix, (labels, predicted), 1)
        wrong = np.flatnonzero(predicted != labels)
        if len(wrong):
            weights = self._weights(outputs[:, wrong].astype(np.float64))
            found = zip(samples[wrong], labels[wrong], predicted[wrong], weights, strict=True)
            self.mistakes = _worst(self.mistakes, [Mistake(int(s), int(t), int(p), float(w)) for s, t, p, w in found])

    def _weights(self, outputs: Array) -> Array:
        """The probability of the predicted class of each sample, or its output."""
        largest = outputs.max(axis=0)
        return 1 / np.exp(outputs - largest).sum(axis=0) if self.has_probabilities else largest

    def combine(self, others: Sequence["ClassPredictions"], comm: Transport) -> None:
        for other in others:
            self.counts += other.counts
            if self.matrix is not None and other.matrix is not None:
                self.matrix += other.matrix
        comm.allreduce(self.counts)
        if self.matrix is not None:
            comm.allreduce(self.matrix)
        self.mistakes = _of_all(self.mistakes, others, comm)


class LabelPredictions:
    """Counts by label, of labels that do not exclude each other: floats, positive above 1/2.

    Attributes:
        counts: (3, labels): hits, predicted and true, as of `ClassPredictions`.
        mistakes: as of `ClassPredictions`.
    """

    def __init__(self, labels: int) -> None:
        self.counts = np.zeros((3, labels), np.int64)
        self.mistakes: list[Mistake] = []

    def add(self, outputs: Array, labels: Array, samples: Array) -> None:
        true, predicted = labels.reshape(len(samples), len(outputs)).T > 0.5, outputs > 0
        for counts, of in zip(self.counts, (true & predicted, predicted, true), strict=True):
            counts += np.count_nonzero(of, axis=1)
        weights = np.where(true != predicted, 1 / (1 + np.exp(-np.abs(outputs.astype(np.float64)))), 0)
        labels_of, columns = weights.argmax(axis=0), np.arange(len(samples))  # the worst label of each sample
        rows = zip(samples, labels_of, predicted[labels_of, columns], weights[labels_of, columns], strict=True)
        found = [Mistake(int(s), int(label), float(p), float(w)) for s, label, p, w in rows if w > 0]
        self.mistakes = _worst(self.mistakes, found)

    def combine(self, others: Sequence["LabelPredictions"], comm: Transport) -> None:
        for other in others:
            self.counts += other.counts
        comm.allreduce(self.counts)
        self.mistakes = _of_all(self.mistakes, others, comm)


class ValuePredictions:
    """Errors of a regression: output - target.

    Args:
        targets: (N,) or (N, outputs), of the whole data set.

    Attributes:
        absolute, squared: (outputs,), the mean absolute error and the mean squared error of each output.
        histogram: counts of the errors of all outputs, in bins of equal width between -limit and limit. The first and
            the last bin also hold what is outside.
        limit: four times the root mean squared error over all outputs.
        points: (n, 2): target and first output of evenly spaced samples.
        mistakes: the samples with the largest errors, worst first.
    """

    def __init__(self, targets: Array) -> None:
        samples, outputs = len(targets), targets[0].size
        self._sums = np.zeros((2, outputs))
        self._errors: list[Array] = []
        self._samples = samples
        self._point_of = {
            int(sample): i for i, sample in enumerate(np.unique(np.linspace(0, samples - 1, _POINTS, dtype=np.int64)))
        }
        self.points = np.zeros((len(self._point_of), 2))
        self.histogram = np.zeros(_BINS, np.int64)
        self.limit = 0.0
        self.mistakes: list[Mistake] = []

    def add(self, outputs: Array, labels: Array, samples: Array) -> None:
        values = outputs.astype(np.float64)
        targets = labels.reshape(len(samples), len(outputs)).T.astype(np.float64)
        errors = values - targets
        self._sums += np.abs(errors).sum(axis=1), (errors**2).sum(axis=1)
        self._errors.append(errors.astype(np.float32).ravel())
        for column, sample in enumerate(samples.tolist()):
            if sample in self._point_of:
                self.points[self._point_of[sample]] = targets[0, column], values[0, column]
        worst = np.abs(errors).argmax(axis=0), np.arange(len(samples))
        rows = zip(samples, targets[worst], values[worst], np.abs(errors[worst]), strict=True)
        found = [Mistake(int(s), float(t), float(v), float(e)) for s, t, v, e in rows if e > 0]
        self.mistakes = _worst(self.mistakes, found)

    def combine(self, others: Sequence["ValuePredictions"], comm: Transport) -> None:
        for other in others:
            self._sums += other._sums
            self.points += other.points
            self._errors += other._errors
        comm.allreduce(self._sums)
        comm.allreduce(self.points)
        self.absolute, self.squared = self._sums / self._samples
        self.limit = _HISTOGRAM_WIDTH * float(np.sqrt(self.squared.mean())) or 1.0
        edges = np.linspace(-self.limit, self.limit, _BINS + 1)
        for errors in self._errors:
            self.histogram += np.histogram(np.clip(errors, edges[0], edges[-1]), edges)[0]
        comm.allreduce(self.histogram)
        self._errors = []
        self.mistakes = _of_all(self.mistakes, others, comm)


def predictions_on(network: NetworkHandler, dataset: Dataset, comm: Transport, threads: int) -> Predictions | None:
    """Count what the network predicts for a data set that fits it. The result is complete on every rank.

    Collective: every rank of `comm` must call it.

    Returns:
        None if the labels are not comparable with the outputs, which only losses of the user's own allow.
    """
    if not _is_known(network, dataset):
        return None
    comm.status = f"predicting {dataset.name}"
    with network.idle_replicas(threads) as replicas, one_blas_thread(), ThreadPool(replicas) as pool:
        size = replicas[0].block_size
        blocks = np.arange(-(-len(dataset) // size))

        def count(replica: Replica, numbers: Array) -> Predictions:
            counted = _counter(network, dataset)
            for number in numbers:
                samples = np.arange(number * size, min((number + 1) * size, len(dataset)))
                output = replica.forward(replica.load(dataset.images, samples))
                counted.add(output, dataset.labels[samples], samples)
            return counted

        first, *others = pool.run(count, shard(blocks, comm.rank, comm.size))
    first.combine(others, comm)
    return first


def _is_known(network: NetworkHandler, dataset: Dataset) -> bool:
    if len(network.output_shape) != 1:
        return False
    return dataset.classes is not None or (dataset.labels.shape[1:] or (1,)) == network.output_shape


def _counter(network: NetworkHandler, dataset: Dataset) -> Predictions:
    outputs = network.output_shape[0]
    if dataset.classes is not None:
        return ClassPredictions(max(outputs, dataset.classes), network.prediction)
    return LabelPredictions(outputs) if network.prediction == "sigmoid" else ValuePredictions(dataset.labels)


def _worst(*mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The worst of several lists of mistakes, worst first; of equally bad ones the first samples."""
    return heapq.nsmallest(
        MISTAKES, (one for some in mistakes for one in some), key=lambda one: (-one.weight, one.sample)
    )


def _of_all(mistakes: list[Mistake], others: Sequence[Predictions], comm: Transport) -> list[Mistake]:
    own = _worst(mistakes, *(other.mistakes for other in others))
    return _worst(*comm.allgather(own))
