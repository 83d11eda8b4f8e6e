"""What must hold before a training starts, and where it starts from."""

import copy
import warnings
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from parallelcnn.comm import Communicator
from parallelcnn.data.dataset import Dataset
from parallelcnn.errors import CheckpointError, InputError, ReplicaMismatchError, ShapeError, TrainingWarning, shown
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.training.checkpoint import Checkpoint, facts_that_changed
from parallelcnn.training.history import History

# Facts that a training may not change in its middle: it would be another one.
_FIXED = ("layers", "input_shape", "dtype", "loss", "train_set", "test_set", "seed")


def check_kinds(needed: Iterable[tuple[object, type]], optional: Iterable[tuple[object, type]]) -> None:
    """Raise InputError unless each value is of its kind, or, if it is optional, None."""
    for value, kind in needed:
        if not isinstance(value, kind):
            raise InputError(f"train takes a {kind.__name__}, got {value!r}")
    for value, kind in optional:
        if value is not None and not isinstance(value, kind):
            raise InputError(f"train takes a {kind.__name__} or None, got {value!r}")


def check_numbers(
    epochs: int, batch_size: int, seed: int, evaluate_every: int | None = None, train_set: Dataset | None = None
) -> None:
    """Raise InputError for numbers that training could not start, or not end well, with."""
    numbers = {"epochs": (epochs, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
    if evaluate_every is not None:
        numbers["evaluate_every"] = (evaluate_every, 1)
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
    if train_set is not None and batch_size > len(train_set):
        raise InputError(
            f"batch_size must be at most {len(train_set)}, the samples of {train_set.name}, got {batch_size}"
        )


def check_fit(network: NetworkHandler, dataset: Dataset, loss: Loss | None = None) -> None:
    """Raise ShapeError unless the network takes the images of the data set and can learn its labels."""
    (loss or SoftmaxCrossEntropy()).check(network.output_shape, dataset.labels, dataset.classes)
    if network.input_shape != dataset.input_shape:
        raise ShapeError(
            f"the network takes inputs of shape {network.input_shape}, "
            f"but {dataset.name} holds images of shape {dataset.input_shape}"
        )


def check_replicas(comm: Communicator, plan: dict[str, object], train_set: Dataset, test_set: Dataset) -> None:
    """Raise ReplicaMismatchError, on all ranks, unless all of them were called with the same arguments."""
    mine = {name: repr(value) for name, value in plan.items()}
    for name, dataset in (("train_set", train_set), ("test_set", test_set)):
        labels = zlib.crc32(dataset.labels.data)
        mine[name] = f"{dataset.images.dtype} of shape {dataset.images.shape}, labels with CRC-32 {labels:08x}"
    everyone = comm.gather(mine)
    for name in mine:
        for rank, theirs in enumerate(everyone):
            if theirs[name] != everyone[0][name]:
                raise ReplicaMismatchError(
                    f"all ranks must train the same: rank 0 has {name} {everyone[0][name]}, "
                    f"but rank {rank} has {theirs[name]}"
                ).together()


def facts_of(train_set: Dataset, test_set: Dataset, network: NetworkHandler, **others: Any) -> dict[str, Any]:
    """What a checkpoint says of its training, in values that JSON can hold.

    Args:
        others: by name, what says by its `repr` what it is.
    """
    return {
        "layers": [repr(layer) for layer in network.layers],
        "input_shape": list(network.input_shape),
        "dtype": network.dtype.name,
        "train_set": _fingerprint(train_set),
        "test_set": _fingerprint(test_set),
        **{name: value if isinstance(value, int | None) else repr(value) for name, value in others.items()},
    }


def check_resume(resume: Checkpoint, network: NetworkHandler, facts: dict[str, Any], last_sample: int) -> None:
    """Raise CheckpointError unless a training can go on from there.

    Every rank that has the same checkpoint and facts raises the same.

    Args:
        facts: of that training; see `facts_of`.
        last_sample: how many samples it will have seen at its end.
    """
    for name, before, now in facts_that_changed(facts, resume.facts):
        if name in _FIXED:
            found = shown(f"its {name} is {before}, not {now}")
            raise CheckpointError(f"the checkpoint is of another training: {found}").together()
    if resume.history.samples_seen > last_sample:
        raise CheckpointError(
            f"the checkpoint has seen {resume.history.samples_seen:,} samples already: epochs must be more, "
            f"they end after {last_sample:,}"
        ).together()
    try:
        network.check_state(resume.state)
    except ShapeError as error:  # a layer that says the same of itself, and has other parameters
        raise CheckpointError(f"the checkpoint is of another training: {error}").together() from None


def start(
    comm: Communicator, network: NetworkHandler, facts: dict[str, Any], resume: Checkpoint | None, last_sample: int
) -> History:
    """Give every rank rank 0's parameters and an optimiser at rest, or what rank 0's checkpoint holds.

    Collective: every rank of `comm` must call it.

    Args:
        facts: of the training that is to start, the same on every rank.
        last_sample: how many samples it will have seen at its end.

    Returns:
        what happened before.

    Raises:
        CheckpointError: on every rank, if the checkpoint is of another training, or one that went further.
    """
    resume = comm.gather(resume if comm.rank == 0 else None)[0]
    if resume is None:
        comm.broadcast(network.params)
        network.reset_optimizer()
        return History()
    check_resume(resume, network, facts, last_sample)
    for name, before, now in facts_that_changed(facts, resume.facts):
        if comm.rank == 0:
            warnings.warn(shown(f"resumed with {name} {now} instead of {before}"), TrainingWarning, stacklevel=3)
    network.set_state(resume.state)
    return copy.deepcopy(resume.history)


def _fingerprint(dataset: Dataset) -> str:
    images = dataset.images if dataset.images.flags.c_contiguous else np.ascontiguousarray(dataset.images)
    labels = np.ascontiguousarray(dataset.labels)
    return (
        f"{dataset.images.dtype} of shape {dataset.images.shape}, "
        f"CRC-32 {zlib.crc32(images.data):08x}, labels {zlib.crc32(labels.data):08x}"
    )
