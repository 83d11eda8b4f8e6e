"""Checkpoints: archives with everything that a training needs to resume where it stood.

    description            JSON: the network, as in a model file; what was trained on what (`facts`); counts
    0.weight, ...          parameters and buffers, as in a model file
    state.velocity, ...    one vector each of what the optimiser changes besides
    losses, evaluations    the history

There is no random state: the order of the samples is a function of seed and epoch.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.arguments import as_path
from parallelcnn.comm import Transport
from parallelcnn.errors import CheckpointError, InputError, TrainingWarning, shown
from parallelcnn.files.archive import Archive, read_archive, write_archive
from parallelcnn.files.atomic import naming, remove_unfinished
from parallelcnn.files.model import describe_network
from parallelcnn.layers.base import Array
from parallelcnn.network import NetworkHandler
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History

_STATE = "state."
_NETWORK = ("input_shape", "dtype", "prediction", "input_range", "layers", "parameters", "buffers")
_CUT = {"params": "parameters", "buffers": "buffers"}  # vectors that are stored as named arrays, and their names' list

Others = tuple[tuple[str, float], ...]  # (name, value) of further metrics


@dataclass
class Checkpoint:
    """Where a training stood after a minibatch.

    Attributes:
        facts: what was trained, on what, and how, in values that JSON can hold.
        state: see `NetworkHandler.state`.
        history: from the first minibatch on.
        network: see `describe_network`; empty: the parameters are stored as one vector.
    """

    facts: dict[str, Any]
    state: dict[str, Array]
    history: History
    network: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all, and read it back.

    Raises:
        OSError: if it cannot be written.
        CheckpointError: if what was written does not read back.
    """
    history = checkpoint.history
    arrays: dict[str, Array] = {}
    for name, vector in checkpoint.state.items():
        arrays |= _cut(vector, checkpoint.network.get(_CUT.get(name, ""))) or {f"{_STATE}{name}": vector}
    arrays["losses"] = np.array(history.losses, np.float64)
    arrays["evaluations"] = np.array([_as_row(*one) for one in history.evaluations], np.float64).reshape(-1, 5)
    description = {
        **checkpoint.network,
        "state": list(checkpoint.state),
        "facts": checkpoint.facts,
        "samples_seen": history.samples_seen,
        "train_seconds": history.train_seconds,
        "lost_ranks": history.lost_ranks,
        "exponents": history.exponents,
        "other_metrics": [result.others for _, _, result in history.evaluations],
    }
    path = as_path("path", path)
    write_archive(path, "checkpoint", description, arrays, partial(_restored, path))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint that `save_checkpoint` wrote.

    Raises:
        CheckpointError: if it is none, is damaged, or of a newer format.
    """
    path = as_path("path", path)
    return _restored(path, read_archive(path, "checkpoint"))


@dataclass
class CheckpointFolder:
    """Where a training saves its checkpoints, how often, and how many it keeps.

    A checkpoint is also saved at the end of every epoch, and when training stops early.

    Args:
        path: a folder, created if it is missing. Only files that this class has named are deleted in it.
        every_steps: save after this many minibatches.
        every_seconds: save after this time, by rank 0's clock [s].
        keep_last: keep this many of the newest checkpoints.
        keep_best: also keep the checkpoint with the best test result: the highest accuracy, or the lowest loss if there
            is no accuracy.
        locate: called before files are written, read or deleted; returns the path, should it change during training.

    Raises:
        InputError: for numbers outside their range.
    """

    path: str | Path
    every_steps: int | None = None
    every_seconds: float | None = None
    keep_last: int = 2
    keep_best: bool = False
    locate: Callable[[], Path] | None = field(default=None, repr=False, compare=False)
    _unused: bool = field(default=True, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in (("every_steps", self.every_steps), ("keep_last", self.keep_last)):
            if value is None and name == "every_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
        seconds = self.every_seconds
        if seconds is not None and not (
            isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < math.inf
        ):
            raise InputError(f"every_seconds must be a finite number above 0, got {seconds!r}")
        self.path = as_path("path", self.path)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete those that need not be kept.

        Raises:
            OSError, CheckpointError: if that fails. The earlier checkpoints are still there.
        """
        self._locate()
        with naming(Path(self.path)):
            Path(self.path).mkdir(parents=True, exist_ok=True)
        if self._unused:
            self._unused = False
            remove_unfinished(Path(self.path))
        new = self._file(checkpoint.history.steps)
        save_checkpoint(new, checkpoint)
        self._locate()
        keep = [new, *self._files()[: self.keep_last]]
        if self.keep_best:
            keep.append(self._file(_best_step(checkpoint.history)))
        for file in self._files():
            if file not in keep:
                file.unlink(missing_ok=True)

    def _locate(self) -> None:
        if self.locate is not None:
            self.path = self.locate()

    def newest(self, up_to: float = math.inf) -> Checkpoint | None:
        """The newest readable checkpoint of minibatch `up_to` or earlier; None if there is none.

        Warns of each file that cannot be read.
        """
        self._locate()
        for file in self._files():
            if int(file.stem[5:]) > up_to:
                continue
            try:
                return load_checkpoint(file)
            except CheckpointError as error:
                warnings.warn(f"{error}; taking the checkpoint before it", TrainingWarning, stacklevel=2)
        return None

    def _file(self, step: int) -> Path:
        return Path(self.path) / f"step-{step:09}.npz"

    def _files(self) -> list[Path]:
        """The newest first."""
        files = [file for file in Path(self.path).glob("step-*.npz") if file.stem[5:].isdecimal()]
        return sorted(files, key=lambda file: int(file.stem[5:]), reverse=True)


