"""Archives of arrays, .npz, that numpy alone can read: written whole or not at all, read with suspicion.

Nothing is unpickled, and nothing is allocated because a header says so: limits come from the caller, who knows what
should be there.
"""

import contextlib
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.errors import CheckpointError, shown
from parallelcnn.files.atomic import write_atomically

HEADER_LIMIT = 2**12  # bytes in front of an array's numbers
_DESCRIPTION_LIMIT = 2**20  # bytes
COMPRESSION_LIMIT = 1032  # bytes that a byte of a deflated file can hold: zlib's own account, zlib.net/zlib_tech.html
# An array's header as numpy writes it. numpy's own reader takes any literal of Python's in it, compiles it, and lets
# through what that raises or warns of.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\0.."
    rb"\{'descr': '([<>|](?:b1|[iu][1248]|f[248]|U\d{1,8}))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, )*(?:\d{1,18},?)?)\), \} *\n",
    re.DOTALL,
)
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


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Put arrays, by name, into an archive at `path`.

    Raises:
        OSError: if that fails; whatever stood at `path` still does.
    """
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, content.getvalue())


@contextlib.contextmanager
def open_npz(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`; what goes wrong inside because it is damaged is raised in words.

    Args:
        kind: what the file should be, in the words of a message.

    Raises:
        CheckpointError: if there is no such file, or it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} must be a {kind}, not a folder or a device")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except CheckpointError as error:
        raise CheckpointError(shown(error)) from error.__cause__
    except FileNotFoundError:
        raise CheckpointError(f"no {kind} {path}") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        raise CheckpointError(shown(f"{path} is no {kind}, or a damaged one: {error}")) from None


def read_description(path: Path, archive: zipfile.ZipFile, kind: str, version: int) -> dict[str, Any]:
    """What the archive at `path` says of itself, in JSON.

    Raises:
        CheckpointError: unless it says that it is of that kind and version of this program's files.
    """
    wanted = f"parallelcnn {kind}"
    no_such = f"{path} is no {kind} file: it takes a description of format {wanted!r}"
    try:
        text = str(read_npy(archive, "description", _DESCRIPTION_LIMIT)[()])
        description = json.loads(text)
    except (KeyError, ValueError):
        raise CheckpointError(f"{no_such}, and holds none") from None
    if not isinstance(description, dict) or description.get("format") != wanted:
        raise CheckpointError(f"{no_such}, got another one")
    if description.get("version") != version:
        raise CheckpointError(
            f"{path} has version {description.get('version')!r} of the format; this program reads version {version}"
        )
    return description


def read_npy(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """One array of an .npz; the limit, in bytes, stands before anything that a header claims.

    Raises:
        KeyError: if there is none of that name.
        ValueError: if it is larger than the limit, no array, or compressed by a method that numpy does not use.
    """
    entry = archive.getinfo(f"{name}.npy")
    # zipfile unpacks others to any size before it looks at what they should be, and lets LZMAError through.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed by another method than numpy's")
    if entry.file_size > limit:
        raise ValueError(f"larger than the {limit} bytes that it may have")
    with archive.open(entry) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than the {limit} bytes that it may have")
    return _from_bytes(content)


def _from_bytes(content: bytes) -> np.ndarray:
    header = _HEADER.match(content)
    if header is None:
        raise ValueError("it starts with no header of an array of numbers")
    kind, order, lengths = (part.decode() for part in header.groups())
    dtype, shape = np.dtype(kind), tuple(int(length) for length in lengths.replace(",", " ").split())
    if math.prod(shape) * dtype.itemsize != len(content) - header.end():
        raise ValueError(f"its header says {dtype} of shape {shape}, which is not what follows")
    if dtype.kind == "U":  # numpy would make strings of letters that do not exist, which Python does not survive
        content[header.end() :].decode("utf-32-be" if kind.startswith(">") else "utf-32-le")
    return np.frombuffer(content, dtype, offset=header.end()).reshape(shape, order="F" if order == "True" else "C")
