"""Read folders of four IDX files: MNIST and what is distributed in its form.

* Fashion-MNIST has MNIST's names. Its classes are named if the folder's name says that it is that.
* EMNIST's files begin with emnist- and the name of a split. Rows and columns of its images are swapped, a text file
  maps labels to characters, and the labels of the split letters start at 1. See Cohen et al. 2017, arXiv:1702.05373.
* QMNIST's files begin with qmnist-. Its labels are rows of eight integers, of which the first is the class. See Yadav
  and Bottou 2019, arXiv:1905.10498.
"""

import contextlib
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parallelcnn.arguments import as_path
from parallelcnn.data.assembly import counted
from parallelcnn.data.conversion import Array, Labelling, channels_last, convert_images, labelling_of, layout_of
from parallelcnn.data.dataset import Dataset, check_class_names
from parallelcnn.data.readers.idx import PathLike, open_content, read_header, read_idx, reason, times
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError, TrainingWarning, shown
from parallelcnn.files.regular import open_regular

FORMAT = "IDX, the four files of MNIST, Fashion-MNIST, EMNIST or QMNIST in a folder"

_FILE = re.compile(
    r"(?P<source>(?:[\w-]+-)?)(?P<role>train|t10k|test)-(?P<kind>images|labels)(?P<mark>[-.])"
    r"idx(?P<ndim>\d)-(?P<type>[a-z]+)(?P<end>\.gz)?"
)
_HOLDS = {1: "labels", 3: "images"}
# The files of a folder, in the order of `_check_shapes`: role, kind, and dimensions that a missing file is named with.
_PARTS = (("train", "images", 3), ("train", "labels", 1), ("test", "images", 3), ("test", "labels", 1))
_MOST_TEXT = 1 << 16  # bytes of a mapping of labels to characters

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class _Found(NamedTuple):
    """A file by its name."""

    path: str
    ndim: int


def load_idx_folder(
    folder: PathLike, name: str | None = None, *, classes: int | None = None
) -> tuple[Dataset, Dataset]:
    """Load a training and a test set from a folder of four IDX files with the names of MNIST, EMNIST or QMNIST.

    MNIST's names are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`. Each may end in `.gz`, have `.idx` instead of `-idx`, or be in a folder of the same name.
    If there are several, the first readable file is used, with a warning.

    Args:
        folder: the folder of the files; or one of the files, if the folder holds several data sets.
        name: name of the data in reports; None: the folder as written.
        classes: number of classes; None: the largest training label plus one.

    Returns:
        (train, test), images (N, H, W) or (N, C, H, W), and labels (N,) int64.

    Raises:
        DataError: if a file is missing or damaged, or the four files do not fit together.
    """
    path = as_path("folder", folder)
    return _load(path, name or str(path), classes, stacklevel=3)[:2]


def recognises(path: Path) -> bool:
    """Whether a folder, or `raw` in it, holds a file with a name as of MNIST's files, or the path is such a file."""
    if path.is_dir():
        return bool(_names_in(path) or _names_in(path / "raw"))
    return bool(_FILE.fullmatch(path.name))


def load(path: Path, name: str) -> DataSets:
    """As `load_idx_folder`, for `data.formats`."""
    if path.is_dir() and not _names_in(path):
        path = path / "raw"  # where torchvision keeps them
    train, test, layout = _load(path, name, None, stacklevel=4)
    words = f"IDX files: {counted({'train': train, 'test': test})}, {layout}, {train.classes} classes"
    return DataSets(train, test=test, found=words)


def _load(path: Path, name: str, classes: int | None, stacklevel: int) -> tuple[Dataset, Dataset, str]:
    folder, source = _source_at(path)
    found = _find_files(folder, source)
    # Checked before the contents are read, since files that do not fit together may be large.
    _check_shapes([_claimed_shape(files) for files in found])
    notes: list[str] = []
    parts = [_read_part(files, notes) for files in found]
    _check_shapes([(path, values.shape) for path, values in parts])
    paths, (train_images, train_labels, test_images, test_labels) = zip(*parts, strict=True)
    others = [file.path for files in found for file in files if file.path not in paths]
    if others:
        taken, not_taken = (", ".join(os.path.relpath(one, folder) for one in some) for some in (paths, others))
        notes.append(f"{folder}: some files are there more than once; taken: {taken}; not taken: {not_taken}")
    for note in notes:
        warnings.warn(shown(note), TrainingWarning, stacklevel=stacklevel)
    class_names = None
    if source == "qmnist-":
        train_labels, test_labels = (
            labels[:, 0] if labels.ndim == 2 else labels for labels in (train_labels, test_labels)
        )
    elif source.startswith("emnist-"):
        train_images, test_images = train_images.swapaxes(1, 2), test_images.swapaxes(1, 2)
        first, class_names = _emnist_classes(folder / f"{source}mapping.txt", source)
        train_labels, test_labels = train_labels.astype(np.int64) - first, test_labels.astype(np.int64) - first
    elif "fashion" in "/".join(folder.absolute().parts[-3:]).lower() and train_labels.max() == 9:
        class_names = _FASHION
    if classes is None:
        labelling = labelling_of(paths[1], train_labels, class_names)
    else:
        labelling = Labelling("integers", classes, class_names if class_names and len(class_names) == classes else None)
    shape = train_images.shape
    last = len(shape) == 4 and channels_last(shape)

    def dataset(images: Array, labels: Array, image_path: str, label_path: str) -> Dataset:
        images, labels = convert_images(image_path, images, last=last), labelling.convert(label_path, labels)
        return Dataset(images, labels, labelling.classes, name, class_names=labelling.class_names)

    train = dataset(train_images, train_labels, paths[0], paths[1])
    return train, dataset(test_images, test_labels, paths[2], paths[3]), layout_of(shape)


