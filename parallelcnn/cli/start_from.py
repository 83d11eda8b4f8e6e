"""Start a training from the parameters of another network, with warnings if that network was trained in another way."""

import contextlib
import warnings
from typing import Any

from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import warn_of_another_range
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.exchange.parameter_files import read_described_parameters
from parallelcnn.files.model import checked_origin
from parallelcnn.network import NetworkHandler
from parallelcnn.wording import listed


def start_from(source: str, network: NetworkHandler, train_set: Dataset, *, warn: bool) -> str:
    """Take the parameters of a file that fit the network by name and shape.

    Args:
        source: path of the file.
        warn: whether to warn if the other network has seen other numbers, or learnt other classes.

    Returns:
        What was taken, in words.

    Raises:
        InputError: if the file cannot be read, or nothing in it fits.
    """
    arrays, description = read_described_parameters(source)
    matching = network.load_parameters(arrays, strict=False)
    if not matching.taken:
        raise InputError(f"--start-from {source}: no array fits the network by name and shape: {matching}")
    if warn:
        _warn_of_another_training(f"--start-from {source}", description, network, train_set)
    return f"{source}: {matching}"


def _warn_of_another_training(
    source: str, description: dict[str, Any], network: NetworkHandler, train_set: Dataset
) -> None:
    """Warn if the network to start from has seen other numbers, or learnt other classes, than this one will.

    Args:
        source: where it is from, the beginning of a message.
        description: of that network, not checked; what is missing or no description is not compared.
    """
    layers, names, origin = description.get("layers"), description.get("class_names") or (), dict[str, Any]()
    with contextlib.suppress(InputError, TypeError, ValueError):
        origin = checked_origin(description, (len(names),))
    there, here = ("Normalize(" in repr(some) for some in (layers, network.layers))
    if layers is not None and there != here:
        warnings.warn(
            f"{source}: that network was trained {'with' if there else 'without'} --normalize, and this one is "
            f"{'with' if here else 'without'} it: its first layers see other numbers than they have learnt from",
            TrainingWarning,
            stacklevel=4,
        )
    names, names_here = origin.get("class_names") or (), train_set.class_names or ()
    if len(names) == len(names_here) and names != names_here:
        warnings.warn(
            f"{source}: that network has learnt the classes {listed(names)}, and this one is for "
            f"{listed(names_here)}: the outputs of a last layer that fits mean other classes",
            TrainingWarning,
            stacklevel=4,
        )
    warn_of_another_range(
        f"{source}: the training images",
        train_set.input_range,
        origin.get("input_range"),
        network.input_shape,
        stacklevel=4,
    )
