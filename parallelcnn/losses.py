"""Loss functions.

A loss divides by the size of the GLOBAL minibatch; nothing else divides. So the plain sum over shards and ranks is the
mean over samples, whatever number of samples each rank has.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np

from parallelcnn.arguments import described
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.kernels import losses as kernels
from parallelcnn.schedules import check_number

Array = np.ndarray


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Softmax cross-entropy for integer labels: -log softmax(logits)[label].

    With options it is that of PyTorch's cross_entropy with reduction="sum", divided by the size of the minibatch:

        (1 - s) * w[label] * -log p[label]  +  s / outputs * sum_k w[k] * -log p[k]

    PyTorch's reduction="mean" divides by the sum of the weights of the labels instead. Only a constant gives the same
    loss for every way to split a minibatch; with `Dataset.balanced_class_weight` the weights are 1 on average.

    Args:
        label_smoothing: s, the part of each label that all outputs share, in [0, 1] (Szegedy et al. 2016, "Rethinking
            the inception architecture for computer vision", arXiv:1512.00567, section 7).
        class_weight: w, a finite number of at least 0 for each output; None: all 1.

    Attributes:
        prediction: what `predict` returns for a network trained with this loss.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> SoftmaxCrossEntropy(label_smoothing=0.1, class_weight=train_set.balanced_class_weight())
    """

    prediction: ClassVar[str] = "softmax"
    label_smoothing: float = 0.0
    class_weight: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_number("SoftmaxCrossEntropy", "label_smoothing", self.label_smoothing)
        if self.label_smoothing > 1:
            raise InputError(f"SoftmaxCrossEntropy: label_smoothing must be at most 1, got {self.label_smoothing!r}")
        weights = self.class_weight
        if weights is None:
            return
        if isinstance(weights, str | Mapping) or not isinstance(weights, Iterable):
            hint = ": write train_set.balanced_class_weight()" if weights == "balanced" else ""
            raise InputError(
                f"SoftmaxCrossEntropy: class_weight must be a tuple of numbers or None, got {described(weights)}{hint}"
            )
        weights = tuple(weights)
        for weight in weights:
            check_number("SoftmaxCrossEntropy", "each number of class_weight", weight)
        object.__setattr__(self, "class_weight", tuple(map(float, weights)))

    def __repr__(self) -> str:
        """Without defaults: checkpoints hold it, and those of earlier versions know no options."""
        given = [f"{f.name}={value!r}" for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        return f"SoftmaxCrossEntropy({', '.join(given)})"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""
        if classes is None:
            raise ShapeError(
                f"{self} takes labels of classes, but classes is None (regression) for these: "
                f"Dataset(images, labels, classes), or loss=MeanSquaredError()"
            )
        if len(output_shape) != 1 or output_shape[0] < classes:
            raise ShapeError(
                f"{self} of {classes} classes takes a network that ends in ({classes},), got {output_shape}"
            )
        if self.class_weight is not None and len(self.class_weight) != output_shape[0]:
            raise ShapeError(
                f"SoftmaxCrossEntropy: class_weight must hold a number for each of the network's {output_shape[0]} "
                f"outputs, got {len(self.class_weight)}"
            )

    def forward_backward(
        self, logits: Array, labels: Array, batch_size: int, dlogits: Array, sample_weight: Array | None = None
    ) -> float:
        """Return the sum of the losses of these samples divided by `batch_size`; write its gradient to dlogits.

        Args:
            logits: (classes, n).
            labels: (n,), integers in [0, classes).
            batch_size: samples in the minibatch over all ranks.
            dlogits: shape of logits, overwritten.
            sample_weight: (n,), by which each sample's loss is multiplied; None: all 1.
        """
        if self.label_smoothing == 0 and self.class_weight is None:
            return kernels.softmax_cross_entropy(logits, labels, batch_size, dlogits, sample_weight) / batch_size
        smoothing, weight = float(self.label_smoothing), _weights(self.class_weight, len(logits))
        how = smoothing, weight, dlogits, sample_weight
        return kernels.softmax_cross_entropy_weighted(logits, labels, batch_size, *how) / batch_size


@lru_cache(maxsize=16)
def _weights(class_weight: tuple[float, ...] | None, outputs: int) -> Array:
    """The class weights as an array, which is made once and not in every step."""
    return np.ones(outputs) if class_weight is None else np.array(class_weight)


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared error: the mean over outputs of (output - target)^2, as PyTorch's MSELoss.

    The target of an integer label is one-hot: 1 for the label's output, 0 for the others.

    Example:
        >>> pc.train(network, train_set, test_set, optimizer, 3, 100, loss=MeanSquaredError())
    """

    prediction: ClassVar[str] = "output"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""
        wanted = (classes,) if classes is not None else labels.shape[1:] or (1,)
        wide_enough = classes is not None and len(output_shape) == 1 and output_shape[0] >= classes
        if output_shape != wanted and not wide_enough:
            raise ShapeError(f"{self} of these labels takes a network that ends in {wanted}, got {output_shape}")

    def forward_backward(
        self, outputs: Array, labels: Array, batch_size: int, doutputs: Array, sample_weight: Array | None = None
    ) -> float:
        """Return the sum of the losses of these samples divided by `batch_size`; write its gradient to doutputs.

        Args:
            outputs: (outputs, n).
            labels: (n, outputs) or (n,) floats, or (n,) integers.
            batch_size: samples in the minibatch over all ranks.
            doutputs: shape of outputs, overwritten.
            sample_weight: (n,), by which each sample's loss is multiplied; None: all 1.
        """
        if np.issubdtype(labels.dtype, np.integer):
            total = kernels.mean_squared_error_onehot(outputs, labels, batch_size, doutputs, sample_weight)
        else:
            targets = labels.reshape(len(labels), len(outputs))
            total = kernels.mean_squared_error(outputs, targets, batch_size, doutputs, sample_weight)
        return total / batch_size


@dataclass(frozen=True)
class AbsoluteError:
    """Absolute error: the mean over outputs of |output - target|, as PyTorch's L1Loss. Its derivative at 0 is 0.

    Example:
        >>> pc.train(network, train_set, test_set, optimizer, 3, 100, loss=AbsoluteError())
    """

    prediction: ClassVar[str] = "output"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""
        _check_float_targets(self, output_shape, labels, classes)

    def forward_backward(
        self, outputs: Array, labels: Array, batch_size: int, doutputs: Array, sample_weight: Array | None = None
    ) -> float:
        """See `Loss`. outputs: (outputs, n), labels: (n, outputs) or (n,) floats."""
        targets = labels.reshape(len(labels), len(outputs))
        return kernels.absolute_error(outputs, targets, batch_size, doutputs, sample_weight) / batch_size


@dataclass(frozen=True)
class HuberLoss:
    """Huber loss: the mean over outputs of e^2 / 2, or delta * (|e| - delta / 2) where |e| > delta.

    e is output - target. Huber 1964, "Robust estimation of a location parameter"; as PyTorch's HuberLoss.

    Args:
        delta: the error from which on the loss is linear, above 0.

    Raises:
        InputError: if delta is not a finite number above 0.

    Example:
        >>> pc.train(network, train_set, test_set, optimizer, 3, 100, loss=HuberLoss(delta=0.5))
    """

    prediction: ClassVar[str] = "output"
    delta: float = 1.0

    def __post_init__(self) -> None:
        check_number("HuberLoss", "delta", self.delta)
        if self.delta == 0:
            raise InputError(f"HuberLoss: delta must be above 0, got {self.delta!r}")

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""
        _check_float_targets(self, output_shape, labels, classes)

    def forward_backward(
        self, outputs: Array, labels: Array, batch_size: int, doutputs: Array, sample_weight: Array | None = None
    ) -> float:
        """See `Loss`. outputs: (outputs, n), labels: (n, outputs) or (n,) floats."""
        targets = labels.reshape(len(labels), len(outputs))
        how = float(self.delta), batch_size, doutputs, sample_weight
        return kernels.huber(outputs, targets, *how) / batch_size


def _check_float_targets(loss: object, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
    if classes is not None:
        raise ShapeError(f"{loss} takes float labels, Dataset(images, labels, classes=None), got {classes} classes")
    if len(output_shape) != 1 or (labels.shape[1:] or (1,)) != output_shape:
        wanted = labels.shape[1:] or (1,)
        raise ShapeError(f"{loss} of these labels takes a network that ends in {wanted}, got {output_shape}")


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy with logits: the mean over outputs of -t log p - (1 - t) log(1 - p), p = sigmoid(output).

    As PyTorch's BCEWithLogitsLoss. For two classes the network ends in (1,), and p is the probability of class 1. For
    several labels of a sample, which do not exclude each other, labels are floats of shape (N, outputs) in [0, 1].

    Attributes:
        prediction: `predict` returns p for a network trained with this loss.

    Example:
        >>> tags = Dataset(images, np.array([[0, 1, 1], [1, 0, 0]], np.float32), classes=None)
        >>> pc.train(network, tags, tags, optimizer, 3, 2, loss=BinaryCrossEntropy())
    """

    prediction: ClassVar[str] = "sigmoid"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""
        if classes is not None and (classes != 2 or output_shape != (1,)):
            raise ShapeError(
                f"{self} takes a network that ends in (1,) for labels of 2 classes, or float labels of the shape of "
                f"the network's output, got {classes} classes and a network that ends in {output_shape}"
            )
        if classes is None:
            _check_float_targets(self, output_shape, labels, classes)
            outside = labels[(labels < 0) | (labels > 1)]
            if outside.size:
                raise ShapeError(f"{self} takes labels in [0, 1], got {outside[0]}")

    def forward_backward(
        self, logits: Array, labels: Array, batch_size: int, dlogits: Array, sample_weight: Array | None = None
    ) -> float:
        """See `Loss`. logits: (outputs, n), labels: (n, outputs) or (n,), floats in [0, 1] or integers 0 and 1."""
        targets = labels.reshape(len(labels), len(logits))
        return kernels.binary_cross_entropy(logits, targets, batch_size, dlogits, sample_weight) / batch_size


class Loss(Protocol):
    """Interface of loss functions. To add your own, write a class with these methods, best as a frozen dataclass.

    Attributes:
        prediction: what `predict` returns for a network trained with this loss: the "softmax" of the output, its
            "sigmoid", or the "output".
    """

    prediction: ClassVar[str]

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""

    def forward_backward(self, outputs: Array, labels: Array, batch_size: int, doutputs: Array) -> float:
        """Return the sum of the losses of these samples divided by `batch_size`; write its gradient to doutputs.

        For data sets with sample weights it needs one more argument, sample_weight=None: (n,) float64, by which each
        sample's loss is multiplied.

        Args:
            outputs: (*output_shape, n).
            labels: (n,) or (n, outputs).
            batch_size: samples in the minibatch over all ranks.
            doutputs: shape of outputs, overwritten.
        """


LOSS_METHODS = ("check", "forward_backward")
PREDICTIONS = ("softmax", "sigmoid", "output")  # what `Loss.prediction` may be


def takes_sample_weight(loss: Loss) -> bool:
    """Whether `loss.forward_backward` has the argument `sample_weight`."""
    arguments = inspect.signature(loss.forward_backward).parameters.values()
    return any(one.name == "sample_weight" or one.kind is one.VAR_KEYWORD for one in arguments)
