"""Data sets of named arrays, from any source of them: which name means what.

A name consists of a set (train, val, test) and of what is in the array (images, labels), in any order: x_train and
y_train as of Keras, train_images and train_labels as of MedMNIST. Without a set it is the training set: data and
target, as of scikit-learn. target_names are the names of classes.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from parallelcnn.data.assembly import ROLES, Part, assemble
from parallelcnn.data.conversion import as_strings
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError
from parallelcnn.wording import listed

_ROLE_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "validation"
)
# If a source has several of a kind, the first in this order is taken: scikit-learn stores images both as images and,
# flattened, as data.
_IMAGES = ("images", "image", "x", "data", "features", "inputs")
_LABELS = ("labels", "label", "y", "targets", "target")
_CLASS_NAMES = ("target_names", "class_names", "label_names")
_JOINED = re.compile(rf"([xy])({'|'.join(_ROLE_OF)})|({'|'.join(_ROLE_OF)})([xy])")
_CONVENTIONS = "x_train and y_train (Keras), train_images and train_labels (MedMNIST) or data and target (scikit-learn)"


def is_known(name: str) -> bool:
    """Whether this is the name of an array of images or labels."""
    return _meaning(name) is not None


def images_in(names: Iterable[str]) -> str | None:
    """The array of images to predict from: those of the test set if there are several; None: no name is known."""
    roles = ("test", "", "validation", "train")
    found = []
    for one in names:
        role, kind, rank = _meaning(one) or ("", "", 0)
        found += [(roles.index(role), rank, one)] if kind == "images" else []
    return min(found)[2] if found else None


def load_named(path: Path, name: str, source: str, names: Iterable[str], read: Callable[[str], Any]) -> DataSets:
    """Make data sets of arrays, of which only those with a known name are read.

    Args:
        path: of the source, for messages.
        name: of the data in reports.
        source: the format, for `DataSets.found`.
        names: of all arrays.
        read: reads the array of a name.

    Raises:
        DataError: if there are no images or labels to train on, or they do not fit together.
    """
    names = list(names)
    slots: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for one in names:
        if meaning := _meaning(one):
            role, kind, rank = meaning
            slots.setdefault((role, kind), []).append((rank, one))
    chosen = {slot: min(found)[1] for slot, found in slots.items()}
    if any(role for role, _ in chosen):  # then arrays of no set are something else
        chosen = {slot: one for slot, one in chosen.items() if slot[0]}
    else:
        chosen = {("train", kind): one for (_, kind), one in chosen.items()}
    parts: dict[str, Callable[[], Part]] = {}
    for role, word in ROLES.items():
        images, labels = chosen.get((role, "images")), chosen.get((role, "labels"))
        if images and labels:
            parts[role] = partial(_read_part, path, images, labels, read)
        elif images or labels or role == "train":
            missing = " and ".join(kind for kind, one in (("images", images), ("labels", labels)) if not one)
            raise DataError(
                f"{path}: misses an array of {word} {missing}; it holds {listed(names) or 'no arrays'}. "
                f"Known names: {_CONVENTIONS}"
            )
    named = [one for known in _CLASS_NAMES for one in names if one.lower() == known]
    class_names = as_strings(f"{path}: {named[0]}", read(named[0])).tolist() if named else None
    return assemble(name, source, parts, class_names)


def _read_part(path: Path, images: str, labels: str, read: Callable[[str], Any]) -> Part:
    return Part(read(images), read(labels), f"{path}: {images}", f"{path}: {labels}")


def _meaning(name: str) -> tuple[str, str, int] | None:
    """(role or "", "images" or "labels", rank among several) of an array's name; None: another array."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if len(words) == 1 and (joined := _JOINED.fullmatch(words[0])):
        words = [word for word in joined.groups() if word]
    roles = [_ROLE_OF[word] for word in words if word in _ROLE_OF]
    rest = [word for word in words if word not in _ROLE_OF]
    if len(roles) > 1 or len(rest) != 1:
        return None
    for kind, known in (("images", _IMAGES), ("labels", _LABELS)):
        if rest[0] in known:
            return (roles or [""])[0], kind, known.index(rest[0])
    return None
