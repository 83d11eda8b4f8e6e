"""Losses: their derivatives against differences of their values, in float64."""

import numpy as np
import pytest

from parallelcnn.losses import MeanSquaredError, SoftmaxCrossEntropy

LABELS = {
    "integer labels": lambda rng, n: rng.integers(0, 4, n),
    "numbers": lambda rng, n: rng.normal(size=(n, 4)).astype(np.float32),
}


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (SoftmaxCrossEntropy(), "integer labels"),
        (MeanSquaredError(), "integer labels"),
        (MeanSquaredError(), "numbers"),
    ],
)
def test_the_derivative_of_a_loss_is_the_difference_of_its_values(loss, kind, n, rng):
    outputs, labels = rng.normal(size=(4, n)), LABELS[kind](rng, n)
    found, unused = np.full((4, n), np.nan), np.empty((4, n))
    loss.forward_backward(outputs, labels, 7, found)
    for place in np.ndindex(outputs.shape):
        value = outputs[place]
        outputs[place] = value + 1e-6
        above = loss.forward_backward(outputs, labels, 7, unused)
        outputs[place] = value - 1e-6
        wanted = (above - loss.forward_backward(outputs, labels, 7, unused)) / 2e-6
        outputs[place] = value
        assert found[place] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_shares_of_a_minibatch_add_up_to_its_loss_whatever_their_sizes(rng):
    outputs, labels = rng.normal(size=(4, 11)), rng.integers(0, 4, 11)
    for loss in (SoftmaxCrossEntropy(), MeanSquaredError()):
        whole = np.empty((4, 11))
        total = loss.forward_backward(outputs, labels, 11, whole)
        parts, gradients = 0.0, []
        for share in (slice(0, 0), slice(0, 1), slice(1, 8), slice(8, 11)):
            some = np.ascontiguousarray(outputs[:, share])
            gradients.append(np.empty_like(some))
            parts += loss.forward_backward(some, labels[share], 11, gradients[-1])
        assert parts == pytest.approx(total, rel=1e-12)
        np.testing.assert_allclose(np.concatenate(gradients, axis=1), whole, rtol=1e-12)
