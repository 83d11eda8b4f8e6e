"""Model files: a network's layers and arrays in an archive.

    description     JSON: input shape, type of numbers, layers as constructor calls, names of parameters and buffers
    0.weight, ...   one array for each parameter and buffer, named as in PyTorch

A model file is a checkpoint without history. `load_model` can also read the network of a checkpoint.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parallelcnn import layers as library_layers
from parallelcnn.architecture import as_layers, chain_shapes, declare
from parallelcnn.arguments import as_path, check_type
from parallelcnn.data.dataset import RESIZE, check_class_names
from parallelcnn.data.readers.decoding import ImageOptions
from parallelcnn.errors import CheckpointError, InputError, shown
from parallelcnn.files.archive import Archive, naming_damage, read_archive, write_archive
from parallelcnn.files.fingerprint import matches, stored_fingerprint
from parallelcnn.layers import Frozen, Layer, Normalize
from parallelcnn.layers.augmentation import Augmentation
from parallelcnn.layers.base import written
from parallelcnn.losses import PREDICTIONS
from parallelcnn.network import NetworkHandler
from parallelcnn.parameters import Slot
from parallelcnn.wording import first_difference


def save_model(path: str | Path, network: NetworkHandler) -> None:
    """Save a network's layers and parameters to an .npz file, atomically.

    Raises:
        InputError: if an argument has another type, or a parameter is not finite.
        OSError: if the file cannot be written.
        CheckpointError: if the written file cannot be read back.
    """
    if isinstance(path, NetworkHandler):
        raise InputError("save_model takes the path first: save_model(path, network)")
    path = as_path("path", path)
    if not path.name:
        raise InputError(f"path must name a file, got {str(path)!r}")
    check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
    for name, array in network.named_arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"a model's numbers must be finite, and array {name!r} of this network holds others")

    def check(archive: Archive) -> None:
        own = any("fingerprint" in entry for entry in archive.description["layers"])
        _parse(path, archive, network.layers if own else None)

    write_archive(path, "model", describe_network(network), network.named_arrays, check)


def load_model(path: str | Path, layers: Iterable[Layer] | None = None) -> NetworkHandler:
    """Load the network of a model file or a checkpoint.

    Args:
        layers: the layers that the network was built or trained with. They are needed if they use classes or functions
            of your own, which the file cannot rebuild. What the options `--augment`, `--normalize` and `--freeze` have
            added, and the numbers of `Normalize("auto")`, come from the file.

    Raises:
        InputError: if `layers` holds anything but layers.
        CheckpointError: if the file is not a model file, is damaged, or does not fit `layers`.
    """
    path = as_path("path", path)
    if layers is not None:
        layers = as_layers(layers)
    archive = read_archive(path, "model", "checkpoint")
    if "layers" not in archive.description and "facts" in archive.description:
        raise CheckpointError(f"{path} is a checkpoint of an earlier version, which holds no layers: resume from it")
    return network_of(path, archive, layers)


def network_of(path: Path, archive: Archive, layers: Iterable[Layer] | None = None) -> NetworkHandler:
    """The network that an archive of the file at `path` describes; errors as of `load_model`."""
    try:
        parsed = _parse(path, archive, None if layers is None else as_layers(layers))
    except CheckpointError as error:
        raise CheckpointError(shown(error)) from error.__cause__
    network = NetworkHandler(parsed.layers, parsed.input_shape, dtype=parsed.dtype.type)
    network.origin = parsed.origin
    for name, array in network.named_arrays.items():
        array[...] = archive.arrays[name]
    return network


def image_options_of(path: Path, *, skip_broken: bool = False) -> ImageOptions | None:
    """How a folder of images is decoded for the network of a model file; None if it takes no images.

    Raises:
        CheckpointError: if the file is not a model file, or is damaged.
    """
    description = read_archive(path, "model", "checkpoint").description
    with naming_damage(path, "its description makes no network"):
        shape, resize = description.get("input_shape", ()), description.get("resize")
        if len(shape) != 3 or shape[0] not in (1, 3):
            return None
        return ImageOptions(tuple(shape[1:]), resize or "crop", "gray" if shape[0] == 1 else "rgb", skip_broken)


def classes_of(path: Path) -> int | None:
    """The number of classes that the network of a model file or a checkpoint tells apart; None: not known, or it was
    not trained on classes.

    Raises:
        CheckpointError: if the file is not a model file, or is damaged.
    """
    description = read_archive(path, "model", "checkpoint").description
    with naming_damage(path):
        classes = description.get("classes", len(description.get("class_names") or ()) or None)
    if classes is not None and not isinstance(classes, int):
        raise CheckpointError(f"{path} is damaged: its number of classes is {classes!r}")
    return classes


def describe_network(network: NetworkHandler) -> dict[str, Any]:
    """The part of a description about the network, as JSON values."""
    return {
        "input_shape": network.input_shape,
        "dtype": network.dtype.name,
        **network.origin,
        "classes": network.classes,
        "layers": [_describe(layer) for layer in network.layers],
        "parameters": {slot.key: tuple(map(int, slot.shape)) for slot in network.layout.slots},
        "trained": int(network.layout.trained.size),
        "buffers": {slot.key: tuple(map(int, slot.shape)) for slot in network.buffer_layout.slots},
    }


def _describe(layer: Layer) -> dict[str, Any]:
    entry = {**_constructor_call(layer), "written": repr(layer)}
    if not _can_be_rebuilt(entry):  # to recognise the layer, which `written` may describe incompletely
        entry["fingerprint"] = stored_fingerprint(layer)
    return entry


def _constructor_call(layer: Layer) -> dict[str, Any]:
    """The layer's class and arguments, which may contain other layers."""
    names: list[str] = [f.name for f in dataclasses.fields(layer)] if dataclasses.is_dataclass(layer) else []
    plain = {name: _as_plain(getattr(layer, name)) for name in names}
    kind = type(layer)
    is_ours = kind is getattr(library_layers, kind.__name__, None)
    return {"layer": kind.__name__ if is_ours else f"{kind.__module__}.{kind.__name__}", "arguments": plain}


