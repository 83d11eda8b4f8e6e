"""Plots with matplotlib, which is optional and imported when the first plot is drawn."""

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
