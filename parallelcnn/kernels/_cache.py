"""The cache of compiled kernels on disk.

Loading a compiled kernel means unpickling it and running its machine code. So kernels are only loaded from a directory
that nobody but the user (or root) can write to. Each file begins with a checksum of the rest, since a flipped bit in
machine code would crash the process, in this job and all later ones.

numba's own cache (numba.core.caching) does neither. If no home directory is known, it loads from a path below the
current directory. It also keeps an index beside the compiled code, and processes that write both at the same time have
lost entries or broken the index (numba issues 4807, 10128, 10434). Here a kernel for given argument types is one file,
whose name is a hash of everything that its machine code depends on. There is no index and no lock.

The cache is optional: a kernel that cannot be read is compiled, and a kernel that cannot be written is compiled again
by the next process.
"""

import contextlib
import functools
import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import config
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

from parallelcnn.errors import TrainingWarning

from ._machine_code import from_bytes, to_bytes

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CHECKSUM_BYTES = 32
# Settings of numba that change the machine code: of the environment variables NUMBA_OPT, NUMBA_BOUNDSCHECK, ...
_SETTINGS = ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT")
# Variables of Open MPI, MPICH and SLURM with a process's rank on its node.
_RANK_ON_NODE = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


class KernelCache(NullCache):
    """The cache of one kernel, as numba's dispatcher uses it. No error of the cache can make a job fail."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._name = function.__qualname__.replace("<", "").replace(">", "")
        self._file = function.__code__.co_filename

    @property
    def cache_path(self) -> str | None:
        """The directory of the compiled kernels; None if there is none."""
        directory = self._directory()
        return None if directory is None else directory.path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the compiled kernel for these argument types; None if it is not in the cache."""
        directory = self._directory()
        if directory is None:
            return None
        try:
            key = self._key(sig, target_context.codegen())
            content = directory.read(self._file_name(key))
            if content[:_CHECKSUM_BYTES] != _checksum(key, content[_CHECKSUM_BYTES:]):
                return None
            return from_bytes(content[_CHECKSUM_BYTES:], target_context)
        except Exception:  # another version of numba or llvmlite may raise anything
            return None

    def holds(self, sig: Any, target_context: Any) -> bool:
        """Whether there is a file for these argument types; it may be damaged. True if nothing can be kept."""
        directory = self._directory()
        try:
            return directory is None or directory.holds(self._file_name(self._key(sig, target_context.codegen())))
        except Exception:  # as above, and the source may not be there
            return True

    def save_overload(self, sig: Any, data: Any) -> None:
        directory = self._directory()
        with contextlib.suppress(Exception):  # another version of numba may raise anything
            if directory is None or data.library.has_dynamic_globals or not all(one.can_cache for one in data.lifted):
                return
            key = self._key(sig, data.codegen)
            payload = to_bytes(data)
            directory.write(self._file_name(key), _checksum(key, payload) + payload)
            directory.remove_outdated(self._family(), _source_hash(self._file))

    def _directory(self) -> "_Directory | None":
        return _directory_for(os.path.dirname(os.path.abspath(self._file)))

    def _key(self, sig: Any, codegen: Any) -> bytes:
        """The cache key, without source files and versions: argument types, processor, closure, numba's settings.

        The name of a numba type describes arrays, numbers and tuples of them completely. Kernels take nothing else.
        """
        code = hashlib.sha256(contents(self._function)).hexdigest()
        settings = [(name, getattr(config, name, None)) for name in _SETTINGS]
        return repr((str(sig), codegen.magic_tuple(), code, settings)).encode()

    def _family(self) -> str:
        """The prefix of the names of this kernel's files for these versions of the software."""
        module = os.path.basename(self._file).removesuffix(".py")
        return f"{module}.{self._name}.{sys.implementation.cache_tag}.numba-{numba.__version__}."

    def _file_name(self, key: bytes) -> str:
        return f"{self._family()}{_source_hash(self._file)}.{hashlib.sha256(key).hexdigest()[:16]}.nbc"


