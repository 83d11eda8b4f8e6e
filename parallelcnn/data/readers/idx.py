"""Read IDX files, the format of MNIST, plain or gzipped.

An IDX file consists of two zero bytes, a byte for the type of its values, a byte for the number of dimensions, one
big-endian 32-bit length per dimension, and the values, big-endian, last dimension fastest. No memory is allocated only
because a header claims a size.
"""

import os
import stat
import zlib
from io import BufferedReader
from math import prod
from typing import NamedTuple

import numpy as np

from parallelcnn.arguments import as_path
from parallelcnn.data.dataset import Array
from parallelcnn.data.readers.inflate import MOST_INFLATED, PIECE_BYTES, Inflated
from parallelcnn.errors import DataError
from parallelcnn.resources import memory_limit

PathLike = str | os.PathLike[str]

_TYPES: dict[int, np.dtype] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAX_DIMENSIONS = 4
_GZIP_MAGIC = b"\x1f\x8b"


class IdxHeader(NamedTuple):
    """What the header of an IDX file says."""

    dtype: np.dtype
    shape: tuple[int, ...]


def read_idx(path: PathLike) -> Array:
    """Read one IDX file, plain or gzipped.

    The first bytes decide whether it is gzipped, not the name: some browsers unpack a file and keep its name.

    Returns:
        An array of the type and shape in the header: unsigned or signed bytes, 16- or 32-bit integers, 32- or 64-bit
        floats, in the machine's byte order; 1 to 4 dimensions, none of them 0. The file is read, not memory-mapped: if
        a mapped file is shortened, the process is killed without a message.

    Raises:
        DataError: if the file cannot be read, or differs from its header.
    """
    path = as_path("path", path)
    try:
        with open_content(path) as content:
            return _read_array(path, content)
    except (zlib.error, EOFError) as error:
        raise DataError(f"{path}: its gzip compression is damaged: {reason(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    except MemoryError as error:
        raise DataError(f"{path}: what it holds does not fit into memory") from error


def open_content(path: PathLike) -> Inflated | BufferedReader:
    """Open a plain or gzipped file for reading its uncompressed contents.

    Raises:
        DataError: if it is not a regular file, or its name ends in .gz and it is neither gzip nor IDX.
        OSError: if it cannot be opened.
    """
    # Opening a named pipe could wait for a writer for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: must be a file, not a folder or a device")
    with open(path, "rb") as file:
        start = file.read(2)
    if start == _GZIP_MAGIC:
        return Inflated(path)
    if os.fspath(path).endswith(".gz") and start not in (b"", b"\0\0"):
        raise DataError(
            f"{path}: is no gzip file: one starts with the bytes {_GZIP_MAGIC.hex(' ')}, this one with {start.hex(' ')}"
        )
    return open(path, "rb")


def read_header(path: PathLike, content: Inflated | BufferedReader) -> IdxHeader:
    """Read the header at the start of a file's contents, and check every byte of it.

    Raises:
        DataError: if it is not the header of an IDX file.
    """
    magic = content.read(4)
    if not magic:
        raise DataError(f"{path}: is empty")
    ndim = magic[3] if len(magic) == 4 else 0
    if magic[:2] != b"\0\0" or not 1 <= ndim <= _MAX_DIMENSIONS:
        raise DataError(
            f"{path}: is no IDX file: one starts with the bytes 00 00, a type and a number of "
            f"dimensions from 1 to {_MAX_DIMENSIONS}, this one with {magic.hex(' ')}"
        )
    dtype = _TYPES.get(magic[2])
    if dtype is None:
        known = ", ".join(f"0x{code:02x}" for code in _TYPES)
        raise DataError(f"{path}: its header says an unknown type (0x{magic[2]:02x}); known types: {known}")
    lengths = content.read(4 * ndim)
    if len(lengths) < 4 * ndim:
        raise DataError(
            f"{path}: is truncated: a header of {ndim} dimensions takes {4 + 4 * ndim} bytes, "
            f"the file holds {4 + len(lengths)}"
        )
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    if 0 in shape:
        raise DataError(f"{path}: holds nothing: its header says {times(shape)}")
    return IdxHeader(dtype, shape)


def times(shape: tuple[int, ...]) -> str:
    """A shape in words, such as "60,000 x 28 x 28"."""
    return " x ".join(f"{length:,}" for length in shape)


def reason(error: BaseException) -> str:
    """The reason of an error, without the path that some system errors repeat."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _read_array(path: PathLike, content: Inflated | BufferedReader) -> Array:
    dtype, shape = read_header(path, content)
    claimed, size = prod(shape) * dtype.itemsize, os.fstat(content.fileno()).st_size
    each = f" x {dtype.itemsize}" if dtype.itemsize > 1 else ""
    says = f"its header says {times(shape)}{each} = {claimed:,} bytes"
    if isinstance(content, BufferedReader):
        held = size - content.tell()
        if held != claimed:
            raise DataError(f"{path}: is {'truncated' if held < claimed else 'too long'}: {says}, but {held:,} follow")
    elif claimed > MOST_INFLATED * size:
        most = f"{MOST_INFLATED * size:,}"
        raise DataError(f"{path}: is truncated: {says}, but a gzip file of {size:,} bytes holds at most {most}")
    if claimed > memory_limit()[0]:  # Linux may allocate more memory than exists, and then kills the process
        raise MemoryError
    if isinstance(content, BufferedReader):
        values = np.fromfile(content, np.uint8)
    else:
        values = np.empty(claimed, np.uint8)
        held = 0
        while held < claimed and (piece := content.read1(min(PIECE_BYTES, claimed - held))):
            values[held : held + len(piece)] = np.frombuffer(piece, np.uint8)
            held += len(piece)
        # Reading on detects surplus data, and makes zlib compare the checksum at the end.
        surplus = content.read(1)
        if held < claimed:
            raise DataError(f"{path}: is truncated: {says}, but {held:,} follow")
        if surplus:
            raise DataError(f"{path}: is too long: {says}, but more follow")
    array = values.view(dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
