"""`parallelcnn evaluate`: runs, model files and checkpoints; scores of classes, further metrics, JSON."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx_folder
from launch import refused

import parallelcnn as pc
from parallelcnn.cli.evaluate import class_names
from parallelcnn.training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs that keeps its best checkpoint, with everything that could change its loss."""
    place = tmp_path_factory.mktemp("trained")
    folder = write_idx_folder(place / "stripes", n_train=230, n_test=70)
    settings = (
        "--label-smoothing",
        "0.2",
        "--class-weight",
        "balanced",
        "--ema",
        "0.9",
        "--keep-best",
        "--keep-last",
        "1",
    )
    settings += ("--learning-rate", "0.05", "--validation-split", "0.2", "--batch-size", "50")
    from parallelcnn import cli

    assert cli.main(["train", "--data", str(folder), "--out", str(place / "run"), "--epochs", "3", *settings]) == 0
    return place / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_result_is_that_of_the_run_with_its_smoothing_and_its_weights(run, here):
    summary = json.loads((run / "summary.json").read_text())
    ran = here("evaluate", run)
    assert (ran.code, ran.err) == (0, "")
    first, head, *rows = ran.out.splitlines()
    assert first.endswith(f"test loss {summary['test_loss']:.4f}, test accuracy {100 * summary['test_accuracy']:.2f} %")
    assert head.split() == ["class", "precision", "recall", "f1", "samples"]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(10)]
    assert sum(int(row.split()[-1]) for row in rows) == 70
    for file in (run / "model.npz", f"{run}/"):
        assert here("evaluate", file).out == ran.out


def test_json_and_further_metrics(run, here):
    ran = here("evaluate", run, "--json", "--metrics", "top-2", "f1", "confusion-matrix")
    found = json.loads(ran.out)
    network = pc.load_model(run / "model.npz")
    _, test_set = pc.load_data(json.loads((run / "summary.json").read_text())["data"])
    metrics = [pc.Accuracy(), pc.TopK(2), pc.F1(10), pc.ConfusionMatrix(10), pc.Recall(10, None)]
    expected = pc.evaluate(network, test_set, metrics=metrics)
    assert found["file"] == str(run / "model.npz")
    assert (found["samples"], found["accuracy"]) == (70, expected.accuracy)
    assert found["metrics"]["top_2_accuracy"] == expected["top_2_accuracy"]
    assert found["metrics"]["confusion_matrix"] == expected["confusion_matrix"].tolist()
    assert [one["recall"] for one in found["classes"]] == expected["recall_per_class"].tolist()
    assert [one["samples"] for one in found["classes"]] == np.bincount(test_set.labels, minlength=10).tolist()
    text = here("evaluate", run, "--metrics", "top-2", "f1", "confusion-matrix").out
    assert f"top 2 accuracy {expected['top_2_accuracy']:.4f}\nf1 {expected['f1']:.4f}\nconfusion matrix (rows: " in text
    refused(here("evaluate", run, "--metrics", "top-x"), "metrics must be a list of top-1")


def test_checkpoints_are_evaluated_with_their_averaged_parameters(run, here):
    newest = run / "checkpoints" / "step-000000012.npz"
    assert newest.exists()
    # The network at the end of the run has the averages of the last checkpoint.
    assert here("evaluate", newest).out == here("evaluate", run).out


def test_a_checkpoint_is_evaluated_with_its_averages_wherever_it_lies(run, here):
    data = json.loads((run / "summary.json").read_text())["data_directory"]
    copy = shutil.copy(run / "checkpoints" / "step-000000012.npz", run.parent / "best.npz")
    loss = ("--loss", "softmax-cross-entropy", "--data", data, "--json")
    assert json.loads(here("evaluate", copy, *loss).out)["loss"] == json.loads(here("evaluate", run, *loss).out)["loss"]


def test_averages_that_an_earlier_optimiser_has_left_are_not_evaluated(run, here):
    file = run / "checkpoints" / "step-000000012.npz"
    checkpoint = pc.load_checkpoint(file)
    assert (checkpoint.state["average"] != checkpoint.state["params"]).any()
    checkpoint.facts["optimizer"] = "SGD(learning_rate=0.05)"
    save_checkpoint(file, checkpoint)
    pc.save_model(run / "raw.npz", pc.load_model(file))
    found, raw = here("evaluate", file), here("evaluate", run / "raw.npz")
    assert raw.code == 2  # another model than that of summary.json
    data = ("--data", json.loads((run / "summary.json").read_text())["data_directory"])
    found, raw = (
        here("evaluate", one, *data, "--loss", "softmax-cross-entropy").out for one in (file, run / "raw.npz")
    )
    assert found == raw


