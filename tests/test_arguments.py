"""Arguments of a wrong type, as users of other libraries pass them: one sentence at the call, with the alternative."""

import gzip
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
from idx_files import write_idx

import parallelcnn as pc
from parallelcnn.errors import InputError, TrainingWarning

SETS = [pc.Dataset(np.full((20, 4, 5), 9, np.uint8), np.arange(20) % 3, 3, "tiny") for _ in range(2)]
LAYERS = (pc.Flatten(), pc.Dense(3))
IMAGES, LABELS = SETS[0].images, SETS[0].labels
COLOURS = pc.NetworkHandler((pc.Flatten(), pc.Dense(3)), (3, 4, 5))


def new(layers=LAYERS):
    return pc.NetworkHandler(layers, (1, 4, 5))


def train(network=None, train_set=SETS[0], test_set=SETS[1], optimizer=None, **options):
    optimizer = pc.SGD(0.1) if optimizer is None else optimizer
    options = {"epochs": 1, "batch_size": 5, "threads": 1, "comm": pc.Serial()} | options
    return pc.train(new() if network is None else network, train_set, test_set, optimizer, **options)


@dataclass
class Leaky:
    slope: float

    def __call__(self, x):
        return x


class OtherCallback:
    def on_batch_begin(self, *args):
        pass


class Unprintable:
    def __repr__(self):
        raise ValueError


def raised_by_activation(function, derivative):
    activation = pc.ActivationFunction("own", function, derivative)
    train(new((pc.Flatten(), pc.Dense(3, activation=activation))))


A_LOSS = r"loss must be an object with the methods check, .*, such as .* MeanSquaredError\(\), got "
A_NETWORK = r"network must be of type NetworkHandler, such as NetworkHandler\(layers, input_shape\), got "
A_DATASET = r"must be of type Dataset, such as Dataset\(images, labels, classes\), got "
NUMBERS = "images must be an array of numbers, samples first, got "

