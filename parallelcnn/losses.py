"""Loss functions.

A loss divides by the size of the GLOBAL minibatch; nothing else divides. So the plain sum over shards and ranks is the
mean over samples, whatever number of samples each rank has.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from parallelcnn.errors import ShapeError
from parallelcnn.kernels import losses as kernels

Array = np.ndarray


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Softmax cross-entropy for integer labels: -log softmax(logits)[label].

    Attributes:
        prediction: what `predict` returns for a network trained with this loss.
    """

    prediction: ClassVar[str] = "softmax"

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

    def forward_backward(self, logits: Array, labels: Array, batch_size: int, dlogits: Array) -> float:
        """Return the sum of the losses of these samples divided by `batch_size`; write its gradient to dlogits.

        Args:
            logits: (classes, n).
            labels: (n,), integers in [0, classes).
            batch_size: samples in the minibatch over all ranks.
            dlogits: shape of logits, overwritten.
        """
        return kernels.softmax_cross_entropy(logits, labels, batch_size, dlogits) / batch_size


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared error: the mean over outputs of (output - target)^2. The target of an integer label is one-hot."""

    prediction: ClassVar[str] = "output"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""
        wanted = (classes,) if classes is not None else labels.shape[1:] or (1,)
        wide_enough = classes is not None and len(output_shape) == 1 and output_shape[0] >= classes
        if output_shape != wanted and not wide_enough:
            raise ShapeError(f"{self} of these labels takes a network that ends in {wanted}, got {output_shape}")

    def forward_backward(self, outputs: Array, labels: Array, batch_size: int, doutputs: Array) -> float:
        """Return the sum of the losses of these samples divided by `batch_size`; write its gradient to doutputs.

        Args:
            outputs: (outputs, n).
            labels: (n, outputs) or (n,) floats, or (n,) integers.
            batch_size: samples in the minibatch over all ranks.
            doutputs: shape of outputs, overwritten.
        """
        if np.issubdtype(labels.dtype, np.integer):
            total = kernels.mean_squared_error_onehot(outputs, labels, batch_size, doutputs)
        else:
            targets = labels.reshape(len(labels), len(outputs))
            total = kernels.mean_squared_error(outputs, targets, batch_size, doutputs)
        return total / batch_size


class Loss(Protocol):
    """Interface of loss functions. To add your own, write a class with these methods, best as a frozen dataclass.

    Attributes:
        prediction: what `predict` returns for a network trained with this loss: "softmax" or "output".
    """

    prediction: ClassVar[str]

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels."""

    def forward_backward(self, outputs: Array, labels: Array, batch_size: int, doutputs: Array) -> float:
        """Return the sum of the losses of these samples divided by `batch_size`; write its gradient to doutputs.

        Args:
            outputs: (*output_shape, n).
            labels: (n,) or (n, outputs).
            batch_size: samples in the minibatch over all ranks.
            doutputs: shape of outputs, overwritten.
        """


LOSS_METHODS = ("check", "forward_backward")
