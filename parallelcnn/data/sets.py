"""The data sets of one source: a training set, and perhaps a validation and a test set."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from parallelcnn.data.dataset import Array, Dataset
from parallelcnn.errors import InputError
from parallelcnn.wording import plural

TEST_FRACTION = 0.2  # of the samples, where the source has no test set

ROLES = {"train": "training", "validation": "validation", "test": "test"}
"""The sets that a source may hold, and how messages call them."""


@dataclass(frozen=True)
class DataSets:
    """What a source of data holds.

    Attributes:
        train: the training set.
        validation: the set to evaluate on during training; None: the source has none.
        test: the test set; None: the source has none.
        broken: why images were left out, a message for each.
        files: of a folder of images, the names of the files in it by set; see `images.file_names`.
        found: what was found, in words, such as "image folder: 3 classes, 900 images"; empty: nothing worth saying.
    """

    train: Dataset
    validation: Dataset | None = None
    test: Dataset | None = None
    found: str = ""
    broken: tuple[str, ...] = ()
    files: Mapping[str, Array] = field(default_factory=dict)

    def with_test_set(self, seed: int = 0) -> "DataSets":
        """The same with a test set. If there is none, the validation set takes its place, or a part of the training
        set: 20 % of each class, drawn at random.

        Args:
            seed: seed of the random choice.

        Raises:
            InputError: if the training set is too small to be split.
        """
        if self.test is not None:
            return self
        if self.validation is not None:
            files = {"test" if name == "validation" else name: some for name, some in self.files.items()}
            return replace(self, validation=None, test=replace(self.validation, role="test"), files=files)
        if not round(TEST_FRACTION * len(self.train)):
            raise InputError(
                f"{self.train.name}: {plural(len(self.train), 'sample')} are too few to draw a test set from them"
            )
        train, test = self.train.split(TEST_FRACTION, seed)
        found = f"{self.found}; no test set: {len(test):,} images drawn from the training set".removeprefix("; ")
        return replace(self, train=train, test=replace(test, name=self.train.name, role="test"), found=found)
