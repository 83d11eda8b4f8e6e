"""Plots with matplotlib, which is optional and imported when the first plot is drawn."""

import io
from typing import Any

from parallelcnn.errors import InputError


def new_axes(owner: str) -> Any:
    """The axes of a new matplotlib figure, which notebooks and `matplotlib.pyplot.show` display.

    Args:
        owner: what is being plotted, for the message.

    Raises:
        InputError: if matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise InputError(f"{owner} needs matplotlib: pip install matplotlib") from None
    return pyplot.subplots()[1]


def axes_of_a_picture() -> Any:
    """The axes of a figure that is only drawn into a file; None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(6, 3.5), layout="constrained").subplots()


def as_png(axes: Any) -> bytes:
    """A PNG file of the figure, 100 pixels for each inch."""
    file = io.BytesIO()
    axes.figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
