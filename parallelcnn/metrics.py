"""Metrics. A metric is a sum over samples, divided once by their number, and so is exact over ranks and threads."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from parallelcnn.arguments import check_integer
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.kernels.losses import count_correct

Array = np.ndarray


class Metric(ABC):
    """Base class of metrics. Subclass it, best as a frozen dataclass, to add your own.

    Attributes:
        name: the metric's name in histories and logs.
        terms: number of sums that the metric needs. Counts are exact up to 2^53.
        sums_are_counts: whether all of them are counts. Then a thread keeps the same sums for all of its blocks of
            samples, which saves memory.

    Example:
        >>> class MeanOutput(Metric):
        ...     name = "mean_output"
        ...
        ...     def add(self, outputs, labels, sums):
        ...         sums[0] += outputs.mean(axis=0).sum()
    """

    name: str
    terms: int = 1
    sums_are_counts: bool = False

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless the metric can be computed for a network with that output and those labels."""
        return

    @abstractmethod
    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        """Add these samples to the sums.

        Args:
            outputs: (*output_shape, n), the network's output before any softmax.
            labels: (n,) integers, or (n,) or (n, outputs) floats.
            sums: (terms,) float64.
        """

    def result(self, sums: Array, samples: int) -> float | Array:
        """The metric from its sums over all samples: a number, or an array of numbers."""
        return float(sums[0] / samples)


@dataclass(frozen=True)
class Accuracy(Metric):
    """Accuracy: the fraction of samples whose label has the largest output, in [0, 1]."""

    name = "accuracy"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        if classes is None or len(output_shape) != 1 or output_shape[0] < classes:
            raise ShapeError(
                f"{self} takes integer labels and a network that ends in (classes,), "
                f"got {labels.dtype} labels and {output_shape}"
            )

    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        sums[0] += count_correct(outputs, labels)


@dataclass(frozen=True)
class BinaryAccuracy(Metric):
    """Accuracy of binary outputs, for networks trained with `BinaryCrossEntropy`.

    The fraction of correct outputs, over samples and outputs, in [0, 1]. An output is correct if its sigmoid and its
    label are both above 1/2, or both not.
    """

    name = "accuracy"
    terms = 2

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        two_classes = classes == 2 and output_shape == (1,)
        if not (two_classes or (classes is None and (labels.shape[1:] or (1,)) == output_shape)):
            raise ShapeError(
                f"{self} takes labels of 2 classes and a network that ends in (1,), or float labels of the network's "
                f"output shape {output_shape}, got {labels.dtype} of shape {labels.shape[1:]}"
            )

    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        targets = labels.reshape(labels.shape[0], outputs.shape[0]).T
        wrong = (outputs > 0) != (targets > 0.5)
        sums += (np.count_nonzero(~wrong & ~np.isnan(outputs)), outputs.size)

    def result(self, sums: Array, samples: int) -> float:
        return float(sums[0] / sums[1])


@dataclass(frozen=True)
class MeanAbsoluteError(Metric):
    """Mean absolute error: the mean over samples and outputs of |output - target|."""

    name = "mean_absolute_error"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        if classes is not None or (labels.shape[1:] or (1,)) != output_shape:
            raise ShapeError(
                f"{self} takes float labels of the network's output shape {output_shape}, "
                f"got {labels.dtype} of shape {labels.shape[1:]}"
            )

    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        targets = labels.reshape(labels.shape[0], outputs.shape[0])
        sums[0] += np.abs(outputs - targets.T).mean(axis=0, dtype=np.float64).sum() if outputs.size else 0.0


@dataclass(frozen=True)
class TopK(Metric):
    """Top-k accuracy: the fraction of samples whose label is among the k largest outputs, in [0, 1].

    Of equal outputs the first counts as larger. TopK(1) is `Accuracy`. Its name is "top_5_accuracy" for k=5.

    Args:
        k: number of outputs, from 1 to the network's outputs.

    Raises:
        InputError: if k is not an integer of at least 1.

    Example:
        >>> pc.evaluate(network, test_set, metrics=[pc.TopK(5)])["top_5_accuracy"]
    """

    k: int = 5

    def __post_init__(self) -> None:
        check_integer("TopK: k", self.k, 1)
        object.__setattr__(self, "name", f"top_{self.k}_accuracy")

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        if classes is None or len(output_shape) != 1 or output_shape[0] < max(classes, self.k):
            least = f" of at least {self.k} outputs" if classes is not None else ""
            raise ShapeError(
                f"{self} takes integer labels and a network that ends in (classes,){least}, "
                f"got {labels.dtype} labels and {output_shape}"
            )

    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        own = outputs[labels, np.arange(len(labels))]
        first_of_equals = (outputs == own) & (np.arange(len(outputs))[:, None] < labels)
        larger = np.count_nonzero((outputs > own) | first_of_equals, axis=0)
        sums[0] += np.count_nonzero((larger < self.k) & ~np.isnan(own))


