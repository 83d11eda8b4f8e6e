"""Losses: their derivatives against differences of their values, in float64; and PyTorch's values and gradients."""

import re

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import DataError, InputError, ShapeError
from parallelcnn.losses import AbsoluteError, BinaryCrossEntropy, HuberLoss, MeanSquaredError, SoftmaxCrossEntropy

LABELS = {
    "integer labels": lambda rng, n: rng.integers(0, 4, n),
    "numbers": lambda rng, n: rng.normal(size=(n, 4)).astype(np.float32),
    "probabilities": lambda rng, n: rng.random((n, 4), np.float32),
}
WEIGHT = (0.5, 2.0, 0.0, 1.25)
WITH_OPTIONS = [
    (SoftmaxCrossEntropy(label_smoothing=0.1), "integer labels"),
    (SoftmaxCrossEntropy(class_weight=WEIGHT), "integer labels"),
    (SoftmaxCrossEntropy(0.2, WEIGHT), "integer labels"),
    (BinaryCrossEntropy(), "probabilities"),
    (AbsoluteError(), "numbers"),
    (HuberLoss(0.7), "numbers"),
]


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (SoftmaxCrossEntropy(), "integer labels"),
        (MeanSquaredError(), "integer labels"),
        (MeanSquaredError(), "numbers"),
        *WITH_OPTIONS,
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


@pytest.mark.parametrize(
    ("loss", "kind"), [(SoftmaxCrossEntropy(), "integer labels"), (MeanSquaredError(), "integer labels"), *WITH_OPTIONS]
)
def test_the_shares_of_a_minibatch_add_up_to_its_loss_whatever_their_sizes(loss, kind, rng):
    outputs, labels = rng.normal(size=(4, 11)), LABELS[kind](rng, 11)
    whole = np.empty((4, 11))
    total = loss.forward_backward(outputs, labels, 11, whole)
    parts, gradients = 0.0, []
    for share in (slice(0, 0), slice(0, 1), slice(1, 8), slice(8, 11)):
        some = np.ascontiguousarray(outputs[:, share])
        gradients.append(np.empty_like(some))
        parts += loss.forward_backward(some, labels[share], 11, gradients[-1])
    assert parts == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(np.concatenate(gradients, axis=1), whole, rtol=1e-12)


def of_pytorch(torch, loss):
    """PyTorch's function of the same loss, summed over samples."""
    functional = torch.nn.functional
    if isinstance(loss, SoftmaxCrossEntropy):

        def softmax(x, t):
            weight = None if loss.class_weight is None else torch.tensor(loss.class_weight, dtype=x.dtype)
            smoothing = loss.label_smoothing
            return functional.cross_entropy(x, t, weight, reduction="sum", label_smoothing=smoothing)

        return softmax
    elementwise = {
        MeanSquaredError: functional.mse_loss,
        AbsoluteError: functional.l1_loss,
        BinaryCrossEntropy: functional.binary_cross_entropy_with_logits,
        HuberLoss: lambda x, t, reduction: functional.huber_loss(x, t, reduction=reduction, delta=loss.delta),
    }[type(loss)]
    return lambda x, t: elementwise(x, t, reduction="none").mean(dim=1).sum()


@pytest.mark.parametrize("scale", [1.0, 200.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("loss", "kind"), [(SoftmaxCrossEntropy(), "integer labels"), *WITH_OPTIONS])
def test_losses_and_gradients_are_those_of_pytorch_also_for_extreme_outputs(loss, kind, dtype, scale, rng):
    torch = pytest.importorskip("torch")
    outputs, labels = (scale * rng.normal(size=(4, 9))).astype(dtype), LABELS[kind](rng, 9)
    outputs[:, 0] = outputs[0, 0]  # equal outputs
    if kind == "numbers":
        outputs[:, 0] = labels[0]  # no error
    x = torch.tensor(outputs.T.copy(), requires_grad=True)
    targets = torch.tensor(labels if kind == "integer labels" else labels.astype(dtype))
    wanted = of_pytorch(torch, loss)(x, targets) / 7
    wanted.backward()
    found = np.full((4, 9), np.nan, dtype)
    total = loss.forward_backward(outputs, labels, 7, found)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    assert total == pytest.approx(wanted.item(), rel=tolerance)
    np.testing.assert_allclose(found, x.grad.numpy().T, rtol=tolerance, atol=tolerance / 10)


def test_without_smoothing_and_with_equal_weights_the_loss_is_that_without_options(rng):
    outputs, labels = rng.normal(size=(4, 9)), rng.integers(0, 4, 9)
    plain, weighted = np.empty((4, 9)), np.empty((4, 9))
    wanted = SoftmaxCrossEntropy().forward_backward(outputs, labels, 9, plain)
    assert SoftmaxCrossEntropy(class_weight=[1] * 4).forward_backward(outputs, labels, 9, weighted) == pytest.approx(
        wanted
    )
    np.testing.assert_allclose(weighted, plain, rtol=1e-12)
    assert repr(SoftmaxCrossEntropy()) == "SoftmaxCrossEntropy()"  # as in the checkpoints of earlier versions
    assert repr(SoftmaxCrossEntropy(0.1, [1, 2])) == "SoftmaxCrossEntropy(label_smoothing=0.1, class_weight=(1.0, 2.0))"


def test_balanced_class_weights_give_every_class_the_same_influence():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 0])
    dataset = pc.Dataset(np.zeros((8, 2), np.uint8), labels, 3)
    weight = dataset.balanced_class_weight()
    np.testing.assert_allclose(weight, [8 / 15, 8 / 3, 8 / 6])
    np.testing.assert_allclose([np.array(weight)[labels[labels == one]].sum() for one in range(3)], 8 / 3)
    with pytest.raises(DataError, match="takes samples of every class, got none of 3"):
        pc.Dataset(np.zeros((8, 2), np.uint8), labels, 5).balanced_class_weight()
    with pytest.raises(DataError, match="takes labels of classes, but classes is None"):
        pc.Dataset(np.zeros((8, 2), np.uint8), labels, None).balanced_class_weight()


