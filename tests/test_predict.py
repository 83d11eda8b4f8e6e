"""`parallelcnn predict` and `parallelcnn data`: what they print, and what they refuse."""

import csv
import io
import json

import numpy as np
import pytest
from launch import refused
from small import network as small_network

import parallelcnn as pc
from parallelcnn.cli.models import choose_model
from parallelcnn.data.readers.npz import read_array
from parallelcnn.models import MODELS

Image = pytest.importorskip("PIL.Image")

NAMES = ("blue", "red")
COLORS = {"blue": (10, 20, 220), "red": (220, 20, 10)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PARALLELCNN_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(file, color, size=(8, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)
    return file


def photos(folder, count=6):
    for name, color in COLORS.items():
        for number in range(count):
            shade = tuple(min(255, part + 3 * number) for part in color)
            save(folder / name / f"{number}.png", shade)
    return folder


@pytest.fixture
def model(tmp_path):
    """A network that tells blue from red by the mean of the channels, without training."""
    network = pc.NetworkHandler((pc.GlobalAvgPool2D(), pc.Dense(2)), (3, 8, 8))
    network.parameters["1.weight"] = [[-3, 0, 3], [3, 0, -3]]
    network.class_names, network.resize, network.input_range = NAMES, "crop", (0.0, 1.0)
    pc.save_model(tmp_path / "run" / "model.npz", network) if (tmp_path / "run").mkdir() is None else None
    return tmp_path / "run"


def test_an_array_is_opened_once_for_all_rounds(model, tmp_path, here, monkeypatch):
    opened = []

    def noting(path, name):
        opened.append(path.name)
        return read_array(path, name)

    monkeypatch.setattr("parallelcnn.data.inputs.read_array", noting)
    monkeypatch.setattr("parallelcnn.cli.predict._IN_A_ROUND", 3)
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for file in files:
        np.savez(file, images=images)
    found = json.loads(here("predict", model, *files, "--json").out)
    assert [one["file"] for one in found] == [f"{file}[{row}]" for file in files for row in range(20)]
    probabilities = pc.load_model(model / "model.npz").predict(images).max(axis=1)
    shown = [one["classes"][0]["probability"] for one in found]
    np.testing.assert_allclose(shown, [*probabilities, *probabilities], atol=1e-6)
    assert opened == ["a.npz", "b.npz"]


def test_a_line_for_each_image_in_the_given_order(model, tmp_path, here):
    red, blue = save(tmp_path / "a.png", COLORS["red"]), save(tmp_path / "b.jpg", COLORS["blue"], (30, 20))
    result = here("predict", model, blue, red)
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert [line[:2] for line in lines] == [[str(blue), "blue"], [str(red), "red"]]
    network = pc.load_model(model / "model.npz")
    pixels = np.array(Image.open(red)).transpose(2, 0, 1)[np.newaxis]
    assert float(lines[1][2]) == pytest.approx(100 * network.predict(pixels)[0, 1], abs=0.01)


def test_a_folder_means_all_images_in_it(model, tmp_path, here):
    result = here("predict", model, photos(tmp_path / "new"), "--csv", "--top", 2)
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["file"] for row in rows] == [str(file) for file in sorted((tmp_path / "new").rglob("*.png"))]
    assert [row["class"] for row in rows] == ["blue"] * 6 + ["red"] * 6
    for row in rows:
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)
        assert {row["class"], row["class_2"]} == set(NAMES)


def test_json_and_arrays(model, tmp_path, here):
    images = np.zeros((3, 3, 8, 8), np.uint8)
    images[:, 0], images[1, :] = 200, [[[0]], [[0]], [[200]]]
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images.astype(np.float32) / 255, labels=np.zeros(3))
    result = here("predict", model, tmp_path / "x.npy", tmp_path / "x.npz", "--json", "--top", 5)
    found = json.loads(result.out)
    assert [one["file"] for one in found] == [f"{tmp_path}/x.np{end}[{i}]" for end in "yz" for i in range(3)]
    assert [one["classes"][0]["class"] for one in found] == ["red", "blue", "red"] * 2
    assert [len(one["classes"]) for one in found] == [2] * 6
    assert found[0]["classes"] == found[3]["classes"]  # uint8, and floats in [0, 1]


