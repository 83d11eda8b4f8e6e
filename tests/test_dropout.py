"""Dropout: the masks, their independence of the layout of ranks and threads, and the gradient."""

import json
from pathlib import Path

import launch
import numpy as np
import own_layers
import pytest
import small
from recorded import call_all, record

import parallelcnn as pc
from parallelcnn.kernels.random import sample_keys, uniform

KINDS = pytest.mark.parametrize("kind", [pc.Dropout, pc.SpatialDropout])


def layers_with(dropout):
    image = pc.Reshape((6, 2, 2))
    return (
        pc.Flatten(),
        pc.Dense(24, activation="relu"),
        image,
        dropout(0.25),
        dropout(0.5),
        pc.Flatten(),
        pc.Dense(5),
    )


def keys_of(key, n, first=0):
    keys = np.empty(n, np.uint64)
    sample_keys(np.uint64(key), np.arange(first, first + n), keys)
    return keys


def masks(layers, input_shape, n, key):
    """Which numbers are kept up to each layer, in training."""
    kept = []
    for count in range(1, len(layers) + 1):
        network = pc.NetworkHandler(layers[:count], input_shape)
        x = network.replica.load(np.ones((n, *input_shape), np.float32), training=True, key=key)
        kept.append(network.forward(x, training=True) > 0)
    return kept


@KINDS
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 1 - 2**-20])
def test_a_number_is_dropped_where_its_random_number_is_below_the_rate(kind, rate, rng):
    """The random numbers are those of `uniform`: functions of the sample's key, the layer's number and the place."""
    layer = record(kind(rate), (4, 3, 5), 7, np.float32)
    tape = layer.tape
    tape.keys[...] = keys_of(3, 7)
    tape.x[...] = rng.normal(size=tape.x.shape)
    features = 4 if kind is pc.SpatialDropout else 60
    numbers = np.empty((features, 7), np.float32)
    uniform(tape.keys, 0, numbers)
    factor = np.where(numbers >= rate, 1 / (1 - rate), 0).reshape(4, *((1, 1) if features == 4 else (3, 5)), 7)
    call_all(tape.forward)
    np.testing.assert_allclose(tape.y, tape.x * factor, rtol=1e-6)
    dy = rng.normal(size=tape.dy.shape).astype(np.float32)
    tape.dy[...] = dy
    call_all(tape.backward)
    np.testing.assert_allclose(tape.dx, dy * factor, rtol=1e-6)


@KINDS
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_the_rate_is_dropped_and_the_mean_is_kept(kind, rate):
    network = pc.NetworkHandler((kind(rate),), (300, 1, 2))
    y = network.forward(network.load(np.ones((100, 300, 1, 2), np.float32), training=True), training=True)
    assert (y == 0).mean() == pytest.approx(rate, abs=0.02)  # at least four standard deviations
    assert y.mean() == pytest.approx(1, abs=0.1)
    pairs_are_equal = (y[:, :, 0] == y[:, :, 1]).mean()
    assert pairs_are_equal == pytest.approx(1 if kind is pc.SpatialDropout else rate**2 + (1 - rate) ** 2, abs=0.02)


@KINDS
def test_masks_differ_between_layers_epochs_and_samples(kind):
    two = (kind(0.5), kind(0.5))
    first, both = masks(two, (200, 1, 1), 50, key=1)
    other_epoch, _ = masks(two, (200, 1, 1), 50, key=2)
    assert both.mean() == pytest.approx(0.25, abs=0.03)  # the same mask twice would keep half
    assert (first == other_epoch).mean() == pytest.approx(0.5, abs=0.03)
    assert (first[..., 1:] == first[..., :-1]).mean() == pytest.approx(0.5, abs=0.03)
    assert (first[1:] == first[:-1]).mean() == pytest.approx(0.5, abs=0.03)


