"""Write files atomically: a reader finds the old content or the new, never a part of it."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from parallelcnn.files.regular import open_regular

_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context in which an OSError names `path`, instead of no file (a full disk) or a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Write `content` to a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Args:
        check: called with the new file before it is renamed. If it raises an error, the file is removed.

    Raises:
        OSError: if writing fails. An earlier file at `path` remains, and no temporary file is left.
    """
    with naming(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_urlsafe(6)}{_UNFINISHED}")
        # The kernel applies the umask. It could only be read here by setting it, for all threads of the process.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes that `write_atomically` left in a folder.

    Call it only if no other process writes there: it would lose its files.
    """
    with contextlib.suppress(OSError):
        for file in folder.glob(f".*{_UNFINISHED}"):
            file.unlink()


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