CASES = {
    "a name for the loss": (lambda: train(loss="mse"), A_LOSS + "'mse'$"),
    "a function for the loss": (lambda: train(loss=abs), A_LOSS),
    "a class for the loss": (
        lambda: train(loss=pc.MeanSquaredError),
        A_LOSS + r".*that is the class, write MeanSquaredError\(...\)$",
    ),
    "layers for the network": (lambda: train(LAYERS), A_NETWORK + r"\(Flatten\(\), Dense\(3\)\)$"),
    "arrays for a data set": (
        lambda: train(train_set=(IMAGES, LABELS)),
        f"^train_set {A_DATASET}a tuple of 2: an array of uint8, shape .20, 4, 5.; an array of int64, shape .20,.$",
    ),
    "no test set": (lambda: train(test_set=None), f"^test_set {A_DATASET}None$"),
    "a name for the optimiser": (
        lambda: train(optimizer="sgd"),
        r"^optimizer must be of type Optimizer, such as SGD\(.*'sgd'$",
    ),
    "a class for the optimiser": (lambda: train(optimizer=pc.SGD), r"that is the class, write SGD\(...\)$"),
    "names for metrics": (lambda: train(metrics=["accuracy"]), r"such as \[pc.Accuracy\(\)\], got 'accuracy'$"),
    "a name for metrics": (
        lambda: train(metrics="accuracy"),
        "^metrics must be a sequence of Metric, .* got 'accuracy'$",
    ),
    "a metric for metrics": (lambda: pc.evaluate(new(), SETS[0], metrics=5), "^metrics must be a sequence .* got 5$"),
    "True for a profiler": (
        lambda: train(profiler=True),
        r"^profiler must be of type Profiler or None, such as .*True$",
    ),
    "a folder for checkpoints": (lambda: train(checkpoints="here"), r"such as CheckpointFolder\(.*\), got 'here'$"),
    "a file for resume": (lambda: train(resume="here"), r"such as load_checkpoint\(file\), got 'here'$"),
    "a callback of another library": (
        lambda: train(callbacks=[OtherCallback()]),
        "OtherCallback object at .*: training calls no on_batch_begin: did you mean 'on_batch_end'",
    ),
    "a class for a callback": (
        lambda: train(callbacks=[pc.EarlyStopping]),
        r"^callbacks must be objects: write EarlyStopping\(...\)$",
    ),
    "True for stop": (lambda: train(stop=True), "^stop must be a function or None, got True$"),
    "what cannot be printed": (lambda: train(Unprintable()), "got a Unprintable, whose repr raises ValueError$"),
    "layers in evaluate": (lambda: pc.evaluate(LAYERS, SETS[0]), A_NETWORK),
    "arrays in evaluate": (lambda: pc.evaluate(new(), (IMAGES, LABELS)), f"^dataset {A_DATASET}a tuple of 2"),
    "swapped in evaluate": (lambda: pc.evaluate(SETS[0], new()), A_NETWORK + "<Dataset 'tiny': 20 uint8 images"),
    "a loss's name in evaluate": (lambda: pc.evaluate(new(), SETS[0], loss="mse"), A_LOSS),
    "swapped in save_model": (
        lambda: pc.save_model(new(), "m.npz"),
        r"^save_model takes the path first: save_model\(path, network\)$",
    ),
    "no file in save_model": (lambda: pc.save_model("", new()), r"^path must name a file, got '\.'$"),
    "layers in save_model": (lambda: pc.save_model("m.npz", LAYERS), A_NETWORK),
    "a number for a path": (lambda: pc.load_model(5), "^path must be a string or a pathlib.Path, got 5$"),
    "bytes for a path": (lambda: pc.load_model(b"m"), "^path must be a string or a pathlib.Path, got b'm'$"),
    "a null in a path": (lambda: pc.load_model("m\0"), r"no path holds a null character, got 'm\\x00'$"),
    "a name for layers": (lambda: pc.load_model("m", "paper"), "^a network takes a tuple of layers, got 'paper'$"),
    "a number for a checkpoint": (lambda: pc.load_checkpoint(5), "^path must be a string"),
    "a number for checkpoints": (lambda: pc.CheckpointFolder(5), "^path must be a string"),
    "a number for a data set": (lambda: pc.load_data(5), "^name must be one of digits, mnist, or a path, got 5$"),
    "a number for a folder": (lambda: pc.load_idx_folder(5), "^folder must be a string"),
    "a number for MNIST's folder": (lambda: pc.load_mnist(5), "^data_dir must be a string"),
    "words for classes": (
        lambda: pc.Dataset(IMAGES, LABELS, "10"),
        "^data: classes must be an integer of at least 1, or None for regression, got '10'$",
    ),
    "a float for classes": (lambda: pc.Dataset(IMAGES, LABELS, 3.0), "got 3.0$"),
    "True for classes": (lambda: pc.Dataset(IMAGES, LABELS, True), "got True$"),
    "images of different sizes": (
        lambda: pc.Dataset([np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8)], [0, 1], 2),
        r"^data: images must all have the same shape, got \(4, 5\) at place 0 and \(5, 4\) at 1$",
    ),
    "a folder for images": (lambda: pc.Dataset("mnist", LABELS, 3), NUMBERS + "'mnist'$"),
    "objects for images": (lambda: pc.Dataset(np.full((2, 3), None), [0, 1], 2), NUMBERS + "an array of object"),
    "float64": (lambda: pc.Dataset(IMAGES / 255, LABELS, 3), r": write images.astype\(np.float32\)$"),
    "integers": (lambda: pc.Dataset(IMAGES.astype(int), LABELS, 3), r": write images.astype\(np.uint8\)$"),
    "images and labels swapped": (lambda: pc.Dataset(LABELS, IMAGES, 3), ": were images and labels swapped.$"),
    "one-hot labels": (lambda: pc.Dataset(IMAGES, np.eye(3)[LABELS], 3), r"write labels.argmax\(axis=1\)$"),
    "a column of labels": (lambda: pc.Dataset(IMAGES, LABELS[:, None], 3), r": write labels.ravel\(\)$"),
    "floats for labels": (
        lambda: pc.Dataset(IMAGES, LABELS / 1.0, 3),
        r": write labels.astype\(int\), or classes=None",
    ),
    "names for labels": (
        lambda: pc.Dataset(IMAGES[:2], ["cat", "dog"], 2),
        r"np.unique\(labels, .* got \['cat', 'dog'\]$",
    ),
    "classes without their number": (
        lambda: train(train_set=pc.Dataset(IMAGES, LABELS, None)),
        r"takes labels of classes, but classes is None .*: Dataset\(images, labels, classes\), or loss=Mean",
    ),
    "channels last": (
        lambda: train(COLOURS, pc.Dataset(np.zeros((20, 4, 5, 3), np.uint8), LABELS, 3)),
        r": channels come first, write images.transpose\(0, 3, 1, 2\)$",
    ),
    "channels last in predict": (lambda: COLOURS.predict(np.zeros((2, 4, 5, 3))), r"images.transpose\(0, 3, 1, 2\)$"),
    "one image": (
        lambda: new().predict(IMAGES[0]),
        r"^the network takes images of shape \(N, 1, 4, 5\), got an array of uint8, shape \(4, 5\): .* images\[None\]$",
    ),
    "one colour image": (lambda: COLOURS.predict(np.zeros((3, 4, 5))), r"for one image write images\[None\]$"),
    "a number for images": (lambda: new().predict(5), r"of shape \(N, 1, 4, 5\), got 5$"),
    "a file for images": (lambda: new().predict("cat.png"), "images must be uint8, or floats .* got 'cat.png'$"),
    "a data set for images": (lambda: new().predict(SETS[0]), "images must be uint8, .* got <Dataset 'tiny'"),
    "lists of integers": (lambda: new().predict(IMAGES.tolist()), r"got int64: write images.astype\(np.uint8\)$"),
    "different sizes in predict": (lambda: new().predict([IMAGES[0], IMAGES[0, 1:]]), "must all have the same shape"),
    "a function for layers": (lambda: new(pc.paper), r"got <function paper .*>: write paper\(\)$"),
    "no layers": (lambda: new(None), "^a network takes a tuple of layers, got None$"),
    "a layer's class": (
        lambda: new((pc.Flatten, pc.Dense(3))),
        r"layer 1 .* must be a Layer, .*: write Flatten\(...\)$",
    ),
    "a word for dtype": (lambda: pc.NetworkHandler(LAYERS, (1, 4, 5), dtype="many"), "float32 or float64, got 'many'$"),
    "a class for an activation": (
        lambda: new((pc.Flatten(), pc.Dense(3, activation=pc.Dense))),
        r"must be a name, a function of one number or an ActivationFunction, got <class .*Dense'>$",
    ),
    "an activation without a hash": (
        lambda: raised_by_activation(Leaky(0.1), abs),
        r"^activation 'own': function must be hashable, and Leaky\(slope=0.1\) is not: write a function",
    ),
    "np.where in an activation": (
        lambda: raised_by_activation(lambda x: max(x, 0.0), lambda x: np.where(x > 0, 1.0, 0.0)),
        "^activation 'own': numba cannot compile its derivative: np.where .* write `a if condition else b`",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_a_wrong_argument_is_named_with_the_rule_and_the_alternative(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_integers_are_targets_of_a_regression():
    network = pc.NetworkHandler((pc.Flatten(), pc.Dense(1)), (1, 4, 5))
    dataset = pc.Dataset(IMAGES, LABELS, None)
    train(network, dataset, dataset, loss=pc.MeanSquaredError())
    assert dataset.labels.dtype == np.float32


def test_a_tilde_is_the_home_directory_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pc.save_model("~/model.npz", small.network())
    assert pc.load_model("~/model.npz").params.size
    assert pc.CheckpointFolder("~/checkpoints").path == tmp_path / "checkpoints"
    write_parts(tmp_path / "with blanks/data")
    for load in (pc.load_data, pc.load_idx_folder, pc.load_mnist):
        assert len(load("~/with blanks/data/")[0]) == 30
    assert not os.path.exists("~")


def write_parts(folder, name=lambda name: name, values=None):
    """Four files of a data set, under these names."""
    for part, n in (("train", 30), ("t10k", 20)):
        for kind, array in (("images-idx3", np.zeros((n, 4, 5))), ("labels-idx1", np.arange(n) % 10)):
            path = folder / name(f"{part}-{kind}-ubyte")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_idx(path, array if values is None or kind == "labels-idx1" else array + values)


def dotted(name):
    return name.replace("-idx", ".idx")


def nested(name):
    return f"{name}/{name}"


def load(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_set, _ = pc.load_data(f"{folder}/")
    assert all(warning.category is TrainingWarning for warning in caught)
    return train_set.images[0, 0, 0], [str(warning.message) for warning in caught]


def test_an_archive_that_holds_the_files_twice_is_read_and_the_choice_is_reported(tmp_path):
    write_parts(tmp_path, nested, values=1)
    assert load(tmp_path) == (1, [])
    write_parts(tmp_path, dotted, values=2)  # now it is Kaggle's archive
    value, (said,) = load(tmp_path)
    assert value == 2
    assert said.startswith(f"{tmp_path}: some files are there more than once; taken: train-images.idx3-ubyte, ")
    assert "; not taken: train-images-idx3-ubyte/train-images-idx3-ubyte, " in said


def test_of_a_damaged_file_and_a_whole_one_the_whole_one_is_taken(tmp_path):
    write_parts(tmp_path, values=3)
    damaged = Path(tmp_path, "train-images-idx3-ubyte.gz")
    damaged.write_bytes(gzip.compress(bytes(100))[:-4])
    value, (first, second) = load(tmp_path)
    assert value == 3
    assert first.startswith(f"{damaged}: ")
    assert first.endswith(f"; taking {tmp_path / 'train-images-idx3-ubyte'} instead")
    assert "not taken: train-images-idx3-ubyte.gz" in second


def test_a_folder_in_place_of_a_file_is_no_file(tmp_path):
    write_parts(tmp_path)
    os.rename(tmp_path / "t10k-labels-idx1-ubyte", tmp_path / "elsewhere")
    os.mkdir(tmp_path / "t10k-labels-idx1-ubyte")
    with pytest.raises(InputError, match="misses t10k-labels-idx1-ubyte"):
        pc.load_data(str(tmp_path))


def test_the_former_names_of_arguments_are_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"train\(grains=\) is now called train\(reproducible=\)"):
        before = train(grains=3)
    assert before.losses == train(reproducible=3).losses
    with pytest.warns(DeprecationWarning, match=r"train\(leave=\) is now called train\(stop=\)"):
        stopped = train(leave=lambda: True)
    with pytest.warns(DeprecationWarning, match=r"history.left is now called history.stopped"):
        assert stopped.left
    calls = []
    reporter = SimpleNamespace(
        minibatch=lambda *arguments: calls.append(("minibatch", *arguments)),
        evaluation=lambda step, epoch, result, history: calls.append(("evaluation", step, epoch, result, history)),
    )
    with pytest.warns(DeprecationWarning, match=r"train\(reporter=\) is now called train\(callbacks=\)"):
        history = train(reporter=reporter)
    assert [call for call in calls if call[0] == "minibatch"] == [
        ("minibatch", step, 1, loss, 5) for step, loss in enumerate(history.losses, start=1)
    ]
    assert [call for call in calls if call[0] == "evaluation"] == [("evaluation", *history.evaluations[-1], history)]
    with pytest.raises(TypeError, match="unexpected keyword argument 'grains'"):
        train(grains=3, reproducible=3)
