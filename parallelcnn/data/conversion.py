"""Convert images and labels as others store them to those that `Dataset` takes, wherever nothing is lost by it.

Images become uint8, or float32 that is not scaled; channels come first. Labels of classes become integers from 0, and
labels of other kinds float32. What labels mean is a `Labelling`, learnt from the training set and applied to all sets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.arguments import described
from parallelcnn.data.dataset import check_class_names, check_label_range
from parallelcnn.errors import DataError, nearest_name
from parallelcnn.files.rows import Rows
from parallelcnn.resources import memory_limit
from parallelcnn.wording import in_units, listed

Array = np.ndarray

_MOST_CHANNELS = 4  # of images whose layout is clear: grey, grey with alpha, RGB, RGBA
_MOST_UNUSED = 1000  # more classes than that, and than samples, are no classes
_EXACT = 1 << 24  # the integers up to this are exact in float32
_PIECE = 1 << 22  # numbers converted or checked at a time


def channels_last(shape: Sequence[int]) -> bool:
    """Whether the channels of images of a shape (N, A, B, C) are the last axis, not the first after the samples.

    They are the axis of 1 to 4 if only one of the two has so few; otherwise the one that differs if the other two are
    equal, height and width; otherwise the last, as Keras stores them.
    """
    _, first, middle, last = shape
    few = [first <= _MOST_CHANNELS, last <= _MOST_CHANNELS]
    if few[0] != few[1]:
        return few[1]
    return first == middle or middle != last


def layout_of(shape: Sequence[int]) -> str:
    """The size of images in words, such as "28 x 28 x 3, channels last", of their shape with the samples first."""
    size = " x ".join(map(str, shape[1:]))
    if len(shape) == 2:
        return f"{size} features"
    return size if len(shape) == 3 else f"{size}, channels {'last' if channels_last(shape) else 'first'}"


def convert_images(what: str, images: Any, *, last: bool | None = None) -> Any:
    """Convert images to uint8 or float32, and to (N, H, W), (N, C, H, W) or (N, features).

    Floats become float32, if none of them is too large for it. Integers become uint8 if all are in [0, 255], and those
    of features, which are no pixels, float32 if they are exact in it. Truth values become 0 and 255.

    Args:
        what: what the images are, the beginning of a message.
        images: (N, H, W), (N, H, W, C), (N, C, H, W) or (N, features), of any type, byte order and strides; or a
            `Rows` of such images.
        last: whether the channels are the last axis; None: see `channels_last`.

    Returns:
        The array itself, or a view of it, if nothing is to be converted. `Rows` stay where they are.

    Raises:
        DataError: if they cannot be converted without loss, with advice; or if they do not fit into memory, and cannot
            stay in their file because they have to be converted.
    """
    in_file = isinstance(images, Rows)
    images = images if in_file else np.asarray(images)
    if images.ndim not in (2, 3, 4):
        raise DataError(
            f"{what} must have the shape (N, H, W), (N, H, W, C), (N, C, H, W) or (N, features), samples first, "
            f"got {images.shape}"
        )
    last = images.ndim == 4 and (channels_last(images.shape) if last is None else last)
    usable = images.dtype in (np.uint8, np.float32) and not last
    if not usable and (in_file or images.nbytes > memory_limit()[0]):
        raise DataError(
            f"{what}: the {in_units(images.nbytes)} do not fit into memory. They could stay in a .npy file if they "
            f"were stored as uint8 or float32, channels first"
        )
    if in_file:
        return images
    images = _convert_numbers(what, images)
    return np.moveaxis(images, 3, 1) if last else images


def _convert_numbers(what: str, images: Array) -> Array:
    kind = images.dtype.kind
    if kind == "b":
        return np.multiply(images, np.uint8(255), dtype=np.uint8)
    if kind == "f":
        return _as_float32(what, images)
    if kind not in "iu":
        raise DataError(f"{what} must be numbers, got {_kind_of(images)}")
    if images.dtype == np.uint8:
        return images
    low, high = _range_of(images)
    if images.ndim == 2:
        if max(-low, high) > _EXACT:
            raise DataError(
                f"{what}: whole numbers must lie between -{_EXACT:,} and {_EXACT:,}, which float32 holds exactly, "
                f"got {low:,} to {high:,}: scale them and store floats"
            )
        return images.astype(np.float32)
    if low < 0 or high > 255:
        advice = "(images / 65535)" if images.dtype.kind == "u" and images.dtype.itemsize == 2 else "images"
        raise DataError(
            f"{what}: whole numbers must lie in [0, 255], got {images.dtype} from {low:,} to {high:,}: "
            f"scale them and store floats, such as {advice}.astype(np.float32)"
        )
    return images.astype(np.uint8)


def _as_float32(what: str, numbers: Array) -> Array:
    """The numbers as float32 in the machine's byte order; DataError if one is too large. NaN and infinity remain."""
    if numbers.dtype.itemsize <= 4:
        return numbers.astype(np.float32, copy=False)
    converted = np.empty(numbers.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for some in _pieces(numbers):
            converted[some] = numbers[some]
            too_large = np.isinf(converted[some]) & np.isfinite(numbers[some])
            if too_large.any():
                raise DataError(
                    f"{what}: numbers must fit into float32, at most 3.4e38, got {numbers[some][too_large][0]:g}"
                )
    return converted


def _range_of(numbers: Array) -> tuple[int, int]:
    if numbers.size == 0:
        return 0, 0
    lows, highs = zip(*((int(numbers[some].min()), int(numbers[some].max())) for some in _pieces(numbers)), strict=True)
    return min(lows), max(highs)


def _pieces(numbers: Array) -> Iterator[slice]:
    """Slices of samples: a large memory-mapped array is not held in memory at once."""
    samples = max(1, _PIECE // max(1, numbers.size // max(1, len(numbers))))
    return (slice(start, start + samples) for start in range(0, len(numbers), samples))


def _kind_of(array: Array) -> str:
    """The type of an array that is none of numbers, in words."""
    names = {"O": "Python objects", "U": "strings", "S": "strings", "V": "named columns", "c": "complex numbers"}
    hint = ": images of one size are stored by np.stack(images)" if array.dtype.kind == "O" else ""
    return names.get(array.dtype.kind, str(array.dtype)) + hint


@dataclass(frozen=True)
class Labelling:
    """What labels mean. `labelling_of` learns it from the labels of a training set; `convert` applies it.

    Attributes:
        kind: "integers", "names", "one-hot" or "numbers".
        classes: number of classes; None for numbers: regression, or several labels for each sample.
        class_names: names of the classes; None: they have none.
    """

    kind: str
    classes: int | None
    class_names: tuple[str, ...] | None = None

    def convert(self, what: str, labels: Any) -> Array:
        """Convert labels to int64 (N,) in [0, classes), or if `classes` is None, to float32 (N,) or (N, outputs).

        Args:
            what: what the labels are, the beginning of a message.

        Raises:
            DataError: if they are of another kind, or of a class that the training set does not have.
        """
        labels = _flat(what, labels)
        if self.kind == "names":
            return self._numbers_of_names(what, labels)
        if labels.dtype.kind not in "biuf":
            raise DataError(f"{what} must be {self.kind} as the training labels are, got {_kind_of(labels)}")
        if self.classes is None:
            return _as_float32(what, labels) if labels.dtype.kind == "f" else labels.astype(np.float32)
        if self.kind == "one-hot":
            if not _is_one_hot(labels) or labels.shape[1] != self.classes:
                raise DataError(
                    f"{what} must be rows of {self.classes} numbers, zeros and a single one, as the training labels "
                    f"are, got {described(labels)}"
                )
            return labels.argmax(axis=1)
        if labels.ndim != 1 or not _are_whole(labels):
            raise DataError(
                f"{what} must be integers of shape (N,) as the training labels are, got {described(labels)}"
            )
        check_label_range(what, labels, self.classes)
        return labels.astype(np.int64)

    def _numbers_of_names(self, what: str, labels: Array) -> Array:
        names = self.class_names or ()
        written = as_strings(what, labels)
        found, places = np.unique(written, return_inverse=True)
        known = {name: number for number, name in enumerate(names)}
        for name in found.tolist():
            if name not in known:
                raise DataError(f"{what}: {name!r} is no class of the training set: {nearest_name(name, names)}")
        return np.array([known[name] for name in found.tolist()], np.int64)[places.reshape(labels.shape)]


def labelling_of(what: str, labels: Any, class_names: Any = None) -> Labelling:
    """Find out what the labels of a training set mean.

    * Strings are names of classes, numbered in sorted order. Integers and truth values are numbers of classes.
    * Rows of zeros and a single one (one-hot) are classes. Rows of zeros and ones are several labels for each sample.
    * Floats are classes if they are exactly 0, 1, ..., without gaps; otherwise they are outputs of a regression.

    Args:
        what: what the labels are, the beginning of a message.
        labels: (N,), (N, 1) or (N, outputs).
        class_names: the names of the classes that the source gives, not used for numbers; None: none.

    Raises:
        DataError: if they have no such meaning, with advice.
    """
    labels = _flat(what, labels)
    if len(labels) == 0:
        raise DataError(f"{what} holds no labels")
    kind = labels.dtype.kind
    if kind in "USO":
        names = np.unique(as_strings(what, labels)).tolist()
        known = class_names is not None and set(names) <= set(class_names)
        return _with_names(what, "names", len(names), class_names if known else names)
    if kind not in "biuf":
        raise DataError(f"{what} must be numbers or names, got {_kind_of(labels)}")
    if labels.ndim == 2:
        if _is_one_hot(labels):
            return _with_names(what, "one-hot", labels.shape[1], class_names)
        if kind != "f" and not _is_binary(labels):
            raise DataError(
                f"{what}: rows of several integers must be zeros and ones, got {labels.min()} to {labels.max()}: "
                f"for regression store floats"
            )
        return Labelling("numbers", None)
    if kind == "f" and not (_are_whole(labels) and _have_no_gaps(labels)):
        return Labelling("numbers", None)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= max(_MOST_UNUSED, len(labels)):
        raise DataError(
            f"{what} must be the numbers of classes from 0, got {low} to {high}: "
            f"np.unique(labels, return_inverse=True) numbers classes; for regression store floats"
        )
    if low > 0:
        raise DataError(f"{what} must start at 0, got {low} to {high}: subtract {low}, as labels - {low} does")
    return _with_names(what, "integers", 2 if kind == "b" else high + 1, class_names)


def _with_names(what: str, kind: str, classes: int, class_names: Any) -> Labelling:
    names = None
    if class_names is not None:
        if len(class_names) < classes:
            raise DataError(f"{what}: {classes} classes, but only {len(class_names)} names: {listed(class_names)}")
        classes = len(class_names)
        names = check_class_names(f"{what}: the names of the classes", class_names, classes)
    if classes < 2:
        raise DataError(f"{what} must name at least 2 classes, all are {names[0] if names else 0}")
    return Labelling(kind, classes, names)


def _flat(what: str, labels: Any) -> Array:
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.dtype.kind not in "biuf"):
        raise DataError(f"{what} must have the shape (N,), (N, 1) or (N, outputs), got {labels.shape}")
    return labels


def as_strings(what: str, labels: Array) -> Array:
    """Names as strings; DataError if some are none, empty, or not UTF-8."""
    if labels.dtype.kind == "U":
        names: list[Any] = labels.tolist()
    elif labels.dtype.kind in "SO":
        try:
            names = [one.decode() if isinstance(one, bytes) else one for one in labels.tolist()]
        except UnicodeDecodeError as error:
            raise DataError(f"{what}: names must be UTF-8, got {error.object!r}") from None
    else:
        raise DataError(f"{what} must be names as the training labels are, got {described(labels)}")
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{what}: every sample must have the name of a class, got {name!r} at sample {place}")
    return np.array(names, str)


def _are_whole(labels: Array) -> bool:
    return labels.dtype.kind != "f" or bool((np.isfinite(labels) & (np.rint(labels) == labels)).all())


def _have_no_gaps(labels: Array) -> bool:
    """Whether whole numbers are 0 or 1, and those that follow, without gaps."""
    found = np.unique(labels)
    return found[0] in (0, 1) and len(found) == found[-1] - found[0] + 1


def _is_binary(labels: Array) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _is_one_hot(labels: Array) -> bool:
    return labels.ndim == 2 and _is_binary(labels) and bool((labels.sum(axis=1) == 1).all())
