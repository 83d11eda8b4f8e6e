"""Read HDF5 files, with h5py, which is an extra.

Their arrays have the names of `named_arrays`; groups count as a part of the name, so that train/images is train_images.
Only what is in the file itself is read: HDF5 could also take numbers from other files.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.data.conversion import Array
from parallelcnn.data.readers.inflate import MOST_INFLATED
from parallelcnn.data.readers.named_arrays import load_named
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError, InputError
from parallelcnn.resources import memory_limit

FORMAT = "HDF5, with names as for .npz"

_MAGIC = b"\x89HDF\r\n\x1a\n"
_ENDS = (".h5", ".hdf5", ".hdf", ".he5")
_MOST_NAMES = 10_000  # looked at


def recognises(path: Path) -> bool:
    """Whether a file has HDF5's first bytes, or an ending of its names."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC or path.suffix.lower() in _ENDS


def load(path: Path, name: str) -> DataSets:
    """Load the arrays into memory.

    Raises:
        InputError: if h5py is not installed.
        DataError: if arrays are missing, are damaged or do not fit together.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading HDF5 needs h5py: pip install 'parallelcnn[hdf5]'") from None
    with contextlib.ExitStack() as opened:
        with _naming_damage(path):
            # File systems without locks, as on some clusters, must not matter for reading.
            file = opened.enter_context(h5py.File(path, "r", locking="best-effort"))
            arrays = dict(_arrays_in(file))
        return load_named(path, name, "HDF5", arrays, lambda one: _read(path, one, arrays[one]))


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Context that turns the errors of h5py into DataErrors."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: what it holds does not fit into memory") from error
    except Exception as error:  # for damaged files h5py raises nearly everything
        raise DataError(f"{path}: is no HDF5 file, or a damaged one: {error}") from None


def _arrays_in(group: Any) -> Iterator[tuple[str, Any]]:
    """(name, array) of a file, also in its groups. Links to other files are not followed."""
    import h5py

    waiting: list[tuple[Any, str]] = [(group, "")]
    seen: set[Any] = set()
    for inner, place in waiting:  # grows as it is walked through
        for key in inner:
            link = inner.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink) or len(seen) > _MOST_NAMES:
                continue
            one = inner[key]
            if one.id in seen:  # groups may contain each other
                continue
            seen.add(one.id)
            if isinstance(one, h5py.Group):
                waiting.append((one, f"{place}{key}/"))
            elif isinstance(one, h5py.Dataset):
                yield f"{place}{key}", one


def _read(path: Path, name: str, array: Any) -> Array:
    with _naming_damage(path):
        return _checked(path, f"{path}: {name}", array)


def _checked(path: Path, what: str, array: Any) -> Array:
    """The numbers or strings of an array; DataError unless they are in the file."""
    import h5py

    if array.external or array.is_virtual:
        raise DataError(f"{what} takes its numbers from other files, which are not read")
    nbytes, held = array.size * array.dtype.itemsize if array.size else 0, path.stat().st_size
    if nbytes == 0:
        raise DataError(f"{what} holds nothing: its shape is {array.shape}")
    if nbytes > MOST_INFLATED * held or (array.chunks is None and nbytes > held):
        raise DataError(f"{what} is truncated: it has {nbytes:,} bytes, which the file's {held:,} bytes cannot hold")
    if nbytes > memory_limit()[0]:  # Linux may allocate more memory than exists, and then kills the process
        raise DataError(f"{what} does not fit into memory: it has {nbytes:,} bytes")
    if array.dtype.kind not in "biuf" and h5py.check_string_dtype(array.dtype) is None:
        raise DataError(f"{what} must hold numbers or strings, got {array.dtype}")
    return np.asarray(array[...])
