"""Runs of all kinds as reports get them, made up without training, and a parser that checks a page."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np

import parallelcnn as pc
from parallelcnn.report.predictions import ClassPredictions, LabelPredictions, ValuePredictions
from parallelcnn.report.training_report import ReportedRun
from parallelcnn.training.config import TrainConfig

VOID = {"meta", "img", "br", "rect", "line", "path", "circle"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        elements: (name, attributes) of every element, in order.
        text: the texts between them.
        texts_of: the texts directly in elements of a name.
    """

    def __init__(self, content):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.texts_of = defaultdict(list)
        self.feed(content.decode("utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag.lower() in VOID
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self._open:
            self.texts_of[self._open[-1]].append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def headings(self):
        return self.texts_of["h2"]


def check_page(content):
    """Assert what holds for every page; returns it parsed."""
    page = Page(content)
    assert content.startswith(b"<!DOCTYPE html>")
    assert len(content) < 1_000_000
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "form", "base"}
    assert "viewport" in {meta.get("name") for meta in page.all("meta")}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert "://" not in attributes.get("src", "") + attributes.get("href", "")
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert len(page.all("h1")) == 1
    assert all(one.get("aria-label") or one.get("aria-hidden") for one in page.all("svg"))
    assert all("scope" in one for one in page.all("th"))
    return page


def history_of(steps=60, epochs=3, samples=60, role="test", accuracy=True):
    """A history of `epochs` epochs of these samples."""
    history = pc.History(losses=[2.0 / (1 + step / 10) for step in range(steps)])
    for epoch in range(1, epochs + 1):
        value = 1 - 0.5 / epoch if accuracy else None
        history.evaluations.append((epoch * steps // epochs, epoch, pc.Evaluation(1 / epoch, value, 70, (), role)))
    history.samples_seen, history.train_seconds = epochs * samples, 1.5
    return history


def run_on(images, labels, classes, layers, *, names=None, outputs=None, prediction="softmax", **changes):
    """A finished run on this data set, whose network has these outputs, (outputs, N)."""
    dataset = pc.Dataset(images, labels, classes, "stripes", class_names=names)
    network = pc.NetworkHandler(layers, dataset.input_shape)
    network.prediction, network.class_names = prediction, names
    history = history_of(samples=len(dataset), accuracy=prediction != "output" and classes is not None)
    config = TrainConfig(epochs=3, batch_size=10, **changes.pop("settings", {}))
    if outputs is None:
        found = None
    elif classes is not None:
        found = ClassPredictions(max(len(outputs), classes), prediction)
    else:
        found = LabelPredictions(len(outputs)) if prediction == "sigmoid" else ValuePredictions(dataset.labels)
    if found is not None:
        found.add(np.float32(outputs), dataset.labels, np.arange(len(dataset)))
        found.combine([], pc.Serial())
    last = history.evaluations[-1][2]
    run = ReportedRun(
        name="runs/a",
        config=config,
        network=network,
        train_set=dataset,
        evaluated=dataset,
        test_set=dataset,
        optimizer=config.build_optimizer(),
        loss=config.build_loss(),
        history=history,
        hosts=["here"],
        threads=[2],
        started=datetime(2026, 11, 30, 15, 2, tzinfo=UTC),
        on_train_set=last,
        on_test_set=last,
        predictions=found,
    )
    return replace(run, **changes)


def classification(classes=4, samples=60, wrong=7, names=None, shape=(8, 8), dtype=np.uint8, **changes):
    """A run that predicts `wrong` of the samples wrongly."""
    rng = np.random.default_rng(classes)
    images = rng.integers(0, 256, (samples, *shape), np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    labels = np.arange(samples) % classes
    outputs = np.zeros((classes, samples))
    outputs[labels, np.arange(samples)] = 3
    outputs[(labels[:wrong] + 1) % classes, np.arange(wrong)] = 4 + np.arange(wrong) / 10
    layers = (pc.Conv2D(6, 3), pc.Flatten(), pc.Dense(classes)) if len(shape) > 1 else (pc.Dense(classes),)
    return run_on(images, labels, classes, layers, names=names, outputs=outputs, **changes)


def binary(**changes):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (50, 8, 8), np.uint8), np.arange(50) % 2
    outputs = np.where(labels == 1, 2.0, -2.0)[None]
    outputs[0, :3] *= -1
    layers = (pc.Flatten(), pc.Dense(1))
    settings = {"loss": "binary-cross-entropy"}
    return run_on(images, labels, 2, layers, outputs=outputs, prediction="sigmoid", settings=settings, **changes)


def several_labels(**changes):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (50, 8, 8), np.uint8), rng.integers(0, 2, (50, 3)).astype(np.float32)
    outputs = np.where(labels.T > 0.5, 1.0, -1.0) * rng.choice([1, 1, 1, -1], (3, 50))
    layers = (pc.Flatten(), pc.Dense(3))
    return run_on(images, labels, None, layers, outputs=outputs, prediction="sigmoid", **changes)


def regression(outputs=1, **changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (500, 8, 8), np.uint8)
    targets = rng.normal(size=(500, outputs)).astype(np.float32)
    found = targets.T + rng.normal(scale=0.2, size=(outputs, 500))
    layers = (pc.Flatten(), pc.Dense(outputs))
    labels = targets[:, 0] if outputs == 1 else targets
    settings = {"loss": "squared"}
    return run_on(images, labels, None, layers, outputs=found, prediction="output", settings=settings, **changes)