class CheckpointSaver:
    """Saves the checkpoints of one training. All ranks decide alike when one is due; rank 0 writes it.

    Collective: every rank of `comm` must make one.

    Args:
        folder: rank 0's settings count; other ranks may have None.
        facts: see `Checkpoint`; the same on every rank, since any of them may become rank 0.

    Attributes:
        folder: on every rank; None: nothing is saved.
        time_is_up: whether rank 0 has asked for a checkpoint after the minibatch at hand; the same on every rank.
    """

    def __init__(self, comm: Transport, folder: CheckpointFolder | None, facts: dict[str, Any]) -> None:
        self._comm, self._facts = comm, facts
        names = ("path", "every_steps", "every_seconds", "keep_last", "keep_best")
        settings = comm.allgather(None if folder is None else {name: getattr(folder, name) for name in names})[0]
        self._settings = settings or {}
        self.folder = None if settings is None else folder or CheckpointFolder(**settings)
        self.time_is_up = False
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._failed = False

    def asks(self) -> bool:
        """Whether this rank asks for a checkpoint: only rank 0 does, whose clock counts."""
        seconds = self._settings.get("every_seconds")
        return seconds is not None and self._comm.rank == 0 and time.monotonic() - self._saved_at >= seconds

    def is_due(self, history: History, *, must: bool) -> bool:
        """Whether a checkpoint is to be saved now; the same on every rank.

        Args:
            must: whatever the settings say.
        """
        if self.folder is None or history.steps in (0, self._saved_step):
            return False
        every_steps = self._settings["every_steps"]
        is_best = self._settings["keep_best"] and _best_step(history) == history.steps
        return must or self.time_is_up or is_best or (every_steps is not None and history.steps % every_steps == 0)

    def save(self, network: NetworkHandler, history: History) -> None:
        """Save a checkpoint; every rank must call it. The replicas must have been found equal.

        If saving fails, rank 0 warns, once until it succeeds again.
        """
        self._saved_at, self._saved_step, self.time_is_up = time.monotonic(), history.steps, False
        if self.folder is None or self._comm.rank != 0:
            return
        try:
            if not all(np.isfinite(vector).all() for vector in network.state.values()):
                raise CheckpointError("parameters that are not finite")
            self.folder.save(Checkpoint(self._facts, network.state, history, describe_network(network)))
        except (OSError, CheckpointError) as error:
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
            message = f"no checkpoint after minibatch {history.steps} ({reason}); training goes on without it"
            if not self._failed:
                warnings.warn(message, TrainingWarning, stacklevel=3)
            self._failed = True
        else:
            self._failed = False

    def recovered(self) -> None:
        """Save again what rank 0 may have been saving when it was lost; every rank must call it."""
        self._saved_step, self.time_is_up = -1, False


