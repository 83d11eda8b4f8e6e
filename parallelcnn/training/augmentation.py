"""The layers that `--augment` and `--normalize` put in front of a network."""

from collections.abc import Sequence
from typing import Any

from parallelcnn.errors import InputError, nearest_name
from parallelcnn.layers import (
    Cutout,
    Layer,
    MixUp,
    Normalize,
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    RandomZoom,
)

_CROP, _CUT = 1 / 8, 1 / 4  # of the rows and columns of an image
# Each layer with its default argument; None: from the size of the images. In the order in which they run: a network
# crops and flips while it loads the images, and what is cut out is the mean colour, behind a normalisation.
_KINDS: dict[str, tuple[type[Layer], Any]] = {
    "flip": (RandomFlip, "horizontal"),
    "crop": (RandomCrop, None),
    "rotation": (RandomRotation, 15),
    "zoom": (RandomZoom, 0.1),
    "brightness": (RandomBrightness, 0.2),
    "contrast": (RandomContrast, 0.2),
    "cutout": (Cutout, None),
    "mixup": (MixUp, 0.2),
}
_BEHIND_NORMALIZE = ("cutout", "mixup")
_SETS = {
    "light": ("flip", "crop"),
    "strong": ("flip", "crop", "rotation", "zoom", "brightness", "contrast", "cutout"),
}
NAMES = (*_SETS, *_KINDS)


def first_layers(augment: Sequence[str], normalize: bool, input_shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """The layers of augmentation, and `Normalize("auto")`.

    Args:
        augment: names in `NAMES`, each with an argument if wanted, as "crop:4".
        input_shape: shape of one sample.

    Raises:
        InputError: if a name is not known or given twice, or an argument breaks the layer's rule.
    """
    arguments: dict[str, Any] = {}
    for word in (one for given in augment for one in _SETS.get(given, (given,))):
        name, colon, text = word.partition(":")
        if name not in _KINDS:
            raise InputError(f"augment: no augmentation {word!r}: {nearest_name(name, NAMES)}")
        if name in arguments:
            raise InputError(f"augment must name every augmentation at most once, got {' '.join(augment)}")
        arguments[name] = _value(text) if colon else _KINDS[name][1]
        if arguments[name] is None:
            arguments[name] = _from_size(_CROP if name == "crop" else _CUT, input_shape)
    layers = {name: _built(name, arguments[name]) for name in _KINDS if name in arguments}
    before = [layer for name, layer in layers.items() if name not in _BEHIND_NORMALIZE]
    behind = [layer for name, layer in layers.items() if name in _BEHIND_NORMALIZE]
    return (*before, *([Normalize()] if normalize else []), *behind)


def _built(name: str, argument: Any) -> Layer:
    kind: Any = _KINDS[name][0]
    try:
        layer: Layer = kind(argument)
    except InputError as error:
        raise InputError(f"augment: {error}") from None
    return layer


def _value(text: str) -> Any:
    """A number as such, a word as it is."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _from_size(fraction: float, input_shape: tuple[int, ...]) -> int | tuple[int, int]:
    """A fraction of the rows and columns of an image, at least 1; one number if both are the same."""
    H, W = (*input_shape, 1, 1)[1:3]
    rows, columns = (max(1, round(fraction * size)) for size in (H, W))
    return rows if rows == columns else (rows, columns)
