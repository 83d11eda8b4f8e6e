"""Writing files so that a reader finds the old content or the new, never a part of it."""

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
    """An OSError inside names `path`: that of a full disk names no file by itself, others a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Put `content` into a new file beside `path`, flush it to disk, and rename it to `path`.

    Args:
        check: called with the new file before it is renamed. If it raises, the file is removed.

    Raises:
        OSError: if that fails; whatever stood at `path` still does, and nothing is left beside it.
    """
    with naming(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_urlsafe(6)}{_UNFINISHED}")
        # The kernel applies the umask. To read it here would mean to set it, for all threads of the process.
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
    """Remove the temporary files that `write_atomically` has left in a folder because the process was killed.

    For those who alone write there: what another process is writing would be gone.
    """
    with contextlib.suppress(OSError):  # they are only in the way
        for file in folder.glob(f".*{_UNFINISHED}"):
            file.unlink()


def lock(path: Path) -> TextIO | None:
    """Take the lock that is the file at `path`, for as long as what is returned is open; None if another process has.

    A process that dies gives it back.

    Raises:
        OSError: if there can be no such file, or something else than a regular file is in its place.
    """
    file = open_regular(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks: better without than not at all
        pass
    return file
