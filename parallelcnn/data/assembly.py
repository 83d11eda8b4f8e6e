"""Make data sets of the arrays in a file: convert them, and check that the sets fit together."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from parallelcnn.data.conversion import channels_last, convert_images, labelling_of, layout_of
from parallelcnn.data.dataset import Array, Dataset
from parallelcnn.data.sets import ROLES, DataSets
from parallelcnn.errors import DataError
from parallelcnn.files.rows import FileRows
from parallelcnn.wording import plural


class Part(NamedTuple):
    """Images and labels of one set as they are stored.

    Attributes:
        image_source: where the images are, the beginning of a message, such as "data.npz: x_train".
        label_source: where the labels are.
    """

    images: Array | FileRows
    labels: Array
    image_source: str
    label_source: str


def assemble(
    name: str, source: str, parts: Mapping[str, Callable[[], Part]], class_names: Sequence[str] | None = None
) -> DataSets:
    """Make data sets of the parts of a source.

    The training set decides where the channels are and what labels mean.

    Args:
        name: of the data in reports.
        source: the format, for `DataSets.found`.
        parts: by role, of which "train" must be there; functions, so that only one part is in memory before it is
            converted.
        class_names: names of the classes; None: the source gives none.

    Raises:
        DataError: if images or labels cannot be converted, or the sets do not fit together.
    """
    sets: dict[str, Dataset] = {}
    for role in sorted(parts, key=list(ROLES).index):  # the training set first
        part = parts[role]()
        if role == "train":
            labelling = labelling_of(part.label_source, part.labels, class_names)
            shape = part.images.shape
            last = len(shape) == 4 and channels_last(shape)
        if part.images.shape[1:] != shape[1:]:
            raise DataError(
                f"{part.image_source} must have the shape of the training images, (N, {str(shape[1:])[1:]}, "
                f"got {part.images.shape}"
            )
        if part.labels.shape[:1] != part.images.shape[:1]:
            raise DataError(
                f"{part.label_source}: every image must have one label, got shape {part.labels.shape} for images of "
                f"shape {part.images.shape}"
            )
        sets[role] = Dataset(
            convert_images(part.image_source, part.images, last=last),
            labelling.convert(part.label_source, part.labels),
            labelling.classes,
            name,
            role="val" if role == "validation" else "test",
            class_names=labelling.class_names,
        )
    return DataSets(
        sets["train"],
        sets.get("validation"),
        sets.get("test"),
        found=f"{source}: {counted(sets)}, {layout_of(shape)}, {_labels_of(sets['train'])}",
    )


def counted(sets: Mapping[str, Dataset]) -> str:
    """How many images the sets hold, such as "60,000 training and 10,000 test images"."""
    counts = [f"{len(sets[role]):,} {word}" for role, word in ROLES.items() if role in sets]
    what = "images" if sets["train"].images.ndim > 2 else "samples"
    return " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts) + f" {what}"


def _labels_of(train: Dataset) -> str:
    if train.classes is not None:
        return f"{train.classes} classes"
    return plural(train.labels.size // len(train), "output")