def test_json_has_no_nan_and_is_closed_after_an_error(model, tmp_path, here):
    np.save(tmp_path / "huge.npy", np.full((1, 3, 8, 8), 3e38, np.float32))
    np.save(tmp_path / "wrong.npy", np.zeros((1, 3, 9, 9), np.float32))
    ran = here("predict", model, tmp_path / "huge.npy", "--json")
    assert ran.code == 0
    assert {one["probability"] for one in json.loads(ran.out)[0]["classes"]} == {None}
    network = pc.load_model(model / "model.npz")
    network.prediction = "output"
    pc.save_model(model / "model.npz", network)
    assert None in json.loads(here("predict", model, tmp_path / "huge.npy", "--json").out)[0]["output"]
    np.save(tmp_path / "many.npy", np.zeros((256, 3, 8, 8), np.float32))
    ran = here("predict", model, tmp_path / "many.npy", tmp_path / "wrong.npy", "--json")
    assert ran.code == 2
    assert len(json.loads(ran.out)) == 256


def test_arrays_may_have_the_names_and_layout_of_other_programs(model, tmp_path, here):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[..., 0], images[1] = 200, (0, 0, 200)
    np.savez(tmp_path / "keras.npz", x_train=images[:1], y_train=[0], x_test=images, y_test=[0, 1, 0])
    np.savez(tmp_path / "medmnist.npz", test_images=images.astype(">i4"), test_labels=[[0], [1], [0]])
    np.save(tmp_path / "x.npy", images / 255)
    result = here("predict", model, *(tmp_path / name for name in ("keras.npz", "medmnist.npz", "x.npy")), "--json")
    assert [one["classes"][0]["class"] for one in json.loads(result.out)] == ["red", "blue", "red"] * 3


def test_of_one_output_and_of_regression(model, tmp_path, here):
    binary = pc.NetworkHandler((pc.GlobalAvgPool2D(), pc.Dense(1)), (3, 8, 8))
    binary.parameters["1.weight"] = [[3, 0, -3]]
    binary.prediction, binary.class_names = "sigmoid", NAMES
    pc.save_model(tmp_path / "binary.npz", binary)
    file = save(tmp_path / "x.png", COLORS["blue"])
    (found,) = json.loads(here("predict", tmp_path / "binary.npz", file, "--json", "--top", 2).out)
    assert [one["class"] for one in found["classes"]] == ["blue", "red"]
    assert sum(one["probability"] for one in found["classes"]) == pytest.approx(1, abs=1e-5)
    binary.prediction, binary.class_names = "output", None
    pc.save_model(tmp_path / "regression.npz", binary)
    pixels = np.array(Image.open(file)).transpose(2, 0, 1)[np.newaxis]
    wanted = binary.predict(pixels)[0, 0]
    (found,) = json.loads(here("predict", tmp_path / "regression.npz", file, "--json").out)
    assert found["output"] == pytest.approx([wanted])
    rows = list(csv.reader(io.StringIO(here("predict", tmp_path / "regression.npz", file, "--csv").out)))
    assert rows[0] == ["file", "output_0"]
    assert float(here("predict", tmp_path / "regression.npz", file).out.split()[-1]) == pytest.approx(wanted, rel=1e-5)


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(model, tmp_path, here):
    good, bad = save(tmp_path / "good.png", COLORS["red"]), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    result = here("predict", model, bad, good)
    assert result.code == 2
    assert result.out.split()[:2] == [str(good), "red"]
    assert f"{bad}: cannot be decoded: is no image that Pillow can read" in result.err
    assert "parallelcnn: error: 1 of 2 images cannot be read; the others are predicted" in result.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "missing.png: there is no such file"),
        ("missing", None, "missing: does not exist"),
        ("x.txt", b"x", "x.txt: is neither a folder nor a file named .bmp, "),
        ("x.npy", b"x", "x.npy: it starts with no header of an array of numbers"),
        ("x.npz", b"x", "x.npz is no .npz file, or a damaged one"),
        ("folder/x.txt", b"x", "folder: must hold images, but holds none"),
    ],
)
def test_paths_that_hold_no_images_are_refused(name, content, message, model, tmp_path, here):
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    refused(here("predict", model, file.parent if "/" in name else file), message)


def test_pickled_objects_and_arrays_of_another_shape_are_refused(model, tmp_path, here):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    refused(
        here("predict", model, tmp_path / "x.npy"),
        "but with one of Python objects, which only a pickle can store, and a pickle may run any program",
    )
    for given, hint in (
        ((2, 1, 5, 5), ""),
        ((8, 8, 3), ": an array of one image is stored as (1, 8, 8, 3)"),
        ((3, 8, 8), ": an array of one image is stored as (1, 3, 8, 8)"),
    ):
        np.save(tmp_path / "x.npy", np.zeros(given, np.uint8))
        message = f"{tmp_path / 'x.npy'}: the network takes images of shape (N, 3, 8, 8), got {given}{hint}\n"
        refused(here("predict", model, tmp_path / "x.npy"), message)
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    refused(here("predict", model, tmp_path / "x.npz"), "must hold one array, or one called images, got a, b")


