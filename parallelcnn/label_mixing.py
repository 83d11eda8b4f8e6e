"""The loss of mixed samples, which have two labels each; see `MixUp`."""

import numpy as np

from parallelcnn.errors import InputError, shown
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss, takes_sample_weight


class LabelMixer:
    """Computes losses of mixed samples. Its memory is allocated once and reused.

    The loss of a sample is its share times the loss for its own label, plus the rest of 1 times the loss for the label
    of the next sample (Zhang et al. 2018, arXiv:1710.09412). So every loss that takes sample weights can be used. For
    one that is linear in the label, such as cross-entropy, it is the loss for the mixture of both labels.
    """

    def __init__(self) -> None:
        self._labels = self._gradient = np.empty(0)
        self._weights = np.empty((2, 0))

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
        n = len(labels)
        self._prepare(loss, labels, doutput)
        others, (own_weight, other_weight) = self._labels[:n], self._weights[:, :n]
        others[: n - 1], others[n - 1 :] = labels[1:], labels[:1]
        own_weight[...] = shares
        np.subtract(1, own_weight, out=other_weight)
        if sample_weight is not None:
            own_weight *= sample_weight
            other_weight[: n - 1] *= sample_weight[1:]
            other_weight[n - 1 :] *= sample_weight[:1]
        gradient = self._gradient[: doutput.size].reshape(doutput.shape)
        total = loss.forward_backward(output, others, batch_size, gradient, other_weight)  # type: ignore[call-arg]
        total += loss.forward_backward(output, labels, batch_size, doutput, own_weight)  # type: ignore[call-arg]
        np.add(doutput, gradient, out=doutput)
        return total

    def _prepare(self, loss: Loss, labels: Array, doutput: Array) -> None:
        """Allocate memory if there is too little, which checks the loss as well."""
        n, kept = len(labels), self._labels
        if len(kept) < n or kept.dtype != labels.dtype or kept.shape[1:] != labels.shape[1:]:
            if not takes_sample_weight(loss):
                raise InputError(
                    f"MixUp takes a loss with sample weights: the method forward_backward of {shown(repr(loss))} needs "
                    f"an argument sample_weight=None, (n,) factors of the samples' losses and gradients"
                )
            self._labels, self._weights = np.empty((n, *labels.shape[1:]), labels.dtype), np.empty((2, n))
        if self._gradient.size < doutput.size or self._gradient.dtype != doutput.dtype:
            self._gradient = np.empty(doutput.size, doutput.dtype)
