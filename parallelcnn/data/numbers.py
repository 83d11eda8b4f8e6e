"""Checks of the numbers in images and labels: that they are finite, and of the scale that a network was trained on."""

import warnings

import numpy as np

from parallelcnn.errors import DataError, TrainingWarning

Array = np.ndarray
Range = tuple[float, float]  # the smallest and the largest number

_PIECE = 1 << 20  # numbers that are looked at together
_SAMPLES_OF_RANGE = 1000  # of larger data sets so many are looked at
_LARGEST = 100.0  # standardised numbers stay far below, unscaled pixels (up to 255) do not
_MARGIN = 0.5  # by how much of the range seen in training new numbers may lie outside of it
_MUCH_SMALLER = 0.02  # pixels in [0, 1] where training had [0, 255] are 0.004 times as large


def check_finite(what: str, numbers: Array) -> None:
    """Raise DataError if a number is NaN or infinite.

    Reads each number once, at the speed of memory: a sum of squares is not finite if one of the numbers is not.

    Args:
        what: how the message begins, such as "the training set: image".
        numbers: (N, ...), samples first; integers are always finite.
    """
    if not np.issubdtype(numbers.dtype, np.floating) or numbers.size == 0:
        return
    samples = max(1, _PIECE // (numbers.size // len(numbers)))
    for start in range(0, len(numbers), samples):
        piece = np.ascontiguousarray(numbers[start : start + samples])
        flat = piece.reshape(piece.size)
        with np.errstate(all="ignore"):
            total = np.dot(flat, flat)
        if np.isfinite(total) or np.isfinite(flat).all():  # the sum of large numbers overflows
            continue
        sample, *place = (int(index) for index in np.argwhere(~np.isfinite(piece))[0])
        where = f" at {tuple(place)}" if place else ""
        raise DataError(
            f"{what} {start + sample:,} holds {float(piece[(sample, *place)])}{where}, but every number must be finite"
        )


def range_of(images: Array) -> Range:
    """The smallest and the largest number as a network sees them: uint8 is scaled to [0, 1].

    Of large data sets some samples are looked at, evenly spaced.
    """
    if not np.issubdtype(images.dtype, np.floating) or images.size == 0:
        return 0.0, 1.0
    some = images[:: -(-len(images) // _SAMPLES_OF_RANGE)]
    return float(some.min()), float(some.max())


def warn_of_scale(train_range: Range, test_range: Range, *, stacklevel: int) -> None:
    """Warn of training images that are not scaled, and of test images of another scale."""
    low, high = train_range
    if max(-low, high) > _LARGEST:
        warnings.warn(
            f"the training images hold numbers from {low:g} to {high:g}, where a network learns well from numbers "
            f"near [0, 1] or [-1, 1]: scale them, or hand over pixels as uint8, which the network scales to [0, 1]",
            TrainingWarning,
            stacklevel=stacklevel + 1,
        )
    warn_of_another_range("the test images", test_range, train_range, stacklevel=stacklevel + 1)


def warn_of_another_range(what: str, found: Range, trained_on: Range | None, *, stacklevel: int) -> None:
    """Warn if images differ plainly in scale from those that the network was trained on; None: it is not known."""
    if trained_on is None:
        return
    (low, high), (trained_low, trained_high) = found, trained_on
    width = trained_high - trained_low
    outside = low < trained_low - _MARGIN * width or high > trained_high + _MARGIN * width
    much_smaller = 0 < max(-low, high) < _MUCH_SMALLER * max(-trained_low, trained_high)
    not_shifted = found == (0, 1) and trained_low < 0  # pixels, where training had standardised ones
    if outside or much_smaller or not_shifted:
        warnings.warn(
            f"{what} hold numbers from {low:g} to {high:g}, but the network was trained on numbers from "
            f"{trained_low:g} to {trained_high:g}: scale them in the same way (uint8 counts as 0 to 1)",
            TrainingWarning,
            stacklevel=stacklevel + 1,
        )


def check_images(images: Array, trained_on: Range | None, *, stacklevel: int) -> None:
    """Check images to predict from: raise DataError for numbers that are not finite, warn of another scale."""
    check_finite("image", images)
    warn_of_another_range("the images", range_of(images), trained_on, stacklevel=stacklevel + 1)
