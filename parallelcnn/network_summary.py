"""The summary of a network: a table of its layers with output shapes and numbers of parameters, as text and as HTML."""

import math
import re
from collections.abc import Iterator, Sequence

from parallelcnn.layers.base import Layer, Shape
from parallelcnn.notebook import table

_LONG_NUMBER = re.compile(r"\d+\.\d{5,}(e[+-]?\d+)?")

Row = tuple[str, str, str]


def summary_rows(layers: Sequence[Layer], shapes: Sequence[Shape], counts: Sequence[int]) -> list[Row]:
    """The rows of the table, the header first.

    Args:
        shapes: of one sample before, between and after the layers.
        counts: number of parameters of each layer.
    """
    rows: list[Row] = [("Layer", "Output shape", "Parameters"), ("Input", _any_number(shapes[0]), "0")]
    for layer, shape, count in zip(layers, shapes[:-1], counts, strict=True):
        rows += _rows_of(layer, shape, count)
    return rows


def as_text(rows: Sequence[Row], totals: Sequence[str]) -> str:
    """The table in lines of equal columns, and the totals below it."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, *totals])


def as_html(rows: Sequence[Row], totals: Sequence[str]) -> str:
    """The table in HTML, for notebooks, with the totals as its title."""
    header, *others = ((layer.replace("  ", "\N{EM SPACE}"), *rest) for layer, *rest in rows)
    return table(". ".join(totals), header, others)


def _rows_of(layer: Layer, input_shape: Shape, parameters: int, indent: str = "") -> Iterator[Row]:
    """The rows of one layer and the layers inside it."""
    shape = _any_number(layer.output_shape(input_shape))
    inner_layers = layer.inner_layers(input_shape)
    if not inner_layers:
        yield indent + _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.4g}", repr(layer)), shape, f"{parameters:,}"
        return
    yield f"{indent}{type(layer).__name__}", shape, ""
    for inner, inner_shape in inner_layers:
        count = sum(math.prod(one.shape) for one in inner.parameters(inner_shape).values())
        yield from _rows_of(inner, inner_shape, count, f"{indent}  ")


def _any_number(shape: Shape) -> str:
    return f"({', '.join(['None', *map(str, shape)])})"
