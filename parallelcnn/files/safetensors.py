"""Safetensors files: named arrays in one file that other programs can read, and that is memory-mapped.

    8 bytes         length of the header, little-endian
    header          JSON: for each array "dtype", "shape" and "data_offsets" [begin, end); "__metadata__": texts by name
    arrays          in C order, little-endian, one after the other without gaps

The format is described at https://github.com/huggingface/safetensors. Nothing in a header is trusted: each array must
lie inside the file, and no two may share a byte. Nothing is pickled.
"""

import errno
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.errors import CheckpointError, InputError, shown
from parallelcnn.files.atomic import naming, renamed_when_complete
from parallelcnn.files.regular import open_regular
from parallelcnn.files.rows import FileRows

Array = np.ndarray

_ALIGNMENT = 64  # bytes: a line of the cache
_MOST_HEADER = 2**24  # bytes: about 100,000 arrays
_MOST_DIMENSIONS = 32  # numpy 1.26 has no more
_METADATA = "__metadata__"
_FILLER = "__filler_"  # begin of the names of arrays that only take up space, since the format allows no gaps
_TYPES = {
    **{"BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4"},
    **{"U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"},
}
_NAMES = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
_BFLOAT16 = "BF16"  # the upper half of a float32


class Kind(NamedTuple):
    """Type and shape of an array."""

    dtype: Any
    shape: tuple[int, ...]


class Tensors(NamedTuple):
    """The contents of a safetensors file."""

    arrays: dict[str, Array]
    metadata: dict[str, str]


class OpenTensors(NamedTuple):
    """The arrays of an open safetensors file."""

    arrays: dict[str, FileRows]
    metadata: dict[str, str]


class _Place(NamedTuple):
    """An array's place after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write_safetensors(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a file, atomically. Each array starts at a multiple of the size of its numbers.

    Raises:
        InputError: if the format has no such type of numbers, or no such name.
        OSError: if the file cannot be written. An earlier file at `path` remains.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    places = _places({name: Kind(array.dtype, array.shape) for name, array in found.items()}, aligned=False)
    header = _header(places, metadata)
    with naming(path), renamed_when_complete(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for one in places:
            file.write(np.asarray(found[one.name], _TYPES[one.dtype], order="C").data)


def create_safetensors(path: Path, kinds: Mapping[str, Kind], metadata: Mapping[str, str] | None = None) -> None:
    """Create a file of arrays of zeros, to be filled through `map_safetensors(path, writable=True)`, by any number of
    processes. Disk space is reserved, since a process is killed if it writes to a memory map and the disk is full.

    Each array starts at a multiple of 64 bytes. To other programs, the gaps are arrays called "__filler_0__", ...

    Raises:
        InputError: see `write_safetensors`.
        OSError: if the file cannot be created, or the disk has too little space.

    Example:
        >>> with renamed_when_complete(path) as temporary:
        ...     create_safetensors(temporary, {"images": Kind(np.uint8, (60000, 1, 28, 28))})
        ...     map_safetensors(temporary, writable=True).arrays["images"][:] = 255
    """
    places = _places(kinds, aligned=True)
    header = _header(places, metadata)
    with naming(path), open(path, "wb") as file:
        file.write(header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, len(header) + (places[-1].end if places else 0))


def map_safetensors(path: Path, *, writable: bool = False) -> Tensors:
    """Memory-map a file's arrays, read-only unless `writable`. They stay valid if the file is replaced or deleted.

    Numbers of the type bfloat16 become float32, which is a copy, as are arrays that start at odd places.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or it has numbers that numpy has no type for.
    """
    places, metadata, start = _read_places(path)
    with open_regular(path, "r+" if writable else "r") as file:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=access), np.uint8)[start:]
    return Tensors({one.name: _array(one, data, writable=writable) for one in places}, metadata)


def open_safetensors(path: Path, *, writable: bool = False, locked: bool = False) -> OpenTensors:
    """Open a file whose arrays may be larger than the memory: they are read, or written, by rows.

    Args:
        writable, locked: see `FileRows`.

    Raises:
        CheckpointError: as `map_safetensors`.
        OSError: if the file cannot be opened for writing.
    """
    places, metadata, start = _read_places(path)
    if any(one.dtype == _BFLOAT16 for one in places):
        raise CheckpointError(f"{path} has numbers of 16 bits that numpy has no type for: they cannot be read by rows")
    rows = {
        one.name: FileRows(path, start + one.begin, _TYPES[one.dtype], one.shape, writable=writable, locked=locked)
        for one in places
    }
    return OpenTensors(rows, metadata)


def _read_places(path: Path) -> tuple[list[_Place], dict[str, str], int]:
    """The places of a file's arrays, its metadata, and where the bytes begin that the places count from.

    Raises:
        CheckpointError: if there is no such file, or it is damaged.
    """
    try:
        with open_regular(path, "r") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise ValueError(f"its header cannot have {length} bytes, the file has {size}")
            text = os.pread(file.fileno(), length, 8)
        if not text.startswith(b"{"):
            raise ValueError("its header is not JSON")
        header = json.loads(text.decode(), object_pairs_hook=_unique)
        metadata = _checked_metadata(header.pop(_METADATA, {}))
        places = sorted((_place(name, entry) for name, entry in header.items()), key=lambda one: (one.begin, one.end))
        _check_cover(places, size - 8 - length)
        return [one for one in places if not one.name.startswith(_FILLER)], metadata, 8 + length
    except OSError as error:
        why = "a folder or a device" if error.errno in (errno.EISDIR, errno.EINVAL) else error.strerror
        raise CheckpointError(f"{path} cannot be read: {why}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(shown(f"{path} is no safetensors file, or a damaged one: {error}")) from None


def _places(kinds: Mapping[str, Kind], *, aligned: bool) -> list[_Place]:
    """The places of arrays, those of larger numbers first, so that each starts at a multiple of its numbers' size."""
    entries = []
    for name, (dtype, shape) in kinds.items():
        found = np.dtype(dtype).newbyteorder("<")
        if found not in _NAMES:
            raise InputError(f"array {name!r} must have one of the types {', '.join(map(str, _NAMES))}, got {found}")
        if name == _METADATA or name.startswith(_FILLER):
            raise InputError(f"no array in a safetensors file may be called {name!r}")
        entries.append((found, name, tuple(map(int, shape))))
    places: list[_Place] = []
    end = 0
    for dtype, name, shape in sorted(entries, key=lambda entry: -entry[0].itemsize):
        gap = -end % _ALIGNMENT if aligned else 0
        if gap:
            places.append(_Place(f"{_FILLER}{len(places)}__", "U8", (gap,), end, end + gap))
        begin, end = end + gap, end + gap + math.prod(shape) * dtype.itemsize
        places.append(_Place(name, _NAMES[dtype], shape, begin, end))
    return places


