"""Metrics of classes against formulas written with numpy: top-k accuracy, confusion matrix, precision, recall, F1."""

import json
import re
import tracemalloc

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.cli.metrics import evaluation_row
from parallelcnn.errors import InputError, ShapeError

METRICS = (
    *(pc.Accuracy(), pc.TopK(2), pc.ConfusionMatrix(5)),
    *(score(5, average) for score in (pc.Precision, pc.Recall, pc.F1) for average in ("macro", None)),
)


def computed(metric, outputs, labels):
    """The metric of these samples, added in two parts."""
    sums, middle = np.zeros(metric.terms), len(labels) // 3
    for part in (slice(0, middle), slice(middle, None)):
        metric.add(np.ascontiguousarray(outputs[:, part]), labels[part], sums)
    return metric.result(sums, len(labels))


def scores_by_definition(true, predicted):
    """Precision, recall and F1 of each class from boolean arrays (classes, n); 0 / 0 is 0."""
    found = []
    for t, p in zip(true, predicted, strict=True):
        hits, false_alarms, misses = (t & p).sum(), (~t & p).sum(), (t & ~p).sum()
        precision = hits / (hits + false_alarms) if hits + false_alarms else 0.0
        recall = hits / (hits + misses) if hits + misses else 0.0
        found.append((precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0))
    return np.array(found).T


@pytest.mark.parametrize("n", [1, 2, 40])
def test_scores_of_classes_are_those_of_the_definition(n, rng):
    outputs, labels = rng.normal(size=(5, n)), rng.integers(0, 4, n)  # no sample is of class 4
    outputs[3] -= 9  # and none is predicted as class 3
    predicted = outputs.argmax(0)
    numbers = np.arange(5)[:, None]
    wanted = scores_by_definition(labels == numbers, predicted == numbers)
    for score, of_classes in zip((pc.Precision, pc.Recall, pc.F1), wanted, strict=True):
        np.testing.assert_allclose(computed(score(5, average=None), outputs, labels), of_classes, rtol=1e-12)
        assert computed(score(5), outputs, labels) == pytest.approx(of_classes.mean())
    matrix = computed(pc.ConfusionMatrix(5), outputs, labels)
    assert matrix.dtype == np.int64
    assert [[np.sum((labels == i) & (predicted == j)) for j in range(5)] for i in range(5)] == matrix.tolist()


def test_scores_of_two_classes_with_one_output_and_of_several_labels_are_those_of_the_definition(rng):
    outputs, labels = rng.normal(size=(1, 30)), rng.integers(0, 2, 30)
    both = np.concatenate([-outputs, outputs])
    for metric in (pc.ConfusionMatrix(2), pc.Precision(2), pc.Recall(2), pc.F1(2, None)):
        np.testing.assert_array_equal(computed(metric, outputs, labels), computed(metric, both, labels))
    outputs, labels = rng.normal(size=(3, 30)), rng.integers(0, 2, (30, 3)).astype(np.float32)
    wanted = scores_by_definition(labels.T == 1, outputs > 0)
    for score, of_labels in zip((pc.Precision, pc.Recall, pc.F1), wanted, strict=True):
        np.testing.assert_allclose(computed(score(3, average=None), outputs, labels), of_labels, rtol=1e-12)


def test_the_top_k_accuracy_counts_labels_among_the_k_largest_outputs(rng):
    outputs, labels = rng.integers(0, 3, (5, 60)).astype(np.float32), rng.integers(0, 5, 60)  # with equal outputs
    order = np.argsort(-outputs, axis=0, kind="stable")
    for k in range(1, 6):
        assert computed(pc.TopK(k), outputs, labels) == (order[:k] == labels).any(axis=0).mean()
    assert computed(pc.TopK(1), outputs, labels) == computed(pc.Accuracy(), outputs, labels)
    outputs[:] = np.nan
    assert computed(pc.TopK(5), outputs, labels) == 0


def test_all_ranks_and_threads_find_the_same_scores_and_the_matrix_counts_every_sample():
    dataset = small.dataset(333)
    results = [pc.evaluate(small.network(), dataset, pc.Serial(), metrics=METRICS, threads=1)]
    results += on_ranks(3, lambda comm: pc.evaluate(small.network(), dataset, comm, metrics=METRICS, threads=2))
    assert all(result == results[0] for result in results)
    matrix = results[0]["confusion_matrix"]
    assert matrix.sum() == 333
    assert np.trace(matrix) / 333 == results[0].accuracy
    assert results[0]["recall_per_class"].shape == (5,)
    assert results[0]["recall"] == pytest.approx(results[0]["recall_per_class"].mean())
    assert isinstance(hash(results[0]), int)


