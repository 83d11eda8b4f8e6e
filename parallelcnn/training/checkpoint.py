"""Checkpoints: all that a training needs to go on from where it stood, in files of their own. Files, not ranks.

    description            JSON: format, version, what was trained on what (`facts`), counts, and the SHA-256 of it all
    state.params, ...      one vector each of what an update changes
    losses, evaluations    the history

There is no random state: the order of the samples is a function of seed and epoch.
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.errors import CheckpointError, InputError, TrainingWarning
from parallelcnn.files.archive import open_npz, read_description, read_npy, write_npz
from parallelcnn.files.atomic import naming, remove_unfinished
from parallelcnn.layers.base import Array
from parallelcnn.network import NetworkHandler
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History

_VERSION = 1
_STATE = "state."


@dataclass
class Checkpoint:
    """Where a training stood after a minibatch.

    Attributes:
        facts: what was trained, on what, and how, in values that JSON can hold.
        state: see `NetworkHandler.state`.
        history: from the first minibatch on.
    """

    facts: dict[str, Any]
    state: dict[str, Array]
    history: History


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all, and read it back.

    Raises:
        OSError: if it cannot be written.
        CheckpointError: if what was written does not read back.
    """
    history = checkpoint.history
    arrays = {f"{_STATE}{name}": vector for name, vector in checkpoint.state.items()}
    arrays["losses"] = np.array(history.losses, np.float64)
    arrays["evaluations"] = np.array([_as_row(*one) for one in history.evaluations], np.float64).reshape(-1, 5)
    description = {
        "format": "parallelcnn checkpoint",
        "version": _VERSION,
        "facts": checkpoint.facts,
        "arrays": list(arrays),
        "samples_seen": history.samples_seen,
        "train_seconds": history.train_seconds,
        "lost_ranks": history.lost_ranks,
    }
    text = json.dumps({**description, "sha256": _sha256(description, arrays)})
    write_npz(Path(path), {"description": np.array(text), **arrays})
    load_checkpoint(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint that `save_checkpoint` wrote.

    Raises:
        CheckpointError: if it is none, is damaged, or of a newer format.
    """
    path = Path(path)
    with open_npz(path, "checkpoint") as archive:
        description = read_description(path, archive, "checkpoint", _VERSION)
        # Stored as they are, so together they are no larger than the file.
        limit = path.stat().st_size
        try:
            arrays: dict[str, Array] = {}
            for name in description["arrays"]:
                if name in arrays:
                    raise ValueError(f"{name!r} is named twice")
                arrays[name] = read_npy(archive, name, limit)
                limit -= arrays[name].nbytes
            claimed = description.pop("sha256")
            if _sha256(description, arrays) != claimed:
                raise CheckpointError(f"{path} is damaged: its content is not what its SHA-256 says")
            return _restore(description, arrays)
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} is damaged: it does not hold what its description says ({error})") from None


@dataclass
class CheckpointFolder:
    """Where a training puts its checkpoints, how often, and how many it keeps.

    One is put there at the end of every epoch, too, and when training leaves early.

    Args:
        path: a folder, made where it is missing. Only files that this class has named are touched in it.
        every_steps: after so many minibatches.
        every_seconds: after so long [s].
        keep_last: of so many the files stay, and the one of the last epoch's end besides.
        keep_best: the file of the best test result stays as well: of the highest accuracy, of the lowest loss if there
            is none.

    Raises:
        InputError: for numbers outside their range.
    """

    path: str | Path
    every_steps: int | None = None
    every_seconds: float | None = None
    keep_last: int = 2
    keep_best: bool = False
    _saved_at: float = field(default_factory=time.monotonic, init=False, repr=False)
    _saved_step: int = field(default=-1, init=False, repr=False)
    _held_step: int = field(default=-1, init=False, repr=False)
    _failed: bool = field(default=False, init=False, repr=False)
    _unused: bool = field(default=True, init=False, repr=False)

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
        self.path = Path(self.path)

    def save_if_due(self, facts: dict[str, Any], network: NetworkHandler, history: History, must: bool) -> None:
        """Save if it must be, or is time to, and delete what need not be kept.

        If that fails, warn, once until it works again: the earlier files are still there.

        Args:
            facts: see `Checkpoint`.
        """
        if history.steps in (0, self._saved_step) or not (must or self._is_time(history)):
            return
        self._saved_at, self._saved_step = time.monotonic(), history.steps
        try:
            if not all(np.isfinite(vector).all() for vector in network.state.values()):
                raise CheckpointError("parameters that are not finite")
            with naming(Path(self.path)):
                Path(self.path).mkdir(parents=True, exist_ok=True)
            if self._unused:
                self._unused = False
                remove_unfinished(Path(self.path))
            save_checkpoint(self._file(history.steps), Checkpoint(facts, network.state, history))
            keep = self._files()[: self.keep_last]
            keep.append(self._file(self._held_step))
            if self.keep_best:
                keep.append(self._file(_best_step(history)))
            for file in self._files():
                if file not in keep:
                    file.unlink(missing_ok=True)
        except (OSError, CheckpointError) as error:
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
            message = f"no checkpoint after minibatch {history.steps} ({reason}); training goes on without it"
            if not self._failed:
                warnings.warn(message, TrainingWarning, stacklevel=3)
            self._failed = True
        else:
            self._failed = False

    def hold(self, step: int) -> None:
        """Keep the checkpoint of that minibatch, which is known to be right, until another is held."""
        self._held_step = step

    def _is_time(self, history: History) -> bool:
        if self.every_steps is not None and history.steps % self.every_steps == 0:
            return True
        if self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds:
            return True
        return self.keep_best and _best_step(history) == history.steps

    def newest(self, up_to: float = math.inf) -> Checkpoint | None:
        """The newest checkpoint, at most of minibatch `up_to`, that reads well; None if there is none.

        Of files that do not it warns.
        """
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


def _from_row(row: Array) -> tuple[int, int, Evaluation]:
    step, epoch, loss, accuracy, samples = row.tolist()
    return int(step), int(epoch), Evaluation(loss, None if math.isnan(accuracy) else accuracy, int(samples))


def _restore(description: dict[str, Any], arrays: dict[str, Array]) -> Checkpoint:
    """What was saved; ValueError if no training can have saved it, whatever its seal says."""
    losses, evaluations = arrays["losses"], arrays["evaluations"]
    counts = [description[name] for name in ("samples_seen", "lost_ranks")]
    seconds, facts = description["train_seconds"], description["facts"]
    state = {name.removeprefix(_STATE): array for name, array in arrays.items() if name.startswith(_STATE)}
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
    if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf) or not isinstance(facts, dict):
        raise ValueError("seconds or facts are none")
    params = state["params"]
    if not all(
        vector.shape == params.shape == (params.size,) and vector.dtype == params.dtype for vector in state.values()
    ):
        raise ValueError("its vectors are not vectors of one length and type")
    if params.dtype not in (np.float32, np.float64) or not all(np.isfinite(vector).all() for vector in state.values()):
        raise ValueError("its vectors hold numbers that are not finite")
    history = History(
        losses.tolist(), [_from_row(row) for row in evaluations], counts[0], float(seconds), lost_ranks=counts[1]
    )
    return Checkpoint(facts, state, history)


def _sha256(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
