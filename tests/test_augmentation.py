"""Layers of augmentation: against plain numpy, their distributions, and their independence of ranks and threads."""

import copy
import pickle

import augmented
import numpy as np
import pytest
import small
import traced
from cases import AUGMENTATIONS, name_of
from recorded import call_all, record
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import InputError, ShapeError

IMAGE_LAYERS = [case for case in AUGMENTATIONS if not isinstance(case[0], pc.MixUp | pc.Sequential)]
EVERY = (
    pc.RandomFlip("horizontal_and_vertical"),
    pc.RandomCrop((1, 2)),
    pc.RandomRotation(20),
    pc.RandomZoom(0.2),
    pc.RandomBrightness(0.1),
    pc.RandomContrast(0.3),
    pc.Normalize("auto"),
    pc.Cutout(3),
    pc.MixUp(0.4),
)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("layer", "input_shape"), IMAGE_LAYERS, ids=name_of)
def test_a_layer_changes_each_image_as_plain_numpy_does(layer, input_shape, dtype, n, rng):
    tape = record(layer, input_shape, n, dtype).tape
    images = rng.random((n, *input_shape))
    keys = augmented.keys_of(n)
    tape.x[...] = np.moveaxis(images, 0, -1)
    if tape.keys is not None:
        tape.keys[...] = keys
    call_all(tape.forward)
    expected = augmented.prepared((layer,), images, keys)
    tolerance = 1e-12 if dtype is np.float64 else 3e-6
    np.testing.assert_allclose(np.moveaxis(tape.y, -1, 0), expected, rtol=tolerance, atol=tolerance)


def output(layer, n, shape, key=0, images=None):
    """The output in training of a network of one layer, samples first."""
    network = pc.NetworkHandler((layer,), shape)
    images = np.ones((n, *shape), np.float32) if images is None else images
    x = network.replica.load(images, training=True, key=key)
    return np.moveaxis(network.forward(x, training=True), -1, 0)


def assert_equally_likely(counts):
    """Each count is within five standard deviations of the mean."""
    mean = counts.sum() / counts.size
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_every_window_of_a_crop_is_equally_likely():
    image = np.zeros((1, 5, 7), np.float32)
    image[0, 2, 3] = 1
    moved = output(pc.RandomCrop((1, 2)), 6000, (1, 5, 7), images=np.repeat(image[None], 6000, 0))
    counts = moved.sum((0, 1))
    assert counts[[0, -1]].sum() == counts[:, 0].sum() == counts[:, -1].sum() == 0
    assert counts.sum() == 6000
    assert_equally_likely(counts[1:-1, 1:-1])


def test_both_flips_are_made_with_a_probability_of_a_half_and_independently():
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    flipped = output(pc.RandomFlip("horizontal_and_vertical"), 4000, (1, 2, 2), images=np.repeat(image[None], 4000, 0))
    assert_equally_likely(np.bincount(flipped[:, 0, 0, 0].astype(int), minlength=4))


def test_the_centre_of_a_cut_is_equally_likely_everywhere():
    cut = output(pc.Cutout(1), 6000, (2, 3, 4)) == 0
    assert (cut[:, 0] == cut[:, 1]).all()
    assert (cut.sum((2, 3)) == 1).all()
    assert_equally_likely(cut[:, 0].sum(0))


def test_angles_zooms_brightness_and_contrast_are_spread_evenly_over_their_range():
    image = np.tile(np.arange(9, dtype=np.float32) - 4, (9, 1))  # the column's distance from the centre
    many = np.repeat(image[None, None], 4000, 0)
    at = np.s_[:, 0, 4, 6]  # two columns right of the centre
    cosines = output(pc.RandomRotation(60), 4000, (1, 9, 9), images=many)[at] / 2
    sines = output(pc.RandomRotation(60), 4000, (1, 9, 9), images=many)[:, 0, 6, 4] / 2
    np.testing.assert_allclose(np.hypot(cosines, sines), 1, atol=1e-5)
    for numbers, low, high in (
        (np.degrees(np.arctan2(sines, cosines)), -60, 60),
        (2 / output(pc.RandomZoom(0.25), 4000, (1, 9, 9), images=many)[at], 0.75, 1.25),
        (output(pc.RandomBrightness(0.5), 4000, (1, 9, 9), images=many)[at] - 2, -0.5, 0.5),
        (output(pc.RandomContrast(0.5), 4000, (1, 9, 9), images=many)[at] / 2, 0.5, 1.5),
    ):
        assert low - 1e-4 <= numbers.min()
        assert numbers.max() <= high + 1e-4
        assert_equally_likely(np.histogram(numbers, 8, (low - 1e-4, high + 1e-4))[0])


