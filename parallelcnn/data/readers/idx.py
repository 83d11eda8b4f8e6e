"""Read IDX files, the format of MNIST, plain or gzipped, and folders of four IDX files.

An IDX file consists of two zero bytes, a byte for the type of its values, a byte for the number of dimensions, one
big-endian 32-bit length per dimension, and the values, last dimension fastest. No memory is allocated only because a
header claims a size.
"""

import contextlib
import os
import stat
import warnings
import zlib
from collections.abc import Sequence
from io import BufferedReader
from math import prod
from pathlib import Path

import numpy as np

from parallelcnn.arguments import as_path
from parallelcnn.data.dataset import Array, Dataset, check_label_range
from parallelcnn.data.readers.inflate import Inflated
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError, TrainingWarning, shown
from parallelcnn.resources import memory_limit

FORMAT = "IDX, the four files of MNIST and its variants in a folder"

PathLike = str | os.PathLike[str]

_UNSIGNED_BYTE = 0x08
_OTHER_TYPES = {
    0x09: "signed bytes",
    0x0B: "16-bit integers",
    0x0C: "32-bit integers",
    0x0D: "32-bit floats",
    0x0E: "64-bit floats",
}
_MAX_DIMENSIONS = 4
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 15
# The largest compression factor of gzip (zlib technical details, "maximum compression factor").
_MOST_INFLATED = 1032