@dataclass(frozen=True)
class _Directory:
    """A directory of compiled kernels. It is checked and kept open, so that it cannot be replaced after the check."""

    path: str
    descriptor: int

    def read(self, name: str) -> bytes:
        with open(self._open(name, os.O_RDONLY), "rb") as file:
            if _writable_by_others(os.fstat(file.fileno())):
                raise PermissionError
            return file.read()

    def holds(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: under a temporary name, which is then renamed."""
        temporary = f"{name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        try:
            with open(self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(content)
            os.rename(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self.descriptor)
            raise

    def remove_outdated(self, family: str, source_hash: str) -> None:
        """Remove the files of a kernel that belong to another version of its source."""
        for name in os.listdir(self.descriptor):
            if name.startswith(family) and not name.startswith(f"{family}{source_hash}."):
                os.unlink(name, dir_fd=self.descriptor)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)


@functools.cache
def _directory_for(source_directory: str) -> _Directory | None:
    """The cache directory for the kernels in `source_directory`; None if there is no safe one.

    It warns, once on each node, if NUMBA_CACHE_DIR is set and cannot be used, or if no directory can be used.
    """
    directory, problems = None, []
    for chosen, parent in _candidates(source_directory):
        path = os.path.join(parent, _subdirectory(source_directory))
        try:
            directory = _Directory(path, _open_safely(path))
            break
        except OSError as error:
            why = error.strerror if error.errno == 0 else f"cannot be written to ({error.strerror})"
            problems.append(f"{chosen}{parent} {why}")
    speaks = all(os.environ.get(variable, "0") == "0" for variable in _RANK_ON_NODE)
    if speaks and (directory is None or (numba.config.CACHE_DIR and problems)):
        outcome = f"kept in {directory.path}" if directory else "not kept, so every process compiles them again"
        problems += [] if directory or _home_cache() else ["no home directory is known"]
        warnings.warn(
            f"compiled kernels are {outcome}: {'; '.join(problems)}. Set NUMBA_CACHE_DIR to a directory that only you "
            f"can write to",
            TrainingWarning,
            stacklevel=2,
        )
    return directory


def _candidates(source_directory: str) -> Iterator[tuple[str, str]]:
    """(prefix for messages, path) of possible cache directories, best first. Never the current directory."""
    if numba.config.CACHE_DIR:
        yield "NUMBA_CACHE_DIR=", os.path.abspath(numba.config.CACHE_DIR)
    yield "", os.path.join(source_directory, "__pycache__")
    if cache := _home_cache():
        yield "", os.path.join(cache, "numba")


def _home_cache() -> str | None:
    """The user's cache directory (XDG base directory specification); None if none is known."""
    for path in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(path):  # ignore empty and relative paths
            return path
    return None


def _subdirectory(source_directory: str) -> str:
    """Name of the subdirectory for this user and installation: users may share NUMBA_CACHE_DIR, such as /tmp."""
    source = hashlib.sha256(source_directory.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{os.path.basename(source_directory)}-{os.geteuid()}-{source}"


def _open_safely(path: str) -> int:
    """Open a directory to which no other user can write, and create it if necessary; returns its descriptor.

    OSError if that is not possible.
    """
    path = os.path.realpath(path)
    parents = Path(path).parents
    for parent in parents:
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(parent).st_mode
            # In a directory with the sticky bit, like /tmp, others cannot rename our files. Parents that a group can
            # write to are common on clusters. They are safe, because the owner of the directory itself is checked.
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise PermissionError(0, f"is not safe: every user can write to {parent}")
    for missing in [parent for parent in reversed(parents) if not os.path.exists(parent)] + [Path(path)]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(missing, 0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    unsafe = _writable_by_others(os.fstat(descriptor))
    if unsafe or not os.access(path, os.W_OK | os.X_OK):
        os.close(descriptor)
        raise PermissionError(0, f"is not safe: other users can write to {path}" if unsafe else "cannot be written to")
    return descriptor


def _writable_by_others(found: os.stat_result) -> bool:
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & _OTHERS_MAY_WRITE)


def contents(function: Callable[..., Any]) -> bytes:
    """Name, bytecode and closure of a function, the same in every process."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    # A kernel that is pickled contains a random identifier.
    parts = [contents(cell.py_func) if isinstance(cell, Dispatcher) else dumps(cell) for cell in cells]
    return repr((function.__qualname__, function.__code__.co_code, parts)).encode()


def _checksum(key: bytes, payload: bytes) -> bytes:
    """The checksum of key and payload. It includes the key so that a renamed file is detected."""
    return hashlib.blake2b(key + payload, digest_size=_CHECKSUM_BYTES).digest()


@functools.cache
def _source_hash(file: str) -> str:
    """A hash of a kernel's source file, of the files that all kernels use (those in this directory whose names begin
    with an underscore), and of the version of llvmlite.
    """
    found = _hash_of_common_files().copy()
    found.update(Path(file).read_bytes())
    return found.hexdigest()[:16]


@functools.cache
def _hash_of_common_files() -> "hashlib._Hash":
    found = hashlib.sha256(llvmlite.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("_*.py")):
        found.update(path.read_bytes())
    return found
