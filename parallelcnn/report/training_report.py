"""The report of a training run: what was trained, on what and how, and how well it went."""

import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np

from parallelcnn._version import __version__
from parallelcnn.data.dataset import Dataset
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.png import data_uri
from parallelcnn.report import history_curves
from parallelcnn.report.errors_of_values import value_sections
from parallelcnn.report.markup import Markup, element, join
from parallelcnn.report.mistakes import gallery
from parallelcnn.report.page import masthead, notes, page, section, tiles
from parallelcnn.report.pictures import filters_across, filters_picture, first_filters
from parallelcnn.report.predictions import ClassPredictions, LabelPredictions, Predictions, ValuePredictions
from parallelcnn.report.scores import class_scores
from parallelcnn.report.tables import confusion_matrix, confusions, facts, score_table, scrolling
from parallelcnn.resources import processor_name, usable_cores
from parallelcnn.training.config import TrainConfig
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History
from parallelcnn.training.progress import percent
from parallelcnn.wording import duration, in_units, plural

_FILTER_SIZE = 44  # width of a filter on the page [CSS pixels]


@dataclass(frozen=True)
class ReportedRun:
    """What a report shows.

    Attributes:
        name: of the run, its directory.
        train_set, evaluated, test_set: `evaluated` is the set of the evaluations during training.
        hosts, threads: of every rank, at the start.
        started: when the process started.
        on_train_set, on_test_set: results at the end; None: the run did not reach its end.
        predictions: on the test set; None: not known.
        summary: further numbers, named as in summary.json.
        notes: sentences on what was unusual.
        found: what was found in the data, in words.
        test_files: the names of the test set's files; empty: not known.
    """

    name: str
    config: TrainConfig
    network: NetworkHandler
    train_set: Dataset
    evaluated: Dataset
    test_set: Dataset
    optimizer: Optimizer
    loss: Loss
    history: History
    hosts: Sequence[str]
    threads: Sequence[int]
    started: datetime
    on_train_set: Evaluation | None = None
    on_test_set: Evaluation | None = None
    predictions: Predictions | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    found: str = ""
    test_files: Sequence[str] = ()

    def names_of(self, count: int) -> list[str]:
        """The names of `count` classes: their numbers where there are no names."""
        names = self.network.class_names or ()
        return [*names[:count], *(str(i) for i in range(len(names), count))]


def training_report(run: ReportedRun) -> bytes:
    """The report as an HTML file."""
    model = run.config.model if run.config.model.count(":") == 0 else Path(run.config.model).name
    title = f"{model} on {Path(run.train_set.name).name or run.train_set.name}"
    when = run.started.astimezone(UTC)
    epochs = run.history.samples_seen / len(run.train_set)
    below = f"{when:%-d %B %Y, %H:%M} UTC, {epochs:.3g} of {plural(run.config.epochs, 'epoch')}, {run.name}"
    header = join(masthead("Training report", title, below), tiles(list(_key_figures(run))), notes(list(run.notes)))
    return page(
        f"{title} - training report",
        header,
        section("Learning curves", history_curves.charts(run)),
        *_predictions(run),
        section("First-layer filters", _filters(run.network)),
        section("The run", _facts(run)),
        section("Layers", scrolling(element("pre", run.network.summary()), "layers")),
        section("Repeat this run", *_command(run)),
    )


def _key_figures(run: ReportedRun) -> Iterator[tuple[str, str | None]]:
    final = run.on_test_set
    if final is None and run.history.evaluations:
        final = run.history.evaluations[-1][2]
    if final is not None:
        name = final.set_name
        yield f"{name} accuracy", None if final.accuracy is None else percent(final.accuracy)
        yield f"{name} loss", f"{final.loss:.4g}"
    if isinstance(run.predictions, ValuePredictions):
        yield "mean absolute error", f"{run.predictions.absolute.mean():.4g}"
    if run.on_train_set is not None and run.on_train_set.accuracy is not None:
        yield "training accuracy", percent(run.on_train_set.accuracy)
    yield "training time", duration(run.history.train_seconds)
    yield "samples/s", _rate(run.history)
    yield "parameters", f"{run.network.params.size:,}"
    yield (
        "ranks \N{MULTIPLICATION SIGN} threads",
        f"{len(run.hosts)} \N{MULTIPLICATION SIGN} {_range(run.threads)}",
    )


def _predictions(run: ReportedRun) -> Iterator[Markup | None]:
    """The sections on the predictions for the test set, by what is predicted."""
    found = run.predictions
    if isinstance(found, ClassPredictions):
        names = run.names_of(len(found.counts[0]))
        if found.matrix is not None:
            both = confusion_matrix(found.matrix, names), confusions(found.matrix, names)
            yield section("Confusion matrix", element("div", both, class_="tables"))
        yield section("Scores", score_table(class_scores(found.counts), found.counts[2], names))
        yield section("Most confident mistakes", gallery(found, run.test_set, names, run.test_files))
    elif isinstance(found, LabelPredictions):
        names = run.names_of(len(found.counts[0]))
        yield section("Scores", score_table(class_scores(found.counts), found.counts[2], names, "label", "labels"))
        yield section("Most confident mistakes", gallery(found, run.test_set, names, run.test_files))
    elif isinstance(found, ValuePredictions):
        yield section("Errors", value_sections(found, run.test_set))
        yield section("Largest errors", gallery(found, run.test_set, (), run.test_files))