@pytest.mark.parametrize("layer", [layer for layer in EVERY if not isinstance(layer, pc.MixUp | pc.Normalize)])
def test_random_numbers_differ_between_samples_epochs_and_layers_and_not_between_shards(layer, rng):
    images = np.repeat(rng.random((1, 2, 9, 8), np.float32), 40, 0)

    def run(indices, key, *before):
        network = pc.NetworkHandler((*before, layer), (2, 9, 8))
        x = network.replica.load(images, indices, training=True, key=key, fused=True)  # as training does
        return np.moveaxis(network.forward(x, training=True), -1, 0).copy()

    def different(one, other):
        return (one != other).any((1, 2, 3)).mean()

    whole = run(np.arange(40), 1)
    np.testing.assert_array_equal(run(np.arange(7, 30), 1), whole[7:30])
    assert different(whole, run(np.arange(40), 2)) > 0.3
    assert different(whole[1:], whole[:-1]) > 0.3
    behind = run(np.arange(40), 1, pc.Normalize(0, 1))
    assert different(whole, behind) > 0.3  # the same layer at another place
    assert different(behind, run(np.arange(40), 2, pc.Normalize(0, 1))) > 0.3
    assert different(behind[1:], behind[:-1]) > 0.3


@pytest.mark.parametrize(
    "layer", [pc.RandomCrop(0), pc.RandomRotation(0), pc.RandomZoom(0), pc.RandomBrightness(0), pc.RandomContrast(0.0)]
)
def test_a_layer_that_changes_nothing_copies_nothing(layer):
    network = pc.NetworkHandler((pc.Sequential(()), layer), (2, 5, 4))
    tape = network.replica.tape(3, training=True)
    assert tape.y.ctypes.data == tape.x.ctypes.data
    assert tape.keys is None


