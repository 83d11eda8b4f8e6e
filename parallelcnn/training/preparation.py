"""Check the arguments of a training, and set its initial state."""

import copy
import numbers
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from parallelcnn.arguments import check_integer
from parallelcnn.comm import Transport
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import shape_hint
from parallelcnn.errors import CheckpointError, DataError, InputError, ShapeError, TrainingWarning, nearest_name, shown
from parallelcnn.files.fingerprint import matches, stored_fingerprint
from parallelcnn.files.model import describe_network
from parallelcnn.kernels.bfloat16 import is_fast
from parallelcnn.losses import PREDICTIONS, Loss, SoftmaxCrossEntropy, takes_sample_weight
from parallelcnn.metrics import Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.schedules import Plateau
from parallelcnn.training.agreement import describe_dataset
from parallelcnn.training.checkpoint import Checkpoint, facts_that_changed
from parallelcnn.training.config import OPTIMIZERS
from parallelcnn.training.early_stopping import EarlyStopping
from parallelcnn.training.history import History
from parallelcnn.wording import first_difference

# These facts must not change when training resumes.
_FIXED = ("layers", "input_shape", "dtype", "loss", "train_set", "test_set", "seed")


def check_numbers(
    epochs: int, batch_size: int, seed: int, evaluate_every: int | None = None, train_set: Dataset | None = None
) -> None:
    """Raise InputError if one of these numbers is not valid."""
    limits = {"epochs": (epochs, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
    if evaluate_every is not None:
        limits["evaluate_every"] = (evaluate_every, 1)
    for name, (value, least) in limits.items():
        check_integer(name, value, least)
    if train_set is not None and batch_size > len(train_set):
        raise InputError(
            f"batch_size must be at most {len(train_set)}, the samples of {train_set.name}, got {batch_size}"
        )


def check_monitored(role: str, metrics: Sequence[Metric], optimizer: Any, callbacks: Sequence[Any]) -> None:
    """Raise InputError if early stopping or a plateau monitors a value that evaluations will not have.

    Args:
        role: of the data set that is evaluated.
    """
    known = [f"{role}_{name}" for name in ("loss", *(metric.name for metric in metrics))]
    schedule = getattr(getattr(optimizer, "optimizer", optimizer), "learning_rate", None)
    for one in (schedule, *callbacks):
        monitor = one.monitor if isinstance(one, Plateau | EarlyStopping) else None
        if monitor is not None and monitor not in known:
            raise InputError(f"{type(one).__name__}: no value {monitor!r} to monitor: {nearest_name(monitor, known)}")


def check_fit(network: NetworkHandler, dataset: Dataset, loss: Loss | None = None) -> None:
    """Raise ShapeError unless the network accepts the images of the data set and can learn its labels; see also
    `check_loss`.
    """
    check_loss(loss or SoftmaxCrossEntropy(), network, dataset)
    if network.input_shape != dataset.input_shape:
        raise ShapeError(
            f"the network takes inputs of shape {network.input_shape}, "
            f"but {dataset.name} holds images of shape {dataset.input_shape}"
            f"{shape_hint((1, *dataset.input_shape), network.input_shape)}"
        )


def check_same_classes(names: Sequence[str] | None, where: str, dataset: Dataset) -> None:
    """Raise DataError if the classes of a data set have other names, or another order, than these.

    Args:
        names: None: not known.
        where: the classes have these names, for the message.
    """
    for label, (name, found) in enumerate(zip(names or (), dataset.class_names or (), strict=False)):
        if name != found:
            raise DataError(
                shown(
                    f"{dataset.name}: the class {label} is {found!r}, but {name!r} in {where}: the classes must be the "
                    f"same, in the same order"
                )
            )


def check_loss(loss: Loss, network: NetworkHandler, dataset: Dataset) -> None:
    """Raise an error unless the loss can be computed for the network and the data set.

    Raises:
        ShapeError: if the network cannot learn these labels with it.
        InputError: if the data set has sample weights, which the loss does not take, or if what it says of predictions
            is no such word.
    """
    prediction = getattr(loss, "prediction", "output")
    if prediction not in PREDICTIONS:
        raise InputError(f"loss.prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    loss.check(network.output_shape, dataset.labels, dataset.classes)
    if dataset.sample_weight is not None and not takes_sample_weight(loss):
        raise InputError(
            f"{dataset.name} has sample weights, which the loss {shown(repr(loss))} does not take: its method "
            f"forward_backward needs an argument sample_weight=None, (n,) factors of the samples' losses and gradients"
        )


def facts_of(
    train_set: Dataset,
    test_set: Dataset,
    network: NetworkHandler,
    *,
    loss: Loss,
    data: Mapping[str, str] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The description of a training that checkpoints contain, as JSON values.

    Args:
        data: the result of `describe_data` for the data sets.
        others: further settings, by name.
    """
    compared = {**{f"layer {i}": layer for i, layer in enumerate(network.layers, start=1)}, "loss": loss}
    return {
        "layers": [repr(layer) for layer in network.layers],
        "input_shape": list(network.input_shape),
        "dtype": network.dtype.name,
        "precision": network.precision,
        "loss": repr(loss),
        "train_set": data["train_set"] if data else describe_dataset(train_set),
        "test_set": data["test_set"] if data else describe_dataset(test_set),
        **{name: _as_json(value) for name, value in others.items()},
        "fingerprints": {name: stored_fingerprint(value) for name, value in compared.items()},
    }


def _as_json(value: Any) -> int | str | None:
    """A setting as a JSON value: numpy's integers as Python's, and what JSON does not know as text."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | None) else repr(value)


def warn_of_slow_precision(network: NetworkHandler, *, stacklevel: int) -> None:
    """Warn if numbers are rounded to bfloat16 here and then multiplied in float32."""
    if network.precision == "bfloat16" and not is_fast():
        warnings.warn(
            "precision 'bfloat16' is slower than 'float32' here, without AMX: it takes a processor with amx_bf16, "
            "Linux 5.16 or newer, and no NUMBA_CPU_NAME or NUMBA_CPU_FEATURES",
            TrainingWarning,
            stacklevel=stacklevel + 1,
        )


def check_resume(resume: Checkpoint, network: NetworkHandler, facts: dict[str, Any], last_sample: int) -> None:
    """Raise CheckpointError unless this training can resume from the checkpoint.

    All ranks with the same checkpoint and facts raise the same error.

    Args:
        facts: facts of this training; see `facts_of`.
        last_sample: number of samples that it will have seen at its end.
    """
    for name, before, now in facts_that_changed(facts, resume.facts):
        if name in _FIXED:
            if name == "layers":
                found = first_difference(before if isinstance(before, list) else [], now)
            else:
                found = f"{name} is {before}, not {now}"
            raise CheckpointError(shown(f"the checkpoint is of another training: its {found}")).together()
    fingerprints = resume.facts.get("fingerprints", facts["fingerprints"])  # older checkpoints have none
    for name, now in facts["fingerprints"].items():
        if not (isinstance(fingerprints, dict) and matches(fingerprints.get(name), now)):
            raise CheckpointError(f"the checkpoint is of another training: its {name} holds other values").together()
    before, now = _kind_of_optimizer(resume.facts), _kind_of_optimizer(facts)
    if before != now and {before, now} <= {*OPTIMIZERS.values()}:  # those of a user may understand each other
        raise CheckpointError(
            f"the checkpoint is of a training with {before}, whose state {now} cannot use: resume with {before}, or "
            f"start a new training from its parameters (--start-from FILE; in the library, load_model)"
        ).together()
    if resume.history.samples_seen > last_sample:
        raise CheckpointError(
            f"the checkpoint has seen {resume.history.samples_seen:,} samples already: epochs must be more, "
            f"they end after {last_sample:,}"
        ).together()
    here = describe_network(network)
    for name in ("parameters", "buffers"):
        there = resume.network.get(name)  # older checkpoints have no such list
        if there is not None and _in_order(there) != _in_order(here[name]):
            raise CheckpointError(
                f"the checkpoint is of another training: its {name} are {_listed(there)}, not {_listed(here[name])}"
            ).together()
    try:
        network.check_state(resume.state)
    except ShapeError as error:  # a layer with the same repr and other parameters
        raise CheckpointError(f"the checkpoint is of another training: {error}").together() from None


def _kind_of_optimizer(facts: Mapping[str, Any]) -> str | None:
    """The class of the optimiser, or of the one inside `EMA`, which may be added and left out; None if not known."""
    found = re.match(r"(?:EMA\((?:optimizer=)?)?(\w+)\(", str(facts.get("optimizer")))
    return found and found[1]


def _in_order(arrays: Mapping[str, Sequence[int]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(shape)) for name, shape in arrays.items()]


def _listed(arrays: Mapping[str, Sequence[int]]) -> str:
    return shown(", ".join(f"{name} {shape}" for name, shape in _in_order(arrays)))


def start(
    comm: Transport, network: NetworkHandler, facts: dict[str, Any], resume: Checkpoint | None, last_sample: int
) -> History:
    """Broadcast rank 0's parameters and buffers, and reset the optimiser state; or restore rank 0's checkpoint on every
    rank.

    Collective: every rank of `comm` must call it.

    Args:
        facts: facts of the training that starts, the same on every rank.
        last_sample: number of samples that it will have seen at its end.

    Returns:
        the history so far.

    Raises:
        CheckpointError: on every rank, if the checkpoint belongs to another training, or to a later step than the last.
    """
    resume = comm.allgather(resume if comm.rank == 0 else None)[0]
    if resume is None:
        comm.broadcast(network.params)
        if network.buffers.size:
            comm.broadcast(network.buffers)
        network.reset_optimizer()
        return History()
    check_resume(resume, network, facts, last_sample)
    for name, before, now in facts_that_changed(facts, resume.facts):
        if comm.rank == 0 and name != "fingerprints":  # `check_resume` has compared these
            warnings.warn(shown(f"resumed with {name} {now} instead of {before}"), TrainingWarning, stacklevel=3)
    network.set_state(resume.state)
    return copy.deepcopy(resume.history)
