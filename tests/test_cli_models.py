"""The command, on one process: `evaluate`, and models of the user's own."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import small
from idx_files import write_idx_folder
from launch import parallelcnn, refused, run

import parallelcnn as pc
from parallelcnn.errors import InputError


def test_evaluate_takes_model_and_data_from_the_run(folder, tmp_path, here, monkeypatch):
    """Also if the data directory was given relative to another working directory."""
    out = tmp_path / "out"
    monkeypatch.chdir(folder.parent)
    assert here("train", "--data", folder.name, "--epochs", 1, "--out", out).code == 0
    monkeypatch.chdir(tmp_path)
    summary = json.loads((out / "summary.json").read_text())
    result = f"test loss {summary['test_loss']:.4f}, test accuracy {100 * summary['test_accuracy']:.2f} %\n"
    for place in (out, out / "model.npz", f"{out}/"):
        ran = here("evaluate", place)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"{folder}: {result}class ")

    other = write_idx_folder(tmp_path / "other", n_train=10, n_test=30)
    ran = here("evaluate", out, "--data", other)
    assert ran.code == 0, ran.err
    found = "found      IDX files: 10 training and 30 test images, 28 x 28, 10 classes"
    assert ran.out.startswith(f"{found}\ntrained on {folder.name}, evaluated on {other}\n{other}: test loss ")
    train_set, _ = pc.load_data(other)
    np.savez(tmp_path / "new.npz", x=train_set.images, y=train_set.labels)
    ran = here("evaluate", out, "--data", tmp_path / "new.npz")
    assert ran.out.splitlines()[0].endswith("; no test set: 2 images drawn from the training set")

    alone = tmp_path / "alone.npz"
    shutil.copy(out / "model.npz", alone)
    refused(here("evaluate", alone), f"--data NAME|PATH is needed: {tmp_path / 'summary.json'}, which would say")
    ran = here("evaluate", alone, "--data", folder)
    assert ran.code == 0
    assert f"\n{folder}: {result}" in ran.out
    for content in ("", "{", "[]", "[" * 100_000, json.dumps({**summary, "data": 3})):
        (tmp_path / "summary.json").write_text(content)
        refused(here("evaluate", alone), "is missing or unreadable")
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "parameters_sha256": "0"}))
    refused(here("evaluate", alone), "is about another model than")
    (tmp_path / "summary.json").unlink()
    os.mkfifo(tmp_path / "summary.json")
    refused(here("evaluate", alone), "is missing or unreadable")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"data": "digits", "data_directory": None}, ("digits", None)),
        ({"data": "digits"}, ("digits", None)),  # written by an earlier version
        ({"data": "mnist", "data_directory": "/usr"}, ("mnist", "/usr")),
        ({"data": "mnist", "data_directory": None}, ("mnist", None)),
        ({"data": "images", "data_directory": "/usr"}, ("/usr", None)),
    ],
)
def test_evaluate_loads_the_data_set_that_the_run_was_trained_on(data, wanted, tmp_path, monkeypatch, here):
    asked = []

    def load_sets(name, data_dir, _):
        asked.append((name, data_dir))
        raise InputError("stop here")

    monkeypatch.setattr("parallelcnn.cli.data_sets.load_sets", load_sets)
    pc.save_model(tmp_path / "model.npz", small.network())
    (tmp_path / "summary.json").write_text(json.dumps(data))
    refused(here("evaluate", tmp_path), "stop here")
    assert asked == [wanted]


OWN_MODEL = """
from dataclasses import dataclass
import numpy as np
from parallelcnn import ActivationFunction, Conv2D, Dense, Flatten, Layer, MaxPool2D
import own_neighbour

@dataclass(frozen=True, repr=False)
class Negate(Layer):
    def output_shape(self, input_shape):
        return input_shape
    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.call(np.negative, x, out=y)
        return y
    def backward(self, step, dy):
        step.call(np.negative, dy, out=dy)
        return dy

bent = ActivationFunction("bent", lambda x: x + abs(x) / 2, lambda x: 1.5 if x > 0 else 0.5)

def network(classes):
    return Conv2D(2, 3, stride=2, activation=bent), Negate(), Flatten(), Dense(classes)

def too_small():
    return [Flatten(), Dense(3)]