def test_rows_that_are_not_finite_are_named_and_the_others_predicted(model, tmp_path, here):
    images = np.zeros((3, 3, 8, 8), np.float32)
    images[1, 2, 3, 4] = np.nan
    np.save(tmp_path / "x.npy", images)
    ran = here("predict", model, tmp_path / "x.npy")
    assert ran.code == 2
    assert [line.split()[0] for line in ran.out.splitlines()] == [f"{tmp_path / 'x.npy'}[{row}]" for row in (0, 2)]
    assert f"parallelcnn: {tmp_path / 'x.npy'}[1]: every number must be finite\n" in ran.err
    assert ran.err.endswith("error: 1 of 3 images cannot be read; the others are predicted\n")
    np.save(tmp_path / "x.npy", images[1:2])
    assert here("predict", model, tmp_path / "x.npy").err.endswith("error: 1 of 1 image cannot be read\n")


def test_a_network_of_vectors_takes_no_image_files(tmp_path, here):
    pc.save_model(tmp_path / "model.npz", pc.NetworkHandler((pc.Dense(2),), (5,)))
    file = save(tmp_path / "x.png", COLORS["red"])
    refused(here("predict", tmp_path / "model.npz", file), "takes inputs of shape (5,), not grey or colour images")


def test_an_empty_path_is_not_the_current_folder(model, tmp_path, here, monkeypatch):
    save(tmp_path / "a.png", COLORS["red"])
    monkeypatch.chdir(tmp_path)
    refused(here("predict", model, "a.png", ""), "PATH must name an image, a folder or an array, got ''")


def test_a_line_break_in_a_file_name_does_not_break_the_table(model, tmp_path, here):
    files = [save(tmp_path / name, COLORS["red"]) for name in ("new\nline.png", "tab\t.png", "a.png")]
    lines = here("predict", model, *files).out.splitlines()
    assert [line.split()[-3] for line in lines] == ["red"] * 3
    assert len({line.index(" red ") for line in lines}) == 1
    rows = list(csv.reader(io.StringIO(here("predict", model, *files, "--csv").out)))
    assert [row[0] for row in rows[1:]] == list(map(str, files))


def test_top_must_be_a_count(model, here):
    refused(here("predict", model, "x.png", "--top", "0"), "top must be an integer of at least 1, got 0")


def test_a_run_on_a_folder_of_images_can_be_repeated_evaluated_and_used(tmp_path, here):
    photos(tmp_path / "photos" / "train", 20)
    photos(tmp_path / "photos" / "test", 3)
    trained = here(
        *("train", "--data", tmp_path / "photos", "--image-size", "9x7", "--resize", "pad", "--epochs", 2),
        *("--batch-size", 5, "--model", "lenet5", "--image-size", "32", "--out", tmp_path / "run"),
    )
    assert trained.code == 0, trained.err
    assert "found      image folder: 2 classes, images: 40 in the training set, 6 in the test set" in trained.out
    assert "8 x 8 pixels, resized to 32 x 32 (pad), rgb" in trained.out
    network = pc.load_model(tmp_path / "run" / "model.npz")
    assert (network.class_names, network.resize, network.input_shape) == (NAMES, "pad", (3, 32, 32))
    config = (tmp_path / "run" / "config.toml").read_text()
    assert 'image_size = "32"' in config
    assert 'resize = "pad"' in config
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]
    evaluated = here("evaluate", tmp_path / "run")
    assert f"test accuracy {100 * accuracy:.2f} %" in evaluated.out, evaluated.err
    predicted = here("predict", tmp_path / "run", tmp_path / "photos" / "test", "--csv")
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    right = [row["class"] == row["file"].split("/")[-2] for row in rows]
    assert np.mean(right) == pytest.approx(accuracy)


def test_a_validation_set_of_the_data_is_what_is_monitored(tmp_path, here):
    for name in ("train", "val", "test"):
        photos(tmp_path / "photos" / name, 10)
    ran = here(
        *("train", "--data", tmp_path / "photos", "--image-size", "28", "--model", "lenet5", "--epochs", 6),
        *("--batch-size", 10, "--early-stopping", 1, "--monitor", "accuracy", "--schedule", "plateau"),
        *("--patience", 1, "--log", "csv", "--out", tmp_path / "run"),
    )
    assert ran.code == 0, ran.err
    assert "validation accuracy" in ran.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_accuracy"] is not None
    rows = list(csv.DictReader((tmp_path / "run" / "epochs.csv").read_text().splitlines()))
    assert "val_accuracy" in rows[0]


