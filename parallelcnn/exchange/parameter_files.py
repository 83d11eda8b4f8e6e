"""Parameters in files: of this library, safetensors, and state dicts of PyTorch."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.arguments import as_path, check_type
from parallelcnn.errors import CheckpointError, InputError, shown
from parallelcnn.exchange.onnx_import import import_onnx
from parallelcnn.exchange.optional import import_optional
from parallelcnn.files.archive import Archive, read_archive
from parallelcnn.files.atomic import naming, renamed_when_complete
from parallelcnn.files.model import describe_network, network_of
from parallelcnn.files.safetensors import map_safetensors, write_safetensors
from parallelcnn.layers import Layer
from parallelcnn.layers.base import Array
from parallelcnn.network import ORIGIN, NetworkHandler

_OF_NETWORK = ("input_shape", "dtype", "layers")  # parts of a model file's description that the metadata has as JSON
_STATE_DICTS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store them
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before each name


def save_safetensors(path: str | Path, network: NetworkHandler) -> None:
    """Write a network's parameters and buffers as a safetensors file, atomically.

    Names and shapes are those of PyTorch's `nn.Sequential`, such as "0.weight"; `torch_code` writes the matching
    network. The file's `__metadata__` says {"format": "pt"}, and holds the layers, the input shape and what the network
    knows of its training, so that `load_safetensors` can rebuild it.

    Raises:
        InputError: if a parameter is not finite.
        OSError: if the file cannot be written.
    """
    path = _checked("save_safetensors", path, network)
    description = describe_network(network)
    metadata = {name: json.dumps(description[name]) for name in (*_OF_NETWORK, *network.origin)}
    write_safetensors(path, _in_order(network), {"format": "pt", **metadata})


def load_safetensors(path: str | Path, layers: Iterable[Layer] | None = None) -> NetworkHandler:
    """Rebuild the network of a file that `save_safetensors` has written.

    For a file of another program, build the network first: `network.load_parameters(read_parameters(path))`.

    Args:
        layers: the layers, if they use classes or functions of your own.

    Raises:
        CheckpointError: if there is no such file, it is damaged, does not fit `layers`, or holds no description.
    """
    path = as_path("path", path)
    arrays, metadata = map_safetensors(path)
    if not metadata.keys() >= {*_OF_NETWORK}:
        raise CheckpointError(
            f"{path} says nothing of the layers: give --model and --input-shape (in the library: "
            f"network.load_parameters(read_parameters(path)))"
        )
    try:
        description = _description_in(metadata)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(shown(f"{path} is damaged: its metadata is not JSON ({error})")) from None
    return network_of(path, Archive(0, description, arrays), layers)


def save_state_dict(path: str | Path, network: NetworkHandler) -> None:
    """Write a network's parameters and buffers as a `state_dict` of PyTorch, atomically. Needs PyTorch.

    `torch_code` writes the matching network. Read it with `torch.load(path, weights_only=True)`.

    Raises:
        InputError: if PyTorch is not installed, or a parameter is not finite.
        OSError: if the file cannot be written.
    """
    path = _checked("save_state_dict", path, network)
    torch = import_optional("torch", "save_state_dict")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in _in_order(network).items()}
    with naming(path), renamed_when_complete(path) as temporary, open(temporary, "wb") as file:
        torch.save(tensors, file)


def read_parameters(path: str | Path) -> dict[str, Array]:
    """Read arrays by name from a file, for `NetworkHandler.load_parameters`.

    Args:
        path: a run directory (its `model.npz`), a model file, a checkpoint, a safetensors file, a `state_dict` of
            PyTorch (.pt, .pth, .bin or .ckpt; needs PyTorch), or an ONNX model (needs onnx), whose names are those of
            `import_onnx`.

    Raises:
        InputError: if a package is not installed.
        CheckpointError: if there is no such file, or it is damaged or of another kind.
    """
    return read_described_parameters(path)[0]


def read_described_parameters(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The same, and what the file says of its network, as in the description of a model file; {}: nothing.

    The description is not checked.
    """
    path = as_path("path", path)
    if os.path.isdir(path):
        path = path / "model.npz"
    readers: dict[str, Callable[[Path], tuple[Mapping[str, Array], dict[str, Any]]]] = {
        ".npz": _read_archive,
        ".safetensors": _read_safetensors,
        ".onnx": _read_onnx,
        **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), lambda path: (_read_state_dict(path), {})),
    }
    if path.suffix not in readers:
        missing = "" if path.exists() else ", and there is no such file or folder"
        raise CheckpointError(f"{path} must be a run directory, or a file named {', '.join(readers)}{missing}")
    arrays, description = readers[path.suffix](path)
    return dict(arrays), description


def _checked(function: str, path: str | Path, network: NetworkHandler) -> Path:
    if isinstance(path, NetworkHandler):
        raise InputError(f"{function} takes the path first: {function}(path, network)")
    check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
    for name, array in network.named_arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"a model's numbers must be finite, and array {name!r} of this network holds others")
    return as_path("path", path)


def _in_order(network: NetworkHandler) -> dict[str, Array]:
    """Parameters and buffers in the order of the layers, as in a `state_dict`."""
    arrays = network.named_arrays
    return {name: arrays[name] for name in sorted(arrays, key=lambda name: int(name.partition(".")[0]))}


def _read_archive(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    archive = read_archive(path, "model", "checkpoint")
    named = [name for key in ("parameters", "buffers") for name in archive.description.get(key, archive.arrays)]
    return {name: archive.arrays[name] for name in named if name in archive.arrays}, archive.description


def _read_safetensors(path: Path) -> tuple[Mapping[str, Array], dict[str, Any]]:
    arrays, metadata = map_safetensors(path)
    try:
        return arrays, _description_in(metadata)
    except (ValueError, RecursionError):  # other programs may mean something else by these names
        return arrays, {}


def _description_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    return {name: json.loads(metadata[name]) for name in (*_OF_NETWORK, *ORIGIN) if name in metadata}


def _read_onnx(path: Path) -> tuple[Mapping[str, Array], dict[str, Any]]:
    network = import_onnx(path)
    return network.named_arrays, network.origin  # its layers need not be those of the training


def _read_state_dict(path: Path) -> dict[str, Array]:
    torch = import_optional("torch", f"to read {path}, parallelcnn")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} must be a state_dict, and there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            content = next((content[key] for key in _STATE_DICTS if isinstance(content.get(key), dict)), content)
        tensors = {name: one for name, one in content.items() if not name.endswith("num_batches_tracked")}
        found = {name: _as_array(torch, one) for name, one in tensors.items()}
    except Exception as error:  # pickle, zipfile and torch raise various kinds
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            shown(f"{path} must hold a state_dict, as torch.save(model.state_dict(), path) writes it: {reason}")
        ) from None
    while wrapper := next((one for one in _WRAPPERS if found and all(name.startswith(one) for name in found)), ""):
        found = {name.removeprefix(wrapper): array for name, array in found.items()}
    return found


def _as_array(torch: Any, tensor: Any) -> Array:
    """numpy has no bfloat16."""
    tensor = tensor.detach()
    array: Array = (tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)).numpy()
    return array
