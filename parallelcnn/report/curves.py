"""Line charts as SVG, drawn for phones and desktops alike; values appear where the pointer rests."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

from parallelcnn.report.markup import Markup, element, join

COLOURS = 8  # that the style sheet has, .c0 to .c7
_DASHES = ("", "7 4", "2 4", "10 3 2 3")  # after as many lines as there are colours

_WIDTH, _HEIGHT = 400, 260  # units of the drawing: about a pixel on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
_LOG_FROM = 10.0  # ratio of the largest to the smallest value
_MOST_LOG_TICKS = 8
_MANY = 100  # markers, which are then small and translucent
_MOST_STRIPS = 120  # places where values appear


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: in the legend, and before a value.
        points: (x, y) in ascending order of x. Where y is not finite, the line has a gap.
        style: number of the line's colour and dashes.
        markers: whether points are marked.
        line: whether points are joined.
        area: whether what is below the line is coloured.
    """

    name: str
    points: Sequence[tuple[float, float]] = field(repr=False)
    style: int = 0
    markers: bool = False
    line: bool = True
    area: bool = False

    @property
    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


class Axis(NamedTuple):
    """A scale from values to places in the drawing.

    Attributes:
        low, high: values at its ends.
        start, end: their places.
        ticks: labelled values.
        is_log: whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (_log(one) if self.is_log else one for one in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def line_chart(
    title: str,
    series: Iterable[Series],
    x_label: str,
    shown: Callable[[float], str],
    *,
    x_shown: Callable[[float], str] | None = None,
    logarithmic: bool = False,
    highest: float | None = None,
    note: str | None = None,
    legend: bool = True,
) -> Markup:
    """A figure with a title, a legend and a chart.

    Args:
        x_label: the name of the horizontal axis: "epoch".
        shown: how values are written.
        x_shown: how values of the horizontal axis are written; None: that axis counts from 0.
        logarithmic: whether the vertical axis is logarithmic if the values differ much and are above 0.
        highest: no tick is above it.
        note: a sentence below the chart.
    """
    drawn = [one for one in series if one.finite]
    if not drawn:
        return element(
            "figure", element("figcaption", title), element("p", "No values.", class_="quiet"), class_="chart"
        )
    xs, ys = ([point[i] for one in drawn for point in one.finite] for i in (0, 1))
    whole = x_shown is None
    x_axis = linear_axis(min(0.0, *xs) if whole else min(xs), max(xs), _LEFT, _WIDTH - _RIGHT, 6, whole=whole)
    x_shown = x_shown or "{:,.0f}".format
    log = logarithmic and min(ys) > 0 and max(ys) > _LOG_FROM * min(ys)
    bottom = _HEIGHT - _BOTTOM
    y_axis = (
        log_axis(min(ys), max(ys), bottom, _TOP) if log else linear_axis(min(ys), max(ys), bottom, _TOP, 5, highest)
    )
    summary = "; ".join(f"{one.name} ends at {shown(one.finite[-1][1])}" for one in drawn[:6])
    drawing = element(
        "svg",
        _frame(x_axis, y_axis, x_label, x_shown, shown),
        [_line(one, x_axis, y_axis) for one in drawn],
        _strips(drawn, x_axis, x_label, shown),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}: {summary}",
    )
    scale = " (logarithmic)" if log else ""
    caption = element("figcaption", title, element("span", scale, class_="quiet") if scale else None)
    keys = element("ul", [element("li", _key(one), one.name) for one in drawn], class_="legend") if legend else None
    return element(
        "figure", caption, keys, drawing, element("p", note, class_="quiet") if note else None, class_="chart"
    )


def linear_axis(
    low: float, high: float, start: float, end: float, count: int, highest: float | None = None, *, whole: bool = False
) -> Axis:
    """An axis that contains low and high, with about `count` round numbers as ticks; 0 is on it if it is near.

    Args:
        highest: no tick is above it, and the axis does not extend past it.
        whole: ticks are integers, and the axis ends at `high`.
    """
    if low > 0 and low < 0.4 * high and not whole:
        low = 0.0
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(high) * 0.1 or 1.0
        low, high = (low, high + 1) if whole else (low - pad if low != 0 else 0.0, high + pad)
        high = high if highest is None else min(high, highest)
    step = _round_step((high - low) / count)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    if whole:
        high = max(high, min(math.ceil(high), 1.02 * high))  # 2.99 of 3 epochs
        return Axis(low, high, start, end, tuple(tick for tick in ticks if low <= tick <= high))
    if highest is not None and ticks[-1] > highest >= high:
        ticks = [tick for tick in ticks if tick <= highest * (1 + 1e-9)]
        return Axis(min(low, ticks[0]), highest, start, end, tuple(ticks))
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), start, end, tuple(ticks))


def log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis that contains low and high, with 1, 10, 100 and, if there is room, 2 and 5 as ticks."""
    first, last = math.floor(_log(low)), math.ceil(_log(high))
    fine = [factor * 10.0**i for i in range(first, last + 1) for factor in (1, 2, 5)]
    lowest = max((tick for tick in fine if tick <= low), default=low)
    highest = min((tick for tick in fine if tick >= high), default=high)
    ticks = [tick for tick in fine if lowest <= tick <= highest]
    if len(ticks) > _MOST_LOG_TICKS:
        every = 1 + (last - first) // _MOST_LOG_TICKS
        ticks = [10.0**i for i in range(first, last + 1, every) if lowest <= 10.0**i <= highest]
    return Axis(lowest, highest, start, end, tuple(ticks), is_log=True)