def _as_plain(value: Any) -> Any:
    """The value as JSON; a dict that only names it if JSON cannot hold it."""
    if isinstance(value, tuple):
        return [_as_plain(one) for one in value]
    if isinstance(value, Layer):
        return _constructor_call(value)
    if isinstance(value, np.generic):
        value = value.item()
    return value if value is None or isinstance(value, str | int | float) else {"not stored": written(value)}


class _Parsed(NamedTuple):
    """The network of a description, checked."""

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    dtype: np.dtype
    origin: dict[str, Any]


def _parse(path: Path, archive: Archive, layers: tuple[Layer, ...] | None) -> _Parsed:
    """The network in an archive; CheckpointError unless the archive contains one with all its arrays.

    Memory for claimed arrays is allocated only after they have been found in the archive.
    """
    description = archive.description
    with naming_damage(path, "its description makes no network"):
        written = [entry["written"] for entry in description["layers"]]
        if layers is None:
            layers = tuple(_rebuild(path, entry) for entry in description["layers"])
        else:
            layers = _as_trained(layers, description["layers"])
        found = [repr(layer) for layer in layers]
        if found != written:
            raise CheckpointError(f"{path} does not fit the network: its {first_difference(written, found)}")
        # np.dtype would accept many other names.
        if description["dtype"] not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, got {description['dtype']!r}")
        dtype = np.dtype(description["dtype"])
        shapes = chain_shapes(layers, description["input_shape"])
        _, *layouts = declare(layers, shapes)
        for layer, entry in zip(layers, description["layers"], strict=True):
            if "fingerprint" in entry and not matches(entry["fingerprint"], stored_fingerprint(layer)):
                raise CheckpointError(f"{path} does not fit the network: it holds a {layer!r} with other values")
        origin = checked_origin(description, shapes[-1])
    for slot in (slot for layout in layouts for slot in layout.slots):
        _check_array(path, slot, dtype, archive.arrays.get(slot.key))
    return _Parsed(layers, shapes[0], dtype, origin)


