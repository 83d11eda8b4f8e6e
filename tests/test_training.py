"""The training loop on one process; test_mpi.py holds many ranks to it."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import DivergenceError, InputError, ShapeError
from parallelcnn.losses import MeanSquaredError, SoftmaxCrossEntropy
from parallelcnn.training.threads import blas_threads


def train(network=None, n=211, batch_size=25, epochs=3, optimizer=None, **options):
    network = network or small.network()
    history = pc.train(
        network,
        small.dataset(n),
        small.dataset(97, seed=1),
        optimizer or pc.SGD(0.2),
        epochs,
        batch_size,
        comm=pc.Serial(),
        **options,
    )
    return network, history


def test_training_learns_and_the_history_tells_all_of_it():
    _, history = train(epochs=4)
    assert len(history.losses) == 4 * 9
    assert history.samples_seen == 4 * 211
    assert np.mean(history.losses[-9:]) < 0.3 * np.mean(history.losses[:9])
    assert [(step, epoch) for step, epoch, _ in history.evaluations] == [(9, 1), (18, 2), (27, 3), (36, 4)]
    last = history.evaluations[-1][2]
    assert last.accuracy > 0.9
    assert last.samples == 97
    assert history.train_seconds > 0


def test_the_first_losses_are_those_recorded():
    """Guards the whole chain: start values, order of samples, forward, backward, update."""
    _, history = train(epochs=1)
    np.testing.assert_allclose(history.losses, RECORDED, rtol=1e-4)


def test_one_step_of_one_minibatch_is_sgd_on_the_mean_loss():
    dataset = small.dataset(13)
    network = small.network(dtype=np.float64)
    start = network.params.copy()
    pc.train(network, dataset, dataset, pc.SGD(0.5), 1, 13, comm=pc.Serial())
    found = (start - network.params) / 0.5

    again = small.network(dtype=np.float64)

    def mean_loss(params):
        again.params[:] = params
        return pc.evaluate(again, dataset, pc.Serial()).loss

    for i in np.random.default_rng(0).choice(len(start), 40, replace=False):
        step = np.zeros_like(start)
        step[i] = 1e-6
        wanted = (mean_loss(start + step) - mean_loss(start - step)) / 2e-6
        assert found[i] == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def test_every_epoch_has_an_order_of_its_own():
    """Minibatches of a network that stands still show which samples they hold."""
    _, history = train(epochs=3, optimizer=pc.SGD(0.0))
    epochs = np.array(history.losses).reshape(3, 9)
    assert not np.allclose(epochs[0], epochs[1])
    assert not np.allclose(epochs[1], epochs[2])
    weights = np.array([25] * 8 + [11]) / 211
    np.testing.assert_allclose(epochs @ weights, (epochs @ weights)[0], rtol=1e-6)


class Slow:
    """A callback that takes its time over evaluations."""

    def on_batch_end(self, step, logs):
        pass

    def on_test_end(self, logs):
        time.sleep(0.3)


def test_the_seconds_of_training_hold_no_evaluation():
    _, history = train(epochs=2, evaluate_every=5, callbacks=[Slow()])
    assert len(history.evaluations) == 5
    assert history.train_seconds < 0.3


@dataclass(frozen=True, repr=False)
class Counts(pc.Activation):
    """Asks how many threads a matrix product has, in the middle of training."""

    seen = []  # noqa: RUF012

    def forward(self, step, x):
        step.call(lambda: Counts.seen.extend(threads for _, threads in blas_threads()))
        return super().forward(step, x)


def test_a_matrix_product_has_one_thread_while_a_network_trains(monkeypatch):
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    train(pc.NetworkHandler((pc.Flatten(), pc.Dense(5), Counts("relu")), (1, 11, 9)), epochs=1)
    assert set(Counts.seen) == {1}


def test_a_network_that_may_learn_by_heart_does():
    dataset = small.dataset(32)
    network = small.network()
    pc.train(network, dataset, dataset, pc.SGD(0.05, momentum=0.9, nesterov=True), 60, 8, comm=pc.Serial())
    result = pc.evaluate(network, dataset, pc.Serial())
    assert result.accuracy == 1
    assert result.loss < 0.01


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    same = [train(seed=3)[0].parameters_sha256() for _ in range(2)]
    other = train(seed=4)[0].parameters_sha256()
    assert same[0] == same[1] != other


@pytest.mark.parametrize("every", [1, 4, 9, 10, 1000])
def test_evaluate_every_adds_evaluations_and_changes_no_parameter(every):
    plain, _ = train(epochs=2)
    network, history = train(epochs=2, evaluate_every=every)
    assert network.parameters_sha256() == plain.parameters_sha256()
    wanted = sorted({9, 18, *range(every, 19, every)})
    assert [step for step, _, _ in history.evaluations] == wanted


def test_evaluation_is_exact_for_any_number_of_samples():
    network, _ = train(epochs=1)
    for n in (1, 99, 100, 101, 250):
        dataset = small.dataset(n, seed=2)
        result = pc.evaluate(network, dataset, pc.Serial())
        probabilities = network.predict(dataset.images)
        assert result.accuracy == np.mean(probabilities.argmax(1) == dataset.labels)
        chosen = probabilities[np.arange(n), dataset.labels].astype(np.float64)
        assert result.loss == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


def test_training_by_squared_error_learns_classes_and_numbers():
    network, history = train(epochs=6, loss=MeanSquaredError(), optimizer=pc.SGD(0.3, momentum=0.9))
    assert history.evaluations[-1][2].accuracy > 0.9

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 4)).astype(np.float32)
    targets = inputs @ rng.normal(size=(4, 2)).astype(np.float32)
    dataset = pc.Dataset(inputs, targets, None)
    network = pc.NetworkHandler((pc.Dense(2),), (4,))
    history = pc.train(network, dataset, dataset, pc.SGD(0.3), 40, 20, comm=pc.Serial(), loss=MeanSquaredError())
    assert history.evaluations[-1][2].loss < 1e-6
    assert history.evaluations[-1][2].accuracy is None


def test_a_loss_that_is_no_number_stops_training_and_says_where():
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=r"loss of minibatch \d+ \(epoch 1\) is"):
        train(optimizer=pc.SGD(1e38))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 212}, "batch_size must be at most 211, the samples of stripes-211, got 212"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"epochs": -1}, "epochs must be an integer of at least 1, got -1"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"evaluate_every": 0}, "evaluate_every must be an integer of at least 1, got 0"),
    ],
)
def test_arguments_outside_their_range_are_refused_before_anything_changes(options, message):
    network = small.network()
    before = network.parameters_sha256()
    with pytest.raises(InputError, match=message):
        train(network, **options)
    assert network.parameters_sha256() == before


def test_a_network_that_does_not_fit_the_data_set_is_refused():
    with pytest.raises(ShapeError, match=r"takes inputs of shape \(1, 12, 9\), but stripes-211 holds .* \(1, 11, 9\)"):
        train(pc.NetworkHandler(small.LAYERS, (1, 12, 9)))
    too_few = (pc.Flatten(), pc.Dense(4))
    with pytest.raises(ShapeError, match=r"of 5 classes takes a network that ends in \(5,\), got \(4,\)"):
        train(pc.NetworkHandler(too_few, (1, 11, 9)))
    other = pc.Dataset(np.zeros((9, 4), np.uint8), np.zeros(9, int), 5, "stripes-9")
    with pytest.raises(ShapeError, match=r"network takes inputs of shape .* but stripes-9 holds images of shape"):
        pc.train(small.network(), small.dataset(9), other, pc.SGD(), 1, 3, comm=pc.Serial())
    with pytest.raises(ShapeError, match=r"takes a network that ends in \(2,\), got \(3, 4, 4\)"):
        MeanSquaredError().check((3, 4, 4), np.zeros(5, int), 2)
    with pytest.raises(ShapeError, match=r"SoftmaxCrossEntropy\(\) takes labels of classes, but classes is None"):
        SoftmaxCrossEntropy().check((2,), np.zeros((3, 2), np.float32), None)


def test_weight_decay_pulls_the_parameters_towards_zero():
    free, _ = train(epochs=2)
    pulled, _ = train(epochs=2, optimizer=pc.SGD(0.2, weight_decay=0.1))
    assert np.linalg.norm(pulled.params) < 0.8 * np.linalg.norm(free.params)


def test_labels_outside_the_classes_are_refused_with_their_place():
    for wrong in (3, -1):
        with pytest.raises(InputError, match=rf"labels must lie in \[0, 3\), got {wrong} at sample 1"):
            pc.Dataset(np.zeros((2, 4), np.uint8), np.array([0, wrong]), 3)


def test_a_data_set_whose_parts_do_not_belong_together_is_refused():
    images = np.zeros((2, 4), np.uint8)
    for arguments, message in (
        ((images, np.zeros(3, int), 2), "2 images but 3 labels"),
        ((images.astype(float), np.zeros(2, int), 2), "must be uint8 or float32 .* got float64"),
        ((images, np.zeros(2), 2), "labels of 2 classes must be integers"),
        ((images[:0], np.zeros(0, int), 2), "holds no samples"),
    ):
        with pytest.raises(InputError, match=message):
            pc.Dataset(*arguments)


RECORDED = [1.704616, 1.803895, 1.643073, 1.582969, 1.655044, 1.592327, 1.561497, 1.517043, 1.428359]
