"""Model files: a network's layers and parameters in one .npz, which numpy alone can read. Files, not ranks.

    description     JSON: format, version, input shape, type of numbers, layers with their arguments
    0.weight, ...   one array a parameter, named by the position of its layer and its own name

Nothing in it is pickled, so that a model file from a stranger runs no code.
"""

import dataclasses
import io
import json
import math
import operator
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn import layers as library_layers
from parallelcnn.errors import CheckpointError, InputError
from parallelcnn.files import write_atomically
from parallelcnn.layers import Layer
from parallelcnn.network import NetworkHandler
from parallelcnn.parameters import Slot

_FORMAT = "parallelcnn model"
_VERSION = 1
_DESCRIPTION_LIMIT = 2**20  # bytes
# What zipfile, json and numpy raise when they are fed damaged files.
_DAMAGED = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    OverflowError,
    MemoryError,
    struct.error,
    ValueError,
)
_HEADER_LIMIT = 2**12  # bytes in front of an array's numbers


def save_model(path: str | Path, network: NetworkHandler) -> None:
    """Write a network's layers and parameters to an .npz file, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "input_shape": network.input_shape,
        "dtype": network.dtype.name,
        "layers": [_describe(layer) for layer in network.layers],
    }
    arrays: dict[str, Any] = {_key(slot): _view(network, slot) for slot in network.layout.slots}
    arrays["description"] = np.array(json.dumps(description))
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(Path(path), content.getvalue())


def load_model(path: str | Path, layers: Iterable[Layer] | None = None) -> NetworkHandler:
    """The network that `save_model` wrote.

    Args:
        layers: the layers, where the file cannot rebuild them: they are, or hold, classes or functions of your own.

    Raises:
        CheckpointError: if it is no model file, is damaged, or does not fit `layers`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} must be a model file, not a folder or a device")
    try:
        with zipfile.ZipFile(path) as archive:
            description = _read_description(path, archive)
            network = _build(path, description, layers)
            for slot in network.layout.slots:
                _view(network, slot)[...] = _read_array(path, archive, slot, network.dtype)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"no model file {path}") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        raise CheckpointError(f"{path} is no model file, or a damaged one: {error}") from None
    return network


def _describe(layer: Layer) -> dict[str, Any]:
    arguments = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)}
    plain = {name: _as_plain(value) for name, value in arguments.items()}
    return {"layer": type(layer).__name__, "arguments": plain, "written": repr(layer)}


def _as_plain(value: Any) -> Any:
    """The value as JSON can hold it; a dict that only names it where it cannot."""
    if isinstance(value, tuple):
        return [_as_plain(one) for one in value]
    if isinstance(value, np.integer):
        return operator.index(value)
    return value if value is None or isinstance(value, str | int | float) else {"not stored": repr(value)}


def _read_description(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    no_model = f"{path} is no model file: it takes a description of format {_FORMAT!r}"
    try:
        text = str(_read_npy(archive, "description", _DESCRIPTION_LIMIT)[()])
        description = json.loads(text)
    except (KeyError, ValueError):
        raise CheckpointError(f"{no_model}, and holds none") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise CheckpointError(f"{no_model}, got another one")
    if description.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has version {description.get('version')!r} of the format; this program reads version {_VERSION}"
        )
    return description


def _build(path: Path, description: dict[str, Any], layers: Iterable[Layer] | None) -> NetworkHandler:
    try:
        input_shape = description["input_shape"]
        written = [entry["written"] for entry in description["layers"]]
        if layers is None:
            layers = [_rebuild(path, entry) for entry in description["layers"]]
        network = NetworkHandler(layers, input_shape, dtype=np.dtype(description["dtype"]).type)
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise CheckpointError(f"{path} is damaged: its description makes no network ({error})") from None
    found = [repr(layer) for layer in network.layers]
    if found != written:
        raise CheckpointError(f"{path} does not fit the network: it holds {_listed(written)}, not {_listed(found)}")
    return network


def _rebuild(path: Path, entry: dict[str, Any]) -> Layer:
    kind: Any = getattr(library_layers, entry["layer"], None)
    known = isinstance(kind, type) and issubclass(kind, Layer) and kind is not Layer
    arguments = entry["arguments"]
    if not known or any(isinstance(value, dict) for value in arguments.values()):
        raise CheckpointError(
            f"{path} holds {entry['written']}, which is not this library's own: say where it is, "
            f"--model FILE.py:FUNCTION (in the library: layers=)"
        )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()})


def _read_array(path: Path, archive: zipfile.ZipFile, slot: Slot, dtype: np.dtype) -> np.ndarray:
    n_bytes = dtype.itemsize * math.prod(slot.shape)
    try:
        array = _read_npy(archive, _key(slot), n_bytes + _HEADER_LIMIT)
    except KeyError:
        raise CheckpointError(f"{path} does not fit the network: it holds no array {_key(slot)!r}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: array {_key(slot)!r}: {error}") from None
    if array.shape != slot.shape or array.dtype != dtype:
        raise CheckpointError(
            f"{path} does not fit the network: array {_key(slot)!r} must be {dtype} of shape {slot.shape}, "
            f"got {array.dtype} of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path} is damaged: array {_key(slot)!r} holds numbers that are not finite")
    return array


def _read_npy(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """One array of an .npz; the limit, in bytes, stands before anything that a header claims.

    Raises:
        KeyError: if there is none of that name.
        ValueError: if it is larger than the limit, or no array.
    """
    if archive.getinfo(f"{name}.npy").file_size > limit:
        raise ValueError(f"larger than the {limit} bytes that it may have")
    with archive.open(f"{name}.npy") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than the {limit} bytes that it may have")
    return _npy_from_bytes(content)


def _npy_from_bytes(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"its header says {dtype} of shape {shape}, which is not what follows")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _key(slot: Slot) -> str:
    return f"{slot.layer}.{slot.name}"


def _view(network: NetworkHandler, slot: Slot) -> np.ndarray:
    return network.params[slot.start : slot.stop].reshape(slot.shape)


def _listed(written: list[str]) -> str:
    return f"({', '.join(map(str, written))})"
