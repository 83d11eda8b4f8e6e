"""The worst mistakes: images with what they are and what they were taken for."""

from collections.abc import Sequence

from parallelcnn.data.dataset import Dataset
from parallelcnn.pixels import as_pixels
from parallelcnn.png import data_uri
from parallelcnn.report.markup import Markup, element, join
from parallelcnn.report.pictures import is_image
from parallelcnn.report.predictions import ClassPredictions, LabelPredictions, Mistake, Predictions, ValuePredictions
from parallelcnn.report.tables import short, table

_LARGEST_SIDE = 72  # of an image [pixels]


def gallery(found: Predictions, dataset: Dataset, names: Sequence[str], files: Sequence[str] = ()) -> Markup:
    """The worst mistakes, worst first; a table where samples are no images.

    Args:
        names: of the classes.
        files: names of the files of all samples; empty: not known.
    """
    if not found.mistakes:
        return element("p", f"None: all {len(dataset):,} test samples are predicted correctly.")
    lines = [_described(found, one, names) for one in found.mistakes]
    if not is_image(dataset.images.shape[1:]):
        rows = [(f"{one.sample:,}", *line) for one, line in zip(found.mistakes, lines, strict=True)]
        return table(("sample", "true", "predicted", "how sure"), rows, _introduction(found, dataset), numbers_from=9)
    items = []
    for one, (true, predicted, how) in zip(found.mistakes, lines, strict=True):
        picture = as_pixels(dataset.images[one.sample], dataset.input_range, _LARGEST_SIDE)
        file = files[one.sample] if files else None
        text = f"test image {one.sample:,}{f', {file}' if file else ''}: {true}, {predicted}"
        image = element("img", src=data_uri(picture), alt=text, title=text, width=112, height=112)
        said = element("p", true, element("br"), element("span", predicted, class_="predicted"), element("br"), how)
        named = element("p", file, class_="quiet file") if file else None
        items.append(element("li", image, said, named))
    return join(element("p", _introduction(found, dataset), class_="quiet"), element("ul", items, class_="gallery"))


def _introduction(found: Predictions, dataset: Dataset) -> str:
    if isinstance(found, ClassPredictions):
        shown, wrong = len(found.mistakes), found.wrong
        which = f"shown are the {shown} of which the network was most sure" if shown < wrong else "surest first"
        return f"{wrong:,} of {len(dataset):,} test samples are predicted wrongly; {which}."
    if isinstance(found, LabelPredictions):
        return "The test samples with the labels that the network was most sure of and that are wrong."
    return "The test samples with the largest errors."


def _described(found: Predictions, mistake: Mistake, names: Sequence[str]) -> tuple[str, str, str]:
    """What is true, what was predicted, and how sure the network was."""
    sure = f"{100 * mistake.weight:.1f} % sure"
    if isinstance(found, ValuePredictions):
        return f"target {mistake.true:.4g}", f"output {mistake.predicted:.4g}", f"error {mistake.weight:.4g}"
    if isinstance(found, LabelPredictions):
        name, is_predicted = short(names[int(mistake.true)]), bool(mistake.predicted)
        return (name, "predicted", sure) if is_predicted else (name, "not predicted", sure)
    known = isinstance(found, ClassPredictions) and found.has_probabilities
    how = sure if known else f"output {mistake.weight:.3g}"
    return f"is {short(names[int(mistake.true)])}", f"taken for {short(names[int(mistake.predicted)])}", how