def test_files_are_read_as_the_network_takes_them(model, tmp_path):
    network = pc.load_model(model / "model.npz")
    red, blue = save(tmp_path / "a.png", COLORS["red"], (20, 30)), save(tmp_path / "b.png", COLORS["blue"])
    images = pc.read_images([red, str(blue)], network)
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), np.uint8)
    assert network.predict_classes(images).tolist() == ["red", "blue"]
    assert pc.read_images([], network).shape == (0, 3, 8, 8)
    with pytest.raises(pc.InputError, match=r"files must be a list of paths, such as \['x.png'\], got 'x.png'"):
        pc.read_images("x.png", network)
    with pytest.raises(pc.DataError, match="does not exist"):
        pc.read_images([tmp_path / "missing.png"], network)
    with pytest.raises(pc.ShapeError, match="not grey or colour images"):
        pc.read_images([red], pc.NetworkHandler((pc.Dense(2),), (5,)))


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 28, 28), "paper"),
        ((1, 10, 32), "paper"),
        ((1, 9, 28), "resnet8"),
        ((1, 33, 8), "resnet8"),
        ((3, 32, 32), "resnet8"),
        ((3, 64, 64), "mobilenet-small"),
    ],
)
def test_the_model_auto_depends_on_the_size_and_the_channels(shape, name):
    assert choose_model(shape) == name
    assert pc.NetworkHandler(MODELS[name](2), shape).output_shape == (2,)
    with pytest.raises(pc.InputError, match=r"no images, but of shape \(5,\): name a network for them"):
        choose_model((5,))


# ---- describing


def test_data_describes_a_folder_of_images(tmp_path, here):
    folder = photos(tmp_path / "photos", 10)
    save(folder / "red" / "again.png", COLORS["red"])
    save(folder / "blue" / "wide.png", COLORS["blue"], (30, 8))
    (folder / "blue" / "bad.jpg").write_bytes(b"")
    result = here("data", folder, "--out", tmp_path / "about")
    assert result.code == 0, result.err
    text = result.out
    assert "22 images, rows x columns: 8 x 8 (21), 8 x 30 (1); all in colour" in text
    assert "broken     1 image, which train leaves out only with --skip-broken:" in text
    assert "bad.jpg: cannot be decoded" in text
    assert "with the pixels of another one" in text
    assert "red/0.png = red/again.png" in text or "red/again.png = red/0.png" in text
    with Image.open(tmp_path / "about" / "contact-sheet.png") as sheet:
        assert sheet.size == (4 + 10 * 68, 4 + 2 * 88)
        assert sheet.getpixel((30, 4 + 16 + 30))[2] > 150  # blue comes first
        assert sheet.getpixel((30, 88 + 4 + 16 + 30))[0] > 150


def test_data_describes_other_data(here):
    result = here("data", "digits")
    assert result.code == 0, result.err
    assert "train      60,000 samples, uint8 28 x 28" in result.out
    train, _ = pc.load_data("digits")
    mean, deviation = train.images.mean() / 255, train.images.std() / 255
    assert f"mean {mean:.4g}, standard deviation {deviation:.4g}" in result.out


def test_data_counts_classes_of_unequal_size_and_labels_that_differ(tmp_path, here):
    folder = photos(tmp_path / "photos" / "train", 12)
    for number in range(1, 12):
        (folder / "red" / f"{number}.png").unlink()
    save(tmp_path / "photos" / "test" / "red" / "x.png", COLORS["blue"])
    text = here("data", tmp_path / "photos").out
    assert "the largest class has 12 samples, the smallest 1: consider --class-weight balanced" in text
    assert "missing    the test set has no sample of the class blue\n" in text
    assert "1 sample with the pixels of another one; 1 of them in different sets" in text
    assert "train/blue/0.png = test/red/x.png (different labels)" in text


def test_results_among_the_images_are_refused(tmp_path, here, monkeypatch):
    """Their pictures would be a class in the next run."""
    folder = photos(tmp_path / "photos")
    monkeypatch.chdir(folder)
    for words in (["train"], ["train", "--out", "a"], ["train", "--out", folder], ["data", "--out", "about"]):
        data = ["."] if words[0] == "data" else ["--data", "."]
        refused(here(words[0], *data, *words[1:]), "--out must lie outside of ., whose folders are classes of images, ")
    assert sorted(one.name for one in folder.iterdir()) == ["blue", "red"]
    sets = tmp_path / "sets"
    photos(sets / "train")
    refused(here("data", sets, "--out", sets / "train" / "x"), f"--out must lie outside of {sets / 'train'}, whose")
    assert here("data", sets, "--out", sets / "about").code == 0


def test_data_refuses_what_train_refuses(tmp_path, here):
    refused(here("data", tmp_path), "holds no data in a known format")
    refused(here("data", "digits", "--out", __file__), "--out must be a directory, but")
    refused(here("data", "digits", "--image-size", "5y5"), "image_size must be a number or ROWSxCOLUMNS")
    assert small_network().class_names is None
