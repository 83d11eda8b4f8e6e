"""--augment and --normalize of the command."""

import json

import numpy as np
import pytest
from launch import refused

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.layers.normalize import mean_and_deviation
from parallelcnn.training.config import TrainConfig


@pytest.mark.parametrize(
    ("words", "normalize", "shape", "expected"),
    [
        ((), False, (3, 32, 32), ()),
        (("light",), False, (3, 32, 32), (pc.RandomFlip(), pc.RandomCrop(4))),
        (("light",), True, (1, 28, 28), (pc.RandomFlip(), pc.RandomCrop(4), pc.Normalize())),
        (("light",), False, (1, 3, 48), (pc.RandomFlip(), pc.RandomCrop((1, 6)))),
        (
            ("strong",),
            True,
            (3, 32, 32),
            (
                *(pc.RandomFlip(), pc.RandomCrop(4), pc.RandomRotation(15), pc.RandomZoom(0.1)),
                *(pc.RandomBrightness(0.2), pc.RandomContrast(0.2), pc.Normalize(), pc.Cutout(8)),
            ),
        ),
        (
            ("cutout:5", "mixup:0.4", "crop:2", "flip:horizontal_and_vertical"),
            True,
            (1, 9, 9),
            (
                *(pc.RandomFlip("horizontal_and_vertical"), pc.RandomCrop(2), pc.Normalize()),
                *(pc.Cutout(5), pc.MixUp(0.4)),
            ),
        ),
        (("light", "rotation:7.5"), False, (1, 8, 8), (pc.RandomFlip(), pc.RandomCrop(1), pc.RandomRotation(7.5))),
        (("rotation", "zoom:0.3"), False, (5,), (pc.RandomRotation(15), pc.RandomZoom(0.3))),
    ],
)
def test_the_layers_of_a_list(words, normalize, shape, expected):
    assert TrainConfig(augment=words, normalize=normalize).build_first_layers(shape) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flop"], "augment: no augmentation 'flop': did you mean 'flip'?"),
        (["strong:2"], "augment: no augmentation 'strong:2': did you mean 'strong'?"),
        (["light", "crop:2"], "augment must name every augmentation at most once, got light crop:2"),
        (["crop:2.5"], r"augment: RandomCrop\(2.5\): padding must be an integer of at least 0, got 2.5"),
        (["crop:"], r"augment: RandomCrop\(''\): padding must be an integer of at least 0, got ''"),
        (["flip:both"], "augment: .*: mode must be horizontal, vertical or horizontal_and_vertical, got 'both'"),
        (["rotation:x"], r"augment: RandomRotation\('x'\): degrees must be a number of at least 0 and at most 180"),
        ("light", "augment must be a list of names, got 'light'"),
    ],
)
def test_a_wrong_word_is_named(words, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(augment=words)


def test_a_run_is_augmented_and_its_model_prepares_images_as_training_did(folder, here, tmp_path, train):
    out = tmp_path / "out"
    given = "--data", folder, "--epochs", 2, "--reproducible", 2, "--augment", "strong", "mixup", "--normalize"
    ran = here("train", *given, "--out", out)
    assert ran.code == 0, ran.err
    assert "RandomFlip()" in ran.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["augment"] == ["strong", "mixup"]
    assert summary["normalize"] is True
    model = pc.load_model(out / "model.npz")
    train_set, test_set = pc.load_data(str(folder))
    names = [type(layer).__name__ for layer in model.layers[:9]]
    assert names[:3] == ["RandomFlip", "RandomCrop", "RandomRotation"]
    assert names[6:] == ["Normalize", "Cutout", "MixUp"]
    assert model.layers[6] == pc.Normalize(*mean_and_deviation(train_set.images))
    plain = pc.NetworkHandler(model.layers[9:], model.input_shape)
    plain.params = model.params
    prepared = ((test_set.images / 255 - model.layers[6].mean[0]) / model.layers[6].std[0]).astype(np.float32)
    np.testing.assert_allclose(model.predict(test_set.images), plain.predict(prepared), rtol=1e-3, atol=1e-4)
    assert here("evaluate", out).code == 0

    again = here("train", "--config", out / "config.toml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    other = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert other["parameters_sha256"] == summary["parameters_sha256"]
    more = here("train", *given, "--epochs", 3, "--out", out, "--resume")
    assert more.code == 0, more.err
    refused(
        here("train", "--data", folder, "--epochs", 4, "--out", out, "--resume"),
        "the checkpoint is of another training",
    )


@pytest.mark.mpi
def test_ranks_of_mpi_give_the_same_bits(train, tmp_path):
    given = "--epochs", 1, "--reproducible", 4, "--augment", "light", "cutout", "mixup", "--normalize"
    hashes = []
    for ranks in (1, 3):
        ran = train(*given, "--threads", 1, ranks=ranks)
        assert ran.code == 0, ran.err
        hashes.append(json.loads((tmp_path / "out" / "summary.json").read_text())["parameters_sha256"])
    assert hashes[0] == hashes[1]


def test_images_are_needed(folder, here, tmp_path):
    with pytest.raises(InputError, match=r"layer 1 of 2: RandomFlip\(\) takes images"):
        pc.NetworkHandler((*TrainConfig(augment=("light",)).build_first_layers((5,)), pc.Dense(2))[:2], (5,))
    refused(here("train", "--data", folder, "--augment", "flop", "--out", tmp_path / "out"), "no augmentation 'flop'")
    assert not (tmp_path / "out").exists()
