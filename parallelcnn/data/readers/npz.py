"""Read arrays of numpy: .npz files, and folders of .npy files, which are mapped into memory.

Nothing is unpickled, so a file of unknown origin cannot run a program. No memory is allocated only because a header
claims a size.
"""

import contextlib
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from parallelcnn.data.conversion import Array
from parallelcnn.data.readers.inflate import MOST_INFLATED
from parallelcnn.data.readers.named_arrays import is_known, load_named
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError
from parallelcnn.files.archive import open_npz
from parallelcnn.files.npy import Header, check_characters, parse_header
from parallelcnn.files.rows import FileRows
from parallelcnn.resources import memory_limit

FORMAT = "numpy's .npz, or a folder of .npy files, with names as x_train and y_train"

_END = ".npy"
_WAY_OUT = (
    "load it where it was written, and store arrays of numbers or strings, such as np.stack(images) and "
    "labels.astype(str)"
)
_PIECE_BYTES = 1 << 17  # read at a time; more than the longest header


def recognises(path: Path) -> bool:
    """Whether this is a file named .npz or .npy, or a folder with a .npy file of a known name."""
    if path.is_dir():
        return any(name.endswith(_END) and is_known(name.removesuffix(_END)) for name in os.listdir(path))
    return path.suffix.lower() in (".npz", _END)


def load(path: Path, name: str) -> DataSets:
    """Load the arrays. Those of .npy files that need no conversion stay on disk until they are used.

    Raises:
        DataError: if arrays are missing, are damaged or do not fit together.
    """
    if path.is_dir():
        names = sorted(one.removesuffix(_END) for one in os.listdir(path) if one.endswith(_END))
        return load_named(path, name, "numpy arrays", names, lambda one: open_npy(path / f"{one}{_END}"))
    if path.suffix.lower() == _END:
        raise DataError(
            f"{path}: is one array, and data are images and labels: name a folder of several, such as x_train.npy and "
            f"y_train.npy, or an .npz file"
        )
    return load_named(path, name, "npz", names_in(path), lambda one: read_array(path, one))


def names_in(path: Path) -> list[str]:
    """The names of the arrays in an .npz file; DataError if it is damaged."""
    with open_npz(path, ".npz file", DataError) as archive:
        return [one.removesuffix(_END) for one in archive.namelist() if one.endswith(_END)]


def open_npy(path: Path) -> Array | FileRows:
    """Open the array of a .npy file, read-only: it is read when it is used.

    Returns:
        The array, mapped into memory; or a `FileRows`, if it needs more than half of the memory, and holds images that
        can be used as they are.

    Raises:
        DataError: if the file cannot be read, or its header is damaged or does not say what follows.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: must be a file, not a folder or a device")
        with open(path, "rb") as file:
            header = _header_of(str(path), file.read(_PIECE_BYTES))
            _check_size(str(path), header, os.fstat(file.fileno()).st_size - header.size)
            usable = header.dtype in (np.uint8, np.float32) and header.order == "C" and len(header.shape) > 2
            if usable and header.nbytes > memory_limit()[0] / 2:
                return FileRows(path, header.size, header.dtype, header.shape)
            array = np.memmap(file, header.dtype, "r", header.size, header.shape, header.order)  # type: ignore[call-overload]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    _check_strings(str(path), array)
    return array


def read_array(path: Path, name: str) -> Array:
    """Read the array of this name in an .npz file into memory.

    Raises:
        DataError: if it is damaged, or is none of numbers or strings.
    """
    what = f"{path}: {name}"
    with _open_array(path, name) as (header, start, file):
        if header.nbytes > memory_limit()[0]:  # Linux may allocate more memory than exists, and then kills the process
            raise DataError(f"{what} does not fit into memory: it has {header.nbytes:,} bytes")
        content = np.empty(header.nbytes, np.uint8)
        memory, piece = content.data, start[header.size :]
        held = 0
        while piece:
            if held + len(piece) > header.nbytes:
                raise DataError(f"{what} is too long: its header says {header.nbytes:,} bytes, but more follow")
            memory[held : held + len(piece)] = piece
            held += len(piece)
            piece = file.read(_PIECE_BYTES)  # at the end, zipfile compares the checksum
    if held < header.nbytes:
        raise DataError(f"{what} is truncated: its header says {header.nbytes:,} bytes, but {held:,} follow")
    array = content.view(header.dtype).reshape(header.shape, order=header.order)  # type: ignore[call-overload]
    _check_strings(what, array)
    return array


def shape_in(path: Path, name: str) -> tuple[int, ...]:
    """The shape of the array of this name in an .npz file, from its header; DataError as of `read_array`."""
    with _open_array(path, name) as (header, _, _):
        return header.shape


@contextlib.contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[Header, bytes, IO[bytes]]]:
    """The header of an array in an .npz file, the first bytes, which hold it, and the file after them."""
    what = f"{path}: {name}"
    with open_npz(path, ".npz file", DataError) as archive:
        entry = archive.getinfo(name + _END)
        # With other methods zipfile decompresses to any size before it checks the claimed size.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{what} is compressed by another method than numpy's")
        with archive.open(entry) as file:
            start = file.read(_PIECE_BYTES)
            header = _header_of(what, start)
            _check_size(what, header, entry.file_size - header.size)
            most = MOST_INFLATED * min(entry.compress_size, path.stat().st_size)
            if header.nbytes > most:
                raise DataError(f"{what} is truncated: it has {header.nbytes:,} bytes, and at most {most:,} are there")
            yield header, start, file


def _header_of(what: str, start: bytes) -> Header:
    try:
        header = parse_header(start)
    except ValueError as error:
        way_out = f": {_WAY_OUT}" if "Python objects" in str(error) else ""
        raise DataError(f"{what}: {error}{way_out}") from None
    if header.nbytes == 0:
        raise DataError(f"{what} holds nothing: its header says {header.dtype} of shape {header.shape}")
    return header


def _check_size(what: str, header: Header, held: int) -> None:
    if header.nbytes != held:
        raise DataError(
            f"{what} is {'truncated' if held < header.nbytes else 'too long'}: its header says {header.dtype} of shape "
            f"{header.shape}, {header.nbytes:,} bytes, but {held:,} follow"
        )


def _check_strings(what: str, array: Array) -> None:
    try:
        check_characters(array)
    except UnicodeDecodeError:
        raise DataError(f"{what} is damaged: it holds characters that do not exist") from None
