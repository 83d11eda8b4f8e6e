"""A page that compares runs: their curves together, and a table."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from parallelcnn.files.run_files import Row, StoredRun, number_of, rows_of_metrics
from parallelcnn.report.curves import Series, line_chart
from parallelcnn.report.history_curves import number, percentage
from parallelcnn.report.markup import Markup, element
from parallelcnn.report.page import masthead, notes, page, section
from parallelcnn.report.tables import table
from parallelcnn.wording import plural

_MOST_RUNS = 32  # in a chart: more lines than colours and dashes distinguish
_MOST_POINTS = 80  # of a line: means of neighbouring minibatches


def comparison(
    title: str, runs: Sequence[StoredRun], names: Sequence[str], head: Sequence[str], *rows: Sequence[str]
) -> bytes:
    """The page as an HTML file.

    Args:
        names: of the runs, in the legend.
        head, rows: the table of the runs, as the command prints it.
    """
    drawn = list(zip(names, runs, strict=True))[:_MOST_RUNS]
    left_out = len(runs) - len(drawn)
    warnings = (
        [f"The curves are those of the first {len(drawn)} runs; {left_out} more are in the table."] if left_out else []
    )
    return page(
        f"{title} - runs",
        masthead("Runs", title, plural(len(runs), "run")),
        notes(warnings),
        section("Curves", _charts(drawn)),
        section("Settings and results", table(head, rows, "The runs", numbers_from=99, class_="runs")),
    )


def _charts(drawn: Sequence[tuple[str, StoredRun]]) -> Markup:
    series: dict[str, list[Series]] = {"test_loss": [], "test_accuracy": [], "loss": []}
    for style, (name, run) in enumerate(drawn):
        rows = list(rows_of_metrics(run.path))
        places = _epochs_of_steps(rows)
        for of, lines in series.items():
            points = _points(rows, of, places)
            if points:
                lines.append(Series(name, points, style, markers=of != "loss"))
    titles = {"test_loss": "Test loss", "test_accuracy": "Test accuracy", "loss": "Training loss"}
    charts = [
        line_chart(titles[of], lines, "epoch", percentage, highest=1.0)
        if of == "test_accuracy"
        else line_chart(titles[of], lines, "epoch", number, logarithmic=True)
        for of, lines in series.items()
        if lines or of != "test_accuracy"
    ]
    return element("div", charts, class_="charts")


def _epochs_of_steps(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """(minibatches done, epochs done) at the ends of the epochs: each ends with an evaluation."""
    evaluated = [
        (step, epoch)
        for row in rows
        if "loss" not in row
        if (step := number_of(row, "step")) and (epoch := number_of(row, "epoch"))
    ]
    ends = [one for one, following in pairwise(evaluated) if following[1] > one[1]] + evaluated[-1:]
    return [0.0, *(step for step, _ in ends)], [0.0, *(epoch for _, epoch in ends)]


def _points(rows: Sequence[Row], name: str, places: tuple[list[float], list[float]]) -> list[tuple[float, float]]:
    """(epochs done, value) of the rows that have a value of that name, or of a validation set; means of many rows."""
    names = (name, name.replace("test_", "val_"))
    found = [
        (step, value)
        for row in rows
        if (step := number_of(row, "step")) is not None
        if (value := next((one for key in names if (one := number_of(row, key)) is not None), None)) is not None
    ]
    if not found:
        return []
    steps, values = np.array(found).T
    size = -(-len(found) // _MOST_POINTS)
    starts = np.arange(0, len(found), size)
    counts = np.diff([*starts, len(found)])
    at, means = (np.add.reduceat(some, starts) / counts for some in (steps, values))
    return list(zip(np.interp(at, *places).tolist(), means.tolist(), strict=True))
