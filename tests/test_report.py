"""The report of a run, of all kinds of runs, and its parts: markup, images, charts and tables."""

import io
import json
import math
import os
import re
import shlex
import signal
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import small
from launch import parallelcnn
from report_cases import binary, check_page, classification, history_of, regression, several_labels

import parallelcnn as pc
from parallelcnn.cli.command import _parsers
from parallelcnn.comm import Serial
from parallelcnn.pixels import as_pixels
from parallelcnn.png import data_uri, png
from parallelcnn.report.curves import Series, line_chart, linear_axis, log_axis
from parallelcnn.report.history_curves import epochs_at
from parallelcnn.report.markup import Markup, element, join
from parallelcnn.report.pictures import filters_picture, first_filters, matrix_picture
from parallelcnn.report.predictions import MISTAKES, ClassPredictions, predictions_on
from parallelcnn.report.scores import class_scores, explained_variance
from parallelcnn.report.tables import confusion_matrix, confusions
from parallelcnn.report.training_report import training_report
from parallelcnn.training.config import TrainConfig, config_from
from parallelcnn.wording import duration

PACKAGE = Path(pc.__file__).parent
EVIL = ("<script>alert(1)</script>", "caf\u00e9 \u732b", '" onload="x', "a\u202eb\x00")


def text_of(run):
    page = check_page(training_report(run))
    return page, " ".join(page.text)


# Markup


def test_markup_escapes_everything_but_markup():
    inner = element("b", "<i>&", title='"')
    assert inner == '<b title="&quot;">&lt;i&gt;&amp;</b>'
    assert element("p", inner, None, ["x", 3], class_="a", aria_label="y", hidden=None, open=True) == (
        f'<p class="a" aria-label="y" open>{inner}x3</p>'
    )
    assert element("img", src="x") == '<img src="x"/>'
    assert join("<", Markup("<")) == "&lt;<"
    assert element("p", "a\x00\udcff\nb") == "<p>a\\x00\\udcff\nb</p>"


# Images


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 2), (3, 5, 3), (3, 5, 4), (1, 1)])
def test_a_png_holds_the_pixels(shape, rng):
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, shape, np.uint8)
    with image.open(io.BytesIO(png(pixels))) as opened:
        assert opened.size == shape[1::-1]
        np.testing.assert_array_equal(np.array(opened), pixels[..., 0] if shape[2:] == (1,) else pixels)


def test_a_png_has_the_checksums_that_the_standard_asks_for():
    content = png(np.zeros((2, 3), np.uint8))
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, names = 8, []
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunk = content[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length) == (zlib.crc32(chunk),)
        names.append(chunk[:4])
        at += 12 + length
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    assert data_uri(np.zeros((1, 1), np.uint8)).startswith("data:image/png;base64,iVBORw0KGgo")


def test_samples_are_shown_in_their_own_range_and_never_large():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    np.testing.assert_array_equal(as_pixels(grey, (0, 1), 72), grey)
    np.testing.assert_array_equal(
        as_pixels(grey[None] / np.float32(250) * 4 - 2, (-2.0, 2.0), 72), np.rint(grey * 1.02)
    )
    colour = np.zeros((3, 4, 4), np.uint8)
    colour[0] = 255
    assert as_pixels(colour, (0, 1), 72)[0, 0].tolist() == [255, 0, 0]
    assert as_pixels(np.zeros((2, 9, 7), np.float32), (0.0, 0.0), 72).shape == (9, 7)
    assert as_pixels(np.full((3, 300, 145), 7, np.uint8), (0, 1), 72).shape == (60, 29, 3)
    assert as_pixels(grey, (0, 1), 72, enlarge=True).tolist() == grey.repeat(24, 0).repeat(24, 1).tolist()
    assert as_pixels(colour, (0, 1), 7, enlarge=True).shape == (4, 4, 3)
    infinite = np.array([[np.inf, -np.inf, np.nan]], np.float32)
    assert as_pixels(infinite, (-1, 1), 72).tolist() == [[255, 0, 128]]


