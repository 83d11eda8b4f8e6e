"""Read CIFAR-10 and CIFAR-100, the binary and the Python version (https://www.cs.toronto.edu/~kriz/cifar.html).

A binary file holds records of a label (CIFAR-100: the coarse label, then the fine one, which is used) and 3072 pixels,
red, green and blue, each 32 x 32. The files of the Python version are pickles, which are read but not executed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parallelcnn.data.assembly import counted
from parallelcnn.data.conversion import Array
from parallelcnn.data.dataset import Dataset, check_class_names, check_label_range
from parallelcnn.data.readers.pickles import read_dictionary
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError
from parallelcnn.files.regular import open_regular
from parallelcnn.resources import memory_limit

FORMAT = "CIFAR-10 or CIFAR-100, the binary or the Python version"

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_MOST_TEXT = 1 << 16  # bytes of a file of class names


class _Version(NamedTuple):
    """One of the four forms of the data.

    Attributes:
        folder: its name when it is unpacked.
        meta: the file with the names of the classes; it may be missing.
        labels: number of label bytes in a record, or the key of the labels in a pickle.
        names: the key of the class names in `meta`, if that is a pickle.
    """

    title: str
    classes: int
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: int | str
    names: str = ""


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_VERSIONS = (
    _Version(
        "CIFAR-10", 10, "cifar-10-batches-bin", tuple(f"{one}.bin" for one in _BATCHES), "test_batch.bin",
        "batches.meta.txt", 1,
    ),
    _Version(
        "CIFAR-10", 10, "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", "labels", "label_names",
    ),
    _Version("CIFAR-100", 100, "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
    _Version(
        "CIFAR-100", 100, "cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names",
    ),
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether a folder, or a folder in it with the name that CIFAR's archives have, holds a version of the data."""
    return bool(_versions_in(path)) or (path.is_file() and path.name.startswith(("cifar-10-", "cifar-100-")))


def load(path: Path, name: str) -> DataSets:
    """Load a training and a test set, images (N, 3, 32, 32).

    Raises:
        DataError: if files are missing or damaged.
    """
    if path.is_file():
        raise DataError(f"{path}: is an archive: unpack it (tar -xf {path.name}), and name the folder")
    found = _versions_in(path)
    if len({version.title for _, version in found}) > 1:
        places = ", ".join(str(place) for place, _ in found)
        raise DataError(f"{path}: holds CIFAR-10 and CIFAR-100: name the folder of one of them, of {places}")
    folder, version = found[0]
    missing = [one for one in (*version.train, version.test) if not (folder / one).is_file()]
    if missing:
        raise DataError(f"{folder}: misses {', '.join(missing)} of {version.title}")
    class_names = _class_names(folder / version.meta, version)

    def dataset(files: Sequence[str]) -> Dataset:
        read = _read_pickles if version.names else _read_binaries
        images, labels = read([folder / one for one in files], version)
        return Dataset(images, labels, version.classes, name, class_names=class_names)

    sets = {"train": dataset(version.train), "test": dataset([version.test])}
    kind = "Python version" if version.names else "binary version"
    words = f"{version.title}, {kind}: {counted(sets)}, 3 x 32 x 32, {version.classes} classes"
    return DataSets(sets["train"], test=sets["test"], found=words)


def _versions_in(path: Path) -> list[tuple[Path, _Version]]:
    """The versions that a folder holds, and where. A version is known by two of its files."""
    found = []
    for version in _VERSIONS:
        for place in (path, path / version.folder):
            held = [(place / one).is_file() for one in (*version.train, version.test, version.meta)]
            if sum(held) >= 2:
                found.append((place, version))
    return found


def _read_binaries(paths: Sequence[Path], version: _Version) -> tuple[Array, Array]:
    assert isinstance(version.labels, int)
    record = version.labels + _PIXELS
    counts = []
    for path in paths:
        size = _size(path)
        if size == 0 or size % record:
            raise DataError(
                f"{path}: must hold records of {version.labels} + {_PIXELS} bytes as {version.title} has them, "
                f"got {size:,} bytes"
            )
        counts.append(size // record)
    images, labels = np.empty((sum(counts), *_SHAPE), np.uint8), np.empty(sum(counts), np.uint8)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        records = np.frombuffer(_content(path), np.uint8)
        if records.size != count * record:
            raise DataError(f"{path}: changed while it was read")
        records = records.reshape(count, record)
        images[start : start + count] = records[:, version.labels :].reshape(count, *_SHAPE)
        labels[start : start + count] = records[:, version.labels - 1]
        check_label_range(str(path), labels[start : start + count], version.classes)
        start += count
    return images, labels


def _read_pickles(paths: Sequence[Path], version: _Version) -> tuple[Array, Array]:
    images, labels = [], []
    for path in paths:
        batch = _dictionary(path)
        pixels, numbers = batch.get("data"), batch.get(str(version.labels))
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
            raise DataError(
                f"{path}: 'data' must be an array of uint8, shape (N, {_PIXELS}), as {version.title} has it"
            )
        if isinstance(numbers, np.ndarray):
            numbers = numbers.tolist()
        if (
            not isinstance(numbers, list)
            or len(numbers) != len(pixels)
            or not all(type(one) is int and 0 <= one < version.classes for one in numbers)
        ):
            raise DataError(
                f"{path}: {version.labels!r} must be a list of {len(pixels):,} integers in [0, {version.classes})"
            )
        images.append(pixels.reshape(-1, *_SHAPE))
        labels.append(np.array(numbers, np.int64))
    if len(images) == 1:
        return images[0], labels[0]
    return np.concatenate(images), np.concatenate(labels)


def _class_names(path: Path, version: _Version) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    if version.names:
        names = _dictionary(path).get(version.names)
        if isinstance(names, list):
            names = [one.decode("latin-1") if isinstance(one, bytes) else one for one in names]
    else:
        try:
            with open_regular(path) as file:
                names = [line.strip() for line in file.read(_MOST_TEXT).splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise DataError(f"{path}: must be text, one name of a class in each line") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return check_class_names(f"{path}: the names of the classes", names, version.classes)


def _dictionary(path: Path) -> dict[str, object]:
    try:
        return read_dictionary(_content(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: is no file of CIFAR's Python version: {error}") from None


def _content(path: Path) -> bytes:
    if _size(path) > memory_limit()[0] // 4:  # the content, its parts and the images are in memory at once
        raise DataError(f"{path}: does not fit into memory")
    try:
        with open(path, "rb") as file:
            return file.read(_size(path) + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
