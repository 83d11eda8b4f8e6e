"""Histories: named series, a plot, and a table for notebooks."""

import re
import sys

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError

RESULTS = [
    pc.Evaluation(0.5, 0.75, 9, (("f1", 0.25), ("confusion_matrix", ((1, 2), (3, 4))))),
    pc.Evaluation(0.25, 1.0, 9, (("f1", 0.5), ("confusion_matrix", ((5, 6), (7, 8))), ("<b>", 1.0))),
]
HISTORY = pc.History([4.0, 2.0, 1.0], [(1, 1, RESULTS[0]), (2345, 2, RESULTS[1])], 27, train_seconds=1.5)


def test_series_of_a_training_have_names():
    sets = small.dataset(211), small.dataset(97, seed=1)
    options = {"comm": pc.Serial(), "threads": 1, "verbose": 0, "evaluate_every": 5}
    history = pc.train(small.network(), *sets, pc.SGD(0.1), 1, 25, **options)
    assert history["loss"].tolist() == history.losses
    assert history["step"].tolist() == [5, 9]
    assert history["epoch"].tolist() == [1, 1]
    assert history["test_loss"].tolist() == [result.loss for _, _, result in history.evaluations]
    assert history["test_accuracy"].tolist() == [result.accuracy for _, _, result in history.evaluations]


def test_a_series_of_matrices_is_an_array_and_a_name_that_not_all_evaluations_have_is_none():
    np.testing.assert_array_equal(HISTORY["test_confusion_matrix"], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert HISTORY["test_f1"].tolist() == [0.25, 0.5]
    known = "known: loss, step, epoch, test_loss, test_accuracy, test_f1, test_confusion_matrix"
    for name, message in (
        ("test_<b>", known),
        ("test_acuracy", f"the history has no series 'test_acuracy': did you mean 'test_accuracy'? ({known})"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            HISTORY[name]
    assert pc.History()["loss"].shape == (0,)
    with pytest.raises(InputError, match=r"no series 'test_loss': .*known: loss\)$"):
        pc.History()["test_loss"]


def test_a_history_is_plotted_with_matplotlib_and_without_it_one_sentence_says_so(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = HISTORY.plot()
    raw, _, tests = axes.get_lines()
    assert raw.get_ydata().tolist() == HISTORY.losses
    assert (list(tests.get_xdata()), list(tests.get_ydata())) == ([1, 2345], [0.5, 0.25])
    assert axes.get_yscale() == "log"
    assert pc.History([0.0, 1.0]).plot(axes) is axes
    pyplot.close(axes.figure)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"^history.plot needs matplotlib: pip install matplotlib$"):
        HISTORY.plot()
    with pytest.raises(InputError, match=r"history.plot takes the history of at least one minibatch, got none"):
        pc.History().plot()


def test_a_notebook_shows_a_table_of_the_evaluations(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # test_notebooks.py has the curve
    assert HISTORY._repr_html_() == (
        "<table><caption>3 minibatches in 1.50 s</caption><tr><th>epoch</th><th>step</th><th>test_loss</th>"
        "<th>test_accuracy</th><th>test_f1</th><th>test_&lt;b&gt;</th></tr>"
        "<tr><td>1</td><td>1</td><td>0.5000</td><td>0.7500</td><td>0.2500</td><td></td></tr>"
        "<tr><td>2</td><td>2,345</td><td>0.2500</td><td>1.0000</td><td>0.5000</td><td>1.0000</td></tr></table>"
    )
    assert pc.History()._repr_html_().startswith("<table><caption>0 minibatches")


def test_a_history_is_printed_as_one_line():
    assert repr(HISTORY) == (
        "<History: 3 minibatches in 1.50 s; test_loss 0.2500; test_accuracy 1.0000; test_f1 0.5000; test_<b> 1.0000>"
    )
    assert repr(pc.History([1.0], stopped=True)) == "<History: 1 minibatch in 0.00 s, stopped early>"
