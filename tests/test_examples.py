"""The measured trainings beside Keras and PyTorch: both sides do the same, the guide shows it, and pages are true."""

import argparse
import json
import sys

import cifar10
import cifar10_recipe as recipe
import cifar10_record
import cifar10_resnet20
import keras_example
import large_minibatches
import numpy as np
import pytest
from conftest import BENCHMARKS, ROOT
from idx_files import write_idx_folder
from launch import run

import parallelcnn as pc

KERAS, PORT = (keras_example.EXAMPLES / keras_example.PROGRAMS[name] for name in ("Keras", "parallelcnn"))


# ---- the Keras program and its port


def test_the_guide_shows_the_programs_that_are_measured():
    page = (ROOT / "parallelcnn" / "guide" / "from-keras.md").read_text()
    assert f"```text\n{KERAS.read_text()}```" in page
    assert f"```python\n{PORT.read_text()}```" in page


def test_the_port_is_not_longer():
    assert keras_example.length(PORT) <= keras_example.length(KERAS)


@pytest.mark.parametrize("file", [KERAS, PORT], ids=["keras", "port"])
def test_only_the_seed_and_the_epochs_of_a_program_are_changed(file):
    source = file.read_text()
    assert keras_example.with_numbers(source, 0, None) == source
    changed = keras_example.with_numbers(source, 3, 2)
    assert changed.splitlines().count("seed, epochs, batch_size = 3, 2, 128") == 1
    assert len(set(changed.splitlines()) ^ set(source.splitlines())) == 2


def test_a_page_has_both_programs_and_their_ratio():
    keras = [{"training": 10.0 + seed, "command": 20.0, "epochs": 8, "accuracy": 98.0 + seed} for seed in range(3)]
    ours = [{"training": 5.0, "command": 8.0, "epochs": 7, "accuracy": 97.5} for _ in range(3)]
    page = keras_example.page_of({"Keras": keras, "parallelcnn": ours}, "JAX", ["* JAX: 3.0 s"], 2)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[2][0] == "Keras on JAX"
    assert rows[2][2:] == ["99.00 (98.00 to 100.00)", "11.0 (10.0 to 12.0)", "20.0", "8"]
    assert rows[3][1:3] == [str(keras_example.length(PORT)), "97.50 (97.50 to 97.50)"]
    assert rows[4][3:5] == ["2.20 (2.00 to 2.40)", "2.50"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parallelcnn", "Keras"])
def test_a_program_runs_on_the_files_of_mnist(name, tmp_path):
    folder = write_idx_folder(tmp_path / "data", 300, 50)
    if name == "Keras":
        pytest.importorskip("keras")
        folder = tmp_path
        keras_example._write_for_keras(folder, pc.load_data(tmp_path / "data"))
    found = keras_example.start(name, 1, "TensorFlow", folder, epochs=2)
    assert found["epochs"] == 2
    assert 0 <= found["accuracy"] <= 100
    assert 0 < found["training"] < found["command"]


# ---- ResNet-20 on CIFAR-10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with 140 training images and 10 test images, as JPEG files."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 14), ("test", 1)):
        for name in "abcdefghij":
            place = folder / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                image.fromarray(pixels).save(place / f"{i:04}.jpg")
    return folder


@pytest.fixture
def sets(rng):
    return [(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % 10) for n in (64, 40)]


def options(**others):
    return argparse.Namespace(**{"seed": 0, "epochs": 1, "threads": 1, **others})


def test_images_are_decoded_once_and_sorted_by_class(pictures, tmp_path):
    from PIL import Image

    cache = tmp_path / "cifar10.npz"
    (images, labels), (_, test_labels) = recipe.load(pictures, cache)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 14))
    np.testing.assert_array_equal(test_labels, np.arange(10))
    pixels = np.asarray(Image.open(pictures / "train" / "b" / "0001.jpg"))
    np.testing.assert_array_equal(images[15], pixels.transpose(2, 0, 1))
    again = recipe.load(tmp_path / "nowhere", cache)
    np.testing.assert_array_equal(again[0][0], images)
    assert [path.name for path in tmp_path.iterdir()] == [cache.name]


def test_folders_without_pictures_and_other_sizes_are_refused(pictures, tmp_path):
    from PIL import Image

    with pytest.raises(pc.DataError, match="--images must be a folder with files train/CLASS/"):
        recipe.load(tmp_path, tmp_path / "cifar10.npz")
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (30, 32)).save(tmp_path / "train" / "a" / "wide.jpg")
    with pytest.raises(pc.DataError, match=r"wide.jpg: an image must have 32 x 32 pixels, got \(32, 30\)"):
        recipe.load(tmp_path, tmp_path / "cifar10.npz")


