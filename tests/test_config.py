"""The settings of a run: one declaration for the command, for files and for repeating a run."""

import json
import tomllib
from dataclasses import fields

import numpy as np
import pytest

from parallelcnn import cli
from parallelcnn.data import Dataset
from parallelcnn.errors import InputError
from parallelcnn.losses import BinaryCrossEntropy, MeanSquaredError, SoftmaxCrossEntropy
from parallelcnn.metrics import F1, TopK
from parallelcnn.optimizers import EMA, SGD, Adam, Lion, RMSprop
from parallelcnn.schedules import Constant, Cosine, Exponential, MultiStep, OneCycle, Plateau, Polynomial, Step
from parallelcnn.training.config import GROUPS, TrainConfig, config_from, settings
from parallelcnn.training.early_stopping import EarlyStopping


def test_the_defaults_are_valid_and_every_field_says_what_it_is():
    TrainConfig()
    for one, setting in settings():
        assert setting.help[0].islower() or setting.help[0].isupper()
        several = one.default if setting.length != 1 else (one.default,)
        assert one.default is None or all(isinstance(value, setting.kind) for value in several), one.name


def test_a_config_is_written_and_read_again(tmp_path):
    config = TrainConfig(data="images", epochs=7, learning_rate=0.25, nesterov=True, momentum=0.5, reproducible=8)
    lists = {"metrics": ("f1", "top-3"), "log": ("csv",), "schedule": "multistep", "milestones": (5, 7)}
    again = TrainConfig(optimizer="adam", betas=(0.5, 0.25), **lists)
    (tmp_path / "adam.toml").write_text(again.to_toml())
    assert config_from({}, str(tmp_path / "adam.toml")) == again
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    again = config_from({}, str(file))
    assert again.repeatable() == config.repeatable()
    assert again.data.startswith("/")
    values = tomllib.loads(file.read_text())
    assert {one.name for one in fields(TrainConfig)} - set(values) == {
        *(
            "data_dir",
            "weight_decay",
            "clip_norm",
            "clip_value",
            "ema",
            "evaluate_every",
            "threads",
            "verify",
            "start_from",
        ),
        *("early_stopping", "milestones", "image_size", "color"),
        *("decay_every", "decay_factor", "patience", "monitor", "min_delta", "cooldown", "min_learning_rate"),
        *("class_weight", "scale_learning_rate", "betas", "alpha", "eps", "validation_split"),
        *("checkpoint_every", "checkpoint_seconds", "out", "resume"),
    }


