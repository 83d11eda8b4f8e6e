"""Check that images and labels are finite, and that images have the shape and scale that a network expects."""

import warnings
from typing import Any

import numpy as np

from parallelcnn.arguments import as_array, described
from parallelcnn.errors import DataError, InputError, ShapeError, TrainingWarning

Array = np.ndarray
Range = tuple[float, float]  # the smallest and the largest number

_PIECE = 1 << 20  # numbers checked at a time
_SAMPLES_OF_RANGE = 1000  # samples read of a larger data set
_LARGEST = 100.0  # standardised numbers are far smaller, unscaled pixels (up to 255) are not
_MARGIN = 0.5  # new numbers may lie outside the training range by this fraction of it
_MARGIN_OF_FEATURES = 10.0  # the same for samples that are no images, among which outliers are common
_IMAGES_RULE = "uint8, or floats taken as they are"
_MUCH_SMALLER = 0.02  # pixels in [0, 1] where training had [0, 255] are 0.004 times as large


def check_finite(what: str, numbers: Array) -> None:
    """Raise DataError if a number is NaN or infinite.

    Each number is read once, at the speed of memory: a sum of squares is not finite if one of the numbers is not.

    Args:
        what: the beginning of the message, such as "the training set: image".
        numbers: (N, ...), samples first; integers are always finite.
    """
    if numbers.dtype.kind != "f" or numbers.size == 0:
        return
    samples = max(1, _PIECE // (numbers.size // len(numbers)))
    for start in range(0, len(numbers), samples):
        piece = np.ascontiguousarray(numbers[start : start + samples])
        flat = piece.reshape(piece.size)
        with np.errstate(all="ignore"):
            total = np.dot(flat, flat)
        if np.isfinite(total) or np.isfinite(flat).all():  # a sum of large finite numbers may overflow
            continue
        sample, *place = (int(index) for index in np.argwhere(~np.isfinite(piece))[0])
        where = f" at {tuple(place)}" if place else ""
        raise DataError(
            f"{what} {start + sample:,} holds {float(piece[(sample, *place)])}{where}, but every number must be finite"
        )


def range_of(images: Array) -> Range:
    """The smallest and largest number of images, with uint8 scaled to [0, 1] as in a network.

    For large data sets only some samples, evenly spaced, are read.
    """
    if images.dtype.kind != "f" or images.size == 0:
        return 0.0, 1.0
    some = images[:: -(-len(images) // _SAMPLES_OF_RANGE)]
    return float(some.min()), float(some.max())


def warn_of_scale(train_range: Range, test_range: Range, input_shape: tuple[int, ...], *, stacklevel: int) -> None:
    """Warn if training images are not scaled, or if test images have another scale."""
    low, high = train_range
    if max(-low, high) > _LARGEST:
        warnings.warn(
            f"the training images hold numbers from {low:g} to {high:g}, where a network learns well from numbers "
            f"near [0, 1] or [-1, 1]: scale them, or hand over pixels as uint8, which the network scales to [0, 1]",
            TrainingWarning,
            stacklevel=stacklevel + 1,
        )
    warn_of_another_range("the test images", test_range, train_range, input_shape, stacklevel=stacklevel + 1)


def warn_of_another_range(
    what: str, found: Range, trained_on: Range | None, input_shape: tuple[int, ...], *, stacklevel: int
) -> None:
    """Warn if images clearly differ in scale from the training images; `trained_on` None: not known.

    The numbers of samples that are no images may have any distribution: they only differ if some are far outside.
    """
    if trained_on is None:
        return
    (low, high), (trained_low, trained_high) = found, trained_on
    are_images = len(input_shape) > 1
    margin = (_MARGIN if are_images else _MARGIN_OF_FEATURES) * (trained_high - trained_low)
    differs = low < trained_low - margin or high > trained_high + margin
    if are_images:
        much_smaller = 0 < max(-low, high) < _MUCH_SMALLER * max(-trained_low, trained_high)
        # Plain pixels after training on standardised ones, which are hardly ever exactly 0.
        not_shifted = low == 0 < high <= 1 and trained_low < 0
        differs = differs or much_smaller or not_shifted
    if differs:
        warnings.warn(
            f"{what} hold numbers from {low:g} to {high:g}, but the network was trained on numbers from "
            f"{trained_low:g} to {trained_high:g}: {_scale_hint(found, trained_on)} (uint8 counts as 0 to 1)",
            TrainingWarning,
            stacklevel=stacklevel + 1,
        )


def _scale_hint(found: Range, trained_on: Range) -> str:
    """How to scale images like the training images."""
    pixels_found, pixels_trained = (low >= 0 and 1 < high <= 255 for low, high in (found, trained_on))
    units_found, units_trained = (low >= 0 and high <= 1 for low, high in (found, trained_on))
    if pixels_found and units_trained:
        return "divide them by 255, or hand over pixels as uint8"
    if units_found and pixels_trained:
        return "multiply them by 255, or write images.astype(np.float32) for pixels in uint8"
    return "scale them in the same way"


def check_images(images: Any, input_shape: tuple[int, ...], trained_on: Range | None, *, stacklevel: int) -> Array:
    """Convert images for a prediction to an array; InputError unless they are finite and have the network's input
    shape, samples first. Warns about another scale.
    """
    given = images
    images = as_array("images", given, _IMAGES_RULE)
    shape = images.shape[1:]
    if images.ndim == 0 or (shape != input_shape and (1, *shape) != input_shape):
        got = described(images if images.ndim else given) + shape_hint(images.shape, input_shape)
        raise ShapeError(f"the network takes images of shape (N, {str(input_shape)[1:]}, got {got}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(f"images must be {_IMAGES_RULE}, got {images.dtype}{dtype_hint(images, trained_on)}")
    check_finite("image", images)
    warn_of_another_range("the images", range_of(images), trained_on, input_shape, stacklevel=stacklevel + 1)
    return images


def shape_hint(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> str:
    """A hint on how to correct images of a wrong shape."""
    if shape == input_shape or (1, *shape) == input_shape:
        return ": for one image write images[None]"
    if len(input_shape) == 3 and shape[1:] == (*input_shape[1:], input_shape[0]):
        return ": channels come first, write images.transpose(0, 3, 1, 2)"
    return ""


def dtype_hint(images: Array, trained_on: Range | None = None) -> str:
    """A hint on how to correct images of a wrong type, for a network that was trained on numbers in this range."""
    as_they_are = ": write images.astype(np.float32)"
    if images.dtype.kind in "fb" or trained_on not in (None, (0, 1)):
        return as_they_are
    if images.dtype.kind not in "iu" or images.size == 0:
        return ""
    low, high = int(images.min()), int(images.max())
    if low >= 0 and high <= 1:  # a mask, or pixels nearly all black
        return f"{as_they_are} for numbers from 0 to 1, images.astype(np.uint8) for pixels from 0 to 255"
    if low >= 0 and high <= 255:
        return ": write images.astype(np.uint8)"
    if low >= 0 and high <= 65535:
        return ": write (images / 65535).astype(np.float32) for pixels of 16 bits"
    return as_they_are
