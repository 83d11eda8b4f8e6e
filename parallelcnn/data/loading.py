"""Load data by name, or from a path of any known format."""

import os
from pathlib import Path
from typing import Any

from parallelcnn.arguments import as_path, described
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.digits import load_digits
from parallelcnn.data.formats import load_path
from parallelcnn.data.images import DecodedImages, load_images, plan_images
from parallelcnn.data.mnist import load_mnist
from parallelcnn.data.readers import image_folder
from parallelcnn.data.readers.decoding import ImageOptions, without_warnings
from parallelcnn.data.readers.idx import PathLike
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError, InputError, nearest_name

DATA_NAMES = ("digits", "mnist")


def load_data(
    name: PathLike,
    data_dir: PathLike | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: str = "crop",
    color: str | None = None,
    skip_broken: bool = False,
) -> tuple[Dataset, Dataset]:
    """Load a training and a test set.

    A folder of images is decoded once, into a file of the cache. The guide's page arrays-and-tables describes the
    other formats.

    Args:
        name: "digits", "mnist", or the path of a folder or file. Write "./mnist" for a folder named mnist.
        data_dir: folder of MNIST's files; only for "mnist".
        image_size: for a folder of images, as the next three: rows and columns, or one number for both. None: those of
            the images if all have the same and at most 128 x 128, otherwise 64 x 64.
        resize: how images are brought to this size: "crop", "pad" or "stretch"; see the guide.
        color: "rgb" or "gray". None: grey if all images are.
        skip_broken: whether to leave out images that cannot be decoded.

    Returns:
        (train, test). Where there is no test set, it is the validation set, or a fifth of the training set, drawn at
        random.

    Raises:
        InputError: if an argument has another type or value.
        DataError: if there is no such data set, or its files are missing or damaged.
    """
    options = ImageOptions(image_size, resize, color, skip_broken)
    with without_warnings():
        plan = plan_of_images(name, options, data_dir)
        sets = None if plan is None else load_images(plan)
    sets = sets or load_sets(name, data_dir, options)
    sets = sets.with_test_set()
    assert sets.test is not None
    return sets.train, sets.test


def plan_of_images(name: PathLike, options: ImageOptions, data_dir: PathLike | None = None) -> DecodedImages | None:
    """How the images of a folder are decoded; None if `name` is something else."""
    path = _path(name, data_dir)
    return plan_images(path, options) if path is not None and image_folder.recognises(path) else None


def load_sets(name: PathLike, data_dir: PathLike | None = None, options: ImageOptions | None = None) -> DataSets:
    """As `load_data`, for everything but folders of images."""
    path = _path(name, data_dir)
    if options not in (None, ImageOptions()):
        given = ", ".join(f"{field} {value!r}" for field, value in _differing(options))
        raise InputError(f"{os.fspath(name)}: is no folder of images, for which alone {given} can be set")
    if name == "mnist":
        train, test = load_mnist(data_dir)
        return DataSets(train, test=test)
    if path is not None:
        return load_path(path)
    train, test = load_digits()
    return DataSets(train, test=test)


def _path(name: PathLike, data_dir: PathLike | None) -> Path | None:
    """The path that a name means; None for the name of a known data set.

    Raises:
        InputError: if it has another type.
        DataError: if it is neither.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"name must be one of {', '.join(DATA_NAMES)}, or a path, got {described(name)}")
    text = os.fspath(name)
    if data_dir is not None and name != "mnist":
        raise DataError(
            f"data_dir ({os.fspath(data_dir)}) is where the data set 'mnist' lies, "
            f"but the data set asked for is {text!r}"
        )
    if name in DATA_NAMES:
        return None
    if os.path.exists(text) or os.sep in text or text.startswith("~"):
        return as_path("name", name)
    raise DataError(f"no data set and no path is named {text!r}: {nearest_name(text, DATA_NAMES)}")


def _differing(options: Any) -> list[tuple[str, Any]]:
    """The options that are not the default."""
    return [(name, value) for name, value in vars(options).items() if value != vars(ImageOptions())[name]]
