"""Metrics. A metric is a sum over samples, divided once by their number, and so is exact over ranks and threads."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from parallelcnn.errors import ShapeError
from parallelcnn.kernels.losses import count_correct

Array = np.ndarray


class Metric(ABC):
    """Base class of metrics. Subclass it, best as a frozen dataclass, to add your own.

    Attributes:
        name: the metric's name in histories and logs.
        terms: number of sums that the metric needs.
    """

    name: str
    terms: int = 1

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

    def result(self, sums: Array, samples: int) -> float:
        """The metric from its sums over all samples."""
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

    The fraction, over samples and outputs, of labels on whose side of 1/2 the sigmoid of the output lies, in [0, 1].
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
