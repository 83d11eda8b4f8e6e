"""Describe a data set before training: what is in it, and what is wrong with it."""

import hashlib
from typing import NamedTuple

import numpy as np

from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sets import DataSets
from parallelcnn.wording import plural

_PIECE = 1024  # images read at a time
_NAMED = 10  # classes that are named


class Duplicate(NamedTuple):
    """Two samples with the same pixels.

    Attributes:
        first, second: set and number of each, such as ("train", 7).
        same_label: whether they have the same label.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    same_label: bool


def named_sets(sets: DataSets) -> dict[str, Dataset]:
    """The data sets that exist, by name."""
    found = {"train": sets.train, "validation": sets.validation, "test": sets.test}
    return {name: one for name, one in found.items() if one is not None}


def class_counts(dataset: Dataset) -> list[int]:
    """The number of samples of each class."""
    assert dataset.classes is not None
    return np.bincount(dataset.labels, minlength=dataset.classes).tolist()


def missing_classes(dataset: Dataset) -> str:
    """The classes that have no sample, as the end of a sentence: "of the class cat"; "" if there is none."""
    names = dataset.class_names or tuple(map(str, range(dataset.classes or 0)))
    missing = [] if dataset.classes is None else [names[i] for i, n in enumerate(class_counts(dataset)) if n == 0]
    if not missing:
        return ""
    rest = len(missing) - _NAMED
    more = f" and {plural(rest, 'other', 'others')}" if rest > 0 else ""
    return f"of the class{'es' if len(missing) > 1 else ''} {', '.join(missing[:_NAMED])}{more}"


def range_of_numbers(dataset: Dataset) -> tuple[float, float]:
    """The smallest and the largest number of the images, with uint8 scaled to [0, 1]."""
    scale = 1 / 255 if dataset.images.dtype == np.uint8 else 1.0
    low, high = np.inf, -np.inf
    for start in range(0, len(dataset), _PIECE):
        piece = dataset.images[start : start + _PIECE]
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
    return scale * low, scale * high


def duplicates(sets: DataSets) -> list[Duplicate]:
    """The samples that have the same numbers as an earlier one, in the order of the sets."""
    seen: dict[bytes, tuple[str, int]] = {}
    found = []
    named = named_sets(sets)
    for name, dataset in named.items():
        for number in range(len(dataset)):
            digest = hashlib.blake2b(np.ascontiguousarray(dataset.images[number]).data, digest_size=16).digest()
            first = seen.setdefault(digest, (name, number))
            if first != (name, number):
                earlier = named[first[0]].labels[first[1]]
                same = bool(np.array_equal(earlier, dataset.labels[number]))
                found.append(Duplicate(first, (name, number), same))
    return found
