"""The folder in which numba keeps compiled kernels, made safe for many processes, and for damage.

numba writes a file under another name and then renames it, so that nobody reads half a file. But to add a kernel it
reads the index, chooses a number, and writes both index and code: of two processes that do so at once, for different
types of arguments, one may be lost, or the index may name the code of the other. A job that found a broken index, left
behind by a full disk, failed, and so did all after it (numba issues 4807, 10128, 10434). None of it is needed to
compute: whoever cannot read what was kept compiles it, and whoever cannot keep it goes on.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache


class SafeCache(FunctionCache):
    """numba's cache of one kernel; additions to it wait for one another, and nothing in it can make a job fail.

    And where numba notices only a change of the kernel's own file, this notices one of the files that all kernels stand
    on as well.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _fingerprint_of_foundation())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel for these types of arguments; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # what unpickling damage raises can be anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel; if the index is damaged, a new one takes its place."""
        with contextlib.suppress(OSError), _alone_in(self.cache_path):
            try:
                super().save_overload(sig, data)
            except OSError:
                raise
            except Exception:  # again of unpickling: the index that the kernel was to be added to
                self.flush()
                super().save_overload(sig, data)


@functools.cache
def _fingerprint_of_foundation() -> str:
    """Of the files in this folder whose names begin with an underscore."""
    fingerprint = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("_*.py")):
        fingerprint.update(path.read_bytes())
    return fingerprint.hexdigest()


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Inside, no other process of any node is, unless the file system has no locks."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "wb") as file:  # closing it lets go of the lock
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