def _frame(
    x_axis: Axis, y_axis: Axis, x_label: str, x_shown: Callable[[float], str], shown: Callable[[float], str]
) -> Markup:
    """Grid lines, ticks and the label of the horizontal axis."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    rows = [
        join(
            element("line", x1=_LEFT, x2=right, y1=_place(y), y2=_place(y), class_="grid"),
            element("text", shown(tick), x=_LEFT - 7, y=_place(y + 4), text_anchor="end"),
        )
        for tick in y_axis.ticks
        for y in [y_axis.at(tick)]
    ]
    columns = [
        element("text", x_shown(tick), x=_place(x_axis.at(tick)), y=bottom + 18, text_anchor="middle")
        for tick in x_axis.ticks
    ]
    label = element("text", x_label, x=(_LEFT + right) / 2, y=_HEIGHT - 4, text_anchor="middle")
    return element("g", rows, columns, label, aria_hidden="true")


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> Markup:
    parts = [
        [(_place(x_axis.at(x)), _place(y_axis.at(y))) for x, y in points]
        for is_finite, points in groupby(series.points, key=lambda point: math.isfinite(point[1]))
        if is_finite
    ]
    path = " ".join("M" + " ".join(f"{x},{y}" for x, y in part) for part in parts)
    classes = f"line c{series.style % COLOURS}"
    dashes = _dashes(series)
    line = element("path", element("title", series.name), d=path, class_=classes, stroke_dasharray=dashes)
    below = [
        f"M{part[0][0]},{y_axis.start} " + " ".join(f"{x},{y}" for x, y in part) + f" {part[-1][0]},{y_axis.start}Z"
        for part in parts
    ]
    area = element("path", d=" ".join(below), class_=f"area c{series.style % COLOURS}") if series.area else None
    kind, radius = ("mark", 3 if series.line else 4) if len(series.points) < _MANY else ("dots", 2.5)
    marks = [
        element("circle", cx=x, cy=y, r=radius, class_=f"{kind} c{series.style % COLOURS}")
        for part in parts
        for x, y in part
    ]
    return join(area, line if series.line else None, marks if series.markers or not series.line else None)


def _strips(drawn: Sequence[Series], x_axis: Axis, x_label: str, shown: Callable[[float], str]) -> Markup | None:
    """Invisible columns over the chart, whose titles hold the values there."""
    marked = [one for one in drawn if one.markers] or drawn
    places = sorted({x for one in marked for x, _ in one.finite})
    places = places[:: -(-len(places) // _MOST_STRIPS)]
    edges = [
        x_axis.start,
        *((x_axis.at(a) + x_axis.at(b)) / 2 for a, b in pairwise(places)),
        x_axis.end,
    ]
    strips = []
    for x, left, right in zip(places, edges, edges[1:], strict=False):
        values = "\n".join(f"{one.name}: {shown(_nearest(one.finite, x))}" for one in drawn[:12])
        label = element("title", f"{x_label} {x:g}\n{values}")
        size = {"width": _place(max(right - left, 0.1)), "height": _HEIGHT - _BOTTOM - _TOP}
        strips.append(element("rect", label, x=_place(left), y=_TOP, class_="strip", **size))
    return element("g", strips, aria_hidden="true")


def _nearest(points: Sequence[tuple[float, float]], x: float) -> float:
    return min(points, key=lambda point: abs(point[0] - x))[1]


def _key(series: Series) -> Markup:
    """The line or the marker of a series, for the legend."""
    classes = f"c{series.style % COLOURS}"
    line = element("line", x1=1, x2=27, y1=7, y2=7, class_=f"line {classes}", stroke_dasharray=_dashes(series))
    mark = element("circle", cx=14, cy=7, r=3 if series.line else 4, class_=f"mark {classes}")
    parts = (line if series.line else None, mark if series.markers or not series.line else None)
    return element("svg", *parts, viewBox="0 0 28 14", class_="key", aria_hidden="true")


def _dashes(series: Series) -> str | None:
    return _DASHES[series.style // COLOURS % len(_DASHES)] or None


def _round_step(width: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `width`."""
    power = 10.0 ** math.floor(_log(width))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= width * (1 - 1e-9))


def _log(value: float) -> float:
    return math.log10(value)


def _place(value: float) -> float:
    """A coordinate, rounded to what can be seen."""
    return round(value, 1)
