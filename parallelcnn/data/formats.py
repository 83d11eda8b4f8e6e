"""Find out in which format data lie at a path, and load them.

Each module in `readers` that loads whole data sets has two functions: `recognises(path)` looks at names and the first
bytes of files, and `load(path, name)` returns `DataSets`. To add a format, write such a module and add it to `READERS`.
"""

from pathlib import Path
from typing import Protocol

from parallelcnn.data.readers import cifar, hdf5, idx_folder, image_folder, npz, tables
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError, shown


class Reader(Protocol):
    """A module that reads one format."""

    FORMAT: str
    """What it reads, in messages."""

    def recognises(self, path: Path) -> bool:
        """Whether this seems to be data in its format. It may be wrong; then `load` says what is missing."""

    def load(self, path: Path, name: str) -> DataSets:
        """Load the data; DataError if they are incomplete or damaged.

        Args:
            name: of the data in reports.
        """


_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

# The first one that recognises the data loads them.
READERS: tuple[Reader, ...] = (idx_folder, cifar, npz, hdf5, tables)


def load_path(path: Path) -> DataSets:
    """Load the data at a path, a folder or a file.

    Raises:
        DataError: if there is nothing there, no reader recognises it, or it is damaged.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    for reader in READERS:
        if reader.recognises(path):
            try:
                return reader.load(path, str(path))
            except DataError as error:  # it may quote what is in a file
                raise DataError(shown(error)) from error.__cause__
    inside = [one for one in path.iterdir() if one.is_dir() and one.name[0] not in "._"] if path.is_dir() else []
    known = (image_folder.recognises, *(reader.recognises for reader in READERS))
    if len(inside) == 1 and any(recognises(inside[0]) for recognises in known):
        raise DataError(f"{path}: holds no data in a known format, but {inside[0]} does: name that folder")
    formats = "; ".join([image_folder.FORMAT, *(reader.FORMAT for reader in READERS)])
    packed = ": unpack it first" if path.suffix.lower() in _PACKED else ""
    raise DataError(f"{path}: holds no data in a known format{packed}. Known formats: {formats}")
