"""The built-in data set: the same everywhere, plausible, and too hard for a linear classifier."""

import hashlib
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from parallelcnn.data import load_data, load_digits
from parallelcnn.errors import DataError
from parallelcnn.kernels.digits import draw_strokes

# Of the first 200 training and 50 test images of seed 0 with their labels.
KNOWN_SHA256 = "b275f58b2937ea3b20060f4a739cde1f1ba23c2848fb4323f4f18018ced627bd"


@pytest.fixture(scope="module")
def digits():
    if numba.config.DISABLE_JIT:
        pytest.skip("thousands of digits take minutes to draw where NUMBA_DISABLE_JIT is set")
    return load_digits(n_train=10_000, n_test=2_000)


def fingerprint(datasets):
    digest = hashlib.sha256()
    for data in datasets:
        digest.update(data.images.tobytes())
        digest.update(data.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def test_the_pixels_are_the_known_ones():
    assert fingerprint(load_digits(n_train=200, n_test=50)) == KNOWN_SHA256


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"])
def test_the_pixels_are_the_same_interpreted_and_with_checked_bounds(tmp_path, setting):
    script = (
        "from parallelcnn.data import load_digits\n"
        "train, test = load_digits(n_train=30, n_test=1)\n"
        "print(train.images.tobytes().hex())"
    )
    # A cache of its own: numba would take unchecked code from the usual one.
    environment = os.environ | {setting: "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    train, _ = load_digits(n_train=30, n_test=1)
    assert run.stdout.strip() == train.images.tobytes().hex()


def test_another_seed_draws_other_images():
    one, other = load_digits(1, 50, 50), load_digits(2, 50, 50)
    assert not np.array_equal(one[0].images, other[0].images)
    assert not np.array_equal(one[1].images, other[1].images)


def test_fewer_images_are_the_first_ones(digits):
    few = load_digits(n_train=777, n_test=3)
    for short, long in zip(few, digits, strict=True):
        np.testing.assert_array_equal(short.images, long.images[: len(short)])
        np.testing.assert_array_equal(short.labels, long.labels[: len(short)])


def test_training_and_test_images_are_different_draws(digits):
    train, test = digits
    seen = {image.tobytes() for image in train.images}
    assert len(seen) == len(train)
    assert not any(image.tobytes() in seen for image in test.images)


def test_every_digit_is_drawn_about_as_often(digits):
    train, test = digits
    assert train.images.shape == (10_000, 28, 28)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert (train.classes, train.name, train.input_shape) == (10, "digits", (1, 28, 28))
    assert np.all(np.abs(np.bincount(train.labels, minlength=10) - 1000) < 150)
    assert np.all(np.bincount(test.labels, minlength=10) > 100)


def test_every_image_shows_ink_on_mostly_empty_paper(digits):
    inked = (digits[0].images > 100).mean(axis=(1, 2))
    assert inked.min() > 0.01
    assert inked.max() < 0.5


def test_the_digits_lie_inside_their_images(digits):
    images = digits[0].images
    inked = images > 100
    edge = inked[:, 0].any(1) | inked[:, -1].any(1) | inked[:, :, 0].any(1) | inked[:, :, -1].any(1)
    assert edge.mean() < 0.15


def test_a_linear_classifier_stays_clearly_below_a_convolutional_one(digits):
    train, test = digits
    features = [np.c_[data.images.reshape(len(data), -1) / 255.0, np.ones(len(data))] for data in digits]
    targets = np.eye(10)[train.labels]
    gram = features[0].T @ features[0] + np.eye(785)
    weights = np.linalg.solve(gram, features[0].T @ targets)
    accuracy = np.mean((features[1] @ weights).argmax(1) == test.labels)
    # Far above chance, so the classes are real; the paper's network reaches 98 %.
    assert 0.6 < accuracy < 0.92


def test_a_stroke_is_as_dark_as_its_distance_says():
    start, end, radius = np.array([5.3, 4.1]), np.array([15.2, 9.7]), 1.3
    image = np.empty((1, 20, 24), np.uint8)
    draw_strokes(
        np.array([[start, end]]),
        np.array([0]),
        np.array([radius]),
        np.array([0.8]),
        np.array([0.0]),
        np.array([[[0, 1]]]),
        np.zeros(image.shape, np.uint8),
        np.empty(image.shape[1:]),
        image,
    )
    expected = np.empty((20, 24))
    for h in range(20):
        for w in range(24):
            pixel = np.array([w, h])
            along = np.clip((pixel - start) @ (end - start) / np.sum((end - start) ** 2), 0, 1)
            distance = np.sqrt(np.sum((pixel - start - along * (end - start)) ** 2))
            expected[h, w] = 255 * 0.8 * np.clip(radius + 0.5 - distance, 0, 1)
    assert np.abs(image[0] - expected).max() <= 1


@pytest.mark.parametrize("far", [1e30, -1e30])
def test_a_stroke_far_outside_leaves_the_image_empty(far):
    image = np.full((1, 28, 28), 7, np.uint8)
    draw_strokes(
        np.array([[[far, far], [far, -far], [0.0, far]]]),
        np.array([0]),
        np.array([1.0]),
        np.array([1.0]),
        np.array([0.0]),
        np.array([[[0, 1, -1]]]),
        np.zeros(image.shape, np.uint8),
        np.empty(image.shape[1:]),
        image,
    )
    assert not image.any()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"n_train": 0}, "n_train must be an integer of at least 1, got 0"),
        ({"n_test": -3}, "n_test must be an integer of at least 1, got -3"),
        ({"n_train": 1.5}, "n_train must be an integer of at least 1, got 1.5"),
        ({"n_train": True}, "n_train must be an integer of at least 1, got True"),
        ({"n_test": "9"}, "n_test must be an integer of at least 1, got '9'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_absurd_numbers_are_refused(arguments, complaint):
    with pytest.raises(DataError) as caught:
        load_digits(**{"n_train": 1, "n_test": 1} | arguments)
    assert str(caught.value) == f"digits: {complaint}"


def test_a_misspelt_name_is_answered_with_the_nearest_one():
    with pytest.raises(DataError, match=r"named 'digit': did you mean 'digits'\?"):
        load_data("digit")


def test_a_data_folder_is_not_silently_ignored(tmp_path):
    with pytest.raises(DataError, match=r"data set 'mnist' lies, but .* is 'digits'"):
        load_data("digits", tmp_path)


def test_importing_the_data_sets_imports_nothing_slow():
    script = (
        "import sys, parallelcnn.data\n"
        "print({'numba', 'mpi4py', 'tqdm', 'urllib.request', 'http.client'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "set()", run.stderr