def test_a_string_of_any_letters_survives(tmp_path):
    odd = 'a "quoted" \\ name\twith ünïcode, \N{GRINNING FACE} and \x7f.py:network'
    (tmp_path / "config.toml").write_text(TrainConfig(model=odd).to_toml())
    assert config_from({}, str(tmp_path / "config.toml")).model.endswith(odd)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("epochs = 5\nbatch_size = 50\n")
    config = config_from({"epochs": 2}, str(file))
    assert (config.epochs, config.batch_size, config.seed) == (2, 50, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "no setting 'epoch': did you mean 'epochs'"),
        ("epochs = 'many'", "epochs must be an integer of at least 1, got 'many'"),
        ("epochs = true", "epochs must be an integer of at least 1, got True"),
        ("epochs = 1.5", "epochs must be an integer of at least 1, got 1.5"),
        ("learning_rate = nan", "learning_rate must be a finite number of at least 0, got nan"),
        ("nesterov = 1", "nesterov must be true or false, got 1"),
        (
            "schedule = 'steps'",
            "schedule must be one of constant, cosine, one-cycle, step, multistep, exponential, polynomial, plateau",
        ),
        ("schedule = 'step'", "the schedule step needs decay_every"),
        ("schedule = 'exponential'", "the schedule exponential needs decay_factor"),
        (
            "decay_factor = 0.5",
            "decay_factor is for the schedule step or multistep or exponential or plateau, got 0.5 with const",
        ),
        ("patience = 0\nschedule = 'step'", "patience is for the schedule plateau, got 0 with step"),
        ("schedule = 'plateau'\nmonitor = 'acc'", "monitor must be one of loss, accuracy, got 'acc'"),
        ("schedule = 'plateau'\ndecay_factor = 2", "Plateau: factor must be less than 1, got 2.0"),
        ("metrics = 'f1'", "metrics must be a list of names, got 'f1'"),
        ("metrics = ['f2']", r"metrics must be a list of top-1, top-2, \.\.\., precision, .*, got 'f2'"),
        ("metrics = ['top-0']", "metrics must be a list of .*, got 'top-0'"),
        ("log = ['csv', 'xml']", r"log must be a list of csv, tensorboard, got \['csv', 'xml'\]"),
        ("milestones = [0]", r"milestones must be a list of integers of at least 1, got \[0\]"),
        ("milestones = [1.5]", r"milestones must be a list of integers of at least 1, got \[1.5\]"),
        ("schedule = 'multistep'", "the schedule multistep needs milestones"),
        ("schedule = 'multistep'\nmilestones = [5, 5]", "MultiStep: milestones must be in increasing order"),
        ("monitor = 'loss'", "monitor is for early_stopping and the schedule plateau, got 'loss' with constant"),
        ("early_stopping = -1", "early_stopping must be an integer of at least 0, got -1"),
        ("betas = 0.9", "betas must be two finite numbers, got 0.9"),
        ("betas = [0.9, true]", r"betas must be two finite numbers, got \[0.9, True\]"),
        ("betas = [0.9, 0.99]", "betas is for the optimizer adam or adamw or lion, got sgd"),
        (
            "betas = [0.9, 1]\noptimizer = 'lion'",
            "Lion: betas must be a tuple of two numbers of at least 0 and below 1",
        ),
        ("eps = 1e-6\noptimizer = 'lion'", "eps is for the optimizer adam or adamw or rmsprop, got lion"),
        ("alpha = 1\noptimizer = 'rmsprop'", "RMSprop: alpha must be less than 1, got 1"),
        ("scale_learning_rate = 0", "scale_learning_rate must be an integer of at least 1, got 0"),
        (
            "loss = 'mse'",
            "loss must be one of softmax-cross-entropy, binary-cross-entropy, squared, got",
        ),
        (
            "loss = 'squared'\nlabel_smoothing = 0.1",
            "label_smoothing is for the loss softmax-cross-entropy, got 0.1 with",
        ),
        ("class_weight = 'even'", "class_weight must be one of balanced, got 'even'"),
        ("schedule = 'exponential'\ndecay_every = 5", "decay_every is for the schedule step, got 5 with exponential"),
        ("validation_split = 1", "validation_split must be above 0 and below 1, got 1.0"),
        ("label_smoothing = 2", "label_smoothing must be at most 1, got 2.0"),
        ("repair = 'all'", "repair must be one of stop, majority, checkpoint, got 'all'"),
        ("schedule = 'one-cycle'\nwarmup = 5", "warmup must be 0 with the schedule one-cycle"),
        ("momentum = 1.0", "momentum must be less than 1, got 1.0"),
        ("epochs = ", "is not TOML"),
    ],
)
def test_what_a_file_may_not_hold_is_named(text, message, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        config_from({}, str(file))


def test_a_file_that_is_not_there_is_one_sentence_and_code_2(tmp_path, capsys):
    assert cli.main(["train", "--config", str(tmp_path / "none.toml")]) == 2
    _, err = capsys.readouterr()
    assert err == f"parallelcnn: error: --config {tmp_path / 'none.toml'} cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("given", "optimizer"),
    [
        ({}, SGD(0.1)),
        ({"warmup": 3}, SGD(Constant(0.1, 3))),
        ({"schedule": "cosine", "warmup": 3, "momentum": 0.9}, SGD(Cosine(0.1, 3), 0.9)),
        ({"schedule": "step", "decay_every": 50}, SGD(Step(0.1, 50))),
        ({"schedule": "step", "decay_every": 50, "decay_factor": 0.5, "warmup": 3}, SGD(Step(0.1, 50, 0.5, 3))),
        ({"schedule": "multistep", "milestones": [5, 9], "warmup": 3}, SGD(MultiStep(0.1, (5, 9), 0.1, 3))),
        ({"early_stopping": 2, "monitor": "accuracy", "schedule": "cosine"}, SGD(Cosine(0.1))),
        ({"schedule": "exponential", "decay_factor": 0.99, "warmup": 3}, SGD(Exponential(0.1, 0.99, 3))),
        ({"schedule": "polynomial"}, SGD(Polynomial(0.1))),
        ({"schedule": "plateau", "warmup": 3}, SGD(Plateau(0.1, warmup=3))),
        (
            {
                "schedule": "plateau",
                "decay_factor": 0.5,
                "patience": 0,
                "cooldown": 1,
                "min_delta": 0,
                "monitor": "loss",
            },
            SGD(Plateau(0.1, 0.5, 0, cooldown=1, min_delta=0.0, monitor="test_loss")),
        ),
        (
            {"schedule": "plateau", "monitor": "accuracy", "min_learning_rate": 0.01, "validation_split": 0.1},
            SGD(Plateau(0.1, min_learning_rate=0.01, monitor="val_accuracy")),
        ),
        ({"optimizer": "adam", "betas": [0.8, 0.9], "eps": 1e-6}, Adam(betas=(0.8, 0.9), eps=1e-6)),
        ({"optimizer": "rmsprop", "alpha": 0.9, "eps": 1e-6, "momentum": 0.5}, RMSprop(0.01, 0.9, 1e-6, 0.5)),
        ({"optimizer": "lion", "betas": (0.5, 0.6)}, Lion(betas=(0.5, 0.6))),
        ({"scale_learning_rate": 256, "batch_size": 64, "schedule": "cosine"}, SGD(Cosine(0.025))),
        ({"optimizer": "adam", "scale_learning_rate": 50, "ema": 0.5}, EMA(Adam(0.002), 0.5)),
        ({"schedule": "one-cycle", "learning_rate": 1, "clip_norm": 2}, SGD(OneCycle(1.0), clip_norm=2.0)),
    ],
)
def test_settings_describe_an_optimiser(given, optimizer):
    assert TrainConfig(**given).build_optimizer() == optimizer


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({}, SoftmaxCrossEntropy()),
        ({"label_smoothing": 0.1}, SoftmaxCrossEntropy(0.1)),
        ({"class_weight": "balanced", "label_smoothing": 0.1}, SoftmaxCrossEntropy(0.1, (2.0, 2 / 3))),
        ({"loss": "binary-cross-entropy"}, BinaryCrossEntropy()),
        ({"loss": "squared"}, MeanSquaredError()),
    ],
)
def test_settings_describe_a_loss(given, loss):
    one_and_three = Dataset(np.zeros((4, 2), np.uint8), np.array([1, 1, 0, 1]), 2)
    assert TrainConfig(**given).build_loss(one_and_three) == loss


