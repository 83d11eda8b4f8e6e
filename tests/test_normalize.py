"""Normalize: its numbers, and where "auto" takes them from."""

import re
from dataclasses import replace

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.layers.normalize import mean_and_deviation

HEAD = (pc.Flatten(), pc.Dense(5))


@pytest.mark.parametrize("shape", [(70, 3, 6, 5), (70, 1, 4, 4), (70, 7), (1, 2, 1, 1)])
def test_mean_and_deviation_of_bytes_are_those_of_numpy_on_scaled_numbers(shape, rng):
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    axes = (0, 2, 3)[: len(shape) - 1] if len(shape) == 4 else (0,)
    mean, std = mean_and_deviation(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axes), rtol=1e-14)
    np.testing.assert_allclose(std, np.where(len(images) > 1, (images / 255).std(axes), 1), rtol=1e-12)
    assert all(type(number) is float for number in (*mean, *std))


def test_mean_and_deviation_of_floats_are_accurate_also_far_from_zero(rng):
    images = (rng.normal(size=(200, 2, 9, 8)) + np.reshape([1000, -3], (2, 1, 1))).astype(np.float32)
    mean, std = mean_and_deviation(images)
    exact = images.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, exact.std((0, 2, 3)), rtol=1e-12)
    assert mean_and_deviation(images[:, 0]) == ((mean[0],), (std[0],))  # grey, without a channel axis


def test_a_channel_that_is_always_the_same_has_a_deviation_of_one():
    assert mean_and_deviation(np.full((9, 2, 3, 3), 51, np.uint8)) == ((0.2, 0.2), (1.0, 1.0))
    assert mean_and_deviation(np.full((9, 1, 3), 2.5, np.float32)) == ((2.5,), (1.0,))


def test_training_gives_auto_the_numbers_of_the_training_set_on_every_rank():
    sets = small.dataset(211), small.dataset(97, seed=1)

    def work(comm):
        network = pc.NetworkHandler((pc.RandomCrop(1), pc.Normalize("auto"), *HEAD), (1, 11, 9))
        pc.train(network, *sets, pc.SGD(0.1), 1, 25, comm=comm, threads=1, verbose=0, timeout=0)
        return network.layers[1]

    first, *others = on_ranks(3, work)
    assert others == [first, first]
    assert first == pc.Normalize(*mean_and_deviation(sets[0].images))
    assert not first.is_auto


def test_a_second_training_keeps_the_numbers():
    network = pc.NetworkHandler((pc.Normalize("auto"), *HEAD), (1, 11, 9))
    first, second = small.dataset(50), small.dataset(50, seed=1)
    for train_set in (first, second):
        pc.train(network, train_set, second, pc.SGD(0.1), 1, 25, comm=pc.Serial(), verbose=0)
    assert network.layers[0] == pc.Normalize(*mean_and_deviation(first.images))


def test_it_trains_as_on_images_that_were_normalized_before(rng):
    train_set, test_set = small.dataset(100), small.dataset(50, seed=1)
    inside = pc.NetworkHandler((pc.Normalize("auto"), *HEAD), (1, 11, 9))
    outside = pc.NetworkHandler(HEAD, (1, 11, 9))
    mean, std = mean_and_deviation(train_set.images)

    def normalized(dataset):
        return replace(dataset, images=((dataset.images / 255 - mean) / std).astype(np.float32))

    one = pc.train(inside, train_set, test_set, pc.SGD(0.1), 2, 25, comm=pc.Serial(), verbose=0)
    sets = normalized(train_set), normalized(test_set)
    other = pc.train(outside, *sets, pc.SGD(0.1), 2, 25, comm=pc.Serial(), verbose=0)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    assert one.evaluations[-1][2].loss == pytest.approx(other.evaluations[-1][2].loss, rel=1e-4)


def test_without_its_numbers_auto_is_refused_in_a_sentence(tmp_path):
    sets = small.dataset(50), small.dataset(50, seed=1)
    message = re.escape(
        "Normalize() has no mean and standard deviation yet: training takes them from the training set, if only layers "
        "of augmentation are before it in the network; or call network.adapt(train_set), or write Normalize(mean, std)"
    )
    network = pc.NetworkHandler((pc.Normalize("auto"), *HEAD), (1, 11, 9))
    with pytest.raises(InputError, match=message):
        network.predict(sets[0].images)
    pc.save_model(tmp_path / "model.npz", network)
    assert pc.load_model(tmp_path / "model.npz").layers == network.layers
    for behind in ((pc.Activation("relu"), pc.Normalize()), (pc.Sequential((pc.Normalize(),)),)):
        network = pc.NetworkHandler((*behind, *HEAD), (1, 11, 9))
        with pytest.raises(InputError, match=message):
            pc.train(network, *sets, pc.SGD(0.1), 1, 25, comm=pc.Serial(), verbose=0)