def test_filters_are_coloured_by_their_sign_and_scaled_each_by_itself():
    filters = np.zeros((2, 1, 1, 3))
    filters[0, 0, 0], filters[1, 0, 0] = (-1, 0, 1), (-0.01, 0, 0.005)
    sheet = filters_picture(filters)
    assert sheet.shape == (1, 7, 4)
    assert sheet[0, 3, 3] == 0
    np.testing.assert_array_equal(sheet[0, :2], sheet[0, 4:6])
    blue, white, orange = sheet[0, :3, :3].astype(int)
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    assert white.min() > 240
    assert filters_picture(np.zeros((70, 3, 5, 5))).shape == (23, 95, 4)  # 64 filters, all grey
    assert filters_picture(np.ones((20, 4, 2, 2))).shape == (5, 29, 4)


def test_the_first_filters_are_those_of_the_first_layer_with_weights():
    def of(layers, shape):
        found = first_filters(pc.NetworkHandler(layers, shape))
        return found and (found[0], found[1].shape)

    assert of((pc.BatchNorm(), pc.Conv2D(4, 3), pc.Flatten(), pc.Dense(2)), (3, 8, 8)) == ("1.weight", (4, 3, 3, 3))
    assert of((pc.Flatten(), pc.Dense(5)), (1, 8, 6)) == ("1.weight", (5, 1, 8, 6))
    assert of((pc.Dense(5), pc.Dense(2)), (10,)) is None
    assert of((pc.Flatten(),), (1, 8, 6)) is None
    assert of((pc.Sequential((pc.Conv2D(4, 3),)), pc.Flatten(), pc.Dense(2)), (1, 8, 8))[1] == (4, 1, 3, 3)


def test_a_large_matrix_becomes_a_picture_in_which_single_mistakes_stay():
    fractions = np.eye(1200)
    fractions[3, 700] = 0.2
    picture = matrix_picture(fractions)
    assert picture.shape == (400, 400, 4)
    assert picture[1, 233, 3] > 100
    assert picture[1, 232, 3] == 0
    assert (np.einsum("iic->ic", picture)[:, 3] == 255).all()


# Charts


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.93, 0.99), (-3, 5), (0, 0), (7, 7), (1e-9, 2e-9), (1e9, 3e9), (-1e30, 1e30), (0.2, 0.20001)],
)
def test_an_axis_holds_its_values_between_few_round_ticks(low, high):
    axis = linear_axis(low, high, 100, 0, 5)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert all(0 <= axis.at(tick) <= 100 for tick in axis.ticks)
    assert axis.at(axis.low) == 100
    assert axis.at(axis.high) == 0
    assert len({f"{tick:.4g}" for tick in linear_axis(0.93, 0.99, 100, 0, 5).ticks}) > 2


def test_accuracies_have_no_tick_above_one():
    axis = linear_axis(0.913, 0.998, 100, 0, 5, 1.0)
    assert axis.high == axis.ticks[-1] == 1.0
    assert linear_axis(1.0, 1.0, 100, 0, 5, 1.0).high == 1.0


@pytest.mark.parametrize(("low", "high"), [(0.01, 2.3), (1e-8, 1e3), (1, 1000), (0.3, 40)])
def test_a_logarithmic_axis_holds_its_values(low, high):
    axis = log_axis(low, high, 100, 0)
    assert axis.low <= low < high <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert axis.at(axis.low) == pytest.approx(100)


def test_a_chart_is_well_formed_and_shows_values_on_hover():
    some = Series("a < b", [(0, 1.0), (1, math.nan), (2, 0.5), (3, 0.25)], markers=True)
    chart = line_chart("Loss", [some, Series("rate", [(0, 2.0), (3, 2.0)], style=9)], "epoch", "{:.2f}".format)
    root = ElementTree.fromstring(chart)
    titles = [title.text for title in root.iter("title")]
    assert "epoch 2\na < b: 0.50\nrate: 2.00" in titles
    (line,) = (path.get("d") for path in root.iter("path") if path.find("title").text == "a < b")
    assert line.count("M") == 2  # a gap at the NaN
    assert len(list(root.iter("circle"))) == 3 + 1  # and one in the legend
    assert root.find("svg").get("aria-label") == "Loss: a < b ends at 0.25; rate ends at 2.00"
    assert {path.get("stroke-dasharray") for path in root.iter("path")} == {None, "7 4"}


