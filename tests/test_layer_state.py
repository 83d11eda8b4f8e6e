"""Buffers and random numbers of layers: the same on any number of threads, after a resume, in files and copies."""

import copy

import noisy
import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.kernels.random import sample_keys, uniform


def train(threads=1, grains=None, epochs=2, seed=0, **options):
    network = noisy.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    optimizer = pc.SGD(0.05, momentum=0.9)
    history = pc.train(
        network, *sets, optimizer, epochs, 25, seed, pc.Serial(), threads=threads, grains=grains, **options
    )
    return network, history


def test_a_layer_with_all_that_a_layer_can_have_passes_the_gradient_check():
    assert pc.gradient_check(noisy.Noisy(), (2, 3), n=7).compared == 6 + 42


def test_training_moves_buffers_towards_the_mean_and_prediction_leaves_them_alone():
    network, _ = train()
    buffers = network.buffers.copy()
    assert (buffers != 0).mean() > 0.5
    network.predict(small.dataset(50).images)
    np.testing.assert_array_equal(network.buffers, buffers)


@pytest.mark.parametrize("grains", [4, 7])
def test_reproducible_training_gives_the_same_buffers_and_masks_on_any_number_of_threads(grains):
    runs = [train(threads, grains)[0].state_sha256() for threads in (1, 2, 3)]
    assert len(set(runs)) == 1


def test_without_it_they_agree_to_rounding():
    one, three = train(1)[0], train(3)[0]
    np.testing.assert_allclose(three.params, one.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(three.buffers, one.buffers, rtol=1e-4, atol=1e-5)


def test_another_seed_gives_other_masks_and_so_does_another_epoch():
    keys = np.empty((3, 50), np.uint64)
    for i, key in enumerate((1, 1, 2)):
        sample_keys(np.uint64(key), np.arange(50), keys[i])
    np.testing.assert_array_equal(keys[0], keys[1])
    assert len(set(keys.ravel().tolist())) == 100
    assert train(seed=1)[0].state_sha256() != train()[0].state_sha256()


def test_uniform_numbers_are_uniform_and_depend_on_sample_layer_and_place():
    keys, y, other = np.empty(200, np.uint64), np.empty((100, 200), np.float32), np.empty((100, 200), np.float32)
    sample_keys(np.uint64(5), np.arange(200), keys)
    uniform(keys, 3, y)
    uniform(keys, 4, other)
    assert y.min() >= 0
    assert y.max() < 1
    assert y.mean() == pytest.approx(0.5, abs=0.01)
    assert y.var() == pytest.approx(1 / 12, abs=0.003)
    for a, b in ((y, other), (y[1:], y[:-1]), (y[:, 1:], y[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
    uniform(keys[50:60], 3, part := np.empty((100, 10), np.float32))
    np.testing.assert_array_equal(part, y[:, 50:60])


def test_a_resumed_training_ends_with_the_same_buffers(tmp_path):
    folder = pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9)
    whole, _ = train(grains=4, checkpoints=folder)
    middle = pc.load_checkpoint(tmp_path / "step-000000014.npz")
    assert middle.state["buffers"].shape == whole.buffers.shape
    resumed, _ = train(grains=4, threads=2, resume=middle)
    assert resumed.state_sha256() == whole.state_sha256()


def test_a_model_file_and_a_copy_keep_buffers(tmp_path):
    network, _ = train()
    images = small.dataset(20, seed=3).images
    pc.save_model(tmp_path / "model.npz", network)
    with np.load(tmp_path / "model.npz") as file:
        np.testing.assert_array_equal(file["2.mean"], network.named_arrays["2.mean"])
    for again in (pc.load_model(tmp_path / "model.npz", noisy.LAYERS), copy.deepcopy(network)):
        np.testing.assert_array_equal(again.predict(images), network.predict(images))


def test_a_state_without_buffers_is_refused():
    with pytest.raises(pc.ParallelCNNError, match="buffers must be there, got params"):
        noisy.network().set_state({"params": noisy.network().params})
