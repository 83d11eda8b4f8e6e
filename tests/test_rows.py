"""Arrays that stay in their file: equal to arrays in memory, in data sets and in trainings larger than the memory."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT

import parallelcnn as pc
from parallelcnn.cli.data_sets import load_data_sets
from parallelcnn.comm import shared_file
from parallelcnn.files.rows import ChosenRows, FileRows, choose
from parallelcnn.training.agreement import describe_data, describe_dataset
from parallelcnn.training.config import TrainConfig

SHAPE = (30, 3, 5, 4)


@pytest.fixture
def array(rng):
    return rng.integers(0, 256, SHAPE, np.uint8)


@pytest.fixture
def rows(array, tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b"x" * 70 + array.tobytes() + b"y" * 10)
    return FileRows(path, 70, np.uint8, SHAPE)


KEYS = {
    "a row": 3,
    "from the end": -1,
    "all": slice(None),
    "a slice": slice(5, 9),
    "beyond": slice(25, 99),
    "none": slice(7, 7),
    "steps": slice(20, 2, -3),
    "indices": np.array([4, 4, 0, 29]),
    "a list": [2, -2],
    "no indices": np.empty(0, np.int64),
    "a mask": np.arange(30) % 7 == 0,
}


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("name", KEYS)
def test_rows_are_those_of_the_array(name, in_file, rows, array):
    rows = rows if in_file else ChosenRows(array)
    np.testing.assert_array_equal(rows[KEYS[name]], array[KEYS[name]])
    part = np.array([9, 8, 8, 29, 0])
    if name not in ("indices", "a mask"):
        np.testing.assert_array_equal(rows.choose(part)[KEYS[name]], array[part][KEYS[name]])


def test_it_has_the_properties_of_an_array(rows, array):
    for whole in (rows, ChosenRows(array)):
        for one, other in ((whole, array), (whole.choose(np.array([1, 2])), array[1:3])):
            for name in ("shape", "dtype", "ndim", "size", "nbytes"):
                assert getattr(one, name) == getattr(other, name), name
            assert len(one) == len(other)
    np.testing.assert_array_equal(rows.mapped(), array)
    np.testing.assert_array_equal(rows.choose(np.array([1, 2])).mapped(), array[1:3])
    assert not rows.mapped().flags.writeable


def test_chosen_rows_stay_in_the_file_and_can_be_chosen_from_again(rows, array):
    mask = np.arange(30) % 2 == 1
    twice = choose(choose(rows, mask), np.array([3, 1]))
    assert isinstance(twice, FileRows)
    np.testing.assert_array_equal(twice[:], array[mask][[3, 1]])
    np.testing.assert_array_equal(choose(array, mask), array[mask])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(twice))[:], twice[:])


@pytest.mark.parametrize("key", [30, -31, [0, 30], np.array([-31])])
def test_rows_that_do_not_exist_are_refused(key, rows):
    with pytest.raises(IndexError, match=r"rows must lie in \[0, 30\), got"):
        rows[key]


def test_a_file_that_has_become_shorter_is_named(rows):
    os.truncate(rows.path, 100)
    with pytest.raises(OSError, match="rows: has become shorter"):
        rows[29]


def test_rows_can_be_written(rows, array):
    written = FileRows(rows.path, 70, np.uint8, SHAPE, writable=True)
    array[4] = 7
    written[4] = array[4]
    np.testing.assert_array_equal(rows[:], array)
    written[:] = array[::-1]
    np.testing.assert_array_equal(rows[:], array[::-1])
    assert rows.path.read_bytes()[:70] == b"x" * 70
    assert rows.path.read_bytes()[-10:] == b"y" * 10


def test_several_threads_read_at_once(rows, array):
    picks = [np.random.default_rng(i).integers(0, 30, 20) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for pick, found in zip(picks, pool.map(rows.__getitem__, picks), strict=True):
            np.testing.assert_array_equal(found, array[pick])


def test_numbers_of_other_types(tmp_path, rng):
    array = rng.normal(size=(6, 3)).astype(np.float32)
    (tmp_path / "x").write_bytes(array.tobytes())
    np.testing.assert_array_equal(FileRows(tmp_path / "x", 0, np.float32, (6, 3))[[5, 0]], array[[5, 0]])


# ---- data sets


def test_a_data_set_in_a_file_trains_as_one_in_memory(rows, array):
    labels = np.arange(30) % 3
    there, here = (pc.Dataset(images, labels, 3) for images in (rows, array))
    shared = here.without_copies()
    for one in (there, shared):
        assert describe_dataset(one) == describe_dataset(here)
        assert one.input_shape == (3, 5, 4)
        assert repr(one) == repr(here)
    hashes = []
    for dataset in (there, here, shared):
        train, validation = dataset.split(0.2, seed=1)
        assert isinstance(train.images, type(dataset.images))
        network = pc.NetworkHandler((pc.Flatten(), pc.Dense(3)), (3, 5, 4))
        for threads in (1, 3):
            pc.train(network, train, validation, pc.SGD(0.1), 2, 7, reproducible=3, threads=threads, verbose=0)
        hashes.append((network.parameters_sha256(), pc.evaluate(network, dataset)))
    assert hashes[0] == hashes[1] == hashes[2]


def test_augmentation_and_normalisation_take_rows_from_a_file(rows, array, monkeypatch):
    monkeypatch.setattr("parallelcnn.layers.normalize._PIECE", 7)
    hashes = []
    backwards = ChosenRows(np.ascontiguousarray(array[::-1])).choose(np.arange(30)[::-1])
    for images in (rows, array, backwards):
        dataset = pc.Dataset(images, np.arange(30) % 3, 3)
        layers = (pc.Normalize("auto"), pc.RandomFlip(), pc.RandomCrop(2), pc.Flatten(), pc.Dense(3))
        network = pc.NetworkHandler(layers, (3, 5, 4))
        pc.train(network, dataset, dataset, pc.SGD(0.1), 2, 7, verbose=0)
        np.testing.assert_allclose(network.layers[0].mean, array.mean((0, 2, 3)) / 255)
        hashes.append(network.parameters_sha256())
    assert hashes[0] == hashes[1] == hashes[2]


@pytest.mark.parametrize("kind", ["photos", "npy"])
def test_a_validation_split_copies_no_images(kind, tmp_path, monkeypatch):
    """Training and validation set are rows of the same map of the file, on every rank."""
    monkeypatch.setenv("PARALLELCNN_CACHE", str(tmp_path / "cache"))
    rng, folder = np.random.default_rng(0), tmp_path / kind
    if kind == "photos":
        image = pytest.importorskip("PIL.Image")
        for number in range(40):
            (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png")
    else:
        folder.mkdir()
        np.save(folder / "x_train.npy", rng.integers(0, 256, (40, 3, 8, 8), np.uint8))
        np.save(folder / "y_train.npy", np.arange(40) % 2)
    options = TrainConfig(data=str(folder), epochs=1, batch_size=5)
    whole = load_data_sets(options, pc.Serial()).train
    loaded = load_data_sets(TrainConfig(data=str(folder), epochs=1, batch_size=5, validation_split=0.25), pc.Serial())
    train, validation = loaded.train.images, loaded.evaluated.images
    assert (len(train), len(validation)) == (24, 8)
    assert shared_file(train.array) is not None
    assert np.shares_memory(train.array, validation.array)
    expected = pc.Dataset(whole.images[:], whole.labels, 2).split(0.25)
    for one, other in zip((loaded.train, loaded.evaluated), expected, strict=True):
        np.testing.assert_array_equal(one.images[:], other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    described = describe_data(pc.Serial(), train=loaded.train, validation=loaded.evaluated)
    assert described == {"train": describe_dataset(expected[0]), "validation": describe_dataset(expected[1])}


LARGE = r"""
import json, re, resource, sys
from pathlib import Path
import numpy as np
import parallelcnn as pc
from parallelcnn.files.rows import FileRows
from parallelcnn.resources import memory_limit

