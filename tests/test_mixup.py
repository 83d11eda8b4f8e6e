"""MixUp: shares, mixtures, and the loss of samples with two labels."""

import augmented
import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.kernels.mixup import draw_shares
from parallelcnn.training.reduction import compute_shard


def shares_of(alpha, n, key=0):
    """The shares of a MixUp that is the first layer."""
    shares = np.empty(n)
    draw_shares(augmented.keys_of(n, key), 0, float(alpha), shares)
    return shares


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1, 3, 40])
def test_shares_have_the_beta_distribution(alpha):
    shares = shares_of(alpha, 20_000)
    assert ((shares >= 0) & (shares <= 1)).all()
    # The largest distance of two empirical distribution functions, which exceeds this in one of 10^6 cases
    # (Kolmogorov-Smirnov test of two samples).
    drawn = np.random.default_rng(1).beta(alpha, alpha, 20_000)
    rounded = shares.round(6), drawn.round(6)  # near 0 and 1 there are many that float64 rounds to these
    below = [np.searchsorted(np.sort(some), np.concatenate(rounded), side="right") / 20_000 for some in rounded]
    assert np.abs(below[0] - below[1]).max() < np.sqrt(np.log(2e6) / 20_000)
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_each_sample_is_mixed_with_the_next_one_and_the_last_with_the_first(n, rng):
    network = pc.NetworkHandler((pc.MixUp(0.7),), (2, 3, 5))
    images = rng.random((n, 2, 3, 5), np.float32)
    mixed = network.forward(network.replica.load(images, training=True, key=4), training=True)
    shares = shares_of(0.7, n, key=4)[:, None, None, None]
    expected = shares * images + (1 - shares) * np.roll(images, -1, axis=0)
    np.testing.assert_allclose(np.moveaxis(mixed, -1, 0), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.forward(network.load(images)), np.moveaxis(images, 0, -1))


def gradient_of(network, dataset, loss, batch_size=20):
    compute_shard(network.replica, dataset, np.arange(len(dataset)), batch_size, loss, key=4)
    return network.reduction_buffer.copy()


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [pc.SoftmaxCrossEntropy(), pc.SoftmaxCrossEntropy(0.1, (1, 2, 3)), pc.MeanSquaredError(), pc.HuberLoss()],
    ids=repr,
)
def test_the_loss_is_that_of_both_labels_in_proportion_to_their_shares(loss, is_weighted, rng):
    n, regression = 13, isinstance(loss, pc.HuberLoss)
    labels = rng.normal(size=(n, 3)) if regression else rng.integers(0, 3, n)
    weight = rng.random(n) if is_weighted else None
    dataset = pc.Dataset(rng.random((n, 4), np.float32), labels, None if regression else 3, sample_weight=weight)
    network = pc.NetworkHandler((pc.MixUp(0.7), pc.Dense(3)), (4,), dtype=np.float64)
    found = gradient_of(network, dataset, loss)

    # Each mixture twice, with one of its labels each.
    shares = shares_of(0.7, n, key=4)
    images = dataset.images.astype(np.float64)
    mixed = shares[:, None] * images + (1 - shares)[:, None] * np.roll(images, -1, axis=0)
    weights = np.ones(n) if weight is None else weight
    both = pc.Dataset(
        np.concatenate([mixed, mixed]).astype(np.float32),
        np.concatenate([dataset.labels, np.roll(dataset.labels, -1, axis=0)]),
        dataset.classes,
        sample_weight=np.concatenate([shares * weights, (1 - shares) * np.roll(weights, -1)]),
    )
    plain = pc.NetworkHandler((pc.Dense(3),), (4,), dtype=np.float64)
    plain.params = network.params
    np.testing.assert_allclose(found, gradient_of(plain, both, loss), rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_computed_again_gives_the_same_gradient():
    gradients = []
    for block in (pc.Sequential, pc.Recompute):
        network = pc.NetworkHandler((block((pc.Dense(6), pc.MixUp(0.7))), pc.Dense(5)), (99,), seed=1)
        dataset = small.dataset(20)
        flat = pc.Dataset(dataset.images.reshape(20, 99), dataset.labels, 5)
        gradients.append(gradient_of(network, flat, pc.SoftmaxCrossEntropy()))
    np.testing.assert_array_equal(*gradients)


class OwnLoss:
    """A loss without sample weights."""

    def check(self, output_shape, labels, classes):
        pass

    def forward_backward(self, outputs, labels, batch_size, doutputs):
        return pc.SoftmaxCrossEntropy().forward_backward(outputs, labels, batch_size, doutputs)


@pytest.mark.parametrize(
    ("front", "loss", "message"),
    [
        ((pc.MixUp(),), OwnLoss(), "MixUp takes a loss with sample weights: the method forward_backward of .*OwnLoss"),
        ((pc.MixUp(), pc.MixUp()), None, "a network takes one layer that mixes labels, such as MixUp, got another one"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_the_first_step(front, loss, message):
    network = pc.NetworkHandler((*front, pc.Flatten(), pc.Dense(5)), (1, 11, 9))
    before = network.params.copy()
    with pytest.raises(InputError, match=message):
        pc.train(network, small.dataset(50), small.dataset(9), pc.SGD(0.1), 1, 25, comm=pc.Serial(), loss=loss)
    np.testing.assert_array_equal(network.params, before)


def test_a_minibatch_is_cut_into_shards_that_do_not_depend_on_threads():
    network = pc.NetworkHandler((pc.MixUp(), pc.Flatten(), pc.Dense(5)), (1, 11, 9))
    assert network.mixes_samples
    losses = []
    for threads in (1, 2):
        network = pc.NetworkHandler((pc.MixUp(), pc.Flatten(), pc.Dense(5)), (1, 11, 9))
        sets = small.dataset(211), small.dataset(97, seed=1)
        losses.append(pc.train(network, *sets, pc.SGD(0.1), 1, 64, threads=threads, comm=pc.Serial(), verbose=0).losses)
    np.testing.assert_allclose(*losses, rtol=1e-5)