def _filters(network: NetworkHandler) -> Markup | None:
    found = first_filters(network)
    if found is None:
        return None
    name, filters = found
    sheet = filters_picture(filters)
    shown = min(len(filters), 64)
    channels, rows, columns = filters.shape[1:]
    how = {
        1: "Blue weights are negative, white ones 0, orange ones positive.",
        3: "In colour: grey is 0.",
    }.get(channels, "The mean over the channels: blue is negative, white 0, orange positive.")
    of = f"{len(filters)}" if shown == len(filters) else f"{shown} of {len(filters)}"
    text = f"{of} filters of {rows} x {columns}, parameter {name}"
    width = filters_across(shown) * max(_FILTER_SIZE, columns)
    return element(
        "figure",
        element(
            "img",
            src=data_uri(sheet),
            alt=text,
            width=width,
            height=round(width * len(sheet) / sheet.shape[1]),
            class_="pixels filters",
        ),
        element("figcaption", f"{text}. {how} Each is scaled by its largest weight.", class_="quiet"),
    )


def _facts(run: ReportedRun) -> Markup:
    config, history, summary = run.config, run.history, run.summary
    steps = -(-len(run.train_set) // config.batch_size)
    hosts = ", ".join(
        f"{host} ({count})" if count > 1 else host for host, count in list(Counter(run.hosts).items())[:8]
    )
    more = len(set(run.hosts)) - 8
    shape, dtype = run.train_set.images.shape[1:], run.train_set.images.dtype
    classes = "regression" if run.train_set.classes is None else plural(run.train_set.classes, "class", "classes")
    validation = None if run.evaluated is run.test_set else f"{run.evaluated.name}: {len(run.evaluated):,}"
    measured = [
        ("data", f"{run.train_set.name}: {len(run.train_set):,} to train on, {len(run.test_set):,} to test on"),
        ("found", run.found),
        ("validation", validation),
        ("samples", f"{' x '.join(map(str, shape))} {dtype}, {classes}"),
        ("model", config.model),
        ("started from", config.start_from),
        ("loss", repr(run.loss)),
        ("optimiser", repr(run.optimizer)),
        ("epochs", f"{config.epochs} of {plural(steps, 'minibatch', 'minibatches')}"),
        ("batch size", f"{config.batch_size:,}"),
        ("precision", None if config.precision == "float32" else config.precision),
        ("seed", f"{config.seed}"),
        (
            "reproducible",
            None if config.reproducible is None else f"{config.reproducible} shards, the same bits on any ranks",
        ),
    ]
    where = [
        ("ranks", f"{len(run.hosts)} on {hosts}{f' and {more} more' if more > 0 else ''}"),
        ("threads", f"{_range(run.threads)} each"),
        ("machine", f"{processor_name()}, {plural(len(usable_cores()), 'core')}"),
        ("system", platform.platform()),
        ("MPI library", summary.get("mpi_library")),
        (
            "versions",
            f"parallelcnn {__version__}, Python {sys.version.split()[0]}, "
            f"numpy {np.__version__}, numba {numba.__version__}",
        ),
        ("started", f"{run.started.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
        ("training", f"{duration(history.train_seconds)}, {_rate(history)} samples a second"),
        ("compilation", _seconds(summary.get("compile_seconds"))),
        ("in total", _seconds(summary.get("wall_seconds"))),
        ("memory", f"{in_units(summary['peak_rss_bytes'])} a rank" if "peak_rss_bytes" in summary else None),
        ("parameters", summary.get("parameters_sha256") and f"SHA-256 {summary['parameters_sha256']}"),
    ]
    return element("div", facts(measured), facts(where), class_="beside")


def _command(run: ReportedRun) -> Iterator[Markup]:
    launch = [] if len(run.hosts) == 1 else ["mpirun", "-n", str(len(run.hosts))]
    yield element("pre", shlex.join([*launch, "parallelcnn", "train", *run.config.to_arguments()]), class_="command")
    same = "The results agree up to rounding"
    how = (
        f"{same}; with --reproducible they agree bit for bit."
        if run.config.reproducible is None
        else "The results agree bit for bit."
    )
    yield element("p", how, class_="quiet")


def _rate(history: History) -> str | None:
    return f"{history.samples_seen / history.train_seconds:,.0f}" if history.train_seconds > 0 else None


def _range(threads: Sequence[int]) -> str:
    low, high = min(threads), max(threads)
    return str(low) if low == high else f"{low} to {high}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else duration(value)
