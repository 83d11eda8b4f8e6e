"""Tables: confusion matrices as heat maps, scores of classes, and names with their values."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from parallelcnn.png import data_uri
from parallelcnn.report.markup import Markup, element
from parallelcnn.report.pictures import matrix_picture
from parallelcnn.report.scores import ClassScores

Array = np.ndarray

MOST_CELLS = 20  # classes of a confusion matrix with numbers
_MOST_ROWS = 1000  # of a table of classes
_MOST_OPEN = 30  # classes in a table that is shown in full
_LOWEST = 10  # classes shown of a longer one
_CONFUSIONS = 12  # listed
_LONG_NAME = 4  # characters; columns of longer names are headed by vertical text


def table(
    head: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    caption: str,
    *,
    numbers_from: int = 1,
    class_: str | None = None,
) -> Markup:
    """A table whose first column names the rows. A wide one scrolls by itself.

    Args:
        numbers_from: the first column that holds numbers, which are aligned to the right.
        class_: of the table, for the style sheet.
    """
    columns = [
        element("th", name, scope="col", class_="number" if i >= numbers_from else None) for i, name in enumerate(head)
    ]
    body = []
    for name, *cells in rows:
        shown = [
            cell if isinstance(cell, Markup) and cell.startswith("<td") else _cell(cell, is_number=i >= numbers_from)
            for i, cell in enumerate(cells, start=1)
        ]
        body.append(element("tr", element("th", name, scope="row"), shown))
    parts = element("caption", caption), element("thead", element("tr", columns)), element("tbody", body)
    return scrolling(element("table", *parts, class_=class_), caption)


def scrolling(wide: Markup, name: str) -> Markup:
    """What may be wider than a phone: it scrolls by itself, also with the keyboard."""
    return element("div", wide, class_="scroll", tabindex="0", role="region", aria_label=name)


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and their values; those without a value are left out."""
    shown = [
        element("div", element("dt", name), element("dd", value)) for name, value in pairs if value not in (None, "")
    ]
    return element("dl", shown, class_="facts")


def confusion_matrix(matrix: Array, names: Sequence[str]) -> Markup:
    """A confusion matrix: a heat map with numbers for few classes, otherwise a picture."""
    true = matrix.sum(axis=1)
    fractions = matrix / np.maximum(true, 1)[:, None]
    if len(matrix) > MOST_CELLS:
        text = f"Confusion matrix of {len(matrix)} classes: rows are true classes, columns are predicted ones"
        return element(
            "figure",
            element("img", src=data_uri(matrix_picture(fractions)), alt=text, class_="pixels matrix"),
            element(
                "figcaption",
                f"{text}. Blue: right, orange: wrong. The stronger a colour, the larger its part of the row.",
                class_="quiet",
            ),
        )
    long = max(map(len, names)) > _LONG_NAME
    heads = [
        element("th", element("span", short(name), class_="vertical" if long else None), scope="col", title=name)
        for name in names
    ]
    rows = []
    for i, name in enumerate(names):
        cells = [
            _heat(int(matrix[i, j]), float(fractions[i, j]), name, names[j], right=i == j) for j in range(len(names))
        ]
        recall = f"{100 * fractions[i, i]:.1f} %" if true[i] else "no samples"
        last = element("td", recall, class_="number recall")
        rows.append(element("tr", element("th", short(name), scope="row", title=name), cells, last))
    caption = element(
        "caption",
        "Rows: true classes. Columns: predicted classes. Blue: right, orange: wrong. "
        "Recall: the part of a row that is right.",
    )
    arrows = "predicted \N{RIGHTWARDS ARROW}", element("br"), "true \N{DOWNWARDS ARROW}"
    corner = element("td", *arrows, class_="corner")
    head = element("thead", element("tr", corner, heads, element("th", "recall", scope="col", class_="number")))
    return scrolling(element("table", caption, head, element("tbody", rows), class_="heat"), "confusion matrix")


def confusions(matrix: Array, names: Sequence[str]) -> Markup | None:
    """The most frequent confusions; None if there are none."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    places = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    if not places:
        return None
    rows = [
        (short(names[i]), short(names[j]), f"{wrong[i, j]:,}", f"{100 * wrong[i, j] / matrix[i].sum():.1f} %")
        for i, j in places
    ]
    return table(("true", "taken for", "samples", "of class"), rows, "Most frequent confusions", numbers_from=2)


def score_table(
    scores: ClassScores, samples: Array, names: Sequence[str], what: str = "class", many: str = "classes"
) -> list[Markup]:
    """Precision, recall, F1 and samples of each class; of many classes first those with the lowest F1.

    Args:
        what, many: what is scored, singular and plural.
    """
    order = np.arange(len(names))
    if len(names) <= _MOST_OPEN:
        return [_scores(order, scores, samples, names, what, f"Scores of each {what}")]
    with_samples = order[samples > 0]
    lowest = with_samples[np.argsort(scores.f1[with_samples], kind="stable")][:_LOWEST]
    first = _scores(lowest, scores, samples, names, what, f"The {len(lowest)} {many} with the lowest F1")
    listed = order[:_MOST_ROWS]
    every = "all" if len(listed) == len(order) else f"the first {len(listed):,} of"
    summary = f"Scores of {every} {len(order):,} {many}"
    full = _scores(listed, scores, samples, names, what, summary)
    return [first, element("details", element("summary", summary), full)]


def short(name: str, most: int = 24) -> str:
    """A name, or its beginning."""
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _scores(order: Array, scores: ClassScores, samples: Array, names: Sequence[str], what: str, caption: str) -> Markup:
    rows = [
        (short(names[i], 40), *(_bar(float(column[i])) for column in scores), f"{samples[i]:,}") for i in order.tolist()
    ]
    return table((what, "precision", "recall", "F1", "samples"), rows, caption, class_="scores")


def _bar(value: float) -> Markup:
    """A cell with a score, and a bar as long as it."""
    return element("td", f"{value:.3f}", class_="number bar", style=f"--v:{value:.3f}")


def _heat(count: int, fraction: float, true: str, predicted: str, *, right: bool) -> Markup:
    kind = "right" if right else "wrong"
    # Few mistakes shall be seen, too.
    strength = fraction if right else fraction ** (1 / 3)
    title = f"{true} predicted as {predicted}: {count:,} ({100 * fraction:.1f} %)"
    style = f"--v:{strength:.3f}" if count else None
    return element("td", f"{count:,}" if count else "", class_=kind if count else None, style=style, title=title)


def _cell(value: Any, *, is_number: bool) -> Markup:
    return element("td", value, class_="number" if is_number else None)