def test_masks_differ_behind_layers_that_run_while_samples_are_loaded():
    network = pc.NetworkHandler((pc.Normalize(0, 1), pc.Dropout(0.5)), (40,))
    images = np.ones((6, 40), np.float32)

    def mask(key):
        x = network.replica.load(images, np.arange(6), training=True, key=key, fused=True)
        return network.forward(x, training=True).T != 0

    first, second = mask(1), mask(2)
    assert len({row.tobytes() for row in (*first, *second)}) == 12


def test_masks_of_layers_inside_layers_differ_too():
    layer = pc.Residual((pc.Dropout(0.5), pc.Dropout(0.5)))
    network = pc.NetworkHandler((layer,), (10_000,))
    y = network.forward(network.load(np.ones((1, 10_000), np.float32), training=True), training=True)
    assert (y == 1).mean() == pytest.approx(0.75, abs=0.03)


@KINDS
def test_a_sample_has_the_same_mask_in_any_shard_and_in_a_repeated_step(kind, rng):
    network = pc.NetworkHandler((kind(0.5),), (6, 2, 3))
    images = rng.random((40, 6, 2, 3), np.float32) + 1

    def output(indices):
        x = network.replica.load(images, indices, training=True, key=9)
        return network.forward(x, training=True).copy()

    whole = output(np.arange(40))
    np.testing.assert_array_equal(output(np.arange(40)), whole)
    for start, stop in ((0, 1), (3, 20), (20, 40)):
        np.testing.assert_array_equal(output(np.arange(start, stop)), whole[..., start:stop])
    np.testing.assert_array_equal(output(np.arange(40)[::-1].copy()), whole[..., ::-1])


@KINDS
def test_it_does_nothing_in_prediction_nor_at_rate_0_and_copies_nothing(kind, rng):
    for rate, training in ((0.5, False), (0, True), (0.0, False)):
        tape = pc.NetworkHandler((kind(rate),), (4, 2, 3)).replica.tape(5, training=training)
        assert not tape.forward
        assert not tape.backward
        assert tape.keys is None
        assert tape.y.ctypes.data == tape.x.ctypes.data


def test_a_nan_is_not_lost_where_it_is_dropped():
    network = pc.NetworkHandler((pc.Dropout(0.5),), (100,))
    y = network.forward(network.load(np.full((1, 100), np.nan, np.float32), training=True), training=True)
    assert np.isnan(y).all()


def train(dropout=pc.Dropout, threads=1, **options):
    network = pc.NetworkHandler(layers_with(dropout), (1, 11, 9))
    sets = small.dataset(211), small.dataset(97, seed=1)
    pc.train(network, *sets, pc.SGD(0.05), 2, 25, comm=pc.Serial(), threads=threads, verbose=0, **options)
    return network


@KINDS
def test_training_gives_the_same_bits_on_any_number_of_threads(kind):
    assert len({train(kind, threads, reproducible=4).state_sha256() for threads in (1, 2, 3)}) == 1


def test_training_is_that_with_the_dropout_that_the_guide_tells_users_to_write():
    np.testing.assert_allclose(train().params, train(own_layers.Dropout).params, rtol=1e-5, atol=1e-6)


def test_training_resumes_with_the_masks_of_an_uninterrupted_run(tmp_path):
    whole = train(reproducible=4, checkpoints=pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9))
    middle = pc.load_checkpoint(tmp_path / "step-000000014.npz")
    assert train(reproducible=4, threads=2, resume=middle).state_sha256() == whole.state_sha256()


_TRAINS = """
import json
import small
import test_dropout
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()
network = pc.NetworkHandler(test_dropout.layers_with(pc.Dropout), (1, 11, 9), seed=comm.rank)
sets = small.dataset(211), small.dataset(97, seed=1)
pc.train(network, *sets, pc.SGD(0.05), 2, 25, comm=comm, threads=2, reproducible=4, verbose=0)
everyone = comm.allgather(network.state_sha256())
if comm.rank == 0:
    print(json.dumps(everyone), flush=True)
"""


@pytest.mark.mpi
def test_ranks_train_with_the_masks_of_one_process():
    ran = launch.run_ranks(3, ["-c", _TRAINS], PYTHONPATH=str(Path(__file__).parent))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == [train(reproducible=4).state_sha256()] * 3
