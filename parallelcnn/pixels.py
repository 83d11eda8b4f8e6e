"""Samples as pixels, and several pictures beside each other."""

from collections.abc import Iterable, Sequence

import numpy as np

Array = np.ndarray


def as_pixels(image: Array, input_range: tuple[float, float], side: int, *, enlarge: bool = False) -> Array:
    """The pixels of one sample, (H, W) or (H, W, 3) uint8.

    Args:
        image: (H, W) or (C, H, W), uint8 or other numbers. Other than 1 or 3 channels are averaged.
        input_range: smallest and largest number of other types than uint8, shown black and white. NaN is shown as 0.
        side: largest height and width; larger images are averaged over squares of pixels.
        enlarge: whether to repeat the pixels of small images, as often as `side` allows.
    """
    pixels = np.asarray(image, np.float64)
    if image.dtype != np.uint8:
        low, high = input_range
        pixels = np.nan_to_num(np.clip(pixels, low, high))
        pixels = (pixels - low) * (255 / (high - low) if high > low else 0)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    pixels = pixels if len(pixels) == 3 else pixels.mean(axis=0, keepdims=True)
    longest = max(pixels.shape[1:])
    pixels = _averaged(pixels, -(-longest // side))
    shown = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if enlarge and longest < side:
        shown = shown.repeat(side // longest, axis=0).repeat(side // longest, axis=1)
    return shown[..., 0] if shown.shape[-1] == 1 else shown


def grid(pictures: Sequence[Array], columns: int, gap: int = 1, fill: int = 255) -> Array:
    """Pictures of one size side by side, in rows. There is a gap to the right of each and below it.

    Args:
        pictures: (H, W) or (H, W, channels) uint8.
        gap: width [pixels].
        fill: what gaps and empty places are filled with.
    """
    height, width, *channels = pictures[0].shape
    height, width = height + gap, width + gap
    sheet = np.full((-(-len(pictures) // columns) * height, columns * width, *channels), fill, np.uint8)
    for i, one in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height - gap, left : left + width - gap] = one
    return sheet


def contact_sheet(
    images: Iterable[Array],
    input_range: tuple[float, float],
    *,
    columns: int = 8,
    side: int = 64,
    gap: int = 1,
    enlarge: bool = False,
) -> Array:
    """Small copies of samples side by side, in rows of at most `columns`; see `as_pixels` and `grid`."""
    pictures = [as_pixels(image, input_range, side, enlarge=enlarge) for image in images]
    return grid(pictures, min(columns, len(pictures)), gap)


def _averaged(pixels: Array, factor: int) -> Array:
    """The means of squares of factor x factor pixels of (C, H, W)."""
    if factor == 1:
        return pixels
    channels, height, width = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (0, -height % factor), (0, -width % factor)), mode="edge")
    height, width = pixels.shape[1] // factor, pixels.shape[2] // factor
    return pixels.reshape(channels, height, factor, width, factor).mean(axis=(2, 4))