def test_counts_take_no_memory_for_each_block_of_samples(monkeypatch):
    """A matrix of 1,000 classes has 8 MB."""
    dataset = pc.Dataset(np.zeros((5000, 4), np.float32), np.arange(5000) % 1000, 1000)
    network = pc.NetworkHandler((pc.Dense(1000),), (4,))
    options = {"comm": pc.Serial(), "threads": 2, "metrics": [pc.ConfusionMatrix(1000), pc.F1(1000), pc.Accuracy()]}
    pc.evaluate(network, dataset, **options)
    tracemalloc.start()
    result = pc.evaluate(network, dataset, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result["confusion_matrix"].sum() == 5000
    assert result.accuracy == np.trace(result["confusion_matrix"]) / 5000
    assert peak < 100e6


def test_a_matrix_is_in_history_logs_checkpoints_and_rows_but_not_in_the_line_of_an_epoch(tmp_path, capsys):
    seen = []

    class Keeps(pc.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(logs["test_confusion_matrix"])

    sets, folder = (small.dataset(211), small.dataset(97, seed=1)), pc.CheckpointFolder(tmp_path)
    options = {"metrics": METRICS, "comm": pc.Serial(), "threads": 1, "checkpoints": folder, "callbacks": [Keeps()]}
    history = pc.train(small.network(), *sets, pc.SGD(0.1), 1, 25, **options)
    step, epoch, result = history.evaluations[-1]
    np.testing.assert_array_equal(seen[0], result["confusion_matrix"])
    assert folder.newest().history.evaluations == history.evaluations
    row = json.loads(evaluation_row(step, epoch, result))
    assert row["test_confusion_matrix"] == seen[0].tolist()
    assert row["test_f1"] == result["f1"]
    own = pc.Evaluation(1.0, None, 3, (("own", (np.nan, 2)),))
    assert json.loads(evaluation_row(1, 1, own))["test_own"] == [None, 2]
    line = capsys.readouterr().out
    assert "   test top 2 accuracy 0." in line
    assert "confusion" not in line
    assert "per class" not in line


class Endless(pc.Metric):
    name = "endless"
    terms = 10**15

    def add(self, outputs, labels, sums):
        raise AssertionError("no memory")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pc.TopK(0), InputError, "TopK: k must be an integer of at least 1, got 0"),
        (lambda: pc.ConfusionMatrix(1), InputError, "ConfusionMatrix: classes must be an integer of at least 2, got 1"),
        (lambda: pc.F1(5, "micro"), InputError, "F1: average must be 'macro' or None, got 'micro'"),
        (
            lambda: pc.TopK(6).check((5,), np.zeros(3, int), 5),
            ShapeError,
            "of at least 6 outputs, got int64 labels and",
        ),
        (lambda: pc.ConfusionMatrix(4).check((5,), np.zeros(3, int), 5), ShapeError, "takes labels of 4 classes and a"),
        (lambda: pc.Recall(3).check((3,), np.zeros((2, 4)), None), ShapeError, "got labels without classes and (3,)"),
        (
            lambda: pc.evaluate(small.network(), small.dataset(5), metrics=[Endless()]),
            ShapeError,
            "the sums of the metrics",
        ),
        (
            lambda: pc.evaluate(small.network(), small.dataset(5), metrics=[pc.F1(5), pc.Accuracy(), pc.F1(5)]),
            InputError,
            "metrics must have different names, got 2 of the name 'f1'",
        ),
    ],
)
def test_what_a_metric_cannot_judge_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_checkpoint_keeps_numbers_of_all_evaluations_and_arrays_of_the_newest(tmp_path):
    sets, folder = (small.dataset(50), small.dataset(20, seed=1)), pc.CheckpointFolder(tmp_path)
    options = {"metrics": METRICS, "comm": pc.Serial(), "threads": 1, "checkpoints": folder, "verbose": 0}
    history = pc.train(small.network(), *sets, pc.SGD(0.1), 2, 25, **options)
    assert history["test_confusion_matrix"].shape == (2, 5, 5)
    kept = folder.newest().history
    assert kept.evaluations[1] == history.evaluations[1]
    assert {name for name, _ in kept.evaluations[0][2].others} == {"top_2_accuracy", "precision", "recall", "f1"}
    np.testing.assert_array_equal(kept["test_f1"], history["test_f1"])
    with pytest.raises(InputError, match="the history has no series 'test_confusion_matrix'"):
        kept["test_confusion_matrix"]
