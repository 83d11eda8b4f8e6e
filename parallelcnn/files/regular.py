"""Open regular files only: a FIFO or a device in place of a file must not block."""

import errno
import os
import stat
from pathlib import Path
from typing import Literal, TextIO


def open_regular(path: str | Path, mode: Literal["r", "r+", "a"] = "r") -> TextIO:
    """Open a UTF-8 text file as `open` does, but never wait for a writer, a reader or a device.

    Raises:
        OSError: if the file cannot be opened, or is a directory, a FIFO, a socket or a device.
    """

    def opener(name: str, flags: int) -> int:
        if os.path.exists(name):
            _check_regular(os.stat(name), name)
        descriptor = os.open(name, flags | os.O_NONBLOCK, 0o666)
        try:
            _check_regular(os.fstat(descriptor), name)  # the file may have been replaced meanwhile
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return open(path, mode, encoding="utf-8", opener=opener)


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", name)
