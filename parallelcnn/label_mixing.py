"""The loss of mixed samples, which have two labels each; see `MixUp`."""

import numpy as np

from parallelcnn.errors import InputError, shown
from parallelcnn.kernels.mixup import partners
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss, takes_sample_weight


class LabelMixer:
    """Computes losses of mixed samples. The arrays for each number of samples are allocated once and reused.

    The loss of a sample is its share times the loss for its own label, plus the rest of 1 times the loss for the label
    of the next sample (Zhang et al. 2018, arXiv:1710.09412). So every loss that takes sample weights can be used. For
    one that is linear in the label, such as cross-entropy, it is the loss for the mixture of both labels.
    """

    def __init__(self) -> None:
        self._checked: Loss | None = None
        self._kept: dict[int, tuple[Array, Array, Array, Array, Array]] = {}

    def forward_backward(
        self,
        loss: Loss,
        output: Array,
        labels: Array,
        shares: Array,
        batch_size: int,
        doutput: Array,
        sample_weight: Array | None = None,
    ) -> float:
        """As the loss's method, for samples mixed with these shares, (n,)."""
        others, weights, own_weight, other_weight, gradient = self._arrays(loss, labels, doutput)
        partners(labels, shares, sample_weight, others, weights)
        total = loss.forward_backward(output, others, batch_size, gradient, other_weight)  # type: ignore[call-arg]
        total += loss.forward_backward(output, labels, batch_size, doutput, own_weight)  # type: ignore[call-arg]
        np.add(doutput, gradient, out=doutput)
        return total

    def _arrays(self, loss: Loss, labels: Array, doutput: Array) -> tuple[Array, Array, Array, Array, Array]:
        """The labels of the partners, the weights of both labels, together and each, and a gradient of the output."""
        if loss is not self._checked:
            if not takes_sample_weight(loss):
                raise InputError(
                    f"MixUp takes a loss with sample weights: the method forward_backward of {shown(repr(loss))} needs "
                    f"an argument sample_weight=None, (n,) factors of the samples' losses and gradients"
                )
            self._checked = loss
        n = len(labels)
        kept = self._kept.get(n)
        if kept is None or kept[0].shape != labels.shape or kept[0].dtype != labels.dtype:
            weights = np.empty((2, n))
            kept = np.empty_like(labels), weights, weights[0], weights[1], np.empty_like(doutput)
            self._kept[n] = kept
        return kept