def test_best_takes_the_checkpoint_with_the_best_evaluation(run, here):
    history = pc.load_checkpoint(run / "checkpoints" / "step-000000012.npz").history
    best = history["step"][history["val_accuracy"].argmax()]
    file = f"step-{best:09}.npz"
    ran = here("evaluate", run, "--best")
    assert ran.out.startswith(f"the checkpoint with the best evaluation, {file}\n")
    assert ran.out.endswith(here("evaluate", run / "checkpoints" / file).out)
    np.save(run / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8))
    by_name = here("predict", run / "checkpoints" / file, run / "images.npy", "--top", 3).out
    assert here("predict", run, run / "images.npy", "--top", 3, "--best").out == by_name
    for name, source in (("best", [run, "--best"]), ("named", [run / "checkpoints" / file])):
        assert here("export", *source[:1], run / f"{name}.safetensors", *source[1:]).code == 0
    assert (run / "best.safetensors").read_bytes() == (run / "named.safetensors").read_bytes()
    refused(here("evaluate", run / "model.npz", "--best"), "--best takes a run directory, got the file")
    (run / "checkpoints" / file).unlink()
    refused(here("evaluate", run, "--best"), "does not hold the checkpoint with the best evaluation")


def test_of_a_run_that_has_not_finished_the_newest_checkpoint_is_evaluated(run, here):
    finished = here("evaluate", run).out
    (run / "model.npz").unlink()
    (run / "summary.json").unlink()
    ran = here("evaluate", run)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"the run has not finished: its newest checkpoint, step-000000012.npz\n{finished}"
    shutil.rmtree(run / "checkpoints")
    refused(here("evaluate", run), f"{run} is no run directory with a model: it holds neither model.npz nor a")


def test_the_settings_of_the_run_are_optional(run, here):
    plain = here("evaluate", run, "--loss", "softmax-cross-entropy").out
    (run / "config.toml").write_text("epochs = ")
    assert here("evaluate", run).out == plain  # without smoothing and weights, which only config.toml has


def test_data_that_have_been_moved_are_named_and_can_be_given(run, here):
    expected = here("evaluate", run).out
    data = Path(json.loads((run / "summary.json").read_text())["data_directory"])
    moved = data.rename(data.parent / "moved")
    try:
        message = f"{data}, which holds the data of {run}, no longer exists: give its new place as --data\n"
        refused(here("evaluate", run), message)
        found, trained_on, _, *rows = here("evaluate", run, "--data", moved).out.splitlines()
        refused(
            here("evaluate", run, "--data-dir", moved), f"data_dir ({moved}) is where the data set 'mnist' lies, but"
        )
        assert found == "found      IDX files: 230 training and 70 test images, 28 x 28, 10 classes"
        assert trained_on == f"trained on {data}, evaluated on {moved}"
        assert rows == expected.splitlines()[1:]
        (run / "summary.json").unlink()  # as of a run that has not finished
        refused(here("evaluate", run), message)
    finally:
        moved.rename(data)


def test_classes_have_names_where_these_are_known():
    images, labels = np.zeros((4, 5), np.uint8), np.array([0, 1, 1, 0])
    network = pc.NetworkHandler((pc.Dense(3),), (5,))
    named = pc.Dataset(images, labels, 2, class_names=("cat", "dog"))
    assert class_names(network, pc.Dataset(images, labels, 2)) == ["0", "1"]
    assert class_names(network, named) == ["cat", "dog"]
    network.class_names = ("a", "b", "c")
    assert class_names(network, named) == ["a", "b"]


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_prints_the_loss_alone(outputs, here, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(20, outputs)).astype(np.float32)
    dataset = pc.Dataset(rng.normal(size=(20, 5)).astype(np.float32), labels, None, "numbers")
    network = pc.NetworkHandler((pc.Dense(outputs),), (5,))
    network.prediction = "output"
    pc.save_model(tmp_path / "model.npz", network)
    monkeypatch.setattr("parallelcnn.cli.data_sets.load_data_sets", lambda *_: (dataset, dataset, dataset, ""))
    ran = here("evaluate", tmp_path / "model.npz", "--data", "numbers")
    assert ran.out.startswith("numbers: test loss ")
    assert len(ran.out.splitlines()) == 1
    assert json.loads(here("evaluate", tmp_path / "model.npz", "--data", "numbers", "--json").out)["classes"] == []