def test_the_help_is_grouped_by_topic_and_shows_no_default_that_is_none(here):
    found = here("train", "--help").out
    places = [found.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    assert "None" not in found
    for one, setting in settings():
        place = found.index(f"\n  --{one.name.replace('_', '-')} ")
        assert GROUPS[sum(start < place for start in places) - 1] == setting.group, one.name
        if not (one.default is None or isinstance(one.default, bool) or one.default == ()):
            shown = f"{one.default:g}" if isinstance(one.default, float) else one.default
            assert f"[default:{shown}]" in "".join(found[place:].split())  # which may be broken at a hyphen


def test_a_run_is_repeated_from_its_own_config(folder, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    line = ["train", "--data", str(folder), "--epochs", "2", "--batch-size", "50", "--schedule", "cosine"]
    assert cli.main([*line, "--clip-norm", "0.5", "--seed", "3", "--out", str(first)]) == 0
    assert cli.main(["train", "--config", str(first / "config.toml"), "--out", str(second)]) == 0
    one, two = (json.loads((out / "summary.json").read_text()) for out in (first, second))
    assert one["parameters_sha256"] == two["parameters_sha256"]
    assert (two["schedule"], two["clip_norm"], two["seed"]) == ("cosine", 0.5, 3)
    assert (first / "config.toml").read_text() == (second / "config.toml").read_text()


def test_early_stopping_and_metrics_are_built_from_their_settings():
    assert TrainConfig().build_early_stopping() is None
    config = TrainConfig(early_stopping=2, monitor="accuracy", min_delta=0.5, metrics=("top-3", "f1", "top-3"))
    assert config.build_early_stopping() == EarlyStopping("test_accuracy", 2, 0.5)
    assert TrainConfig(early_stopping=2, validation_split=0.5).build_early_stopping() == EarlyStopping(None, 2)
    assert config.build_metrics(4) == [TopK(3), F1(4)]
