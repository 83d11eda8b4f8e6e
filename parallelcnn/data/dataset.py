"""A data set: images and labels in memory, samples first."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from parallelcnn.arguments import as_array, check_integer, described
from parallelcnn.data.numbers import Range, check_finite, dtype_hint, range_of
from parallelcnn.errors import DataError, InputError
from parallelcnn.files.rows import ChosenRows, Rows, choose
from parallelcnn.notebook import picture, table
from parallelcnn.pixels import contact_sheet
from parallelcnn.png import png

Array = np.ndarray

RESIZE = ("crop", "pad", "stretch")

_ROWS, _THUMBNAILS = 20, 24  # that notebooks show

_LABELS_RULE = "an array of numbers (np.unique(labels, return_inverse=True) numbers names)"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set of images and labels.

    Args:
        images: (N, H, W), (N, C, H, W) or (N, features); uint8, which networks scale to [0, 1] during loading, or
            float32, which is not scaled. Those that `load_data` maps into memory are read from their file when used.
        labels: (N,) integers in [0, classes), stored as int64; for regression, floats of shape (N,) or (N, outputs).
        classes: number of classes; None for regression.
        name: name of the data set in reports.
        role: "test", or "val" for a validation set: its results during training are called test_loss or val_loss, ...
        sample_weight: (N,) finite numbers of at least 0, by which the losses of the samples are multiplied, in training
            and in evaluation; stored as float64. The sum is divided by the number of samples, not by the sum of the
            weights. Metrics do not use them. None: all 1.
        class_names: the name of each class, in the order of the labels; None: the classes have no names.
        resize: how the images were brought to one size, "crop", "pad" or "stretch"; None: they were not.

    Raises:
        InputError: if images or labels are not such arrays, or do not fit together.

    Example:
        >>> train_set = Dataset(np.zeros((500, 3, 32, 32), np.uint8), np.arange(500) % 10, classes=10)
    """

    images: Array
    labels: Array
    classes: int | None
    name: str = "data"
    role: str = "test"
    sample_weight: Array | None = None
    class_names: tuple[str, ...] | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        images: Any = self.images
        if not isinstance(images, Rows):
            images = as_array(f"{self.name}: images", images, "an array of numbers, samples first")
        labels = as_array(f"{self.name}: labels", self.labels, _LABELS_RULE)
        if images.ndim not in (2, 3, 4) or images.dtype not in (np.uint8, np.float32):
            swapped = images.ndim == 1 and labels.ndim in (2, 3, 4)
            hint = ": were images and labels swapped?" if swapped else dtype_hint(images)
            raise DataError(
                f"{self.name}: images must be uint8 or float32 of shape (N, H, W), (N, C, H, W) or (N, features), "
                f"got {images.dtype} of shape {images.shape}{hint}"
            )
        if labels.ndim not in (1, 2):
            raise DataError(f"{self.name}: labels must be of shape (N,) or (N, outputs), got {labels.shape}")
        if len(images) != len(labels):
            raise DataError(f"{self.name}: {len(images)} images but {len(labels)} labels")
        if len(images) == 0:
            raise DataError(f"{self.name}: holds no samples")
        if self.role not in ("test", "val"):
            raise DataError(f"{self.name}: role must be test or val, got {described(self.role)}")
        if self.classes is not None:
            classes: Any = self.classes
            if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 1:
                raise DataError(
                    f"{self.name}: classes must be an integer of at least 1, or None for regression, "
                    f"got {described(classes)}"
                )
            object.__setattr__(self, "classes", classes := int(classes))
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise DataError(
                    f"{self.name}: labels of {classes} classes must be integers of shape (N,), "
                    f"got {labels.dtype} of shape {labels.shape}{_label_hint(labels, classes)}"
                )
            check_label_range(self.name, labels, classes)
        if self.class_names is not None:
            names = check_class_names(f"{self.name}: class_names", self.class_names, self.classes)
            object.__setattr__(self, "class_names", names)
        if self.resize not in (None, *RESIZE):
            raise DataError(f"{self.name}: resize must be one of {', '.join(RESIZE)}, got {described(self.resize)}")
        # One array type for all inputs, so that kernels are compiled once.
        if not isinstance(images, Rows):
            object.__setattr__(self, "images", np.ascontiguousarray(images))
        with np.errstate(over="ignore"):  # `check_numbers` finds the infinity
            labels = np.ascontiguousarray(labels, np.float32 if self.classes is None else np.int64)
        object.__setattr__(self, "labels", labels)
        if self.sample_weight is not None:
            object.__setattr__(self, "sample_weight", _checked_weight(self.name, self.sample_weight, len(labels)))

    def __repr__(self) -> str:
        what = "regression" if self.classes is None else f"{self.classes} classes"
        return f"<Dataset {self.name!r}: {len(self):,} {self.images.dtype} images {self.images.shape[1:]}, {what}>"

    def __len__(self) -> int:
        return len(self.images)

    def _repr_html_(self) -> str:
        """For notebooks: samples of each class, or the range of the targets, and some images."""
        caption = repr(self).strip("<>")
        if self.classes is None:
            targets = self.labels.reshape(len(self), -1)
            columns = zip(targets.min(axis=0), targets.mean(axis=0), targets.max(axis=0), strict=True)
            rows: list[tuple[object, ...]] = [
                (i, *(f"{one:.4g}" for one in column)) for i, column in enumerate(columns)
            ]
            shown = table(caption, ("target", "smallest", "mean", "largest"), _abridged(rows))
            first = np.arange(min(len(self), _THUMBNAILS))
        else:
            counts = np.bincount(self.labels, minlength=self.classes)
            names = self.class_names or range(self.classes)
            shown = table(caption, ("class", "samples"), _abridged(list(zip(names, counts.tolist(), strict=True))))
            first = np.unique(self.labels, return_index=True)[1][:_THUMBNAILS]
        if self.images.ndim == 2:
            return shown
        sheet = contact_sheet(self.images[first], self.input_range)
        what = "the first images" if self.classes is None else "the first image of each class"
        return shown + picture(png(sheet), what, max(sheet.shape[1], 400))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample for a network: grey images get a channel axis, (1, H, W)."""
        shape = self.images.shape[1:]
        return (1, *shape) if len(shape) == 2 else shape

    def check_numbers(self, role: str = "data set") -> None:
        """Raise DataError, which names the data set's `role`, if a number in images or labels is not finite.

        Later calls do not read the data again.
        """
        if "_checked" not in self.__dict__:
            check_finite(f"{role} {self.name!r}: image", self.images)
            check_finite(f"{role} {self.name!r}: the label of sample", self.labels)
            object.__setattr__(self, "_checked", True)

    def without_copies(self) -> "Dataset":
        """The same data set, whose parts after `split` share its images, as `Rows`, instead of copying them."""
        images: Any = self.images if isinstance(self.images, Rows) else ChosenRows(self.images)
        return replace(self, images=images)

    def split(self, fraction: float, seed: int = 0) -> "tuple[Dataset, Dataset]":
        """Split off a validation set, to choose settings without looking at the test set.

        The samples are drawn at random, from each class in proportion to its size, and keep their order. The same seed
        gives the same split on every rank and machine.

        Args:
            fraction: size of the validation set as a fraction of this data set, above 0 and below 1.
            seed: seed of the random choice.

        Returns:
            The rest, to train on, and the validation set, whose `role` is "val".

        Raises:
            InputError: if an argument is outside its range, or one of the two sets would be empty.

        Example:
            >>> train_part, validation_set = train_set.split(0.1)
            >>> history = pc.train(network, train_part, validation_set, optimizer, epochs=3, batch_size=100)
            >>> history["val_accuracy"][-1], pc.evaluate(network, test_set).accuracy
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
            raise InputError(f"fraction must be a number above 0 and below 1, got {described(fraction)}")
        check_integer("seed", seed, 0)
        count = round(float(fraction) * len(self))
        if not 0 < count < len(self):
            raise InputError(f"{self.name}: a fraction of {fraction} of {len(self)} samples leaves one part empty")
        labels = np.zeros(len(self), np.int64) if self.classes is None else self.labels
        chosen = draw(labels, count, seed)

        def part(some: Array, name: str, role: str) -> Dataset:
            weight = None if self.sample_weight is None else self.sample_weight[some]
            images, labels = choose(self.images, some), self.labels[some]
            return replace(self, images=images, labels=labels, name=name, role=role, sample_weight=weight)

        return part(~chosen, self.name, self.role), part(chosen, f"{self.name}-validation", "val")

    def balanced_class_weight(self) -> tuple[float, ...]:
        """Class weights for `SoftmaxCrossEntropy` that give all classes the same influence.

        They are samples / (classes * samples of the class), as for scikit-learn's class_weight="balanced".

        Raises:
            DataError: if the labels are not classes, or a class has no samples.
        """
        if self.classes is None:
            raise DataError(f"{self.name}: balanced_class_weight takes labels of classes, but classes is None")
        counts = np.bincount(self.labels, minlength=self.classes)
        if not counts.all():
            raise DataError(
                f"{self.name}: balanced_class_weight takes samples of every class, got none of {counts.argmin()}"
            )
        return tuple((len(self) / (self.classes * counts)).tolist())

    @cached_property
    def input_range(self) -> Range:
        """The smallest and largest number of the images; see `range_of`."""
        return range_of(self.images)