def test_adapt_takes_a_data_set_of_the_networks_shape_and_keeps_the_parameters():
    network = pc.NetworkHandler((pc.Normalize("auto"), *HEAD), (1, 11, 9), seed=3)
    before = network.params.copy()
    with pytest.raises(ShapeError, match=r"takes images of shape \(1, 11, 9\), got \(1, 4, 5\)"):
        network.adapt(pc.Dataset(np.zeros((3, 4, 5), np.uint8), np.zeros(3, int), 5))
    network.adapt(small.dataset(50))
    assert not network.layers[0].is_auto
    np.testing.assert_array_equal(network.params, before)
    assert np.isfinite(network.predict(small.dataset(9).images)).all()


def test_arguments_become_python_numbers_and_the_layer_prints_as_its_call():
    layer = pc.Normalize(np.array([0.5, 0.25]), [np.float32(2), 3])
    assert repr(layer) == "Normalize(mean=(0.5, 0.25), std=(2.0, 3.0))"
    assert repr(pc.Normalize()) == repr(pc.Normalize("auto")) == "Normalize()"
    assert pc.Normalize(np.float64(1), np.array(2)) == pc.Normalize(1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.Normalize(0.5), r"std must be given with the mean, Normalize\(mean, std\), or 'auto' for both"),
        (lambda: pc.Normalize("auto", 1), "std must be None if the mean is 'auto', got 1"),
        (lambda: pc.Normalize("mean", 1), "mean must be a finite number, or a tuple of such, got 'mean'"),
        (lambda: pc.Normalize(0, 0), "std must be a finite number above 0, or a tuple of such, got 0"),
        (lambda: pc.Normalize(0, (1, -1)), r"std must be a finite number above 0, or a tuple of such, got \(1, -1\)"),
        (lambda: pc.Normalize(float("inf"), 1), "mean must be a finite number, or a tuple of such, got inf"),
        (lambda: pc.Normalize(0, True), "std must be a finite number above 0, or a tuple of such, got True"),
        (
            lambda: pc.NetworkHandler((pc.Normalize((1, 2), 1), *HEAD), (3, 4, 4)),
            "mean must hold a number for each of 3 channels, got 2",
        ),
        (
            lambda: pc.NetworkHandler((pc.Normalize(1, (1, 2)), *HEAD), (1, 4, 4)),
            "std must hold a number for each of 1 channels, got 2",
        ),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_summary_shows_rounded_numbers_and_the_repr_exact_ones():
    layer = pc.Normalize((0.123456789, 0.5), (0.25, 1.23456789e-07))
    text = pc.NetworkHandler((layer,), (2, 4, 4)).summary()
    assert "Normalize(mean=(0.1235, 0.5), std=(0.25, 1.235e-07))" in text
    assert repr(layer) == "Normalize(mean=(0.123456789, 0.5), std=(0.25, 1.23456789e-07))"


def test_auto_behind_a_frozen_augmentation_gets_its_numbers():
    layers = pc.freeze((pc.RandomFlip(), pc.Normalize("auto"), pc.Flatten(), pc.Dense(10)), 2)
    network = pc.NetworkHandler(layers, (1, 8, 8))
    network.adapt(pc.Dataset(np.full((3, 8, 8), 51, np.uint8), np.arange(3), 10))
    assert network.layers[1] == pc.Frozen(pc.Normalize((0.2,), (1.0,)))


def test_the_outputs_of_a_normalization_of_samples_with_four_axes(rng):
    layers = (pc.Reshape((2, 2, 4, 4)), pc.Normalize(0.5, 0.5), pc.Flatten(), pc.Dense(3))
    network = pc.NetworkHandler(layers, (4, 4, 4))
    images = rng.random((3, 4, 4, 4)).astype(np.float32)
    found = network.activations(images)
    np.testing.assert_allclose(found[1], (images.reshape(3, 2, 2, 4, 4) - 0.5) / 0.5, rtol=1e-5)
