"""Model files: a network's layers and parameters in one .npz, which numpy alone can read. Files, not ranks.

    description     JSON: format, version, input shape, type of numbers, layers with their arguments
    0.weight, ...   one array a parameter, named by the position of its layer and its own name

Nothing in it is pickled, so that a model file from a stranger runs no code.
"""

import dataclasses
import json
import math
import operator
import zipfile
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn import layers as library_layers
from parallelcnn.arguments import as_path, check_type
from parallelcnn.errors import CheckpointError, InputError
from parallelcnn.files.archive import COMPRESSION_LIMIT, HEADER_LIMIT, open_npz, read_description, read_npy, write_npz
from parallelcnn.files.fingerprint import matches, stored_fingerprint
from parallelcnn.layers import Layer
from parallelcnn.network import NetworkHandler, as_layers, chain_shapes, declare
from parallelcnn.parameters import Slot

_VERSION = 1


def save_model(path: str | Path, network: NetworkHandler) -> None:
    """Write a network's layers and parameters to an .npz file, whole or not at all.

    Raises:
        InputError: for arguments of another type.
        OSError: if the file cannot be written.
    """
    if isinstance(path, NetworkHandler):
        raise InputError("save_model takes the path first: save_model(path, network)")
    path = as_path("path", path)
    check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
    description = {
        "format": "parallelcnn model",
        "version": _VERSION,
        "input_shape": network.input_shape,
        "dtype": network.dtype.name,
        "prediction": network.prediction,
        "input_range": network.input_range,
        "layers": [_describe(layer) for layer in network.layers],
    }
    arrays: dict[str, Any] = dict(network.named_arrays)
    arrays["description"] = np.array(json.dumps(description))
    write_npz(path, arrays)


def load_model(path: str | Path, layers: Iterable[Layer] | None = None) -> NetworkHandler:
    """The network that `save_model` wrote.

    Args:
        layers: the layers, where the file cannot rebuild them: they are, or hold, classes or functions of your own.

    Raises:
        InputError: if `layers` are none.
        CheckpointError: if it is no model file, is damaged, or does not fit `layers`.
    """
    path = as_path("path", path)
    if layers is not None:
        layers = as_layers(layers)
    with open_npz(path, "model file") as archive:
        description = read_description(path, archive, "model", _VERSION)
        return _build(path, archive, description, layers)


def _describe(layer: Layer) -> dict[str, Any]:
    names: list[str] = [f.name for f in dataclasses.fields(layer)] if is_dataclass(layer) else []
    arguments = {name: getattr(layer, name) for name in names}
    plain = {name: _as_plain(value) for name, value in arguments.items()}
    kind = type(layer)
    is_ours = kind is getattr(library_layers, kind.__name__, None)
    name = kind.__name__ if is_ours else f"{kind.__module__}.{kind.__name__}"
    entry = {"layer": name, "arguments": plain, "written": repr(layer)}
    if not _can_be_rebuilt(entry):  # to recognise the layer, of which `written` may tell less than all
        entry["fingerprint"] = stored_fingerprint(layer)
    return entry


def _as_plain(value: Any) -> Any:
    """The value as JSON can hold it; a dict that only names it where it cannot."""
    if isinstance(value, tuple):
        return [_as_plain(one) for one in value]
    if isinstance(value, np.integer):
        return operator.index(value)
    return value if value is None or isinstance(value, str | int | float) else {"not stored": repr(value)}


def _build(
    path: Path, archive: zipfile.ZipFile, description: dict[str, Any], layers: tuple[Layer, ...] | None
) -> NetworkHandler:
    try:
        input_shape = description["input_shape"]
        written = [entry["written"] for entry in description["layers"]]
        if layers is None:
            layers = tuple(_rebuild(path, entry) for entry in description["layers"])
        # numpy takes more words for types than it understands.
        if description["dtype"] not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, got {description['dtype']!r}")
        dtype = np.dtype(description["dtype"])
        _, *layouts = declare(layers, chain_shapes(layers, input_shape))
        held = COMPRESSION_LIMIT * path.stat().st_size
        for layout in layouts:
            if layout.size * dtype.itemsize > held:
                raise CheckpointError(
                    f"{path} is damaged: its description claims {layout.size:,} parameters, more than the file can hold"
                )
        found = [repr(layer) for layer in layers]
        if found != written:
            raise CheckpointError(f"{path} does not fit the network: it holds {_listed(written)}, not {_listed(found)}")
        for layer, entry in zip(layers, description["layers"], strict=True):
            if "fingerprint" in entry and not matches(entry["fingerprint"], stored_fingerprint(layer)):
                raise CheckpointError(f"{path} does not fit the network: it holds a {layer!r} with other values")
        # What a description claims is only allocated once it has been found in the file.
        slots = [slot for layout in layouts for slot in layout.slots]
        arrays = {slot.key: _read_array(path, archive, slot, dtype) for slot in slots}
        network = NetworkHandler(layers, input_shape, dtype=dtype.type)
        network.prediction = description.get("prediction", "softmax")  # files of version 0.1 say nothing
        network.input_range = _as_range(description.get("input_range"))
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, InputError) as error:
        raise CheckpointError(f"{path} is damaged: its description makes no network ({error})") from None
    for name, array in network.named_arrays.items():
        array[...] = arrays[name]
    return network


def _as_range(value: Any) -> tuple[float, float] | None:
    """The range of the training images that a description names; None in files of earlier versions."""
    if value is None:
        return None
    low, high = value
    if not -math.inf < low <= high < math.inf:
        raise InputError(f"input_range must be two numbers, got {value!r}")
    return float(low), float(high)


def _rebuild(path: Path, entry: dict[str, Any]) -> Layer:
    if not _can_be_rebuilt(entry):
        raise CheckpointError(
            f"{path} holds {entry['written']}, which is not this library's own: say where it is, "
            f"--model FILE.py:FUNCTION (in the library: layers=)"
        )
    arguments = entry["arguments"].items()
    kind = getattr(library_layers, entry["layer"])
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in arguments})


def _can_be_rebuilt(entry: dict[str, Any]) -> bool:
    kind: Any = getattr(library_layers, entry["layer"], None)
    known = isinstance(kind, type) and issubclass(kind, Layer) and kind is not Layer
    return known and not any(isinstance(value, dict) for value in entry["arguments"].values())


def _read_array(path: Path, archive: zipfile.ZipFile, slot: Slot, dtype: np.dtype) -> np.ndarray:
    n_bytes = dtype.itemsize * math.prod(slot.shape)
    try:
        array = read_npy(archive, slot.key, n_bytes + HEADER_LIMIT)
    except KeyError:
        raise CheckpointError(f"{path} does not fit the network: it holds no array {slot.key!r}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: array {slot.key!r}: {error}") from None
    if array.shape != slot.shape or array.dtype != dtype:
        raise CheckpointError(
            f"{path} does not fit the network: array {slot.key!r} must be {dtype} of shape {slot.shape}, "
            f"got {array.dtype} of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path} is damaged: array {slot.key!r} holds numbers that are not finite")
    return array


def _listed(written: list[str]) -> str:
    return f"({', '.join(map(str, written))})"
