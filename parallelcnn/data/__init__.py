"""Data sets, readers of their file formats, and the order of samples in training."""

import os

from parallelcnn.arguments import as_path, described
from parallelcnn.data.dataset import Dataset as Dataset
from parallelcnn.data.digits import load_digits as load_digits
from parallelcnn.data.formats import load_path
from parallelcnn.data.mnist import load_mnist as load_mnist
from parallelcnn.data.readers.idx import PathLike
from parallelcnn.data.readers.idx import load_idx_folder as load_idx_folder
from parallelcnn.errors import DataError, InputError, nearest_name

DATA_NAMES = ("digits", "mnist")


def load_data(name: PathLike, data_dir: PathLike | None = None) -> tuple[Dataset, Dataset]:
    """Load a training and a test set.

    Args:
        name: "digits", "mnist", or a folder of IDX files. Write "./mnist" for a folder named mnist.
        data_dir: folder of MNIST's files; only for "mnist".

    Returns:
        (train, test).

    Raises:
        InputError: if `name` has another type.
        DataError: if there is no such data set, or its files are missing or damaged.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"name must be one of {', '.join(DATA_NAMES)}, or a folder, got {described(name)}")
    name = os.fspath(name)
    if name == "mnist":
        return load_mnist(data_dir)
    if data_dir is not None:
        raise DataError(
            f"data_dir ({os.fspath(data_dir)}) is where the data set 'mnist' lies, "
            f"but the data set asked for is {name!r}"
        )
    if name == "digits":
        return load_digits()
    if os.path.exists(name) or os.sep in name or name.startswith("~"):
        sets = load_path(as_path("name", name)).with_test_set()
        assert sets.test is not None
        return sets.train, sets.test
    raise DataError(f"no data set and no folder is named {name!r}: {nearest_name(name, DATA_NAMES)}")