@pytest.mark.parametrize("layer", EVERY)
def test_in_prediction_a_layer_does_nothing(layer):
    if isinstance(layer, pc.Normalize):
        return
    tape = pc.NetworkHandler((layer,), (2, 5, 4)).replica.tape(3, training=False)
    assert not tape.forward
    assert tape.y.ctypes.data == tape.x.ctypes.data


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.RandomFlip("both"), "mode must be horizontal, vertical or horizontal_and_vertical, got 'both'"),
        (lambda: pc.RandomFlip(0.5), "mode must be horizontal, vertical or horizontal_and_vertical, got 0.5"),
        (lambda: pc.RandomCrop(-1), r"RandomCrop\(-1\): padding must be an integer of at least 0, got -1"),
        (lambda: pc.RandomCrop(32.0), "padding must be an integer of at least 0, got 32.0"),
        (lambda: pc.RandomRotation(181), "degrees must be a number of at least 0 and at most 180, got 181"),
        (lambda: pc.RandomRotation("15"), "degrees must be a number of at least 0 and at most 180, got '15'"),
        (lambda: pc.RandomZoom(1), r"RandomZoom\(1\): factor must be a number of at least 0 and below 1, got 1"),
        (lambda: pc.RandomBrightness(-0.1), "factor must be a number of at least 0 and at most 1e\\+30, got -0.1"),
        (lambda: pc.RandomContrast(float("nan")), "factor must be a number of at least 0 and at most 1, got nan"),
        (lambda: pc.RandomContrast(True), "factor must be a number of at least 0 and at most 1, got True"),
        (lambda: pc.Cutout(0), "size must be a positive integer, got 0"),
        (lambda: pc.MixUp(0), "alpha must be a finite number above 0, got 0"),
        (lambda: pc.RandomCrop(32, 32), r"RandomCrop takes padding by position, got RandomCrop\(32, 32\)"),
    ],
)
def test_a_wrong_argument_is_named_with_its_rule(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("layer", [layer for layer in EVERY if not isinstance(layer, pc.MixUp | pc.Normalize)])
def test_a_vector_is_refused(layer):
    with pytest.raises(ShapeError, match=r"takes images \(C, H, W\), got \(9,\)"):
        pc.NetworkHandler((layer, pc.Dense(3)), (9,))


def network_of(front=EVERY, seed=0):
    """Also a layer behind a trained one, through which gradients flow."""
    layers = (pc.Conv2D(3, 3, activation="relu"), pc.RandomCrop(1), pc.MaxPool2D(2), pc.Flatten(), pc.Dense(5))
    return pc.NetworkHandler((*front, *layers), (1, 11, 9), seed)


def train(front=EVERY, comm=None, **options):
    network = network_of(front, seed=0 if comm is None else comm.rank)
    sets = small.dataset(211), small.dataset(97, seed=1)
    options = {"threads": 1, "verbose": 0, **options}
    pc.train(network, *sets, pc.SGD(0.05), 2, 25, comm=comm or pc.Serial(), **options)
    return network


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A trained network, and a checkpoint from the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("alone")
    network = train(reproducible=4, checkpoints=pc.CheckpointFolder(folder, every_steps=7, keep_last=9))
    return network, folder / "step-000000014.npz"


@pytest.mark.parametrize(("ranks", "threads"), [(1, 2), (1, 3), (2, 1), (3, 2)])
@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_training_gives_the_same_bits_on_any_number_of_ranks_and_threads(ranks, threads, alone):
    hashes = on_ranks(ranks, lambda comm: train(comm=comm, threads=threads, reproducible=4, timeout=0).state_sha256())
    assert set(hashes) == {alone[0].state_sha256()}


def test_a_resume_goes_on_with_the_same_random_numbers(alone):
    network, file = alone
    resumed = train(reproducible=4, threads=2, resume=pc.load_checkpoint(file))
    assert resumed.state_sha256() == network.state_sha256()
    assert resumed.layers == network.layers


def test_files_and_copies_predict_the_same(alone, tmp_path):
    network, file = alone
    images = small.dataset(30, seed=5).images
    pc.save_model(tmp_path / "model.npz", network)
    expected = network.predict(images)
    for again in (pc.load_model(tmp_path / "model.npz"), pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert again.layers == network.layers
        assert not again.layers[6].is_auto
        np.testing.assert_array_equal(again.predict(images), expected)
    assert pc.load_model(file).layers == network.layers


def test_predictions_are_those_of_the_same_network_without_augmentation(alone):
    network, _ = alone
    plain = pc.NetworkHandler((network.layers[6], *network_of(()).layers), (1, 11, 9))
    plain.params = network.params
    images = small.dataset(30, seed=5).images
    np.testing.assert_array_equal(network.predict(images), plain.predict(images))
    np.testing.assert_allclose(network.activations(images)[-1], plain.activations(images)[-1], rtol=1e-5, atol=1e-5)


def test_augmentation_changes_training():
    without = [layer for layer in EVERY if isinstance(layer, pc.Normalize)]
    assert train(front=without).parameters_sha256() != train().parameters_sha256()


def test_the_summary_lists_the_layers(alone):
    lines = alone[0].summary().splitlines()
    assert [line.split("  ")[0] for line in lines if "Random" in line] == [*map(repr, EVERY[:6]), "RandomCrop(1)"]


def test_a_step_allocates_no_memory_for_numbers():
    samples = 4096 + 1  # an array of one byte for each would be seen
    steps = traced.TracedSteps()
    network = network_of()
    network.replica.block_size = samples
    options = {"callbacks": [steps], "verbose": 0, "threads": 1, "reproducible": 1}
    pc.train(network, small.dataset(2 * samples), small.dataset(9), pc.SGD(0.01), 3, samples, **options)
    assert steps.steps == 2
    assert steps.peak <= 4096


def test_a_profile_times_the_layers_that_run():
    profiler = pc.Profiler()
    expected = train(reproducible=4)
    network = train(reproducible=4, profiler=profiler)
    assert network.state_sha256() == expected.state_sha256()
    assert "PreparedImages((RandomFlip(mode=" in profiler.table()
