"""Load the data of a command, on all ranks together."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

from parallelcnn.comm import Transport, run_together, share_on_node
from parallelcnn.data.dataset import Array, Dataset
from parallelcnn.data.images import DecodedImages, load_images
from parallelcnn.data.loading import load_sets, plan_of_images
from parallelcnn.data.readers.decoding import ImageOptions, without_warnings
from parallelcnn.data.sets import DataSets
from parallelcnn.training.config import TrainConfig

T = TypeVar("T")


class Loaded(NamedTuple):
    """The data of a command.

    Attributes:
        train: to train on.
        evaluated: to evaluate on during training; the test set if there is no validation set.
        test: the test set.
        found: what was found, in words; may be empty.
        test_files: the names of the test set's files, as in `DataSets.files`; None: not known.
    """

    train: Dataset
    evaluated: Dataset
    test: Dataset
    found: str
    test_files: Array | None = None


def load_data_sets(
    options: argparse.Namespace | TrainConfig, comm: Transport, like: ImageOptions | None = None
) -> Loaded:
    """Load the data that the options name, one copy for each node.

    Collective: every rank of `comm` must call it.

    Args:
        like: how the images of a folder are decoded; None: as the options say.
    """
    images = options.build_image_options() if isinstance(options, TrainConfig) else ImageOptions()
    fraction = getattr(options, "validation_split", None)

    def plan() -> DecodedImages | None:
        return plan_of_images(options.data, like or images, options.data_dir) if comm.rank == 0 else None

    def split(sets: DataSets) -> Loaded:
        if fraction is not None or (sets.test is None and sets.validation is None):
            sets = replace(sets, train=sets.train.without_copies())
        sets = sets.with_test_set()
        assert sets.test is not None
        train, validation = sets.train, sets.validation
        if fraction is not None:
            train, validation = train.split(fraction, options.seed)
        return Loaded(train, validation or sets.test, sets.test, sets.found, sets.files.get("test"))

    comm.status = "reading the data set"
    with without_warnings():
        planned = comm.allgather(run_together(comm, plan))[0]
    if planned is None:
        return share_on_node(comm, lambda: split(load_sets(options.data, options.data_dir, images)))
    with without_warnings(), _progress(comm, len(planned.found.files)) as advance:
        decoded = load_images(planned, Ranks(comm), advance)
    return run_together(comm, lambda: split(decoded))


class Ranks:
    """All ranks, as those that decode images together."""

    def __init__(self, comm: Transport) -> None:
        self._comm = comm
        self.rank, self.node = comm.rank, list(comm.ranks_on_node())

    def together(self, work: Callable[[], T]) -> list[T]:
        return self._comm.allgather(run_together(self._comm, work))


@contextlib.contextmanager
def _progress(comm: Transport, images: int) -> Iterator[Callable[[int], object]]:
    """A function that shows how many images are decoded, on a terminal; nothing if all were decoded before."""
    from tqdm import tqdm

    bar = None

    def advance(done: int) -> None:
        nonlocal bar
        comm.status = "decoding images"
        if comm.rank == 0:
            if bar is None:
                bar = tqdm(
                    total=images, desc="decoding images", unit=" images", leave=False, disable=None, file=sys.stderr
                )
            bar.update(done - bar.n)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
