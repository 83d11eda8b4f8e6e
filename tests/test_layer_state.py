"""Buffers and random numbers of layers: the same on any number of ranks and threads, after a resume and a lost rank, in
files and copies.
"""

import copy
import json
import sys
from pathlib import Path

import launch
import noisy
import numpy as np
import own_layers
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.kernels.random import sample_keys, uniform

HERE = Path(__file__).parent


def train(threads=1, reproducible=None, epochs=2, seed=0, layers=noisy, **options):
    network = layers.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    optimizer = pc.SGD(0.05, momentum=0.9)
    history = pc.train(
        network, *sets, optimizer, epochs, 25, seed, pc.Serial(), threads=threads, reproducible=reproducible, **options
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


@pytest.mark.parametrize("reproducible", [4, 7])
def test_reproducible_training_gives_the_same_buffers_and_masks_on_any_number_of_threads(reproducible):
    runs = [train(threads, reproducible)[0].state_sha256() for threads in (1, 2, 3)]
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
    whole, _ = train(reproducible=4, checkpoints=folder)
    middle = pc.load_checkpoint(tmp_path / "step-000000014.npz")
    assert middle.state["buffers"].shape == whole.buffers.shape
    resumed, _ = train(reproducible=4, threads=2, resume=middle)
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


@pytest.mark.parametrize("layer", [own_layers.Centre(), own_layers.Dropout(), pc.Residual(own_layers.LAYERS[3:5])])
def test_each_layer_of_the_users_file_passes_the_gradient_check(layer):
    pc.gradient_check(layer, (2, 3, 4), n=5)


def test_dropout_drops_its_part_in_training_only_and_keeps_the_mean(rng):
    network = pc.NetworkHandler((own_layers.Dropout(0.25),), (300,))
    images = rng.random((100, 300), np.float32) + 1
    x = network.load(images, training=True)
    dropped = network.forward(x, training=True) == 0
    assert dropped.mean() == pytest.approx(0.25, abs=0.02)
    assert network.forward(x, training=True).mean() == pytest.approx(images.mean(), rel=0.02)
    np.testing.assert_array_equal(network.forward(network.load(images)), images.T)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("reproducible", [None, 4])
def test_a_moving_average_is_the_one_computed_by_hand(threads, reproducible):
    """With the whole data set as the minibatch: 0.2 of the mean after the first, and again after the second."""
    dataset = small.dataset(83)
    network = pc.NetworkHandler((pc.Flatten(), own_layers.Centre(0.2), pc.Dense(5)), (1, 11, 9))
    options = {"comm": pc.Serial(), "threads": threads, "reproducible": reproducible, "verbose": 0}
    pc.train(network, dataset, dataset, pc.SGD(0.01), 2, 83, **options)
    mean = (dataset.images / 255).mean(0).ravel()
    np.testing.assert_allclose(network.named_arrays["1.mean"], (1 - 0.8**2) * mean, rtol=1e-5)


_TRAINS = """
import json, sys
import own_layers, small
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()
folder = sys.argv[1]
sets = small.dataset(211), small.dataset(97, seed=1)

def train(**options):
    network = own_layers.network(seed=comm.rank)  # rank 0's weights count
    pc.train(network, *sets, pc.SGD(0.05, momentum=0.9), 2, 25, comm=comm, verbose=0, **options)
    return network

middle = pc.load_checkpoint(f"{folder}/step-000000014.npz")
found = []
for threads in (1, 2):
    plain = train(threads=threads)
    exact = [train(threads=threads, reproducible=6), train(threads=threads, reproducible=6, resume=middle)]
    found.append([plain.params.tolist(), plain.buffers.tolist(), [one.state_sha256() for one in exact]])
everyone = comm.allgather([one[2] for one in found])
assert all(one == everyone[0] for one in everyone)
if comm.rank == 0:
    print(json.dumps(found), flush=True)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_layers_of_a_users_file_give_the_same_on_any_number_of_ranks_and_threads_and_after_a_resume(
    ranks, tmp_path
):
    """Up to rounding, and bit for bit with reproducible sums. The checkpoint is that of one rank with one thread."""
    folder = pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9)
    plain, _ = train(layers=own_layers)
    exact, _ = train(layers=own_layers, reproducible=6, checkpoints=folder)
    ran = launch.run_ranks(ranks, ["-c", _TRAINS, str(tmp_path)], PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    for params, buffers, hashes in json.loads(ran.out):
        np.testing.assert_allclose(params, plain.params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(buffers, plain.buffers, rtol=1e-4, atol=1e-5)
        assert hashes == [exact.state_sha256()] * 2


_LOSES_RANKS = """
import json, os, signal, sys, warnings
import own_layers, small
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()
started_as, when = comm.rank, json.loads(sys.argv[1])  # rank, as it was started -> minibatch or sum in which it dies
reproducible = json.loads(sys.argv[2])

class Dies:
    def on_batch_end(self, step, logs):
        if step == when.get(str(started_as)):
            os.kill(os.getpid(), signal.SIGKILL)

count, allreduce = 0, comm.allreduce
def sum_and_die(array):
    global count
    count += 1
    if f"sum {count}" == when.get(str(started_as)):
        os.kill(os.getpid(), signal.SIGKILL)
    allreduce(array)
comm.allreduce = sum_and_die

network = own_layers.network(seed=started_as)
sets = small.dataset(211), small.dataset(97, seed=1)
options = dict(comm=comm, callbacks=[Dies()], verbose=0, reproducible=reproducible, threads=1 + started_as % 2)
with warnings.catch_warnings(action="ignore"):
    history = pc.train(network, *sets, pc.SGD(0.05, momentum=0.9), 2, 25, **options)
everyone = comm.allgather(network.state_sha256())
if comm.rank == 0:
    numbers = network.params.tolist(), network.buffers.tolist()
    print(json.dumps([sorted(set(everyone)), history.lost_ranks, *numbers]), flush=True)
comm.barrier()
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("deaths", "reproducible"),
    [({"0": 5, "2": 14}, 6), ({"2": "sum 8"}, 6), ({"0": "sum 11"}, None)],
    ids=str,
)
def test_after_a_lost_rank_buffers_and_masks_are_those_of_an_undisturbed_run(deaths, reproducible):
    launch.skip_unless_ranks_can_be_lost()
    undisturbed, _ = train(layers=own_layers, reproducible=reproducible)
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-c", _LOSES_RANKS]
    ran = launch.run([*line, json.dumps(deaths), json.dumps(reproducible)], limit=100, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    hashes, lost, params, buffers = json.loads(ran.out)
    assert lost == len(deaths)
    assert len(hashes) == 1
    np.testing.assert_allclose(buffers, undisturbed.buffers, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params, undisturbed.params, rtol=1e-4, atol=1e-5)
    if reproducible:
        assert hashes == [undisturbed.state_sha256()]


def test_a_loop_of_ones_own_says_how_many_samples_moving_averages_are_of_and_has_keys():
    network = pc.NetworkHandler((pc.BatchNorm(), pc.Dropout(0.5), pc.Flatten(), pc.Dense(3)), (2, 3, 3))
    images = np.random.default_rng(0).random((32, 2, 3, 3), np.float32)
    first, again, other = (
        network.forward(network.load(images, training=True, key=key), training=True).copy() for key in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    network.backward(np.ones_like(first))
    with pytest.raises(InputError, match="samples must be the number of samples in the minibatch"):
        network.update(pc.SGD(0.1))
    network.update(pc.SGD(0.1), 32)
    np.testing.assert_allclose(network.named_arrays["0.running_mean"], 0.1 * images.mean((0, 2, 3)), rtol=1e-5)
