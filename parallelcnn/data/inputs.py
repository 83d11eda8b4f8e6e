"""The images to predict from: image files, folders of them, and arrays in .npy and .npz files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.data.conversion import convert_images
from parallelcnn.data.dataset import Array
from parallelcnn.data.readers.decoding import ENDINGS, decode, is_image
from parallelcnn.data.readers.image_folder import files_below
from parallelcnn.data.readers.named_arrays import images_in
from parallelcnn.data.readers.npz import names_in, open_npy, read_array, shape_in
from parallelcnn.errors import DataError, InputError, ShapeError
from parallelcnn.wording import listed

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Item:
    """One image: a file, or a row of the array in a file."""

    file: Path
    row: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.row is None else f"{self.file}[{self.row}]"


def find_items(paths: Iterable[Path]) -> Iterator[Item]:
    """The images at these paths, in order; those of a folder sorted by name, with those of the folders in it.

    Raises:
        DataError: if there is nothing at a path, or nothing that can be predicted from.
    """
    for path in paths:
        if path.is_dir():
            found = [Path(file) for file in files_below(str(path)) if is_image(file)]
            if not found:
                raise DataError(f"{path}: must hold images, but holds none")
            yield from map(Item, found)
        elif path.suffix.lower() in _ARRAYS:
            yield from (Item(path, row) for row in range(_rows_in(path)))
        elif is_image(path.name):
            if not path.exists():
                raise DataError(f"{path}: there is no such file")
            yield Item(path)
        else:
            known = ", ".join((*ENDINGS, *_ARRAYS))
            what = f"is neither a folder nor a file named {known}" if path.exists() else "does not exist"
            raise DataError(f"{path}: {what}")


def read_items(
    items: Sequence[Item], shape: tuple[int, ...], resize: str, arrays: dict[Path, Array] | None = None
) -> tuple[list[Array | None], list[str]]:
    """The images of items.

    Args:
        shape: of an image for the network; images from files are brought to it.
        resize: see `ImageOptions`.
        arrays: the arrays that earlier calls have opened, to which this call adds; None: opened for this call.

    Returns:
        the images, None for those that cannot be read; and why they cannot.

    Raises:
        ShapeError: if the network takes no images, but vectors.
    """
    images: list[Array | None] = []
    failures: list[str] = []
    arrays = {} if arrays is None else arrays
    for item in items:
        file = item.file
        if item.row is not None:
            if file not in arrays:
                arrays[file] = _as_taken(file, _open_array(file), shape)
            image = arrays[file][item.row]
            is_finite = bool(np.isfinite(image).all())
            images.append(image if is_finite else None)
            failures += [] if is_finite else [f"{item}: every number must be finite"]
            continue
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ShapeError(
                f"{file}: the network takes inputs of shape {shape}, not grey or colour images: give arrays"
            )
        try:
            images.append(decode(file, shape, resize))
        except DataError as error:
            images.append(None)
            failures.append(str(error))
    return images, failures


def _open_array(path: Path) -> Any:
    """The images in an .npy file, mapped into memory, or an .npz file, as they are stored."""
    return open_npy(path) if path.suffix.lower() == ".npy" else read_array(path, _name_in(path))


def _rows_in(path: Path) -> int:
    """The number of images in an .npy or .npz file, of which only the header is read."""
    shape = open_npy(path).shape if path.suffix.lower() == ".npy" else shape_in(path, _name_in(path))
    if len(shape) < 2:
        raise DataError(f"{path}: must hold images, samples first, got an array of shape {shape}")
    return shape[0]


def _name_in(path: Path) -> str:
    """The name of the array of images in an .npz file."""
    names = names_in(path)
    name = images_in(names) or (names[0] if len(names) == 1 else None)
    if name is None:
        raise DataError(f"{path}: must hold one array, or one called images, got {listed(names) or 'none'}")
    return name


def _as_taken(path: Path, array: Any, shape: tuple[int, ...]) -> Any:
    """The images of an array as bytes or float32, with the channels first, as the network takes them.

    Raises:
        ShapeError: if the network takes images of another shape.
    """
    taken = [shape, (*shape[1:], shape[0])] + [shape[1:]] * (shape[0] == 1)
    if array.shape[1:] not in taken:
        hint = f": an array of one image is stored as {(1, *array.shape)}" if array.shape in taken else ""
        raise ShapeError(f"{path}: the network takes images of shape (N, {str(shape)[1:]}, got {array.shape}{hint}")
    last = array.shape[1:] != shape and array.shape[1:] == (*shape[1:], shape[0])
    return convert_images(str(path), array, last=last)


def read_images(files: Sequence[str | Path], network: Any) -> Array:
    """Read image files as a network takes them.

    Args:
        files: paths.
        network: a `NetworkHandler`, whose input shape and way to resize the images get.

    Returns:
        (N, C, H, W) uint8, for `predict`.

    Raises:
        InputError: if `files` is a single path.
        DataError: if a file is no image, or damaged.
        ShapeError: if the network takes no images.

    Example:
        >>> network.predict_classes(read_images(["cat.jpg"], network))
    """
    if isinstance(files, str | Path):
        raise InputError(f"files must be a list of paths, such as [{str(files)!r}], got {str(files)!r}")
    images, failures = read_items([Item(Path(file)) for file in files], network.input_shape, network.resize or "crop")
    if failures:
        raise DataError(failures[0])
    none = np.empty((0, *network.input_shape), np.uint8)
    return np.concatenate([none, *(image[np.newaxis] for image in images if image is not None)])
