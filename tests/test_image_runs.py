"""The command on folders of images under mpirun: decoded once by all ranks, the same bits on any number of them."""

import json
import re
import shutil

import numpy as np
import pytest
from launch import parallelcnn

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(100 * label, 100 * label + 150, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_ranks_decode_together_and_train_the_same_bits_with_augmentation(photos, tmp_path):
    hashes, caches = set(), []
    for ranks in (1, 2, 3):
        out, cache = tmp_path / f"run-{ranks}", tmp_path / f"cache-{ranks}"
        words = ["--data", photos, "--epochs", 2, "--batch-size", 10, "--reproducible", 4]
        words += ["--augment", "light", "--normalize", "--model", "lenet5", "--image-size", 28, "--out", out]
        ran = parallelcnn("train", *words, ranks=ranks, PARALLELCNN_CACHE=str(cache))
        assert ran.code == 0, ran.err
        assert ran.out.count("found      image folder: 2 classes") == 1
        hashes.add(json.loads((out / "summary.json").read_text())["parameters_sha256"])
        caches.append([file.read_bytes() for file in (cache / "images").iterdir()])
        assert (out / "report.html").exists()
    assert len(hashes) == 1
    assert len(caches[0]) == 1
    assert caches[0] == caches[1] == caches[2]


def test_a_broken_image_is_said_once_and_the_ranks_of_a_prediction_keep_the_order(photos, tmp_path):
    cache = {"PARALLELCNN_CACHE": str(tmp_path / "cache")}
    (photos / "light" / "bad.png").write_bytes(b"no image")
    words = ["train", "--data", photos, "--epochs", 1, "--batch-size", 10, "--model", "lenet5", "--image-size", 28]
    ran = parallelcnn(*words, "--out", tmp_path / "out", ranks=3, **cache)
    assert ran.code == 2
    assert ran.err.count("bad.png: cannot be decoded") == 1
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()
    words += ["--learning-rate", 1e-6]  # there will be mistakes
    ran = parallelcnn(*words, "--skip-broken", "--out", tmp_path / "out", ranks=2, **cache)
    assert ran.code == 0, ran.err
    files = re.findall(r'<p class="quiet file">(.*?)</p>', (tmp_path / "out" / "report.html").read_text())
    assert files
    assert all((photos / file).exists() for file in files)
    (photos / "light" / "bad.png").unlink()
    ran = parallelcnn("predict", tmp_path / "out", photos, "--csv", ranks=3)
    assert ran.code == 0, ran.err
    files = [line.partition(",")[0] for line in ran.out.splitlines()[1:]]
    assert files == [str(file) for file in sorted(photos.rglob("*.png"))]


def test_the_default_minibatch_of_a_small_folder_is_the_whole_training_set(photos, tmp_path):
    words = ["train", "--data", photos, "--epochs", 1, "--model", "lenet5", "--image-size", 28]
    cache = {"PARALLELCNN_CACHE": str(tmp_path / "cache")}
    ran = parallelcnn(*words, "--out", tmp_path / "out", **cache)
    assert ran.code == 0, ran.err
    size = int(re.search(r"([0-9]+) to train on", ran.out)[1])
    assert size < 100
    assert f"batch_size = {size}\n" in (tmp_path / "out" / "config.toml").read_text()
    ran = parallelcnn(*words, "--batch-size", size + 1, **cache)
    assert ran.code == 2
    assert f"batch_size must be at most {size}" in ran.err


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_folder_named_as_a_known_data_set_is_still_a_folder(name, photos, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, name)
    words = ["--epochs", 1, "--model", "lenet5", "--image-size", 28]
    assert here("train", "--data", f"./{name}", "--out", "run", *words).code == 0
    ran = here("evaluate", "run")
    assert (ran.code, ran.err) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"test loss {summary['test_loss']:.4f}" in ran.out


def test_how_the_images_of_a_run_were_read_says_nothing_about_other_data(photos, here, tmp_path):
    words = ["--epochs", 1, "--model", "lenet5", "--image-size", 28, "--color", "gray", "--skip-broken"]
    assert here("train", "--data", photos, "--out", tmp_path / "run", *words).code == 0
    arrays = {"x_test": np.zeros((4, 28, 28), np.uint8), "y_test": np.arange(4) % 2}
    np.savez(tmp_path / "other.npz", x_train=arrays["x_test"], y_train=arrays["y_test"], **arrays)
    ran = here("evaluate", tmp_path / "run", "--data", tmp_path / "other.npz")
    assert (ran.code, ran.err) == (0, "")
    again = here("evaluate", tmp_path / "run", "--data", photos)  # another folder is read as the network takes it
    assert again.out.splitlines()[2:] == here("evaluate", tmp_path / "run").out.splitlines()[1:]