def test_both_systems_begin_with_the_same_network_and_cut_alike(sets):
    torch = pytest.importorskip("torch")
    ours, theirs = (cifar10_resnet20.SYSTEMS[name](options(), sets) for name in ("parallelcnn", "pytorch"))
    first, second = ours.evaluate(), theirs.evaluate()
    assert first["test_loss"] == pytest.approx(second["test_loss"], rel=1e-4)
    assert first["test_accuracy"] == second["test_accuracy"]
    rows, columns, flips = torch.tensor([0, 8]), torch.tensor([5, 8]), torch.tensor([False, True])
    cut = theirs._cut(theirs._images[:2], rows, columns, flips)
    assert cut.is_contiguous(memory_format=torch.channels_last)
    padded = np.pad(sets[0][0][:2], ((0, 0), (0, 0), (4, 4), (4, 4))) / 255
    windows = padded[0, :, :32, 5:37], padded[1, :, 8:, 8:][:, :, ::-1]
    mean, deviation = (np.array(numbers)[:, None, None] for numbers in (ours.mean, ours.deviation))
    np.testing.assert_allclose(cut.numpy(), (np.stack(windows) - mean) / deviation, rtol=1e-4, atol=1e-5)


def test_a_page_has_accuracies_by_seed_and_times_side_by_side():
    about, whole = {"machine": "a machine; 2 cores", "versions": "Python 3.11"}, {"seconds_of_process": None}
    trainings = [
        {
            **about,
            **whole,
            "system": system,
            "seed": seed,
            "epochs": 10,
            "threads": 2,
            "test_accuracy": accuracy + seed / 100,
        }
        for system, accuracy, seeds in (("parallelcnn", 0.9, (0, 1)), ("pytorch", 0.8, (0,)))
        for seed in seeds
    ]
    rounds = [{"parallelcnn": 0.64, "pytorch": 1.28}, {"parallelcnn": 1.28, "pytorch": 3.84}]
    timing = {**about, "steps": 5, "threads": 2, "rounds": rounds, "failures": {"pytorch-compiled": "no\ncompiler"}}
    page = cifar10.page_of("resnet20", trainings, timing)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[2:4] == [
        ["parallelcnn", "90.00", "91.00", "90.50"],
        ["PyTorch, channels_last", "80.00", "-", "80.00"],
    ]
    assert rows[6][1:] == ["1500 (1000 to 2000)", "12.5 (8.3 to 16.7)", ""]
    assert rows[7][1:] == ["4000 (2000 to 6000)", "33.3 (16.7 to 50.0)", "2.50 (2.00 to 3.00)"]
    assert "PyTorch, compiled failed: no compiler" in page
    assert "Minutes from the start" not in page
    assert "cifar10.py --recipe resnet20 train pytorch --images IMAGES --threads 2 --folder FOLDER" in page
    trainings[0]["seconds_of_process"] = 90.0
    page = cifar10.page_of("record", trainings, timing)
    assert "Minutes from the start of a process to its accuracy: parallelcnn 1.5." in page
    assert "in each of which all took a turn of 5 minibatches of 1024" in page
    trainings[0]["epochs"] = 9
    with pytest.raises(pc.InputError, match=r"the same number of epochs, got \[9, 10\]"):
        cifar10.page_of("resnet20", trainings, timing)


def test_both_systems_have_the_same_outputs_for_six_views_by_the_record(sets):
    pytest.importorskip("torch")
    ours, theirs = (cifar10_record.SYSTEMS[name](options(), sets) for name in ("parallelcnn", "pytorch"))
    for row, column, flipped in ((2, 2, False), (1, 1, True), (3, 3, False)):
        logits = theirs.test_logits(row, column, flipped)
        found = ours.log_probabilities(row, column, flipped)
        np.testing.assert_allclose(found, logits - np.log(np.exp(logits).sum(1, keepdims=True)), atol=1e-4)


def test_whitened_patches_have_no_correlations(rng):
    images = rng.normal(0, 1, (50, 3, 8, 8)).cumsum(axis=3)
    filters = cifar10_record.whitening(images)
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), (2, 3)).transpose(0, 2, 3, 1, 4, 5)
    whitened = patches.reshape(-1, 12) @ filters[:12].reshape(12, 12).T
    np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(12), atol=0.02)
    np.testing.assert_array_equal(filters[12:], -filters[:12])


