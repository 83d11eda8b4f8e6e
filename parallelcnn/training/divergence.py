"""Detect a non-finite loss or gradient before it changes the parameters."""

import math

import numpy as np

from parallelcnn.errors import DivergenceError
from parallelcnn.kernels.finite import all_finite
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import LOSS


def check_finite(network: NetworkHandler, step: int, epoch: int) -> None:
    """Raise DivergenceError unless the summed loss and gradient of minibatch `step` are finite.

    Every rank has the same sums, so all ranks raise it. The parameters are those before this step.
    """
    if all_finite(network.reduction_buffer):
        return
    loss = float(network.reduction_buffer[LOSS])
    what = "gradient" if math.isfinite(loss) else "loss"
    value = "is not finite" if math.isfinite(loss) else f"is {loss}"
    raise DivergenceError(
        f"the {what} of minibatch {step} (epoch {epoch}) {value}: training has diverged{_where(network)}; "
        f"a smaller learning rate may help"
    ).together()


def check_test_loss(loss: float, step: int, epoch: int) -> None:
    """Raise DivergenceError on every rank unless the test loss is finite."""
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the test loss after minibatch {step} (epoch {epoch}) is {loss}: training has diverged; "
            f"a smaller learning rate may help"
        ).together()


def _where(network: NetworkHandler) -> str:
    """Name the gradient that became non-finite first. Gradients are computed from the last layer to the first."""
    for slot in reversed(network.layout.trained.slots):
        if not np.isfinite(network.gradients[slot.start : slot.stop]).all():
            return f", first in the {slot.name} gradient of layer {slot.layer + 1}, {network.layers[slot.layer]!r}"
    return ""