def _as_trained(layers: tuple[Layer, ...], entries: list[dict[str, Any]]) -> tuple[Layer, ...]:
    """The layers that a training was started with, as it has changed them: with augmentation and normalisation in
    front, with frozen layers, and with the numbers of `Normalize("auto")`.
    """
    missing = max(0, len(entries) - len(layers))
    in_front = tuple(_from_plain(entry) for entry in entries[:missing] if _can_be_rebuilt(entry))
    if len(in_front) < missing or not all(isinstance(layer, Augmentation | Normalize) for layer in in_front):
        return layers  # of another network
    changed = [_changed(layer, entry) for layer, entry in zip(layers, entries[missing:], strict=False)]
    return (*in_front, *changed, *layers[len(changed) :])


def _changed(layer: Layer, entry: dict[str, Any]) -> Layer:
    """The layer as training has changed it."""
    if entry["layer"] == "Frozen":
        return Frozen(_changed(layer.layer if isinstance(layer, Frozen) else layer, entry["arguments"]["layer"]))
    if isinstance(layer, Normalize) and layer.is_auto and entry["layer"] == "Normalize":
        numbers: Layer = _from_plain(entry)
        return numbers
    return layer


def checked_origin(description: dict[str, Any], output_shape: tuple[int, ...]) -> dict[str, Any]:
    """The `NetworkHandler.origin` in a description; InputError if it is none. Files of earlier versions do not contain
    all of it.
    """
    prediction, input_range = description.get("prediction", "softmax"), description.get("input_range")
    class_names, resize = description.get("class_names"), description.get("resize")
    if prediction not in PREDICTIONS:  # also because `torch_code` writes it into a program
        raise InputError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    if input_range is not None:
        low, high = input_range = tuple(map(float, input_range))
        if not -math.inf < low <= high < math.inf:
            raise InputError(f"input_range must be two numbers, got {input_range!r}")
    if class_names is not None:
        class_names = check_class_names("class_names", class_names, 2 if output_shape == (1,) else output_shape[0])
    if resize not in (None, *RESIZE):
        raise InputError(f"resize must be one of {', '.join(RESIZE)}, got {resize!r}")
    return {"prediction": prediction, "input_range": input_range, "class_names": class_names, "resize": resize}


def _rebuild(path: Path, entry: dict[str, Any]) -> Layer:
    if not _can_be_rebuilt(entry):
        raise CheckpointError(
            f"{path} holds {entry['written']}, which is not this library's own: say where it is, "
            f"--model FILE.py:FUNCTION (in the library: layers=)"
        )
    layer: Layer = _from_plain(entry)
    return layer


def _from_plain(value: Any) -> Any:
    """The inverse of `_as_plain`."""
    if isinstance(value, list):
        return tuple(map(_from_plain, value))
    if not isinstance(value, dict):
        return value
    arguments = value["arguments"].items()
    return getattr(library_layers, value["layer"])(**{name: _from_plain(one) for name, one in arguments})


def _can_be_rebuilt(value: Any) -> bool:
    """Whether `_from_plain` can rebuild the value."""
    if isinstance(value, list):
        return all(map(_can_be_rebuilt, value))
    if not isinstance(value, dict):
        return True
    if "not stored" in value:
        return False
    kind: Any = getattr(library_layers, value["layer"], None)
    known = isinstance(kind, type) and issubclass(kind, Layer) and kind is not Layer
    return known and all(map(_can_be_rebuilt, value["arguments"].values()))


def _check_array(path: Path, slot: Slot, dtype: np.dtype, array: np.ndarray | None) -> None:
    if array is None:
        raise CheckpointError(f"{path} does not fit the network: it holds no array {slot.key!r}")
    if array.shape != slot.shape or array.dtype != dtype:
        raise CheckpointError(
            f"{path} does not fit the network: array {slot.key!r} must be {dtype} of shape {slot.shape}, "
            f"got {array.dtype} of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path} is damaged: array {slot.key!r} holds numbers that are not finite")
