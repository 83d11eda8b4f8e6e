"""Sample weights: each sample's loss times its weight, for every loss, on any layout; metrics without them."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import small
from test_losses import LABELS, WITH_OPTIONS, of_pytorch
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, InputError, ReplicaMismatchError
from parallelcnn.losses import MeanSquaredError, SoftmaxCrossEntropy

ALL = [
    (SoftmaxCrossEntropy(), "integer labels"),
    (MeanSquaredError(), "integer labels"),
    (MeanSquaredError(), "numbers"),
    (pc.PointwiseLoss(lambda y, t: (y - t) ** 4), "numbers"),
    (pc.PointwiseLoss(lambda y, t: (y - t) ** 2), "integer labels"),
    *WITH_OPTIONS,
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("loss", "kind"), ALL)
def test_a_weighted_loss_is_the_sum_of_the_weighted_losses_of_single_samples(loss, kind, n, dtype, rng):
    outputs, labels, weight = rng.normal(size=(4, n)).astype(dtype), LABELS[kind](rng, n), rng.uniform(0, 3, n)
    weight[:1] = 0
    found, one = np.full((4, n), np.nan, dtype), np.empty((4, 1), dtype)
    total = loss.forward_backward(outputs, labels, 7, found, weight)
    wanted, wanted_gradient = 0.0, np.empty((4, n))
    for i in range(n):
        some = np.ascontiguousarray(outputs[:, i : i + 1])
        wanted += weight[i] * loss.forward_backward(some, labels[i : i + 1], 7, one)
        wanted_gradient[:, i] = weight[i] * one[:, 0].astype(np.float64)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert total == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    np.testing.assert_allclose(found, wanted_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("loss", "kind"), [(SoftmaxCrossEntropy(), "integer labels"), *WITH_OPTIONS])
def test_weighted_losses_and_gradients_are_those_of_pytorch(loss, kind, rng):
    """PyTorch's with reduction="none", times the weight; divided by the size of the minibatch."""
    torch = pytest.importorskip("torch")
    outputs, labels, weight = rng.normal(size=(4, 9)), LABELS[kind](rng, 9), rng.uniform(0, 3, 9)
    x = torch.tensor(outputs.T.copy(), requires_grad=True)
    targets = torch.tensor(labels if kind == "integer labels" else labels.astype(np.float64))
    one_by_one = [of_pytorch(torch, loss)(x[i : i + 1], targets[i : i + 1]) for i in range(9)]
    wanted = (torch.stack(one_by_one) * torch.tensor(weight)).sum() / 7
    wanted.backward()
    found = np.full((4, 9), np.nan)
    assert loss.forward_backward(outputs, labels, 7, found, weight) == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(found, x.grad.numpy().T, rtol=1e-12, atol=1e-13)


def weighted(dataset, seed=2):
    return replace(dataset, sample_weight=np.random.default_rng(seed).uniform(0, 2, len(dataset)))


def train(train_set, test_set, comm=None, threads=1, **options):
    network = small.network(0, options.pop("dtype", np.float32))
    options = {"verbose": 0, "timeout": 0, "loss": SoftmaxCrossEntropy(0.1, (1.0, 2.0, 0.5, 1.0, 1.0)), **options}
    history = pc.train(
        network, train_set, test_set, pc.SGD(0.1), 2, 25, comm=comm or pc.Serial(), threads=threads, **options
    )
    return history, network


def test_weights_of_whole_numbers_are_repeated_samples():
    """A step with weights 0, 1 and 2 is one of a minibatch that lacks or repeats samples, of the same batch size."""
    dataset = small.dataset(25)
    weight = np.arange(25) % 3
    repeated = np.repeat(np.arange(25), weight)
    found, wanted = (small.network(dtype=np.float64) for _ in range(2))
    options = {"comm": pc.Serial(), "threads": 1, "verbose": 0}
    optimizer = pc.SGD(0.5)
    history = pc.train(found, replace(dataset, sample_weight=weight), dataset, optimizer, 1, 25, **options)
    few = pc.Dataset(dataset.images[repeated], dataset.labels[repeated], 5)
    factor = len(repeated) / 25
    other = pc.train(wanted, few, dataset, pc.SGD(0.5 * factor), 1, len(repeated), **options)
    np.testing.assert_allclose(found.params, wanted.params, rtol=1e-12, atol=1e-14)
    assert history.losses[0] == pytest.approx(factor * other.losses[0], rel=1e-12)


def test_equal_weights_of_1_change_nothing_but_roundings():
    sets = small.dataset(211), small.dataset(97, seed=1)
    ones = [replace(one, sample_weight=np.ones(len(one), int)) for one in sets]
    (history, network), (other, same) = (train(*some, dtype=np.float64) for some in (sets, ones))
    np.testing.assert_allclose(network.params, same.params, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(history.losses, other.losses, rtol=1e-12)


def test_the_bits_are_the_same_on_every_layout_and_after_a_resume(tmp_path):
    sets = weighted(small.dataset(211)), weighted(small.dataset(97, seed=1), 3)
    options = {"reproducible": 6}
    folder = pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9)
    history, network = train(*sets, checkpoints=folder, **options)
    wanted = network.state_sha256(), history.losses, [result for _, _, result in history.evaluations]

    def state(found):
        history, network = found
        return network.state_sha256(), history.losses, [result for _, _, result in history.evaluations]

    assert state(train(*sets, threads=3, **options)) == wanted
    assert on_ranks(3, lambda comm: state(train(*sets, comm, **options))) == [wanted] * 3
    checkpoint = pc.load_checkpoint(tmp_path / "step-000000014.npz")
    assert state(train(*sets, resume=checkpoint, **options)) == wanted
    unweighted = replace(sets[0], sample_weight=None)
    with pytest.raises(CheckpointError, match=r"of another training: its train_set is uint8 of shape .*, weights "):
        train(unweighted, sets[1], resume=checkpoint, **options)
    with pytest.raises(CheckpointError, match="of another training: its train_set"):
        train(weighted(sets[0], 9), sets[1], resume=checkpoint, **options)