def test_in_every_second_epoch_an_image_is_mirrored():
    order = cifar10_record.AlternatingFlips(2 * cifar10_record.BATCH_SIZE + 10, 0)
    epochs = [[], [], []]
    for epoch, minibatch in recipe.epochs_of(order, order.samples_in(1), 3):
        epochs[epoch - 1].extend(minibatch)
    images = 2 * cifar10_record.BATCH_SIZE + 10
    mirrored = [dict(zip(np.array(seen) % images, np.array(seen) >= images, strict=True)) for seen in epochs]
    assert [len(one) for one in mirrored] == [2 * cifar10_record.BATCH_SIZE] * 3  # no image twice
    both = mirrored[0].keys() & mirrored[1].keys() & mirrored[2].keys()
    assert all(mirrored[0][i] == mirrored[2][i] != mirrored[1][i] for i in both)
    assert 0.4 < np.mean([mirrored[0][i] for i in both]) < 0.6


def test_lookahead_is_the_same_in_both_systems(sets):
    torch = pytest.importorskip("torch")
    theirs = cifar10_record.SYSTEMS["pytorch"](options(), sets)
    network = theirs.initial_network()
    factors = cifar10_record.factors_of(network)
    assert sorted(set(factors)) == [0, 1, cifar10_record.BIAS_FACTOR]
    slots = network.layout.trained.slots
    rates = tuple((slot.start, slot.stop, factor) for slot, factor in zip(slots, factors, strict=True))
    ours, state = cifar10_record.Lookahead(rates), {}
    params = np.concatenate([network.named_arrays[slot.key].ravel() for slot in slots])
    optimizer = theirs.optimizer()
    for step in range(10):
        gradient = np.cos(np.arange(params.size) + step).astype(np.float32)
        for slot, parameter in zip(slots, theirs._network.parameters(), strict=True):
            mine = gradient[slot.start : slot.stop].reshape(tuple(parameter.shape)).copy()
            parameter.grad = torch.empty_like(parameter).copy_(torch.from_numpy(mine))  # in its memory format
        for group in optimizer.param_groups:
            group["lr"] = theirs.rate(step, 10) * group["factor"]
        optimizer.step()
        theirs.after_step(step + 1, 10)
        ours.update(params, gradient.copy(), state, step, 10)
    found = np.concatenate([parameter.detach().numpy().ravel() for parameter in theirs._network.parameters()])
    np.testing.assert_allclose(params, found, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["parallelcnn", "pytorch"])
def test_the_record_learns_its_images(system, sets):
    pytest.importorskip("torch")
    (images, labels), _ = sets
    trainer = cifar10_record.SYSTEMS[system](options(), [(images, labels), (images, labels)])
    _, losses = trainer.train(len(labels), 10)
    assert losses[-1] < losses[0]
    assert trainer.evaluate().keys() == {"test_accuracy", "test_accuracy_of_one_view"}


