"""Write files atomically: a reader finds the old content or the new, never a part of it."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from parallelcnn.errors import InputError
from parallelcnn.files.regular import open_regular

_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context in which an OSError names `path`, instead of no file (a full disk) or a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def renamed_when_complete(path: Path, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Context that yields the path of a new, empty file beside `path`, to be filled. At its end, the file is flushed to
    disk and renamed to `path`; if an error was raised, it is removed.

    Args:
        check: called with the file before it is renamed. If it raises an error, the file is removed.

    Raises:
        InputError: if the path is that of a directory, such as ".".
        OSError: if the file cannot be created, flushed or renamed. An earlier file at `path` remains.
    """
    if not path.name:
        raise InputError(f"path must name a file, got {str(path)!r}")
    temporary = path.with_name(f".{path.name}.{secrets.token_urlsafe(6)}{_UNFINISHED}")
    with naming(path):
        # The kernel applies the umask. It could only be read here by setting it, for all threads of the process.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield temporary
        with naming(path):
            os.fsync(descriptor)  # also what was written through other descriptors and memory maps
            if check is not None:
                check(temporary)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Write `content` to a file; see `renamed_when_complete`."""
    with naming(path), renamed_when_complete(path, check) as temporary, open(temporary, "wb") as file:
        file.write(content)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes that `write_atomically` left in a folder.

    Call it only if no other process writes there: it would lose its files.
    """
    with contextlib.suppress(OSError):
        for file in folder.glob(f".*{_UNFINISHED}"):
            file.unlink()


def make_new(path: Path, number: int = 1) -> Path:
    """Create the directory, or the first of path-2, path-3, ... that does not exist, from that number on."""
    while True:
        candidate = path if number == 1 else Path(f"{path}-{number}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1


def utc_now() -> str:
    """The time as a part of a file name."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def lock(path: Path) -> TextIO | None:
    """Lock the file at `path`; None if another process has locked it.

    The lock is held until the returned file is closed, or the process ends.

    Raises:
        OSError: if the file cannot be created, or is not a regular file.
    """
    file = open_regular(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    return file
