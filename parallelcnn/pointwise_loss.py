"""A loss that is defined by a function of one output and one target."""

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba.core.errors import NumbaError

from parallelcnn.autodiff.dual import compile_reason, require_rules
from parallelcnn.errors import InputError
from parallelcnn.kernels.pointwise_loss import pointwise_loss_kernels
from parallelcnn.losses import MeanSquaredError
from parallelcnn.wording import function_name

Array = np.ndarray


@dataclass(frozen=True)
class PointwiseLoss:
    """A loss of your own: the mean over outputs of a function of (output, target).

    The compiled loop computes its derivative with respect to the output by dual numbers; see `autodiff.dual`. The
    target of an integer label is one-hot: 1 for the label's output, 0 for the others.

    Args:
        function: (output, target) -> loss, of two numbers, in Python that numba can compile.

    Raises:
        InputError: if `function` does not take two numbers.

    Example:
        >>> huber = PointwiseLoss(lambda y, t: 0.5 * (y - t) ** 2 if abs(y - t) < 1 else abs(y - t) - 0.5)
        >>> pc.train(network, train_set, test_set, optimizer, 3, 100, loss=huber)
    """

    function: Callable[[float, float], float]

    prediction: ClassVar[str] = "output"

    def __post_init__(self) -> None:
        rule = "PointwiseLoss takes a function of two numbers, (output, target), got"
        if not callable(self.function):
            raise InputError(f"{rule} {self.function!r}")
        if not isinstance(self.function, Hashable):
            raise InputError(f"{rule} {self.function!r}, which is not hashable: a dataclass is with frozen=True")
        try:
            inspect.signature(getattr(self.function, "py_func", self.function)).bind(0.0, 0.0)
        except (TypeError, ValueError):
            raise InputError(f"{rule} {function_name(self.function)}") from None

    def __repr__(self) -> str:
        return f"PointwiseLoss({function_name(self.function)})"

    def check(self, output_shape: tuple[int, ...], labels: Array, classes: int | None) -> None:
        """Raise ShapeError unless a network with that output can learn those labels.

        Raises:
            InputError: if the function calls one that cannot be differentiated.
        """
        MeanSquaredError.check(self, output_shape, labels, classes)  # type: ignore[arg-type]
        require_rules(repr(self), self.function, 0.5, 1.0)

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
        try:
            of_targets, of_labels = pointwise_loss_kernels(self.function)
            if np.issubdtype(labels.dtype, np.integer):
                total = of_labels(outputs, labels, batch_size, doutputs, sample_weight)
            else:
                targets = labels.reshape(len(labels), len(outputs))
                total = of_targets(outputs, targets, batch_size, doutputs, sample_weight)
        except NumbaError as error:
            raise InputError(f"{self}: numba cannot compile its function: {compile_reason(error)}") from error
        return float(total) / batch_size
