"""Arrays whose rows are read when they are used: one in a file may be larger than the memory."""

import contextlib
import fcntl
import math
import mmap
import os
import weakref
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np

Array = np.ndarray


class Rows(ABC):
    """An array of whose rows some are chosen, or all. None is copied before it is used.

    Attributes:
        dtype, shape, ndim, size, nbytes: as of a numpy array.
    """

    def __init__(self, dtype: Any, shape: tuple[int, ...], chosen: Array | None = None) -> None:
        self.dtype, self._rows, self._row_shape, self._chosen = np.dtype(dtype), shape[0], tuple(shape[1:]), chosen
        self._row_bytes = self.dtype.itemsize * math.prod(self._row_shape)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.dtype} {self.shape}>"

    @abstractmethod
    def __getitem__(self, key: Any) -> Array:
        """The rows at an index, a slice, or an array of indices, as an array in memory."""

    def __len__(self) -> int:
        return self._rows if self._chosen is None else len(self._chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._row_shape

    @property
    def ndim(self) -> int:
        return 1 + len(self._row_shape)

    @property
    def size(self) -> int:
        return self.nbytes // self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return len(self) * self._row_bytes

    def choose(self, rows: Array) -> Self:
        """An array of some rows, in the given order, of which none is read yet.

        Args:
            rows: indices, or a mask.
        """
        some = object.__new__(type(self))
        some.__dict__.update(self.__dict__, _chosen=self._indices(rows))
        return some

    @property
    def _crc32_of_choice(self) -> int:
        return zlib.crc32(b"" if self._chosen is None else self._chosen.tobytes())

    def _indices(self, key: Any) -> Array:
        """The rows of the whole array that a key means."""
        if isinstance(key, slice):
            found = np.arange(len(self))[key]
        else:
            found = np.asarray(key)
            found = np.flatnonzero(found) if found.dtype == bool else found.astype(np.int64)
        if found.size and not -len(self) <= found.min() <= found.max() < len(self):
            raise IndexError(f"rows must lie in [0, {len(self)}), got {found.min()} to {found.max()}")
        found = np.where(found < 0, found + len(self), found)
        return found if self._chosen is None else self._chosen[found]


class ChosenRows(Rows):
    """Rows of an array in memory, which may be a mapped file.

    Args:
        array: the whole array, in C order.

    Example:
        >>> odd = ChosenRows(images).choose(np.arange(1, 60000, 2))
        >>> odd[:10].shape
        (10, 28, 28)
    """

    def __init__(self, array: Array) -> None:
        super().__init__(array.dtype, array.shape)
        self.array = array

    def __getitem__(self, key: Any) -> Array:
        if isinstance(key, int | np.integer):
            return self[[key]][0]
        return self.array[self._indices(key)]

    def places(self, indices: Array) -> Array:
        """Where rows are in the whole array; `indices` are known to lie in [0, len(self))."""
        return indices if self._chosen is None else self._chosen[indices]

    def identity(self, of_array: Any) -> Any:
        """Equal for equal rows of the same array; `of_array` identifies the array, or is None if this is not known."""
        return None if of_array is None else (of_array, self.shape, self._crc32_of_choice)


class FileRows(Rows):
    """An array in a file, in C order. Indexing reads rows; several threads may do so at the same time.

    Args:
        path: the file.
        offset: where the array begins [bytes].
        dtype, shape: of the array.
        writable: whether rows can be assigned.
        locked: whether to hold a shared lock on the file (flock) while this array, or one made from it, exists. Where
            the file system has no locks, there is none.
        chosen: indices of the rows that this array consists of; None: all.

    Raises:
        OSError: if the file cannot be opened, and when rows cannot be read.

    Example:
        >>> images = FileRows(path, 64, np.uint8, (60000, 28, 28))
        >>> images[[5, 3]].shape
        (2, 28, 28)
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        dtype: Any,
        shape: tuple[int, ...],
        *,
        writable: bool = False,
        locked: bool = False,
        chosen: Array | None = None,
    ) -> None:
        self.path, self.offset, self.writable, self.locked = path, offset, writable, locked
        super().__init__(dtype, shape, chosen)
        self._opened = _Opened(path, os.O_RDWR if writable else os.O_RDONLY)
        if locked:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self._rows, *self._row_shape
        return _rebuild, (self.path, self.offset, self.dtype, shape, self.locked, self._chosen)

    def __repr__(self) -> str:
        return f"<FileRows {self.dtype} {self.shape} in {self.path}>"

    @property
    def _descriptor(self) -> int:
        return self._opened.descriptor

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for equal arrays in the same file."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino, self.offset, self.shape, self._crc32_of_choice

    def __getitem__(self, key: Any) -> Array:
        """The rows at an index, a slice, or an array of indices, as an array in memory."""
        if isinstance(key, int | np.integer):
            return self[[key]][0]
        if isinstance(key, slice) and self._chosen is None and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            rows = np.empty((max(0, stop - start), *self._row_shape), self.dtype)
            self._read(rows, start)
            return rows
        indices = self._indices(key)
        rows = np.empty((len(indices), *self._row_shape), self.dtype)
        for row, index in zip(rows, indices.tolist(), strict=True):
            self._read(row, index)
        return rows

    def __setitem__(self, key: int | slice, values: Any) -> None:
        """Write a row, or all rows."""
        rows = np.ascontiguousarray(
            np.broadcast_to(values, self._row_shape if isinstance(key, int) else self.shape), self.dtype
        )
        os.pwrite(
            self._descriptor,
            rows.data.cast("B") if rows.size else b"",
            self._place(key if isinstance(key, int) else 0),
        )

    def mapped(self) -> Array:
        """The array as one in memory that the system reads from the file when it is used; read-only."""
        page = self.offset % mmap.ALLOCATIONGRANULARITY
        size = self._rows * self._row_bytes
        if size == 0:
            return np.empty((self._rows, *self._row_shape), self.dtype)
        memory = mmap.mmap(self._descriptor, page + size, access=mmap.ACCESS_READ, offset=self.offset - page)
        array = np.frombuffer(memory, np.uint8)[page:].view(self.dtype).reshape(self._rows, *self._row_shape)
        return array if self._chosen is None else array[self._chosen]

    def _place(self, row: int) -> int:
        return self.offset + row * self._row_bytes

    def _read(self, into: Any, row: int) -> None:
        if into.size == 0:
            return
        view, place = memoryview(into).cast("B"), self._place(row)
        while view:
            count = os.preadv(self._descriptor, [view], place)
            if count == 0:
                raise OSError(f"{self.path}: has become shorter")
            view, place = view[count:], place + count


class _Opened:
    """An open file, closed with the last array that uses it. A memory map has its own descriptor and shares locks."""

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, flags | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


def _rebuild(
    path: Path, offset: int, dtype: Any, shape: tuple[int, ...], locked: bool, chosen: Array | None
) -> FileRows:
    return FileRows(path, offset, dtype, shape, locked=locked, chosen=chosen)


def choose(rows: Any, which: Array) -> Any:
    """Some rows of an array; those of `Rows` are not copied."""
    return rows.choose(which) if isinstance(rows, Rows) else rows[which]
