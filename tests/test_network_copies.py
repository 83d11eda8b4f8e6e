"""One network used in several ways at once: copies, threads, and what `predict` returns."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError, ShapeError

COPIES = [copy.copy, copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))]


def train(network, epochs=1, **options):
    sets = small.dataset(211), small.dataset(97, seed=1)
    pc.train(network, *sets, pc.SGD(0.1, momentum=0.5), epochs, 25, comm=pc.Serial(), threads=1, **options)
    return network


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("before", ["fresh", "trained", "loaded", "evaluated"])
def test_a_copy_is_independent_and_trains_alike(before, duplicate, tmp_path):
    network = small.network()
    if before in ("trained", "loaded"):
        train(network)
    if before == "loaded":
        pc.save_model(tmp_path / "model.npz", network)
        network = pc.load_model(tmp_path / "model.npz")
    if before == "evaluated":
        pc.evaluate(network, small.dataset(9), pc.Serial())
    images, start = small.dataset(30, seed=4).images, network.params.copy()
    second = duplicate(network)
    assert not np.shares_memory(second.params, network.params)
    np.testing.assert_array_equal(second.predict(images), network.predict(images))
    train(second)
    np.testing.assert_array_equal(network.params, start)
    train(network)
    np.testing.assert_array_equal(second.params, network.params)
    np.testing.assert_array_equal(second.predict(images), network.predict(images))


def test_parameters_can_be_assigned_to_and_gradients_cannot():
    network, other = small.network(), small.network(seed=1)
    network.params = other.params
    images = small.dataset(9).images
    np.testing.assert_array_equal(network.predict(images), other.predict(images))
    assert not np.shares_memory(network.params, other.params)
    with pytest.raises(ShapeError, match=r"params must have shape \(\d+,\), got \(3,\)"):
        network.params = [1, 2, 3]
    with pytest.raises(AttributeError):
        network.gradients = other.gradients


def test_predictions_and_evaluations_in_several_threads_are_right():
    network, test_set = small.network(), small.dataset(300)
    wanted, result = network.predict(test_set.images), pc.evaluate(network, test_set, pc.Serial(), threads=1)

    def use(number):
        if number % 4 == 0:
            return pc.evaluate(network, test_set, pc.Serial(), threads=1) == result
        return np.array_equal(network.predict(test_set.images), wanted)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(80)))


def test_while_one_thread_trains_others_can_neither_predict_nor_evaluate_nor_train():
    network, images, found = small.network(), small.dataset(9).images, []

    def use():
        for call in (
            lambda: network.predict(images),
            lambda: pc.evaluate(network, small.dataset(9), pc.Serial()),
            lambda: train(network),
        ):
            with pytest.raises(InputError, match="the network is being trained in another thread"):
                call()
            found.append(1)

    class Reporter:
        def on_batch_end(self, step, logs):
            if step == 3:
                other = threading.Thread(target=use)
                other.start()
                other.join()
                assert network.predict(images).shape == (9, 5)  # in the thread that trains it

    train(network, callbacks=[Reporter()])
    assert found == [1, 1, 1]
    undisturbed = train(small.network())
    assert network.history.losses == undisturbed.history.losses
    assert network.parameters_sha256() == undisturbed.parameters_sha256()
    train(network)


def test_predict_returns_what_the_loss_implies(tmp_path, rng):
    inputs = rng.random((200, 5), np.float32)
    targets = inputs @ np.array([1, -2, 3, 0, 5], np.float32)
    dataset = pc.Dataset(inputs, targets, None)
    network = pc.NetworkHandler((pc.Dense(1),), (5,))
    pc.train(network, dataset, dataset, pc.SGD(0.1), 60, 20, comm=pc.Serial(), loss=pc.MeanSquaredError(), threads=1)
    np.testing.assert_allclose(network.predict(inputs[:9]).ravel(), targets[:9], atol=0.3)
    pc.save_model(tmp_path / "model.npz", network)
    again = pc.load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.predict(inputs), network.predict(inputs))
    np.testing.assert_array_equal(copy.deepcopy(network).predict(inputs), network.predict(inputs))
    np.testing.assert_allclose(train(small.network()).predict(small.dataset(9).images).sum(1), 1, rtol=1e-5)


def test_a_training_does_not_start_while_another_thread_predicts():
    network, test_set = small.network(), small.dataset(97)
    with network.idle_replicas(1), ThreadPoolExecutor(1) as other:
        with pytest.raises(InputError, match="another thread predicts with the network: wait for it, or train a copy"):
            other.submit(train, network).result()
        network.predict(test_set.images)  # in this thread it may
    train(network)
    with network.idle_replicas(1):
        train(network)  # nothing else uses them
