"""Decode one image file to pixels of a given size. Pillow reads the formats."""

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.arguments import described
from parallelcnn.data.dataset import RESIZE, Array
from parallelcnn.errors import DataError, InputError, shown

COLORS = ("rgb", "gray")
# In lower case.
ENDINGS = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"),
    ".webp",
)
_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_MOST_PIXELS = 89_478_485  # of a file: Pillow warns of more, because a small file can claim any size
_LARGEST_SIDE = 4096  # of images for a network


@dataclass(frozen=True)
class ImageOptions:
    """How images of any size and kind become arrays of one shape.

    Args:
        image_size: rows and columns, or one number for both; None: derived from the images.
        resize: how an image of another size is brought to this size. "crop": scale it until it covers the size, and cut
            off what is too much on both sides. "pad": scale it until it fits into the size, and add black on both
            sides. "stretch": change rows and columns as needed.
        color: "rgb" or "gray"; None: gray if all images are gray.
        skip_broken: leave out images that cannot be decoded, instead of an error.

    Raises:
        InputError: if a value is not one of these.
    """

    image_size: int | tuple[int, int] | None = None
    resize: str = "crop"
    color: str | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        size: Any = self.image_size
        sides = size if isinstance(size, tuple | list) else (size, size)
        good = [isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST_SIDE for side in sides]
        if size is not None and good != [True, True]:
            raise InputError(
                f"image_size must be one or two integers from 1 to {_LARGEST_SIDE}, rows and columns, "
                f"got {described(size)}"
            )
        object.__setattr__(self, "image_size", None if size is None else tuple(sides))
        if self.resize not in RESIZE:
            raise InputError(f"resize must be one of {', '.join(RESIZE)}, got {described(self.resize)}")
        if self.color not in (None, *COLORS):
            raise InputError(f"color must be one of {', '.join(COLORS)}, got {described(self.color)}")


def is_image(file: str) -> bool:
    """Whether the name of a file is that of an image."""
    return file.lower().endswith(ENDINGS)


class Look(NamedTuple):
    """What the header of an image file says."""

    rows: int
    columns: int
    is_gray: bool


def look(file: str | Path) -> Look:
    """Read the header of an image file.

    Raises:
        DataError: if it is no image, or too large.
    """
    with _open(file) as picture:
        columns, rows = picture.size
        turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation: rows and columns swapped
        return Look(*((columns, rows) if turned else (rows, columns)), _is_gray(picture))


def decode(file: str | Path, shape: tuple[int, int, int], resize: str) -> Array:
    """The pixels of an image file: the first picture of an animation, turned as its EXIF data say, on white where it is
    transparent.

    Args:
        shape: (C, H, W) of the result; C is 1 for gray and 3 for RGB.
        resize: see `ImageOptions`.

    Returns:
        (C, H, W) uint8.

    Raises:
        DataError: if it is no image, is damaged or too large.
    """
    from PIL import Image, ImageOps

    C, H, W = shape
    mode = "L" if C == 1 else "RGB"
    with _open(file) as picture:
        # JPEG files can be decoded at a fraction of their size: photos of 12 megapixels decode 5 times as fast.
        picture.draft(mode, (2 * max(H, W), 2 * max(H, W)))
        image: Any = ImageOps.exif_transpose(picture)
        image = _converted(image, mode)
        if image.size != (W, H):
            method = Image.Resampling.BILINEAR
            if resize == "stretch":
                image = image.resize((W, H), method)
            else:
                image = {"crop": ImageOps.fit, "pad": ImageOps.pad}[resize](image, (W, H), method)
        pixels = np.asarray(image, np.uint8)
    return pixels.reshape(H, W, C).transpose(2, 0, 1)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Context without Pillow's warnings of odd metadata and large images. Only the main thread may enter it, because
    Python's filters of warnings belong to the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _open(file: str | Path) -> Iterator[Any]:
    """The opened image. Whatever Pillow raises for it becomes a DataError that names the file."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs Pillow: pip install 'parallelcnn[images]'") from None
    too_large = f"{file}: is too large: an image must have at most {_MOST_PIXELS:,} pixels"
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for its writer
            raise DataError(shown(f"{file}: cannot be decoded: must be a file, not a directory, a pipe or a device"))
        with Image.open(file) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise DataError(too_large)
            yield picture
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(too_large) from None
    except FileNotFoundError:
        raise DataError(f"{file}: does not exist") from None
    except Exception as error:  # decoders of damaged files raise nearly everything
        reason = "is no image that Pillow can read" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise DataError(shown(f"{file}: cannot be decoded: {reason or type(error).__name__}")) from None


def _is_gray(picture: Any) -> bool:
    if picture.mode == "P":
        colors = np.asarray(picture.getpalette() or (), np.uint8)
        colors = colors[: colors.size // 3 * 3].reshape(-1, 3)
        return bool((colors == colors[:, :1]).all())
    return picture.mode in _GRAY_MODES


def _converted(image: Any, mode: str) -> Any:
    """The image in mode L or RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow would cut 16-bit numbers off at 255
        numbers = np.asarray(image).astype(np.int64)
        image = Image.fromarray((numbers.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no known scale")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)