def draw(labels: Array, count: int, seed: int) -> Array:
    """Draw samples at random, from each class in proportion to its size; returns a mask, (N,).

    One sample of each class is drawn only after all others, so that training knows every class.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # The samples of each class, in random order, at equal distances in [0, 1]. The first `count` hold the same fraction
    # of every class, up to one sample.
    position = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        position[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
        position[of_class[-1]] = 1
    chosen = np.zeros(len(labels), bool)
    chosen[order[np.argsort(position[order], kind="stable")[:count]]] = True
    return chosen


def _abridged(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """The rows of a table in a notebook; of many the first ones."""
    hidden = len(rows) - _ROWS
    return rows if hidden <= 0 else [*rows[:_ROWS], (f"and {hidden:,} more",)]


def check_class_names(what: str, names: Any, classes: int | None) -> tuple[str, ...]:
    """The names of classes as a tuple; DataError unless they are as many different strings as there are classes."""
    found = () if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    known = [name for name in found if isinstance(name, str) and name]
    if classes is None or len(set(known)) != classes or len(found) != classes:
        wanted = "None where labels are not classes" if classes is None else f"{classes} different names"
        raise DataError(f"{what} must be {wanted}, got {described(names)}")
    return tuple(map(str, known))  # a numpy.str_ would be written as such


def check_label_range(owner: str, labels: Array, classes: int) -> None:
    """Raise DataError unless all labels lie in [0, classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"{owner}: labels must lie in [0, {classes}), got {labels[wrong[0]]} at sample {wrong[0]}")


def _checked_weight(owner: str, weight: Any, samples: int) -> Array:
    """The sample weights as contiguous float64; DataError unless there is one for each sample, none below 0."""
    weight = as_array(f"{owner}: sample_weight", weight, "an array of numbers")
    if weight.shape != (samples,):
        raise DataError(f"{owner}: sample_weight must be {samples} numbers, one for each sample, got {weight.shape}")
    wrong = np.flatnonzero(~((weight >= 0) & (weight <= np.finfo(np.float32).max)))
    if len(wrong):
        raise DataError(
            f"{owner}: sample_weight must hold finite numbers of at least 0, "
            f"got {weight[wrong[0]]} at sample {wrong[0]}"
        )
    return np.ascontiguousarray(weight, np.float64)


def _label_hint(labels: Array, classes: int) -> str:
    """A hint on how to correct labels of a wrong shape or type."""
    if labels.shape[1:] == (1,):
        return ": write labels.ravel()"
    if labels.shape[1:] == (classes,):
        return ": for one-hot vectors write labels.argmax(axis=1)"
    if labels.ndim == 1 and labels.dtype.kind in "fb":
        return ": write labels.astype(int), or classes=None for regression"
    return ""