def binary(several):
    """Data of three features; one label, or two that do not exclude each other."""
    x = np.random.default_rng(3).normal(size=(300, 3)).astype(np.float32)
    labels = np.stack([x[:, 0] > x[:, 1], x[:, 1] > x[:, 2]], axis=1)
    return pc.Dataset(x, labels.astype(np.float32), None) if several else pc.Dataset(x, labels[:, 0].astype(int), 2)


@pytest.mark.parametrize("several", [False, True])
def test_a_network_trained_with_binary_cross_entropy_predicts_probabilities(several, tmp_path):
    dataset = binary(several)
    network = pc.NetworkHandler((pc.Dense(2 if several else 1),), (3,))
    options = {"loss": pc.BinaryCrossEntropy(), "comm": pc.Serial(), "threads": 1, "verbose": 0}
    history = pc.train(network, dataset, dataset, pc.SGD(1.0), 4, 20, **options)
    p = network.predict(dataset.images)
    assert p.min() > 0
    assert p.max() < 1
    wanted = ((p > 0.5) == (dataset.labels.reshape(p.shape) > 0.5)).mean()
    assert history.evaluations[-1][2].accuracy == wanted > 0.9
    pc.save_model(tmp_path / "model.npz", network)
    np.testing.assert_array_equal(pc.load_model(tmp_path / "model.npz").predict(dataset.images), p)
    for value, probability in ((-1e4, 0), (0, 0.5), (1e4, 1)):
        network.params[...] = value
        np.testing.assert_array_equal(network.predict(np.ones((2, 3), np.float32)), probability)


def test_a_nan_is_never_a_correct_binary_output():
    sums = np.zeros(2)
    pc.BinaryAccuracy().add(np.array([[np.nan, -1.0, 2.0]]), np.array([0, 0, 0]), sums)
    assert pc.BinaryAccuracy().result(sums, 3) == pytest.approx(1 / 3)


def test_smoothed_and_weighted_training_gives_the_same_bits_on_any_number_of_threads():
    found = set()
    for threads in (1, 3):
        network, dataset = pc.NetworkHandler((pc.Flatten(), pc.Dense(5)), (1, 11, 9)), small.dataset(211)
        loss = pc.SoftmaxCrossEntropy(0.1, dataset.balanced_class_weight())
        options = {"comm": pc.Serial(), "threads": threads, "reproducible": 4, "verbose": 0}
        history = pc.train(network, dataset, dataset, pc.SGD(0.1), 1, 25, loss=loss, **options)
        found.add((network.parameters_sha256(), tuple(history.losses), history.evaluations[0][2]))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SoftmaxCrossEntropy(1.5), InputError, "label_smoothing must be at most 1, got 1.5"),
        (lambda: SoftmaxCrossEntropy(-0.1), InputError, "label_smoothing must be a finite number of at least 0, got"),
        (lambda: SoftmaxCrossEntropy(0, "balanced"), InputError, "'balanced': write train_set.balanced_class_weight()"),
        (lambda: SoftmaxCrossEntropy(0, {0: 1}), InputError, "class_weight must be a tuple of numbers or None, got {"),
        (lambda: SoftmaxCrossEntropy(0, [1, -1]), InputError, "each number of class_weight must be a finite number of"),
        (lambda: SoftmaxCrossEntropy(0, [1, 1]).check((3,), None, 3), ShapeError, "network's 3 outputs, got 2"),
        (lambda: HuberLoss(0), InputError, "delta must be above 0, got 0"),
        (lambda: HuberLoss().check((1,), np.zeros(4, int), 2), ShapeError, "takes float labels, Dataset(images, lab"),
        (
            lambda: AbsoluteError().check((2,), np.zeros((4, 3)), None),
            ShapeError,
            "network that ends in (3,), got (2,)",
        ),
        (
            lambda: BinaryCrossEntropy().check((3,), np.zeros(4, int), 3),
            ShapeError,
            "takes a network that ends in (1,)",
        ),
        (lambda: BinaryCrossEntropy().check((1,), np.array([0, 2.0]), None), ShapeError, "labels in [0, 1], got 2.0"),
        (lambda: pc.Accuracy().check((1,), np.zeros(4, int), 2), ShapeError, "network that ends in (classes,)"),
        (lambda: pc.BinaryAccuracy().check((2,), np.zeros(4, int), 2), ShapeError, "takes labels of 2 classes and a"),
    ],
)
def test_what_a_loss_or_its_accuracy_cannot_take_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
