"""Archives: arrays and their description in one .npz file, which numpy can read without this package.

    description     JSON: format, version, meaning of the arrays, their names, and a checksum of the archive
    ...             the arrays

Model files and checkpoints are archives. They contain a SHA-256 of the description and all arrays. They are written to
a temporary file, which is flushed, read back and renamed: a reader finds the old file or the new one, never a part.
Nothing is pickled, so a file of unknown origin cannot run code. No memory is allocated because a header claims a size:
together, the arrays are no larger than the file.
"""

import contextlib
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.errors import CheckpointError, InputError, shown
from parallelcnn.files.atomic import write_atomically
from parallelcnn.files.npy import check_characters, parse_header

_WORDS = {"model": "model file", "checkpoint": "checkpoint"}
_VERSION = 2  # version 1 has no checksum in model files, and no layers in checkpoints
_MOST_DESCRIPTION = 2**26  # bytes, four per character: about 100,000 layers
_LEAST_DESCRIPTION = 2**20  # bytes; this size is always allowed
# Errors that zipfile, json and numpy raise for damaged files, and errors of code that trusts a wrong description.
_DAMAGED_FILE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, MemoryError, struct.error)
_DAMAGED_CONTENT = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)


class Archive(NamedTuple):
    """The contents of an archive."""

    version: int
    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_archive(
    path: Path,
    kind: str,
    description: Mapping[str, Any],
    arrays: Mapping[str, Any],
    check: Callable[[Archive], object],
) -> None:
    """Write an archive atomically.

    Args:
        kind: "model" or "checkpoint".
        description: JSON values.
        check: called with the archive read back, before the file gets its name; raises CheckpointError if it is wrong.

    Raises:
        OSError: if the file cannot be written.
        CheckpointError: if it cannot be read back. In both cases an earlier file at `path` remains.
    """
    described = {"format": f"parallelcnn {kind}", "version": _VERSION, **description, "arrays": list(arrays)}
    text = json.dumps({**described, "sha256": seal(described, arrays)})
    content = io.BytesIO()
    np.savez(content, description=np.array(text), **arrays)

    def read_back(temporary: Path) -> None:
        try:
            check(read_archive(temporary, kind))
        except CheckpointError as error:
            raise CheckpointError(f"{path} is not written: it does not read back ({error})") from None

    write_atomically(path, content.getvalue(), read_back)


def read_archive(path: Path, *kinds: str) -> Archive:
    """Read an archive of one of these kinds.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or it has another kind or a later version.
    """
    with open_npz(path, _WORDS[kinds[0]]) as archive:
        description = _read_description(path, archive, kinds)
        version = description["version"]
        sealed = version > 1 or description["format"] == "parallelcnn checkpoint"
        with naming_damage(path):
            members = [name.removesuffix(".npy") for name in archive.namelist() if name != "description.npy"]
            arrays: dict[str, np.ndarray] = {}
            limit = path.stat().st_size  # for all arrays together
            for name in description["arrays"] if sealed else members:
                if name in arrays:
                    raise ValueError(f"{name!r} is named twice")
                arrays[name] = read_npy(archive, name, limit)
                limit -= arrays[name].nbytes
            claimed = description.pop("sha256") if sealed else None
        if sealed and claimed != seal(description, arrays):
            raise CheckpointError(f"{path} is damaged: its content is not what its SHA-256 says")
        return Archive(version, description, arrays)


def seal(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextlib.contextmanager
def open_npz(path: Path, kind: str, failure: type[InputError] = CheckpointError) -> Iterator[zipfile.ZipFile]:
    """Open the .npz or .zip file at `path`. Inside the `with` statement, errors caused by damage become a `failure`.

    Args:
        kind: the expected kind of file, for messages.
    """
    try:
        if path.exists() and not path.is_file():
            raise failure(f"{path} must be a {kind}, not a folder or a device")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError as error:
        raise type(error)(shown(error)) from error.__cause__
    except FileNotFoundError:
        raise failure(f"no {kind} {path}") from None
    except (*_DAMAGED_FILE, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise failure(f"{path} cannot be read: {error.strerror}") from None
        raise failure(shown(f"{path} is no {kind}, or a damaged one: {error}")) from None


@contextlib.contextmanager
def naming_damage(path: Path, what: str = "it does not hold what its description says") -> Iterator[None]:
    """Context that turns errors caused by invalid content into a CheckpointError, even if the checksum is right."""
    try:
        yield
    except CheckpointError:
        raise
    except _DAMAGED_CONTENT as error:
        raise CheckpointError(shown(f"{path} is damaged: {what} ({error})")) from None


def _read_description(path: Path, archive: zipfile.ZipFile, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Read the archive's description; CheckpointError unless it has one of these kinds and a known version."""
    no_such = f"{path} is no {_WORDS[kinds[0]]}"
    limit = min(max(path.stat().st_size, _LEAST_DESCRIPTION), _MOST_DESCRIPTION)
    try:
        description = json.loads(str(read_npy(archive, "description", limit)[()]))
    except (KeyError, ValueError):
        raise CheckpointError(f"{no_such}: it holds no description") from None
    found = description.get("format") if isinstance(description, dict) else None
    if found not in [f"parallelcnn {kind}" for kind in kinds]:
        others = {"parallelcnn model": "a model file, which has no history", "parallelcnn checkpoint": "a checkpoint"}
        what = others.get(str(found), "something else")
        raise CheckpointError(f"{no_such}: its description says that it is {what}")
    version = description.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise CheckpointError(
            f"{path} has version {version!r} of the format; this program reads versions 1 to {_VERSION}"
        )
    return description


def read_npy(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """Read one array of an .npz file; KeyError if there is none of that name.

    Raises ValueError if it is larger than `limit` bytes, whatever its header claims; if it is not an array; or if it is
    compressed by a method that numpy does not use.
    """
    entry = archive.getinfo(f"{name}.npy")
    # With other methods zipfile decompresses to any size before it checks the claimed size, and lets LZMAError through.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed by another method than numpy's")
    with archive.open(entry) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than the {limit} bytes that it may have")
    dtype, shape, order, start = header = parse_header(content)
    if header.nbytes != len(content) - start or dtype.kind == "S":
        raise ValueError(f"its header says {dtype} of shape {shape}, which is not what follows")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)  # type: ignore[call-overload]
    check_characters(array)
    return array