def broken():
    return [Dense(1 // 0)]

def wrong():
    return Conv2D(-2, 3), Dense(3)

def nothing():
    return None

def leaves():
    import sys
    sys.exit(0)

def generator():
    yield Flatten()
    raise OSError("two\\nlines")

def optional(units=32):
    return Conv2D(2, 3), Flatten(), Dense(units), Dense(10)

def bad_activation():
    return Flatten(), Dense(10, activation=ActivationFunction("bad", lambda x: x.upper(), lambda x: x))

def too_large():
    return [Conv2D(10**6, 1), MaxPool2D(28), Flatten(), Dense(10)]

def unchained():
    return Conv2D(2, 3), Dense(10)

class Unprintable:
    def __repr__(self):
        raise ValueError("cannot be shown")

def unprintable():
    return Flatten(), Unprintable()
"""


@pytest.fixture
def own_model(tmp_path):
    (tmp_path / "own_neighbour.py").write_text("")
    path = tmp_path / "own.py"
    path.write_text(OWN_MODEL)
    return path


def test_a_model_of_the_users_own_is_trained_saved_and_evaluated(train, folder, own_model, tmp_path):
    ran = train("--model", f"{own_model}:network", "--epochs", 1)
    assert ran.code == 0, ran.err
    assert "Conv2D(2, 3, stride=2, activation=<bent>)" in ran.out
    ran = parallelcnn("evaluate", tmp_path / "out", "--data", folder)
    assert ran.code == 2
    assert "--model FILE.py:FUNCTION" in ran.err
    ran = parallelcnn("evaluate", tmp_path / "out", "--data", folder, "--model", f"{own_model}:network")
    assert ran.code == 0, ran.err


def test_nothing_is_written_beside_a_model_of_the_users_own(folder, own_model, tmp_path):
    command = [sys.executable, "-m", "parallelcnn", "train", "--data", str(folder), "--model", f"{own_model}:too_small"]
    refused(run(["env", "-u", "PYTHONDONTWRITEBYTECODE", *command]), "of 10 classes takes a network that ends in")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.py", "own_neighbour.py"]


def test_a_model_function_keeps_its_own_defaults(train, own_model, tmp_path):
    ran = train("--model", f"{own_model}:optional", "--epochs", 1)
    assert ran.code == 0, ran.err
    assert "Dense(32)" in ran.out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("papr", "no model 'papr': did you mean 'paper'?"),
        ("none.py:network", "no file none.py"),
        ("n" * 300 + ".py:network", "no file nnn"),
        ("OWN:unprintable", "raised ValueError: cannot be shown"),
        ("OWN:netwrk", "has no function 'netwrk': did you mean 'network'?"),
        ("OWN:broken", "raised ZeroDivisionError: integer division or modulo by zero (line 28)"),
        ("OWN:wrong", ":wrong: Conv2D(-2, 3): filters must be a positive integer, got -2 (line 31)"),
        ("OWN:nothing", "must return the layers, a tuple, got None"),
        ("OWN:unchained", "layer 2 of 2: Dense(10) takes (features,), got (2, 26, 26): is a Flatten() missing"),
        ("OWN:too_small", "of 10 classes takes a network that ends in (10,), got (3,)"),
        ("OWN:leaves", "raised SystemExit: 0 (line 38)"),
        ("OWN:generator", "raised OSError: two lines (line 42)"),
        ("OWN:bad_activation", "activation 'bad': numba cannot compile its function: "),
        ("OWN:too_large", "the arrays of one layer take"),
        ("SYNTAX:network", "raised SyntaxError"),
        ("MISSING:network", "raised ModuleNotFoundError: No module named 'nowhere_to_be_found' (line 1)"),
    ],
)
def test_a_model_that_cannot_be_had_is_named_with_the_reason(model, message, train, own_model, tmp_path):
    (tmp_path / "syntax.py").write_text("def network(:\n")
    (tmp_path / "missing.py").write_text("import nowhere_to_be_found\n")
    for name, path in (("OWN", "own.py"), ("SYNTAX", "syntax.py"), ("MISSING", "missing.py")):
        model = model.replace(name, str(tmp_path / path))
    refused(train("--model", model), message)
    assert not (tmp_path / "out").exists()


def test_evaluating_what_is_no_model_or_does_not_fit_the_data_is_refused(folder, here, tmp_path):
    refused(here("evaluate", tmp_path / "none.npz"), "no model file")
    (tmp_path / "text.npz").write_text("no zip")
    refused(here("evaluate", tmp_path / "text.npz", "--data", folder), "is no model file, or a damaged one")
    pc.save_model(tmp_path / "model.npz", pc.NetworkHandler(pc.paper(), (1, 28, 28)))
    refused(here("evaluate", tmp_path, "--data", folder, "--model", "lenet5"), "does not fit the network")


def test_a_name_that_is_too_long_for_a_file_is_no_model_file(here):
    refused(here("evaluate", "n" * 300), "cannot be read: File name too long")


@pytest.mark.parametrize("place", ["fifo", "/dev/zero"])
def test_a_device_is_no_model_file_and_nobody_waits_for_it(place, tmp_path):
    if place == "fifo":
        place = tmp_path / "fifo"
        os.mkfifo(place)
    refused(parallelcnn("evaluate", place, limit=20), "must be a model file, not a folder or a device")