def test_a_chart_of_nothing_says_so():
    assert "No values" in line_chart("Loss", [Series("a", [(0, math.nan)])], "epoch", str)


def test_the_scale_of_a_chart_is_logarithmic_only_where_that_helps():
    def is_log(*values):
        return "logarithmic" in line_chart(
            "Loss", [Series("a", list(enumerate(values)))], "epoch", str, logarithmic=True
        )

    assert is_log(1, 0.01)
    assert not is_log(1, 0.5)
    assert not is_log(1, 0.0)
    assert not is_log(1, -1)


def test_epochs_are_right_also_where_the_batch_size_has_changed():
    history = history_of(steps=60, epochs=3)
    history.evaluations = [(10, 1, None), (25, 1, None), (30, 1, None), (40, 2, None)]
    history.samples_seen = 550
    at = epochs_at(history, 200)
    assert at(0) == 0
    assert at(15) == 0.5
    assert at(30) == 1
    assert at(60) == 2.75


# Tables


def test_scores_are_those_of_the_metrics(rng):
    outputs, labels = rng.normal(size=(5, 80)), rng.integers(0, 4, 80)  # no sample of class 4
    found = ClassPredictions(5, "softmax")
    found.add(outputs, labels, np.arange(80))
    for kind, scores in zip((pc.Precision, pc.Recall, pc.F1), class_scores(found.counts), strict=True):
        metric, sums = kind(5, average=None), np.zeros(15)
        metric.add(outputs, labels, sums)
        np.testing.assert_array_equal(scores, metric.result(sums, 80))
    np.testing.assert_array_equal(found.matrix.sum(axis=1), found.counts[2])


def test_r2_is_one_minus_the_unexplained_part_of_the_variance():
    targets, outputs = np.array([[1.0, 5], [2, 5], [4, 5]]), np.array([[1.5, 5], [2, 5], [3, 6]])
    found = explained_variance(((outputs - targets) ** 2).mean(axis=0), targets)
    assert found[0] == pytest.approx(1 - (0.5**2 + 0 + 1) / ((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2))
    assert math.isnan(found[1])


def test_a_matrix_names_its_classes_and_the_confusions():
    matrix = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    table = ElementTree.fromstring(confusion_matrix(matrix, ["cat", "dog", "<b>"]))
    titles = [cell.get("title") for cell in table.iter("td") if cell.get("title")]
    assert titles[1] == "cat predicted as dog: 2 (20.0 %)"
    assert [cell.text for cell in table.iter("td") if "recall" in cell.get("class", "")] == [
        "80.0 %",
        "100.0 %",
        "no samples",
    ]
    assert [head.text for head in table.iter("th") if head.get("scope") == "row"] == ["cat", "dog", "<b>"]
    pairs = ElementTree.fromstring(confusions(matrix, ["cat", "dog", "<b>"]))
    assert [cell.text for cell in pairs.find(".//tbody").iter() if cell.text] == ["cat", "dog", "2", "20.0 %"]
    assert confusions(np.eye(3, dtype=int), ["a", "b", "c"]) is None


# Pages


def test_a_report_has_all_parts():
    page, text = text_of(classification(names=("cat", "dog", "owl", "fly")))
    assert page.headings == [
        *("Learning curves", "Confusion matrix", "Scores", "Most confident mistakes"),
        *("First-layer filters", "The run", "Layers", "Repeat this run"),
    ]
    assert "7 of 60 test samples are predicted wrongly" in text
    assert "is cat" in text
    assert "taken for dog" in text
    gallery = [image for image in page.all("img") if "test image" in image["alt"]]
    assert len(gallery) == 7
    assert gallery[0]["alt"] == "test image 6: is owl, taken for fly"  # the surest one
    assert "83.33 %" in text  # accuracy
    assert "parallelcnn train --batch-size 10" in text
    assert "120 samples a second" in text
    assert "epoch 3\ntraining loss: 0.2899\ntest loss: 0.3333" in text


def test_mistakes_in_images_from_files_are_named():
    files = [f"class/{number}.jpg" for number in range(60)]
    files[6] = os.fsdecode(b"class/<b>\xff.jpg")  # a name that is no UTF-8
    page = check_page(training_report(classification(test_files=files)))
    images = [image["alt"] for image in page.all("img") if "test image" in image["alt"]]
    assert images[0] == r"test image 6, class/<b>\udcff.jpg: is 2, taken for 3"
    assert r"class/<b>\udcff.jpg" in page.texts_of["p"]
    assert [text for text in page.texts_of["p"] if text.startswith("class/")][1:] == files[5::-1]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (classification(classes=1, wrong=0), "None: all 60 test samples are predicted correctly."),
        (classification(wrong=0), "None: all 60 test samples are predicted correctly."),
        (classification(classes=100, samples=300, wrong=150), "The 10 classes with the lowest F1"),
        (classification(classes=1200, samples=2400, wrong=9), "Scores of the first 1,000 of 1,200 classes"),
        (classification(classes=2500, samples=2500, wrong=9), "Scores of the first 1,000 of 2,500 classes"),
        (classification(names=EVIL), "<script>alert(1)</script>"),
        (classification(names=("a" * 500, "b" * 500, "c", "d")), "a" * 23 + "\u2026"),
        (classification(shape=(3, 200, 200), samples=40, wrong=30), "the 24 of which the network was most sure"),
        (classification(shape=(2, 8, 8)), "The mean over the channels"),
        (classification(shape=(1, 8, 8), dtype=np.float32), "Most confident mistakes"),
        (classification(shape=(9,)), "how sure"),
        (classification(prediction="output"), "output 4.6"),
        (binary(), "3 of 50 test samples are predicted wrongly"),
        (several_labels(), "not predicted"),
        (regression(), "R\u00b2"),
        (regression(outputs=3), "output 2"),
        (classification(predictions=None, on_test_set=None, on_train_set=None), "test accuracy"),
    ],
)
def test_every_kind_of_run_gets_a_report(run, expected):
    page, text = text_of(run)
    assert expected in text
    assert page.headings[0] == "Learning curves"