@pytest.mark.slow
def test_a_seed_is_trained_once_and_ends_on_the_page(pictures, tmp_path):
    def run_script(*words):
        done = run([sys.executable, str(BENCHMARKS / "cifar10.py"), *words, "--folder", str(tmp_path)], limit=300)
        assert done.code == 0, done.err
        return done

    where = ["--images", str(pictures), "--threads", "1"]
    for _ in range(2):
        run_script("train", "parallelcnn", *where, "--seeds", "0", "--epochs", "2")
    run_script("time", *where, "--systems", "parallelcnn", "--rounds", "1", "--steps", "1")
    lines = [json.loads(line) for line in (tmp_path / "resnet20.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "time"]
    assert len(lines[0]["losses"]) == 2
    assert (
        run_script("page", "--out", str(tmp_path / "page.md")).out.strip() == (tmp_path / "page.md").read_text().strip()
    )


@pytest.mark.parametrize(
    ("script", "words", "complaint"),
    [
        (large_minibatches, "train --images . --folder . --epochs 0", "--epochs: must be an integer of at least 1"),
        (cifar10, "page --folder nowhere", "--folder: must be a folder that exists, got 'nowhere'"),
        (cifar10, "train tensorflow", "invalid choice: 'tensorflow'"),
        (cifar10, "time --images . --folder . --systems pytorch", "--systems must have parallelcnn"),
        (keras_example, "--data-dir . --cores 999", "--cores must be at most"),
        (keras_example, "--seeds 0", "--seeds: must be an integer of at least 1, got '0'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(script, words, complaint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        script._options()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_page_needs_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cifar10.py", "page", "--folder", str(tmp_path)])
    assert cifar10.main() == 2
    assert "--folder must hold results of `train` and of `time`" in capsys.readouterr().err


# ---- large minibatches


def test_the_smallest_minibatch_is_trained_once_and_every_other_with_two_rates():
    chosen = list(large_minibatches.trainings([6400, 100, 400], [3, 5]))
    sizes_and_rates = [(100, 100), (400, 100), (400, 400), (6400, 100), (6400, 6400)]
    assert chosen == [(size, rate_for, seed) for seed in (3, 5) for size, rate_for in sizes_and_rates]
    rates = {(one.batch_size, one.rate_for): one.rate for one in chosen}
    assert rates[400, 100] == rates[6400, 100] == rates[100, 100] == pytest.approx(0.1 * 100 / 256, rel=1e-3)
    assert rates[6400, 6400] == 2.5


def test_the_rate_rises_in_the_first_epochs_and_falls_to_nearly_0():
    schedule = large_minibatches.schedule(2.5, 8)
    rates = [schedule.at(step, 64) for step in range(64)]
    assert np.allclose(np.diff(rates[:16]), 2.5 / 17)
    assert max(rates) == rates[16] == 2.5
    assert 0 < rates[-1] < 0.01


def minibatch_results(accuracies, **others):
    about = {"machine": "a machine; 2 cores", "versions": "Python 3.11", "epochs": 8, **others}
    return [
        {**about, "training": list(key), "test_accuracy": accuracy, "steps": 800 // key[0]}
        for key, accuracy in accuracies.items()
    ]


def test_the_page_of_large_minibatches_says_up_to_which_the_accuracy_is_kept():
    accuracies = {
        (100, 100, 0): 0.72,
        (100, 100, 1): 0.74,
        (200, 100, 0): 0.72,
        (200, 200, 0): 0.73,
        (200, 100, 1): 0.721,
        (200, 200, 1): 0.74,
        (400, 100, 0): 0.75,  # does not count: 200 was worse
        (400, 100, 1): 0.75,
        (400, 400, 0): 0.73,
        (400, 400, 1): None,
        (100, 100, 2): 0.1,  # a seed that is not complete
    }
    page = large_minibatches.page_of(minibatch_results(accuracies))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        ["100", "2", "8", "0.03906", "72.00", "74.00", "73.00", "72.00", "74.00", "73.00"],
        ["200", "4", "4", "0.07812", "73.00", "74.00", "73.50", "72.00", "72.10", "72.05"],
        ["400", "8", "2", "0.1562", "73.00", "diverged", "diverged", "75.00", "75.00", "75.00"],
    ]
    assert "up to minibatches of 200 with the scaled rate, and of 400 without scaling" in page
    accuracies[200, 100, 1] = 0.719
    page = large_minibatches.page_of(minibatch_results(accuracies))
    assert "up to minibatches of 200 with the scaled rate, and of 100 without scaling" in page
    assert "train --images IMAGES --epochs 8 --seeds 0 1 --batch-sizes 100 200 400 --folder FOLDER" in page


def test_a_page_of_large_minibatches_needs_a_complete_seed_and_one_number_of_epochs():
    some = minibatch_results({(100, 100, 0): 0.7, (200, 200, 0): 0.7})
    with pytest.raises(pc.InputError, match=r"with each minibatch, \[100, 200\]"):
        large_minibatches.page_of(some)
    with pytest.raises(pc.InputError, match=r"the same number of epochs, got \[2, 8\]"):
        large_minibatches.page_of([*some, *minibatch_results({(200, 100, 0): 0.7}, epochs=2)])


@pytest.mark.slow
def test_trainings_with_large_minibatches_are_stored_once_and_end_on_the_page(pictures, tmp_path):
    def run_script(*words):
        script = str(BENCHMARKS / "large_minibatches.py")
        done = run([sys.executable, script, *words, "--folder", str(tmp_path)], limit=300)
        assert done.code == 0, done.err
        return done

    where = ["--images", str(pictures), "--batch-sizes", "20", "70", "--epochs", "3"]
    for seeds in (["0"], ["0", "1"]):
        run_script("train", *where, "--seeds", *seeds)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["training"] for line in lines] == [
        [size, rate_for, seed] for seed in (0, 1) for size, rate_for in ((20, 20), (70, 20), (70, 70))
    ]
    assert [line["steps"] for line in lines[:3]] == [21, 6, 6]
    run_script("page", "--out", str(tmp_path / "page.md"))
    assert "| 70 | 1 | 6 | 0.02734 |" in (tmp_path / "page.md").read_text()