def _header(places: Iterable[_Place], metadata: Mapping[str, str] | None) -> bytes:
    """The begin of the file, up to the arrays. Spaces make its length a multiple of 64."""
    entries: dict[str, Any] = {} if not metadata else {_METADATA: _checked_metadata(dict(metadata))}
    for one in places:
        entries[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": (one.begin, one.end)}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise InputError(
            f"a safetensors file takes {_MOST_HEADER} bytes of names, shapes and metadata, got {len(text)}"
        )
    return len(text).to_bytes(8, "little") + text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _checked_metadata(metadata: Any) -> dict[str, str]:
    texts = list(metadata.items()) if isinstance(metadata, dict) else [(None, None)]
    if not all(isinstance(one, str) for pair in texts for one in pair):
        raise InputError("the metadata of a safetensors file must be texts by name")
    return dict(texts)


def _place(name: str, entry: Any) -> _Place:
    """The place that a header's entry describes; ValueError unless the numbers in it agree."""
    what = f"array {name!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{what} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in (*_TYPES, _BFLOAT16):
        raise ValueError(f"{what} has the type {dtype!r}, which is not read here")
    for counts in (shape, offsets):
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"{what} has a shape or data_offsets that are not lists of counts")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{what} has {len(shape)} dimensions, more than {_MOST_DIMENSIONS}")
    size = math.prod(shape) * (2 if dtype == _BFLOAT16 else np.dtype(_TYPES[dtype]).itemsize)
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise ValueError(f"{what} has {size} bytes by its shape, which do not fit its data_offsets, {offsets}")
    return _Place(name, dtype, tuple(shape), *offsets)


def _check_cover(places: list[_Place], size: int) -> None:
    """Raise ValueError unless the places, in order, cover all bytes once."""
    end = 0
    for one in places:
        if one.begin != end:
            raise ValueError(f"array {one.name!r} starts at byte {one.begin}, but the one before it ends at {end}")
        end = one.end
    if end != size:
        raise ValueError(f"its arrays have {end} bytes, but {size} follow the header")


def _array(place: _Place, data: Array, *, writable: bool) -> Array:
    part = data[place.begin : place.end]
    if place.dtype == _BFLOAT16:
        return (part.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(place.shape)
    array = part.view(_TYPES[place.dtype]).reshape(place.shape)
    return array if writable or array.flags.aligned else array.copy()