# The files of a folder: names without the ending, and number of dimensions.
_PARTS = (("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1))
_HOLDS = {1: "labels", 3: "images"}


def read_idx(path: PathLike) -> Array:
    """Read one IDX file of unsigned bytes, plain or gzipped.

    The first bytes decide whether it is gzipped, not the name: some browsers unpack a file and keep its name.

    Returns:
        A uint8 array of the shape in the header, 1 to 4 dimensions, none of them 0. The file is read, not
        memory-mapped: if a mapped file is shortened, the process is killed without a message.

    Raises:
        DataError: if the file cannot be read, or differs from its header.
    """
    path = as_path("path", path)
    try:
        with open_content(path) as content:
            return _read_array(path, content)
    except (zlib.error, EOFError) as error:
        raise DataError(f"{path}: its gzip compression is damaged: {_reason(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from error
    except MemoryError as error:
        raise DataError(f"{path}: what it holds does not fit into memory") from error


def open_content(path: PathLike) -> Inflated | BufferedReader:
    """Open a plain or gzipped file for reading its uncompressed contents.

    Raises:
        DataError: if it is not a regular file, or its name ends in .gz and it is neither gzip nor IDX.
        OSError: if it cannot be opened.
    """
    # Opening a named pipe could wait for a writer for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: must be a file, not a folder or a device")
    with open(path, "rb") as file:
        start = file.read(2)
    if start == _GZIP_MAGIC:
        return Inflated(path)
    if os.fspath(path).endswith(".gz") and start not in (b"", b"\0\0"):
        raise DataError(
            f"{path}: is no gzip file: one starts with the bytes {_GZIP_MAGIC.hex(' ')}, this one with {start.hex(' ')}"
        )
    return open(path, "rb")


def load_idx_folder(
    folder: PathLike, name: str | None = None, *, classes: int | None = None
) -> tuple[Dataset, Dataset]:
    """Load a training and a test set from a folder of four IDX files with MNIST's names.

    The names are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`. Each may end in `.gz`, have `.idx` instead of `-idx`, or be in a folder of the same name.
    If there are several, the first readable file is used, with a warning.

    Args:
        folder: the folder of the files.
        name: name of the data in reports; None: the folder as written.
        classes: number of classes; None: the largest training label plus one.

    Returns:
        (train, test), images (N, H, W) uint8 and labels (N,) int64.

    Raises:
        DataError: if a file is missing or damaged, or the four files do not fit together.
    """
    folder = as_path("folder", folder)
    found = _find_files(folder)
    # Checked before the contents are read, since files that do not fit together may be large.
    _check_shapes([_claimed_shape(paths, ndim) for paths, (_, ndim) in zip(found, _PARTS, strict=True)])
    parts = [_read_part(paths, ndim) for paths, (_, ndim) in zip(found, _PARTS, strict=True)]
    _check_shapes([(path, values.shape) for path, values in parts])
    paths, (train_images, train_labels, test_images, test_labels) = zip(*parts, strict=True)
    others = [path for some in found for path in some if path not in paths]
    if others:
        taken, not_taken = (", ".join(os.path.relpath(path, folder) for path in some) for some in (paths, others))
        message = f"{folder}: some files are there more than once; taken: {taken}; not taken: {not_taken}"
        warnings.warn(shown(message), TrainingWarning, stacklevel=2)
    if classes is None:
        classes = int(train_labels.max()) + 1
        if classes < 2:
            raise DataError(f"{paths[1]}: labels must name at least 2 classes, all are 0")
    check_label_range(paths[1], train_labels, classes)
    check_label_range(paths[3], test_labels, classes)
    name = name or str(folder)
    return Dataset(train_images, train_labels, classes, name), Dataset(test_images, test_labels, classes, name)


def recognises(path: Path) -> bool:
    """Whether a folder holds a file with a name as of MNIST's files."""
    return path.is_dir() and any("idx" in name and "ubyte" in name for name in os.listdir(path))


def load(path: Path, name: str) -> DataSets:
    """As `load_idx_folder`, for `data.formats`."""
    train, test = load_idx_folder(path, name)
    return DataSets(train, test=test, found=f"IDX files: {len(train):,} and {len(test):,} images")


def _find_files(folder: Path) -> list[list[str]]:
    """Paths of training images, training labels, test images and test labels in a folder; for each, best first."""
    try:
        os.listdir(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: must be a folder of four IDX files, but is a file") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {_reason(error)}") from error
    found, missing = [], []
    for part, ndim in _PARTS:
        # Prefer a .gz to its unpacked file, because its checksum shows damage.
        names = [f"{part}{mark}idx{ndim}-ubyte{end}" for end in (".gz", "") for mark in ("-", ".")]
        paths = [os.path.join(folder, name) for name in names]
        paths += [os.path.join(folder, name, name) for name in names]  # some programs unpack archives so
        paths = [path for path in paths if os.path.lexists(path) and not os.path.isdir(path)]
        found.append(paths)
        missing += [] if paths else [names[2]]
    if missing:
        raise DataError(
            f"{folder}: misses {', '.join(missing)} (each looked for plain and with .gz, "
            "and with . in place of - before idx)"
        )
    return found


def _read_array(path: PathLike, content: Inflated | BufferedReader) -> Array:
    shape = _read_shape(path, content)
    claimed, size = prod(shape), os.fstat(content.fileno()).st_size
    says = f"its header says {_times(shape)} = {claimed:,} bytes"
    if isinstance(content, BufferedReader):
        held = size - content.tell()
        if held != claimed:
            raise DataError(f"{path}: is {'truncated' if held < claimed else 'too long'}: {says}, but {held:,} follow")
    elif claimed > _MOST_INFLATED * size:
        most = f"{_MOST_INFLATED * size:,}"
        raise DataError(f"{path}: is truncated: {says}, but a gzip file of {size:,} bytes holds at most {most}")
    if claimed > memory_limit()[0]:  # Linux may allocate more memory than exists, and then kills the process
        raise MemoryError
    if isinstance(content, BufferedReader):
        return np.fromfile(content, np.uint8).reshape(shape)
    values = np.empty(claimed, np.uint8)
    held = 0
    while held < claimed and (piece := content.read1(min(_PIECE_BYTES, claimed - held))):
        values[held : held + len(piece)] = np.frombuffer(piece, np.uint8)
        held += len(piece)
    # Reading on detects surplus data, and makes zlib compare the checksum at the end.
    surplus = content.read(1)
    if held < claimed:
        raise DataError(f"{path}: is truncated: {says}, but {held:,} follow")
    if surplus:
        raise DataError(f"{path}: is too long: {says}, but more follow")
    return values.reshape(shape)


def _read_shape(path: PathLike, content: Inflated | BufferedReader) -> tuple[int, ...]:
    """Read the shape from the header, and check every byte of the header."""
    magic = content.read(4)
    if not magic:
        raise DataError(f"{path}: is empty")
    ndim = magic[3] if len(magic) == 4 else 0
    if magic[:2] != b"\0\0" or not 1 <= ndim <= _MAX_DIMENSIONS:
        raise DataError(
            f"{path}: is no IDX file: one starts with the bytes 00 00 08 and a number of "
            f"dimensions from 1 to {_MAX_DIMENSIONS}, this one with {magic.hex(' ')}"
        )
    if magic[2] != _UNSIGNED_BYTE:
        held = _OTHER_TYPES.get(magic[2], "an unknown type")
        raise DataError(
            f"{path}: must hold unsigned bytes (type 0x08), but its header says {held} (type 0x{magic[2]:02x})"
        )
    lengths = content.read(4 * ndim)
    if len(lengths) < 4 * ndim:
        raise DataError(
            f"{path}: is truncated: a header of {ndim} dimensions takes {4 + 4 * ndim} bytes, "
            f"the file holds {4 + len(lengths)}"
        )
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    if 0 in shape:
        raise DataError(f"{path}: holds nothing: its header says {_times(shape)}")
    return shape


def _read_part(paths: list[str], ndim: int) -> tuple[str, Array]:
    """Read the first valid file, of images or labels according to the number of dimensions."""
    failures = []
    for path in paths:
        try:
            values = read_idx(path)
            if values.ndim != ndim and values.ndim in _HOLDS:
                raise DataError(
                    f"{path}: holds {_HOLDS[values.ndim]} where {_HOLDS[ndim]} are expected: were the files swapped?"
                )
            if values.ndim != ndim:
                raise DataError(f"{path}: {_HOLDS[ndim]} must have {ndim} dimensions, got {values.ndim}")
        except DataError as error:
            failures.append(error)
            continue
        for failure in failures:
            warnings.warn(shown(f"{failure}; taking {path} instead"), TrainingWarning, stacklevel=3)
        # numpy's default integer, so that all labels use the same compiled kernel.
        return path, values.astype(np.int64) if ndim == 1 else values
    raise failures[0]


def _claimed_shape(paths: list[str], ndim: int) -> tuple[str, tuple[int, ...]] | None:
    """The first file whose header is valid and has `ndim` dimensions, and its claimed shape; None if there is none."""
    for path in paths:
        with contextlib.suppress(DataError, OSError, EOFError, zlib.error), open_content(path) as content:
            shape = _read_shape(path, content)
            if len(shape) == ndim:
                return path, shape
    return None


def _check_shapes(parts: Sequence[tuple[str, tuple[int, ...]] | None]) -> None:
    """Raise DataError unless the numbers of images and labels and all image sizes match, as far as they are known."""
    for images, labels in (parts[:2], parts[2:]):
        if images and labels and images[1][0] != labels[1][0]:
            raise DataError(
                f"{labels[0]}: every image must have one label, got {labels[1][0]:,} labels for the "
                f"{images[1][0]:,} images of {images[0]}"
            )
    train, _, test, _ = parts
    if train and test and train[1][1:] != test[1][1:]:
        raise DataError(
            f"{test[0]}: test images must have the size of the training images, "
            f"{_times(train[1][1:])}, got {_times(test[1][1:])}"
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)


def _reason(error: BaseException) -> str:
    """The reason of an error, without the path that some system errors repeat."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
