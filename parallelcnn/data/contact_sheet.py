"""A picture with some images of each class."""

from pathlib import Path

import numpy as np

from parallelcnn.data.dataset import Dataset
from parallelcnn.errors import DataError
from parallelcnn.pixels import contact_sheet

_SIDE, _GAP, _LINE = 64, 4, 16  # pixels of an image, between two, and of a line of text
_MOST_CLASSES = 100
_LONGEST_NAME = 60


def write_contact_sheet(path: Path, dataset: Dataset, each: int) -> None:
    """Write a PNG file with the first images of each class, in a row under the name of the class.

    Args:
        each: number of images of a class.

    Raises:
        DataError: if Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise DataError("a contact sheet needs Pillow: pip install 'parallelcnn[images]'") from None
    labels = np.unique(dataset.labels)[:_MOST_CLASSES]
    step = _LINE + _SIDE + 2 * _GAP
    sheet = Image.new("RGB", (_GAP + each * (_SIDE + _GAP), _GAP + len(labels) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        name = str(label) if dataset.class_names is None else dataset.class_names[label]
        # Pillow's own font has no other letters.
        draw.text(
            (_GAP, row * step + _GAP), name.encode("latin-1", "replace").decode("latin-1")[:_LONGEST_NAME], "black"
        )
        # Small images keep their pixels, so that one sees what the network sees.
        images = dataset.images[np.flatnonzero(dataset.labels == label)[:each]]
        shown = contact_sheet(images, dataset.input_range, columns=each, side=_SIDE, gap=_GAP, enlarge=True)
        sheet.paste(Image.fromarray(shown), (_GAP, row * step + _GAP + _LINE))
    sheet.save(path)
