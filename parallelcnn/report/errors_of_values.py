"""The errors of a regression: scores, their distribution, and outputs against targets."""

import math
from itertools import pairwise

import numpy as np

from parallelcnn.data.dataset import Dataset
from parallelcnn.report.curves import Series, line_chart
from parallelcnn.report.history_curves import number
from parallelcnn.report.markup import Markup, element, join
from parallelcnn.report.predictions import ValuePredictions
from parallelcnn.report.scores import explained_variance
from parallelcnn.report.tables import table

_MOST_OUTPUTS = 100


def value_sections(found: ValuePredictions, dataset: Dataset) -> Markup:
    """A table of errors for each output, and two charts."""
    explained = explained_variance(found.squared, dataset.labels)
    several = len(found.absolute) > 1
    rows = [
        (f"output {i}" if several else "test set", number(absolute), number(math.sqrt(squared)), _or_unknown(part))
        for i, (absolute, squared, part) in enumerate(zip(found.absolute, found.squared, explained, strict=True))
    ][:_MOST_OUTPUTS]
    head = ("", "mean absolute error", "root mean squared error", "R\N{SUPERSCRIPT TWO}")
    scores = table(head, rows, "Errors on the test set: output minus target")
    of_first = " of output 0" if several else ""
    low, high = float(found.points.min()), float(found.points.max())
    pairs = sorted((target, output) for target, output in found.points.tolist())
    compared = line_chart(
        f"Output against target{of_first}",
        [
            Series("perfect", [(low, low), (high, high)], style=6),
            Series("test samples", pairs, style=0, line=False),
        ],
        "target",
        number,
        x_shown=number,
        note=f"{len(pairs):,} of {len(dataset):,} test samples, evenly spaced." if len(pairs) < len(dataset) else None,
    )
    return join(scores, element("div", compared, _histogram(found), class_="charts"))


def _histogram(found: ValuePredictions) -> Markup:
    edges = np.linspace(-found.limit, found.limit, len(found.histogram) + 1)
    share = found.histogram / found.histogram.sum()
    outline = [(float(x), float(y)) for (a, b), y in zip(pairwise(edges), share, strict=True) for x in (a, b)]
    return line_chart(
        "Distribution of the errors",
        [Series("part of the test set", outline, style=1, area=True)],
        "output minus target",
        "{:.3%}".format if share.max() < 0.01 else "{:.0%}".format,
        x_shown=number,
        note="The outermost bars hold all larger errors, too.",
        legend=False,
    )


def _or_unknown(part: float) -> str:
    return "unknown" if math.isnan(part) else f"{part:.4f}"
