"""Files without a name that the processes of a node map into their memory."""

import mmap
import os
from typing import NamedTuple


class SharedFile(NamedTuple):
    """Where other processes find an open file of this process. No file remains if the process is killed.

    Attributes:
        path: its path.
        identity: device and inode, since in another container `path` may be another file.
    """

    path: str
    identity: tuple[int, int]

    @classmethod
    def of(cls, descriptor: int) -> "SharedFile":
        return cls(f"/proc/{os.getpid()}/fd/{descriptor}", _identity(descriptor))

    def map(self, *, writable: bool = False) -> memoryview | None:
        """The memory of the whole file; None if this process cannot open it."""
        try:
            with open(self.path, "r+b" if writable else "rb") as file:
                if _identity(file.fileno()) == self.identity:
                    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                    return memoryview(mmap.mmap(file.fileno(), 0, access=access))
        except OSError:
            pass
        return None


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