def test_names_of_classes_are_text_whatever_they_contain():
    content = training_report(classification(names=EVIL))
    page = check_page(content)
    assert b"<script" not in content
    assert b"a\\u202eb\\x00" in content
    assert "caf\u00e9 \u732b" in page.text
    evil = re.findall(rb'<[^>]*onload="x[^>]*>', content)
    assert evil == []


def test_a_run_that_diverged_or_was_interrupted_at_once_still_gets_a_report():
    history = pc.History(losses=[2.3], samples_seen=10)
    unfinished = {"predictions": None, "on_test_set": None, "on_train_set": None}
    page, text = text_of(classification(history=history, notes=["Training ended: <nan>."], **unfinished))
    assert "Training ended: <nan>." in text
    assert "Confusion matrix" not in page.headings
    page, _ = text_of(classification(history=pc.History(), **unfinished))
    assert page.headings[0] == "First-layer filters"
    history = history_of()
    history.losses[30:] = [math.nan] * 30
    text_of(classification(history=history))


def test_a_validation_set_is_named_and_the_test_set_is_shown_apart():
    validation = replace(classification().test_set, role="val", name="stripes-validation")
    _, text = text_of(classification(history=history_of(role="val"), evaluated=validation))
    assert "validation loss" in text
    assert "test loss at the end" in text
    assert "stripes-validation: 60" in text


def test_the_command_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "data": "my data", "metrics": ("top-2", "f1"), "betas": (0.8, 0.9), "optimizer": "adam", "learning_rate": 1e-4,
        "reproducible": 4, "keep_best": True, "schedule": "multistep", "milestones": (3, 5), "out": "somewhere",
    }  # fmt: skip
    run = classification(settings=settings, hosts=["a", "a", "b"], threads=[1, 2, 2])
    page, text = text_of(run)
    (line,) = (text for text in page.texts_of["pre"] if "parallelcnn train" in text)
    words = shlex.split(line)
    assert words[:5] == ["mpirun", "-n", "3", "parallelcnn", "train"]
    options = _parsers()[0].parse_args(words[4:])
    options.prepare(options)
    assert options.config == replace(run.config, out=None, data=str(tmp_path / "my data"))
    assert "3 on a (2), b" in text
    assert "agree bit for bit" in text