@dataclass(frozen=True)
class ConfusionMatrix(Metric):
    """Confusion matrix: how many samples of class i (row) were classified as j (column), as in scikit-learn.

    The result is an int64 array of shape (classes, classes). Its name is "confusion_matrix".

    Args:
        classes: number of classes of the data set.

    Raises:
        InputError: if `classes` is not an integer of at least 2.

    Example:
        >>> result = pc.evaluate(network, test_set, metrics=[pc.Accuracy(), pc.ConfusionMatrix(10)])
        >>> result["confusion_matrix"].sum() == len(test_set)
        True
    """

    classes: int
    name = "confusion_matrix"
    sums_are_counts = True

    def __post_init__(self) -> None:
        check_integer("ConfusionMatrix: classes", self.classes, 2)
        object.__setattr__(self, "terms", self.classes**2)

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        _check_classes(self, self.classes, output_shape, classes)

    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        sums += np.bincount(labels * self.classes + _predicted(outputs), minlength=self.terms)

    def result(self, sums: Array, samples: int) -> Array:
        return sums.reshape(self.classes, self.classes).astype(np.int64)


@dataclass(frozen=True)
class ClassScore(Metric):
    """Base class of precision, recall and F1, which are ratios of counts of each class.

    The labels are classes, or, after training with `BinaryCrossEntropy`, several labels of a sample: floats of shape
    (N, classes), positive above 1/2. A ratio without samples, 0 / 0, is 0, as in scikit-learn with zero_division=0.

    Args:
        classes: number of classes of the data set, or of labels of a sample.
        average: "macro": the mean over all classes, as in scikit-learn with labels=range(classes); None: an array with
            the score of each class, named "..._per_class".

    Raises:
        InputError: if an argument is outside its range.

    Example:
        >>> result = pc.evaluate(network, test_set, metrics=[pc.F1(10), pc.Recall(10, average=None)])
        >>> result["f1"], result["recall_per_class"][3]
    """

    classes: int
    average: str | None = "macro"
    sums_are_counts = True

    def __post_init__(self) -> None:
        check_integer(f"{type(self).__name__}: classes", self.classes, 2)
        if self.average not in ("macro", None):
            raise InputError(f"{type(self).__name__}: average must be 'macro' or None, got {self.average!r}")
        object.__setattr__(self, "terms", 3 * self.classes)
        if self.average is None:
            object.__setattr__(self, "name", f"{self.name}_per_class")

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        several = classes is None and labels.shape[1:] == output_shape == (self.classes,)
        if not several:
            _check_classes(self, self.classes, output_shape, classes)

    def add(self, outputs: Array, labels: Array, sums: Array) -> None:
        if labels.ndim == 1:
            numbers = np.arange(self.classes)[:, None]
            true, predicted = labels == numbers, _predicted(outputs) == numbers
        else:
            true, predicted = labels.T > 0.5, outputs > 0
        for counts, of in zip(sums.reshape(3, -1), (true & predicted, predicted, true), strict=True):
            counts += np.count_nonzero(of, axis=1)

    def result(self, sums: Array, samples: int) -> float | Array:
        above, below = self.ratio(*sums.reshape(3, -1))
        scores = above / np.where(below == 0, 1.0, below)  # 0 / 0 becomes 0
        return scores if self.average is None else float(scores.mean())

    @abstractmethod
    def ratio(self, hits: Array, predicted: Array, true: Array) -> tuple[Array, Array]:
        """Numerator and denominator of the score, (classes,) each.

        Args:
            hits: number of samples of each class that were predicted as that class.
            predicted, true: number of samples predicted as, and of, each class.
        """


@dataclass(frozen=True)
class Precision(ClassScore):
    """Precision: the fraction of the samples predicted as a class that are of it.

    Args:
        classes, average: see `ClassScore`.

    Raises:
        InputError: as `ClassScore`.

    Example:
        >>> pc.evaluate(network, test_set, metrics=[pc.Precision(10)])["precision"]
    """

    name = "precision"

    def ratio(self, hits: Array, predicted: Array, true: Array) -> tuple[Array, Array]:
        return hits, predicted


@dataclass(frozen=True)
class Recall(ClassScore):
    """Recall: the fraction of the samples of a class that are predicted as it.

    Args:
        classes, average: see `ClassScore`.

    Raises:
        InputError: as `ClassScore`.

    Example:
        >>> pc.evaluate(network, test_set, metrics=[pc.Recall(10)])["recall"]
    """

    name = "recall"

    def ratio(self, hits: Array, predicted: Array, true: Array) -> tuple[Array, Array]:
        return hits, true


@dataclass(frozen=True)
class F1(ClassScore):
    """F1 score: the harmonic mean of precision and recall of a class.

    Args:
        classes, average: see `ClassScore`.

    Raises:
        InputError: as `ClassScore`.

    Example:
        >>> pc.evaluate(network, test_set, metrics=[pc.F1(10)])["f1"]
    """

    name = "f1"

    def ratio(self, hits: Array, predicted: Array, true: Array) -> tuple[Array, Array]:
        return 2 * hits, predicted + true


def _predicted(outputs: Array) -> Array:
    """The predicted class of each sample, (n,): that of the largest output; of one output, 1 where it is above 0."""
    return outputs.argmax(axis=0) if len(outputs) > 1 else (outputs[0] > 0).astype(np.intp)


def _check_classes(metric: Metric, wanted: int, output_shape: tuple[int, ...], classes: int | None) -> None:
    binary = wanted == 2 and output_shape == (1,)
    if classes != wanted or not (output_shape == (wanted,) or binary):
        found = "labels without classes" if classes is None else f"labels of {classes} classes"
        raise ShapeError(
            f"{metric} takes labels of {wanted} classes and a network that ends in ({wanted},), "
            f"got {found} and {output_shape}"
        )
