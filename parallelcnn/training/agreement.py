"""Check before the first step that all ranks have the same arguments and the same data."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from parallelcnn._version import __version__
from parallelcnn.comm import Transport, run_together, shared_file
from parallelcnn.data.dataset import Dataset
from parallelcnn.errors import ReplicaMismatchError, shown
from parallelcnn.files.fingerprint import fingerprint
from parallelcnn.files.rows import ChosenRows, FileRows, Rows

_ROWS = 256  # of an array in a file that are read at a time


class _Argument(NamedTuple):
    """An argument in the form that ranks exchange.

    Attributes:
        text: the argument in messages.
        fingerprint: compared between ranks.
        attributes: fingerprints of the object's attributes, by name, so that a message can name those that differ.
    """

    text: str
    fingerprint: str
    attributes: dict[str, str]


def check_replicas(comm: Transport, arguments: Mapping[str, object]) -> None:
    """Raise ReplicaMismatchError on all ranks unless all have the same arguments and the same version of parallelcnn.

    Collective: every rank of `comm` must call it.

    Args:
        arguments: the arguments by name; data sets as described by `describe_data`.
    """
    if comm.size == 1:
        return

    def describe() -> dict[str, _Argument]:
        values: dict[str, object] = {"version of parallelcnn": __version__}
        for name, value in arguments.items():
            if name == "layers" and isinstance(value, tuple):  # each layer first, so that the message names it
                values |= {f"layer {position}": layer for position, layer in enumerate(value, start=1)}
            values[name] = value
        return {name: _described(value) for name, value in values.items()}

    everyone = comm.allgather(run_together(comm, describe))
    first = everyone[0]
    for name in first:
        for rank, theirs in enumerate(everyone):
            what = name if len(theirs) == len(first) else "layers"  # a rank has more or fewer layers
            if theirs[what].fingerprint != first[what].fingerprint:
                raise ReplicaMismatchError(_difference(what, first[what], rank, theirs[what])).together()


def describe_data(comm: Transport, **datasets: Dataset) -> dict[str, str]:
    """Type, shape and CRC-32 of data sets, by the same names.

    Collective: every rank of `comm` must call it. If several ranks have mapped the same file, only one of them reads
    it: reading MNIST takes 25 ms.
    """
    arrays = [array for dataset in datasets.values() for array in _arrays(dataset)]
    node = comm.ranks_on_node()[0]
    places = comm.allgather([(node, place) if (place := _place_of(array)) else None for array in arrays])
    mine = places[comm.rank]
    # The first rank that has the array reads it.
    readers = [
        comm.rank if place is None else next(rank for rank in range(comm.size) if places[rank][i] == place)
        for i, place in enumerate(mine)
    ]
    checksums = comm.allgather(
        [_crc32(array) if reader == comm.rank else 0 for array, reader in zip(arrays, readers, strict=True)]
    )
    found = iter([checksums[reader][i] for i, reader in enumerate(readers)])
    return {
        name: _with_checksums(dataset, [next(found) for _ in _arrays(dataset)]) for name, dataset in datasets.items()
    }


def describe_dataset(dataset: Dataset) -> str:
    """As `describe_data`, for one data set and without communication."""
    return _with_checksums(dataset, [_crc32(array) for array in _arrays(dataset)])


def _arrays(dataset: Dataset) -> list[np.ndarray]:
    weight = [] if dataset.sample_weight is None else [dataset.sample_weight]
    return [dataset.images, dataset.labels, *weight]


def _place_of(array: Any) -> Any:
    """What names an array that other ranks of the node see as well; None: it is private, or this is not known."""
    if isinstance(array, ChosenRows):
        return array.identity(shared_file(array.array))
    return array.identity if isinstance(array, FileRows) else shared_file(array)


def _with_checksums(dataset: Dataset, checksums: Sequence[int]) -> str:
    """The data set's description. The names are those of `_arrays`; without weights it is that of earlier versions."""
    names = ("CRC-32", "labels", "weights")
    found = ", ".join(f"{name} {checksum:08x}" for name, checksum in zip(names, checksums, strict=False))
    return f"{dataset.images.dtype} of shape {dataset.images.shape}, {found}"


def _crc32(array: np.ndarray | Rows) -> int:
    if isinstance(array, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(array).data)
    checksum = 0
    for start in range(0, len(array), _ROWS):
        checksum = zlib.crc32(array[start : start + _ROWS].data, checksum)
    return checksum


def _described(value: object) -> _Argument:
    attributes = {name: fingerprint(one) for name, one in getattr(value, "__dict__", {}).items()}
    return _Argument(value if isinstance(value, str) else repr(value), fingerprint(value), attributes)


def _difference(name: str, first: _Argument, rank: int, other: _Argument) -> str:
    if first.text != other.text:
        found = f"rank 0 has {name} {shown(first.text)}, but rank {rank} has {shown(other.text)}"
    else:
        names = sorted(first.attributes.keys() | other.attributes.keys())
        differ = [one for one in names if first.attributes.get(one) != other.attributes.get(one)]
        what = f"another {' and '.join(differ)}" if differ else "other code or contents"
        found = f"rank {rank} has {name}, {shown(first.text)}, with {what} than rank 0"
    return f"all ranks must train the same: {found}"