def test_settings_become_arguments_and_settings_again():
    default = TrainConfig()
    assert default.to_arguments() == []
    assert config_from({}) == default


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.456, "0.46 s"),
        (12.34, "12.3 s"),
        (99.96, "1 min 40 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_are_readable(seconds, shown):
    assert duration(seconds) == shown


# Predictions


class Two(Serial):
    """One of two ranks: adds what the other one has counted before."""

    size = 2

    def __init__(self, rank, reduced=(), gathered=()):
        self.rank = rank
        self.sent = []
        self._received = list(reduced)

    def allreduce(self, array):
        self.sent.append(array.copy())
        if self._received:
            array += self._received.pop(0)

    def allgather(self, value):
        self.sent.append(value)
        return [value, self._received.pop(0)] if self._received else [value]


@pytest.mark.parametrize("threads", [1, 3])
def test_predictions_count_each_sample_once(threads):
    network, dataset = small.network(), small.dataset(211)
    found = predictions_on(network, dataset, Serial(), threads)
    probabilities = network.predict(dataset.images)
    predicted = probabilities.argmax(axis=1)
    metric = pc.evaluate(network, dataset, metrics=[pc.ConfusionMatrix(5)])
    np.testing.assert_array_equal(found.matrix, metric["confusion_matrix"])
    wrong = np.flatnonzero(predicted != dataset.labels)
    assert found.wrong == len(wrong)
    surest = sorted(wrong, key=lambda i: (-probabilities[i].max(), i))[:MISTAKES]
    assert {one.sample for one in found.mistakes} == set(surest)
    for one in found.mistakes:
        assert (one.true, one.predicted) == (dataset.labels[one.sample], predicted[one.sample])
        assert one.weight == pytest.approx(probabilities[one.sample].max(), rel=1e-5)


def test_ranks_send_sums_and_a_few_mistakes():
    network, dataset = small.network(), small.dataset(211)
    alone = predictions_on(network, dataset, Serial(), 1)
    other = Two(1)
    predictions_on(network, dataset, other, 1)
    assert sum(np.size(one) for one in other.sent[:-1]) <= 5 * 5 + 3 * 5
    assert len(other.sent[-1]) <= MISTAKES
    both = predictions_on(network, dataset, Two(0, other.sent), 1)
    np.testing.assert_array_equal(both.matrix, alone.matrix)
    assert both.mistakes == alone.mistakes


def test_errors_of_a_regression_are_counted():
    rng = np.random.default_rng(0)
    images, targets = rng.random((90, 6), np.float32), rng.random((90, 2)).astype(np.float32)
    dataset = pc.Dataset(images, targets, None)
    network = pc.NetworkHandler((pc.Dense(2),), (6,))
    network.prediction = "output"
    found = predictions_on(network, dataset, Serial(), 2)
    errors = network.predict(images) - targets
    np.testing.assert_allclose(found.absolute, np.abs(errors).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.squared, (errors**2).mean(axis=0), rtol=1e-5)
    assert found.histogram.sum() == errors.size
    assert found.mistakes[0].sample == np.abs(errors).max(axis=1).argmax()
    np.testing.assert_allclose(found.points[:, 0], targets[:, 0])


# The command


def test_a_run_writes_its_report_and_a_failure_is_only_a_warning(here, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ("train", "--data", folder, "--epochs", 2, "--out", out, "--threads", 1)
    ran = here(*arguments)
    assert (ran.code, ran.err) == (0, "")
    page = check_page((out / "report.html").read_bytes())
    summary = json.loads((out / "summary.json").read_text())
    text = " ".join(page.text)
    assert f"{100 * summary['test_accuracy']:.2f} %" in text
    assert summary["parameters_sha256"] in text
    assert "Confusion matrix" in page.headings
    again = here(*arguments, "--resume", "--epochs", 3)
    assert again.code == 0
    assert "Resumed after minibatch 6." in (out / "report.html").read_text()

    def broken(run):
        raise RuntimeError("no paper")

    monkeypatch.setattr("parallelcnn.cli.run.training_report", broken)
    ran = here(*arguments)
    assert ran.code == 0
    assert "warning: no report.html: RuntimeError: no paper\n" in ran.err
    assert (out / "summary.json").exists()
    assert not (out / "report.html").exists()


def test_a_run_that_diverges_leaves_a_report(here, folder, tmp_path):
    out = tmp_path / "out"
    ran = here("train", "--data", folder, "--epochs", 2, "--out", out, "--learning-rate", "1e30")
    assert ran.code == 1
    page = check_page((out / "report.html").read_bytes())
    assert "Training ended without a result: " in " ".join(page.text)
    assert not (out / "summary.json").exists()


def test_early_stopping_is_in_the_report(here, folder, tmp_path):
    out = tmp_path / "out"
    stopping = ("--early-stopping", 0, "--min-delta", 100, "--validation-split", 0.2, "--loss", "squared")
    ran = here("train", "--data", folder, "--epochs", 9, "--out", out, *stopping)
    assert ran.code == 0
    text = (out / "report.html").read_text()
    assert "Stopped early, after epoch 2 of 9: the loss no longer improves." in text
    assert "validation loss" in text


def test_an_interrupted_run_leaves_a_report_that_says_how_to_continue(here, folder, tmp_path, monkeypatch):
    class Interrupt:
        def __init__(self, path, locate):
            pass

        def on_batch_end(self, step, logs):
            if step == 5:
                os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr("parallelcnn.cli.run.CSVLogger", Interrupt)
    out = tmp_path / "out"
    ran = here("train", "--data", folder, "--epochs", 50, "--out", out, "--log", "csv")
    assert ran.code == 128 + signal.SIGUSR1
    page = check_page((out / "report.html").read_bytes())
    text = " ".join(page.text)
    assert "Training was ended by SIGUSR1: stopped after minibatch " in text
    assert f"give the same command with --out {out} --resume." in text
    assert page.headings[0] == "Learning curves"
    assert "Scores" not in page.headings


@pytest.mark.mpi
def test_two_ranks_write_the_report_that_one_writes(folder, tmp_path):
    parts = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        arguments = ("--data", folder, "--epochs", 1, "--reproducible", 2, "--threads", 1, "--out", out)
        ran = parallelcnn("train", *arguments, ranks=ranks)
        assert (ran.code, ran.err) == (0, "")
        content = (out / "report.html").read_text()
        page = check_page(content.encode())
        assert ("mpirun -n 2 parallelcnn train" in " ".join(page.text)) == (ranks == 2)
        parts.append(content[content.index("<h2>Confusion matrix") : content.index("<h2>The run")])
    assert parts[0] == parts[1]


def colours(scheme):
    """The colours of the style sheet by name: those of the light scheme, of the dark one, or of paper."""
    text = (PACKAGE / "report" / "style.css").read_text()
    light, dark, paper = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    found = light if scheme == "light" else light + (dark if scheme == "dark" else paper)
    known = dict(re.findall(r"--([\w-]+): #(\w{6}|\w{3});", found))
    known = {name: value if len(value) == 6 else "".join(2 * one for one in value) for name, value in known.items()}
    strongest = float(re.findall(r"--strongest-wrong: (\d+)%", found)[-1]) / 100
    return {name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) for name, value in known.items()}, strongest


def contrast(one, other):
    """The contrast ratio of two colours, by WCAG 2.1."""

    def luminance(colour):
        part = colour / 255
        return np.dot(
            [0.2126, 0.7152, 0.0722], np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        )

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "paper"])
def test_text_and_lines_have_enough_contrast(scheme):
    known, strongest = colours(scheme)
    for name in ("ink", "quiet", "accent", "c1"):  # c1 is the colour of what was predicted wrongly
        assert contrast(known[name], known["card"]) >= 4.5, name
    for name in ("ink", "quiet", "accent"):
        assert contrast(known[name], known["ground"]) >= 4.5, name
    assert contrast(known["ink"], known["note"]) >= 4.5
    for i in range(8):
        assert contrast(known[f"c{i}"], known["card"]) >= 3, i
    for name, part in (("right", 0.62), ("wrong", strongest)):
        for strength in np.linspace(0, part, 20):
            cell = strength * known[name] + (1 - strength) * known["card"]
            assert contrast(known["ink"], cell) >= 4.5, (name, strength)