def peak():  # getrusage counts the process that started this one
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


limit = int(sys.argv[2])
images = FileRows(Path(sys.argv[1]), 0, np.uint8, (int(sys.argv[3]), 3, 64, 64))
layers = (pc.AvgPool2D(32), pc.Flatten(), pc.Dense(2))
network = pc.NetworkHandler(layers, (3, 64, 64))
few = pc.Dataset(np.zeros((200, 3, 64, 64), np.uint8), np.arange(200) % 2, 2)
pc.train(network, few, few, pc.SGD(0.1), 1, 100, verbose=0)
before = peak()  # more where kernels have been compiled
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert images.nbytes >= 2 * memory_limit()[0]
train_set = pc.Dataset(images, np.arange(len(images)) % 2, 2)
history = pc.train(network, train_set, few, pc.SGD(0.1), 1, 1000, verbose=0)
print(json.dumps([history.samples_seen, before, peak()]))
"""


@pytest.mark.slow
def test_data_twice_as_large_as_the_address_space_can_be_trained_on(tmp_path):
    limit, count = 1_500_000_000, 250_000
    with open(tmp_path / "images", "wb") as file:
        file.truncate(count * 3 * 64 * 64)  # without blocks on the disk: all black
    command = [sys.executable, "-c", LARGE, str(tmp_path / "images"), str(limit), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    seen, before, peak = json.loads(ran.stdout)
    assert seen == count
    assert peak - before < 150_000, "KiB"
