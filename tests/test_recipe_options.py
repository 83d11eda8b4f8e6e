"""The command's options for losses, optimisers and schedules, in whole runs."""

import json

import numpy as np
import pytest
from idx_files import write_idx
from launch import refused

import parallelcnn as pc


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """A folder of images with two classes of different sizes, as four IDX files."""
    folder = tmp_path_factory.mktemp("data") / "two"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 120), ("t10k", 40)):
        labels = (np.arange(n) % 4 == 0).astype(int)
        images = rng.integers(0, 100, (n, 28, 28)) + 100 * labels[:, None, None]
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("loss", ["squared", "binary-cross-entropy", "softmax-cross-entropy"])
def test_a_run_has_the_loss_that_was_asked_for_and_evaluate_the_loss_of_the_run(loss, two_classes, here, tmp_path):
    out = tmp_path / "out"
    ran = here("train", "--data", two_classes, "--epochs", 2, "--batch-size", 20, "--loss", loss, "--out", out)
    assert ran.code == 0, ran.err
    written = {"squared": "MeanSquaredError()", "binary-cross-entropy": "BinaryCrossEntropy()"}.get(loss)
    assert (f"\nloss       {written}\n" in ran.out) == (written is not None)
    summary = summary_of(out)
    assert summary["loss"] == loss
    wanted = f"test loss {summary['test_loss']:.4f}, test accuracy {100 * summary['test_accuracy']:.2f} %\n"
    wanted = f"{two_classes}: {wanted}"
    assert here("evaluate", out).out.startswith(wanted)
    model = pc.load_model(out / "model.npz")
    assert model.output_shape == ((1,) if written == "BinaryCrossEntropy()" else (2,))
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "model.npz"
    alone.write_bytes((out / "model.npz").read_bytes())
    assert wanted in here("evaluate", alone, "--data", two_classes).out  # the model knows what it predicts
    assert wanted in here("evaluate", alone, "--data", two_classes, "--loss", loss).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "huber"], "loss must be one of softmax-cross-entropy, binary-cross-entropy, squared, got 'huber'"),
        (["--loss", "binary-cross-entropy"], "takes a network that ends in (1,) for labels of 2 classes, or float"),
        (
            ["--loss", "squared", "--class-weight", "balanced"],
            "class_weight is for the loss softmax-cross-entropy, got",
        ),
        (["--schedule", "plateau", "--decay-every", "3"], "decay_every is for the schedule step, got 3 with plateau"),
        (["--betas", "0.9"], "argument --betas: expected 2 arguments"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, folder, here, tmp_path):
    refused(here("train", "--data", folder, "--out", tmp_path / "out", *arguments), message)
    assert not (tmp_path / "out").exists()


def test_evaluate_refuses_an_unknown_loss_and_one_that_does_not_fit(folder, here, tmp_path):
    pc.save_model(tmp_path / "model.npz", pc.NetworkHandler((pc.Flatten(), pc.Dense(10)), (1, 28, 28)))
    given = "evaluate", tmp_path / "model.npz", "--data", folder, "--loss"
    refused(here(*given, "mse"), "loss must be one of softmax-cross-entropy, binary-cross-entropy, squared, got")


def test_the_header_shows_the_scaled_rate_and_the_balanced_weights(two_classes, here, tmp_path):
    options = ["--scale-learning-rate", 100, "--batch-size", 40, "--class-weight", "balanced", "--epochs", 1]
    ran = here("train", "--data", two_classes, *options, "--learning-rate", 0.2, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "\nrate       0.08 = 0.2 * 40 / 100, the learning rate scaled with the batch size\n" in ran.out
    assert "SGD(learning_rate=0.08, " in ran.out
    assert "\nloss       SoftmaxCrossEntropy(class_weight=(0.6666666666666666, 2.0))\n" in ran.out
    summary = summary_of(tmp_path / "out")
    assert (summary["learning_rate"], summary["scale_learning_rate"], summary["class_weight"]) == (0.2, 100, "balanced")


def test_a_run_with_a_plateau_is_interrupted_in_an_epoch_and_resumed_to_the_same_bits(folder, here, tmp_path):
    """Every evaluation counts as one without an improvement; patience 1, so every second one halves the rate."""
    options = ["--data", folder, "--batch-size", 23, "--reproducible", 2, "--evaluate-every", 3, "--optimizer", "adam"]
    options += ["--betas", 0.8, 0.95, "--eps", "1e-6", "--checkpoint-every", 1, "--keep-last", 99]
    constant = [*options, "--epochs", 3, "--out", tmp_path / "constant"]
    options += ["--schedule", "plateau", "--patience", 1, "--decay-factor", 0.5, "--min-delta", 99]
    assert here("train", *options, "--epochs", 3, "--out", tmp_path / "whole").code == 0
    summary = summary_of(tmp_path / "whole")
    assert (summary["schedule"], summary["patience"], summary["betas"]) == ("plateau", 1, [0.8, 0.95])
    for step in (14, 20):
        checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{step:09}.npz"
        ran = here("train", *options, "--epochs", 3, "--out", tmp_path / str(step), "--resume", checkpoint)
        assert ran.code == 0, ran.err
        assert summary_of(tmp_path / str(step))["parameters_sha256"] == summary["parameters_sha256"]
    assert here("train", *constant).code == 0
    assert summary_of(tmp_path / "constant")["parameters_sha256"] != summary["parameters_sha256"]


def test_a_run_stops_early_and_writes_its_metrics_and_logs(two_classes, here, tmp_path):
    out = tmp_path / "out"
    options = ["--data", two_classes, "--epochs", 9, "--batch-size", 20, "--validation-split", 0.2, "--out", out]
    options += ["--early-stopping", 1, "--monitor", "accuracy", "--min-delta", 1, "--metrics", "f1", "confusion-matrix"]
    ran = here("train", *options, "--log", "csv", "--keep-best")
    assert ran.code == 0, ran.err
    assert "\nstopped    after epoch 3 of 9: the accuracy no longer improves\n" in ran.out
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "val_f1" in row] == [1, 2, 3]
    lines = (out / "epochs.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0] == "epoch,step,loss,val_loss,val_accuracy,val_f1"
    found = summary_of(out)
    matrix = np.array(found["test_metrics"]["confusion_matrix"])
    assert matrix.shape == (2, 2)
    assert matrix.sum() == 40
    assert matrix.trace() / 40 == found["test_accuracy"]
    # A resume, as after a job that was killed while it wrote the results, trains no further.
    ran = here("train", *options, "--log", "csv", "--keep-best", "--resume")
    assert ran.code == 0, ran.err
    assert "\nstopped    after epoch 3 of 9: the accuracy no longer improves\n" in ran.out
    assert summary_of(out)["parameters_sha256"] == found["parameters_sha256"]
    assert (out / "epochs.csv").read_text().splitlines() == lines
    # A command that trains again in the directory moves the files of the run before.
    assert here("train", *options[:4], "--out", out).code == 0
    assert not (out / "epochs.csv").exists()


def test_files_for_tensorboard_are_written_or_refused_before_anything_is_written(two_classes, here, tmp_path):
    ran = here("train", "--data", two_classes, "--log", "tensorboard", "--out", tmp_path / "out")
    if ran.code == 2:
        assert ran.err == "parallelcnn: error: TensorBoard needs tensorboardX: pip install tensorboardX\n"
        assert not (tmp_path / "out").exists()
    else:
        assert list((tmp_path / "out" / "tensorboard").iterdir())
