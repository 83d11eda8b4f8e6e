"""A validation set: how it is split off, and that its evaluations have names of their own."""

import json
import re

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.cli import main
from parallelcnn.cli.metrics import evaluation_row
from parallelcnn.errors import InputError


def numbered(labels, classes=None):
    """A data set whose images are the numbers of the samples."""
    return pc.Dataset(np.arange(len(labels), dtype=np.float32)[:, None], labels, classes, "numbers")


@pytest.mark.parametrize("fraction", [0.05, 0.1, 1 / 3, 0.9])
def test_a_split_is_a_partition_that_keeps_the_order_and_the_fraction_of_every_class(fraction, rng):
    labels = rng.choice(4, 1000, p=[0.7, 0.2, 0.09, 0.01])
    dataset = numbered(labels, 4)
    rest, validation = dataset.split(fraction, seed=3)
    assert (rest.name, rest.role, validation.name, validation.role) == ("numbers", "test", "numbers-validation", "val")
    assert len(validation) == round(1000 * fraction)
    both = np.concatenate([rest.images[:, 0], validation.images[:, 0]]).astype(int)
    assert sorted(both) == list(range(1000))
    for part in (rest, validation):
        assert (np.diff(part.images[:, 0]) > 0).all()
        np.testing.assert_array_equal(part.labels, labels[part.images[:, 0].astype(int)])
    counts = np.bincount(validation.labels, minlength=4)
    assert (np.abs(counts - fraction * np.bincount(labels)) < 1).all()


@pytest.mark.parametrize("fraction", [0.2, 0.6])
def test_a_class_with_one_sample_stays_in_the_part_to_train_on(fraction):
    rest, _ = numbered(np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]), 4).split(fraction)
    assert set(rest.labels) == {0, 1, 2, 3}


def test_the_seed_alone_decides_the_split():
    dataset = numbered(np.zeros(50, np.float32))
    one, again, other = (dataset.split(0.2, seed)[1].images for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len(one) == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data.split(1.0), "fraction must be a number above 0 and below 1, got 1.0"),
        (lambda data: data.split("0.1"), "fraction must be a number above 0 and below 1, got '0.1'"),
        (lambda data: data.split(0.1, -1), "seed must be an integer of at least 0, got -1"),
        (lambda data: data.split(0.01), "numbers: a fraction of 0.01 of 9 samples leaves one part empty"),
        (lambda data: pc.Dataset(data.images, data.labels, None, "x", "train"), "x: role must be test or val, got 'tr"),
    ],
)
def test_what_cannot_be_split_is_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(numbered(np.zeros(9, np.float32)))


def test_evaluations_on_a_validation_set_are_called_val_everywhere(tmp_path, capsys):
    logs = []
    keep = pc.LambdaCallback(on_epoch_end=lambda epoch, values: logs.append(values))
    callbacks = [keep, pc.EarlyStopping(patience=0, min_delta=100.0, restore_best=True)]
    callbacks.append(pc.CSVLogger(tmp_path / "epochs.csv"))
    options = {"comm": pc.Serial(), "threads": 1, "metrics": [pc.Accuracy(), pc.TopK(2)], "callbacks": callbacks}
    options["checkpoints"] = folder = pc.CheckpointFolder(tmp_path)
    train_part, validation_set = small.dataset(211).split(0.2)
    history = pc.train(small.network(), train_part, validation_set, pc.SGD(0.1), 9, 25, **options)
    assert len(history.evaluations) == 2  # stopped by the validation loss
    assert history["val_accuracy"].tolist() == [result.accuracy for _, _, result in history.evaluations]
    assert set(logs[0]) == {"loss", "step", "epoch", "val_loss", "val_accuracy", "val_top_2_accuracy"}
    assert (
        (tmp_path / "epochs.csv").read_text().startswith("epoch,step,loss,val_loss,val_accuracy,val_top_2_accuracy\n")
    )
    restored = folder.newest().history
    assert restored.evaluations == history.evaluations
    assert restored["val_top_2_accuracy"].shape == (2,)
    assert '"val_loss": ' in evaluation_row(*history.evaluations[0])
    assert "<th>val_accuracy</th>" in history._repr_html_()
    out = capsys.readouterr().out
    assert re.search(r"   validation loss \d\.\d{4}   validation accuracy \d+\.\d\d %   val top 2 accuracy 0\.", out)
    assert "test" not in out
    test = pc.evaluate(small.network(), small.dataset(50), pc.Serial(), threads=1)
    assert test.role == "test"


def test_the_command_evaluates_on_a_part_of_the_training_set_and_on_the_test_set_once(folder, tmp_path, capsys):
    model = tmp_path / "net.py"  # few kernels to compile
    model.write_text("import parallelcnn as pc\ndef network(classes):\n    return pc.Flatten(), pc.Dense(classes)\n")
    command = [
        "train",
        "--model",
        f"{model}:network",
        "--data",
        str(folder),
        "--out",
        str(tmp_path),
        "--epochs",
        "2",
        "--batch-size",
        "50",
    ]
    assert main([*command, "--validation-split", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "184 to train on, 46 to validate on, 70 to test on" in out
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "loss" not in row]
    assert [set(row) for row in evaluated] == [{"step", "epoch", "val_loss", "val_accuracy"}] * 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["validation_split"], summary["validation_loss"]) == (0.2, evaluated[-1]["val_loss"])
    train_set, test_set = pc.load_data(str(folder))
    network = pc.load_model(tmp_path / "model.npz")
    for dataset, name in ((test_set, "test"), (train_set.split(0.2, 0)[1], "validation")):
        result = pc.evaluate(network, dataset, pc.Serial(), threads=1)
        assert (summary[f"{name}_accuracy"], summary[f"{name}_loss"]) == (result.accuracy, pytest.approx(result.loss))
    assert main([*command, "--resume"]) == 2
    assert "the checkpoint is of another training: its train_set is" in capsys.readouterr().err