def facts_that_changed(facts: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, value before, value now) of every fact that is not what it was in the training before."""
    for name, value in json.loads(json.dumps(facts)).items():
        if before.get(name) != value:
            yield name, before.get(name), value


def _best_step(history: History) -> int:
    """The minibatch after which the test result was best; 0 if there has been no test."""
    if not history.evaluations:
        return 0

    def quality(evaluation: tuple[int, int, Evaluation]) -> tuple[float, float]:
        _, _, result = evaluation
        return (0.0 if result.accuracy is None else result.accuracy, -result.loss)

    return max(history.evaluations, key=quality)[0]


def _as_row(step: int, epoch: int, result: Evaluation) -> tuple[float, ...]:
    accuracy = math.nan if result.accuracy is None else result.accuracy
    return step, epoch, result.loss, accuracy, result.samples


def _from_row(row: Array, others: Others) -> tuple[int, int, Evaluation]:
    step, epoch, loss, accuracy, samples = row.tolist()
    return int(step), int(epoch), Evaluation(loss, None if math.isnan(accuracy) else accuracy, int(samples), others)


def _read_others(told: Any, evaluations: int) -> list[Others]:
    """The further metrics of each evaluation; ValueError if they are none."""
    if told is None:  # files of version 0.1
        return [()] * evaluations
    others = [tuple((name, value) for name, value in one) for one in told]
    if not all(isinstance(name, str) and isinstance(value, int | float) for one in others for name, value in one):
        raise ValueError("the other metrics are no names and numbers")
    return others


def _cut(vector: Array, shapes: Mapping[str, Any] | None) -> dict[str, Array]:
    """A vector of all parameters, or buffers, as named arrays."""
    arrays, start = {}, 0
    for name, shape in (shapes or {}).items():
        stop = start + math.prod(shape)
        arrays[name] = vector[start:stop].reshape(shape)
        start = stop
    return arrays


def _joined(name: str, description: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    """The vector of that name in the state."""
    names = description.get(_CUT.get(name, ""))
    return np.concatenate([arrays[one].ravel() for one in names]) if names else arrays[f"{_STATE}{name}"]


def _restored(path: Path, archive: Archive) -> Checkpoint:
    """The checkpoint in an archive; CheckpointError if no training can have saved it, whatever its checksum says."""
    try:
        return _restore(archive.description, archive.arrays)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            shown(f"{path} is damaged: it does not hold what its description says ({error})")
        ) from None


def _restore(description: dict[str, Any], arrays: dict[str, Array]) -> Checkpoint:
    """What was saved; ValueError if no training can have saved it, whatever its checksum says."""
    losses, evaluations = arrays["losses"], arrays["evaluations"]
    counts = [description[name] for name in ("samples_seen", "lost_ranks")]
    seconds, facts = description["train_seconds"], description["facts"]
    exponents = description.get("exponents", [])  # files of version 0.1 have none
    others = _read_others(description.get("other_metrics"), len(evaluations))
    stored = [name.removeprefix(_STATE) for name in arrays if name.startswith(_STATE)]  # all of it, in version 1
    state = {name: _joined(name, description, arrays) for name in description.get("state", stored)}
    if losses.dtype != np.float64 or losses.ndim != 1 or not np.isfinite(losses).all():
        raise ValueError("losses are not one finite number for each minibatch")
    if evaluations.dtype != np.float64 or evaluations.ndim != 2 or evaluations.shape[1] != 5:
        raise ValueError("evaluations are not five numbers each")
    whole, accuracies = evaluations[:, [0, 1, 4]], evaluations[:, 3]
    if not (np.isfinite(evaluations[:, 2]).all() and ((whole >= 0) & (whole < 2**53)).all()):
        raise ValueError("evaluations hold what is no minibatch, epoch, loss or number of samples")
    if not (np.isnan(accuracies) | ((accuracies >= 0) & (accuracies <= 1))).all():
        raise ValueError("evaluations hold what is no accuracy")
    if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
        raise ValueError("samples seen and ranks lost are not counts")
    if not (isinstance(exponents, list) and all(type(one) is int and abs(one) < 256 for one in exponents)):
        raise ValueError("exponents are no small integers")
    if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf) or not isinstance(facts, dict):
        raise ValueError("seconds or facts are none")
    params = state["params"]
    if not all(
        vector.dtype == params.dtype and vector.shape == (vector.size if name == "buffers" else params.size,)
        for name, vector in state.items()
    ):
        raise ValueError("its vectors are not vectors of one length and type")
    if params.dtype not in (np.float32, np.float64) or not all(np.isfinite(vector).all() for vector in state.values()):
        raise ValueError("its vectors hold numbers that are not finite")
    history = History(
        losses.tolist(),
        [_from_row(row, some) for row, some in zip(evaluations, others, strict=True)],
        counts[0],
        float(seconds),
        lost_ranks=counts[1],
        exponents=exponents,
    )
    network = {name: value for name, value in description.items() if name in _NETWORK}
    return Checkpoint(facts, state, history, network)