def test_without_reproducible_sums_the_layouts_agree_up_to_rounding():
    sets = weighted(small.dataset(211)), small.dataset(97, seed=1)
    one, three = (train(*sets, threads=threads, dtype=np.float64)[1].params for threads in (1, 3))
    np.testing.assert_allclose(one, three, rtol=1e-10, atol=1e-13)


def test_ranks_with_other_weights_are_noticed():
    def work(comm):
        return train(weighted(small.dataset(211), comm.rank), small.dataset(97, seed=1), comm)

    with pytest.raises(ReplicaMismatchError, match="train_set"):
        on_ranks(2, work)


def test_an_evaluation_has_a_weighted_loss_and_metrics_without_weights(rng):
    dataset, network = small.dataset(97), small.network()
    single = [pc.evaluate(network, replace(dataset, images=dataset.images[i : i + 1], labels=dataset.labels[i : i + 1]),
              pc.Serial(), threads=1) for i in range(5)]  # fmt: skip
    five = replace(dataset, images=dataset.images[:5], labels=dataset.labels[:5], sample_weight=[0, 1, 2, 3, 0.5])
    metrics = [pc.Accuracy(), pc.ConfusionMatrix(5)]
    found = pc.evaluate(network, five, pc.Serial(), threads=1, metrics=metrics)
    assert found.loss == pytest.approx(np.dot([one.loss for one in single], five.sample_weight) / 5, rel=1e-6)
    plain = pc.evaluate(network, replace(five, sample_weight=None), pc.Serial(), threads=1, metrics=metrics)
    assert (found.accuracy, found.others) == (plain.accuracy, plain.others)


def test_a_split_keeps_the_weight_of_each_sample():
    labels = np.arange(60) % 3
    dataset = pc.Dataset(np.arange(60, dtype=np.float32)[:, None], labels, 3, sample_weight=np.arange(60) / 10)
    for part in dataset.split(0.3):
        np.testing.assert_array_equal(part.sample_weight, part.images[:, 0].astype(np.float64) / 10)
    assert dataset.sample_weight.dtype == np.float64
    assert all(part.sample_weight is None for part in replace(dataset, sample_weight=None).split(0.3))


@dataclass(frozen=True)
class Own:
    """A loss that was written before there were sample weights."""

    prediction: ClassVar[str] = "output"

    def check(self, output_shape, labels, classes):
        pass

    def forward_backward(self, outputs, labels, batch_size, doutputs):
        doutputs[...] = outputs / batch_size
        return float((outputs**2).sum() / 2 / batch_size)


class Weighted(Own):
    def forward_backward(self, outputs, labels, batch_size, doutputs, sample_weight=None):
        weight = 1.0 if sample_weight is None else sample_weight
        doutputs[...] = weight * outputs / batch_size
        return float((weight * outputs**2).sum() / 2 / batch_size)


def test_a_loss_of_the_users_own_takes_weights_or_is_refused():
    plain, some = small.dataset(211), weighted(small.dataset(211))
    train(plain, plain, loss=Own())
    message = "stripes-211 has sample weights, which the loss Own() does not take: its method forward_backward"
    for sets in ((some, plain), (plain, some)):
        with pytest.raises(InputError, match=re.escape(message)):
            train(*sets, loss=Own())
    with pytest.raises(InputError, match=re.escape(message)):
        pc.evaluate(small.network(), some, pc.Serial(), loss=Own())
    ones = replace(plain, sample_weight=np.ones(211))
    one, same = (train(data, plain, loss=Weighted())[1].params for data in (plain, ones))
    np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-7)
    assert not np.allclose(one, train(some, plain, loss=Weighted())[1].params)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 2], "x: sample_weight must be 3 numbers, one for each sample, got (2,)"),
        (np.ones((3, 1)), "x: sample_weight must be 3 numbers, one for each sample, got (3, 1)"),
        (["a", "b", "c"], "x: sample_weight must be an array of numbers, got ['a', 'b', 'c']"),
        ([1, -0.5, 1], "x: sample_weight must hold finite numbers of at least 0, got -0.5 at sample 1"),
        ([1, 1, np.nan], "x: sample_weight must hold finite numbers of at least 0, got nan at sample 2"),
        ([np.inf, 1, 1], "x: sample_weight must hold finite numbers of at least 0, got inf at sample 0"),
    ],
)
def test_what_is_no_weight_is_refused(weight, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        pc.Dataset(np.zeros((3, 2), np.uint8), [0, 1, 0], 2, "x", sample_weight=weight)