def _names_in(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if _FILE.fullmatch(name)]
    except OSError:
        return []


def _source_at(path: Path) -> tuple[Path, str]:
    """The folder of the files, and what their names begin with: "" as for MNIST, "emnist-letters-"."""
    named = _FILE.fullmatch(path.name)
    if named and not path.is_dir():
        return path.parent, named["source"]
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{path}: must be a folder of four IDX files, but is a file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    matches = {name: match["source"] for name in sorted(names) if (match := _FILE.fullmatch(name))}
    sources = sorted(set(matches.values()))
    if len(sources) > 1:
        first = next(name for name, source in matches.items() if source == sources[-1])
        raise DataError(
            f"{path}: holds several data sets ({', '.join(one.rstrip('-') or 'MNIST' for one in sources)}): "
            f"name a file of the one you mean, such as {path / first}"
        )
    return path, sources[0] if sources else ""


def _find_files(folder: Path, source: str) -> list[list[_Found]]:
    """Training images, training labels, test images and test labels in a folder; for each, the best file first."""
    candidates: dict[tuple[str, str], list[tuple[tuple[bool, ...], _Found]]] = {}
    for name in os.listdir(folder):
        match = _FILE.fullmatch(name)
        if match and match["source"] == source:
            path, nested = os.path.join(folder, name), False
            if os.path.isdir(path):  # some programs unpack archives so
                path, nested = os.path.join(path, name), True
            if os.path.lexists(path) and not os.path.isdir(path):
                # Prefer a .gz to its unpacked file, because its checksum shows damage.
                rank = (nested, match["end"] is None, match["mark"] != "-")
                key = ("train" if match["role"] == "train" else "test", match["kind"])
                candidates.setdefault(key, []).append((rank, _Found(path, int(match["ndim"]))))
    found, missing = [], []
    for role, kind, ndim in _PARTS:
        found.append([file for _, file in sorted(candidates.get((role, kind), []))])
        if not found[-1]:
            missing.append(f"{source}{role if source or role == 'train' else 't10k'}-{kind}-idx{ndim}-ubyte")
    if missing:
        raise DataError(
            f"{folder}: misses {', '.join(missing)} (each looked for plain and with .gz, "
            "and with . in place of - before idx)"
        )
    return found


def _emnist_classes(path: Path, source: str) -> tuple[int, tuple[str, ...] | None]:
    """The first label, and the names of the classes from there on, of a split of EMNIST.

    Each line of the file holds a label and the codes of its characters.
    """
    if not path.exists():
        if source == "emnist-letters-":  # its labels start at 1
            return 1, tuple(chr(code) + chr(code + 32) for code in range(ord("A"), ord("Z") + 1))
        return 0, None
    try:
        with open_regular(path) as file:
            rows = [[int(word) for word in line.split()] for line in file.read(_MOST_TEXT).splitlines() if line.strip()]
        names = {label: "".join(map(chr, codes)) for label, *codes in rows}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, OverflowError):
        names = {}
    first = min(names, default=0)
    if first not in (0, 1) or sorted(names) != list(range(first, first + len(names))) or len(names) < 2:
        raise DataError(
            f"{path}: each line must hold a label, from 0 or 1 without gaps, and the codes of its characters"
        )
    ordered = [names[label] for label in sorted(names)]
    return first, check_class_names(f"{path}: the characters", ordered, len(ordered))


def _read_part(files: list[_Found], notes: list[str]) -> tuple[str, Array]:
    """Read the first valid file, of images or labels according to the number of dimensions in its name. Damaged files
    before it are added to `notes`.
    """
    failures = []
    for path, ndim in files:
        try:
            values = read_idx(path)
            if values.ndim != ndim and values.ndim in _HOLDS and ndim in _HOLDS:
                raise DataError(
                    f"{path}: holds {_HOLDS[values.ndim]} where {_HOLDS[ndim]} are expected: were the files swapped?"
                )
            if values.ndim != ndim:
                kind = "images" if ndim > 2 else "labels"
                raise DataError(f"{path}: {kind} must have {ndim} dimensions, got {values.ndim}")
        except DataError as error:
            failures.append(error)
            continue
        notes += [f"{failure}; taking {path} instead" for failure in failures]
        return path, values
    raise failures[0]


def _claimed_shape(files: list[_Found]) -> tuple[str, tuple[int, ...]] | None:
    """The first file whose header is valid and has the dimensions of its name, and its claimed shape; None: there is
    none.
    """
    for path, ndim in files:
        with contextlib.suppress(DataError, OSError, EOFError, zlib.error), open_content(path) as content:
            shape = read_header(path, content).shape
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
            f"{times(train[1][1:])}, got {times(test[1][1:])}"
        )
