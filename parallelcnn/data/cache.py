"""The folder for downloads and decoded images."""

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from parallelcnn.errors import DataError

KEPT_DAYS = 30  # that a file of decoded images is kept after its last use
KEPT_BYTES = 20 * 2**30  # of decoded images in total
_UNFINISHED_DAYS = 1  # that the remains of a process that was killed are kept
_DAY = 86400  # [s]

_NAME = re.compile(r"[0-9a-f]{32}\.safetensors|\.[0-9a-f]{32}\.safetensors\..+(\.unfinished)")


def cache_folder(part: str, instead: str) -> Path:
    """A folder in the cache: in the environment variable PARALLELCNN_CACHE, otherwise in XDG_CACHE_HOME/parallelcnn or
    ~/.cache/parallelcnn. It may not exist yet.

    Args:
        part: its name.
        instead: what else the user can do, for the message.

    Raises:
        DataError: if no home folder is known.
    """
    if cache := os.environ.get("PARALLELCNN_CACHE"):
        return Path(cache).expanduser() / part
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification says to ignore relative paths
        return Path(cache) / "parallelcnn" / part
    try:
        return Path.home() / ".cache" / "parallelcnn" / part
    except RuntimeError:
        raise DataError(
            f"no home folder is known for the cache: set PARALLELCNN_CACHE to a folder, {instead}"
        ) from None


def mark_as_used(file: Path) -> None:
    """Note that a file of the cache is used now, in its modification time."""
    with contextlib.suppress(OSError):  # it may belong to another user
        os.utime(file)


def delete_unused(folder: Path, needed: int) -> list[int]:
    """Delete decoded images that were not used for 30 days, and then the least recently used ones if all of them need
    more than 20 GiB. A file that a process has open and locked is never deleted.

    Args:
        folder: their folder; other files in it remain.
        needed: size of a file to be made [bytes].

    Returns:
        The sizes of the deleted files [bytes].
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    days = _UNFINISHED_DAYS if match[1] else KEPT_DAYS
                    found.append((status.st_mtime, days, status.st_size, entry.path))
    now, total = time.time(), needed + sum(size for _, _, size, _ in found)
    deleted = []
    for used, days, size, path in sorted(found):
        is_finished = days == KEPT_DAYS
        if (now - used > days * _DAY or (is_finished and total > KEPT_BYTES)) and _delete(path):
            deleted.append(size)
            total -= size
    return deleted


def _delete(path: str) -> bool:
    """Delete a file unless it is locked; returns whether it is deleted."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True
