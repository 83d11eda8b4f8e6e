"""Checkpoints: archives that contain everything needed to resume training.

    description            JSON: the network, as in a model file; settings and data of the training (`facts`); counts
    0.weight, ...          parameters and buffers, as in a model file
    state.velocity, ...    the optimiser state, one vector each
    losses, evaluations    the history

There is no random state: the order of the samples is a function of seed and epoch.
"""

import base64
import json
import math
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.arguments import as_path, check_integer
from parallelcnn.comm import Transport
from parallelcnn.errors import CheckpointError, InputError, TrainingWarning
from parallelcnn.files.archive import Archive, naming_damage, read_archive, write_archive
from parallelcnn.files.atomic import make_new, naming, remove_unfinished, utc_now
from parallelcnn.files.model import describe_network
from parallelcnn.layers.base import Array
from parallelcnn.network import ORIGIN, NetworkHandler
from parallelcnn.training.evaluation import Evaluation, as_value
from parallelcnn.training.history import History

THREADS_OF_RANKS = "threads_of_ranks"  # a fact: the number of threads of each rank when the training started
_STATE = "state."
_NETWORK = ("input_shape", "dtype", *ORIGIN, "layers", "parameters", "trained", "buffers")
_LARGEST_METRIC = 2**27  # bytes: a confusion matrix of 4,096 classes
_CUT = {"params": "parameters", "buffers": "buffers"}  # vectors stored as named arrays, and the key of their names


@dataclass
class Checkpoint:
    """The state of a training after a minibatch.

    Attributes:
        facts: network, data and settings of the training, as JSON values.
        state: see `NetworkHandler.state`.
        history: history from the first minibatch on.
        network: see `describe_network`; empty: the parameters are stored as one vector.
    """

    facts: dict[str, Any]
    state: dict[str, Array]
    history: History
    network: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, and read it back.

    Raises:
        OSError: if it cannot be written.
        CheckpointError: if the written file cannot be read back.
    """
    history = checkpoint.history
    arrays: dict[str, Array] = {}
    for name, vector in checkpoint.state.items():
        arrays |= _cut(vector, checkpoint.network.get(_CUT.get(name, ""))) or {f"{_STATE}{name}": vector}
    arrays["losses"] = np.array(history.losses, np.float64)
    rows = [  # NaN, where there is no accuracy
        (step, epoch, result.loss, math.nan if result.accuracy is None else result.accuracy, result.samples)
        for step, epoch, result in history.evaluations
    ]
    arrays["evaluations"] = np.array(rows, np.float64).reshape(-1, 5)
    description = {
        **checkpoint.network,
        "state": list(checkpoint.state),
        "facts": checkpoint.facts,
        "samples_seen": history.samples_seen,
        "train_seconds": history.train_seconds,
        "lost_ranks": history.lost_ranks,
        "exponents": history.exponents,
        "evaluated_on": [result.role for _, _, result in history.evaluations],
        "other_metrics": _packed_metrics([result.others for _, _, result in history.evaluations]),
    }
    path = as_path("path", path)
    write_archive(path, "checkpoint", description, arrays, partial(_restored, path))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; CheckpointError if the file is not a checkpoint, is damaged, or has a newer format."""
    path = as_path("path", path)
    return _restored(path, read_archive(path, "checkpoint"))


@dataclass
class CheckpointFolder:
    """Settings for saving checkpoints: the folder, how often to save, and how many to keep.

    A checkpoint is also saved at the end of every epoch, and when training stops early.

    Args:
        path: the folder, created if it is missing. Only checkpoints named by this class are deleted in it.
        every_steps: save after this many minibatches.
        every_seconds: save after this time, by rank 0's clock [s].
        keep_last: keep this many of the newest checkpoints.
        keep_best: also keep the checkpoint with the best result on the test or validation set: the highest accuracy, or
            the lowest loss if there is no accuracy.
        locate: called before files are written, read or deleted; returns the path, in case it changes during training.

    Raises:
        InputError: if a number is outside its range.
    """

    path: str | Path
    every_steps: int | None = None
    every_seconds: float | None = None
    keep_last: int = 2
    keep_best: bool = False
    locate: Callable[[], Path] | None = field(default=None, repr=False, compare=False)
    _unused: bool = field(default=True, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer("every_steps", 1 if self.every_steps is None else self.every_steps, 1)
        check_integer("keep_last", self.keep_last, 1)
        seconds = self.every_seconds
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 < seconds < math.inf):
            raise InputError(f"every_seconds must be a finite number above 0, got {seconds!r}")
        self.path = as_path("path", self.path)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete those that need not be kept. If writing fails, nothing is deleted."""
        folder = self._located()
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if self._unused:
            self._unused = False
            remove_unfinished(folder)
        new = folder / step_file(checkpoint.history.steps)
        save_checkpoint(new, checkpoint)
        files = self.files()
        keep = [new.name, *(file.name for file in files[: self.keep_last])]
        if self.keep_best:
            keep.append(step_file(_best_step(checkpoint.history)))
        for file in files:
            if file.name not in keep:
                file.unlink(missing_ok=True)

    def set_aside(self, after: int) -> None:
        """Move the checkpoints of later minibatches than `after` to a new folder in this one, and warn of it.

        A training calls it when it starts: they are damaged or of another training, and would be taken for its newest.
        """
        later = [file for file in self.files() if _step_of(file) > after]
        if not later:
            return
        with naming(Path(self.path)):
            aside = make_new(Path(self.path) / f"before-{utc_now()}")
            for file in later:
                file.rename(aside / file.name)
        warnings.warn(
            f"{self.path} held checkpoints of later minibatches than this training starts after, up to "
            f"{later[0].name}: they are now in {aside}; to continue from one, resume from its file",
            TrainingWarning,
            stacklevel=4,
        )

    def newest(self, up_to: float = math.inf) -> Checkpoint | None:
        """The newest readable checkpoint of minibatch `up_to` or earlier; None if there is none.

        Warns about each file that cannot be read.
        """
        files = [file for file in self.files() if _step_of(file) <= up_to]
        for file in files:
            try:
                return load_checkpoint(file)
            except CheckpointError as error:
                instead = "there is none before it" if file == files[-1] else "taking the checkpoint before it"
                warnings.warn(f"{error}; {instead}", TrainingWarning, stacklevel=2)
        return None

    def newest_file(self) -> Path | None:
        """The file of the newest readable checkpoint; see `newest`."""
        newest = self.newest()
        return None if newest is None else self._file_of(newest.history.steps)

    def best_file(self) -> Path | None:
        """The file of the checkpoint with the best evaluation; None if it was not kept. See `keep_best`."""
        newest = self.newest()
        best = None if newest is None else self._file_of(_best_step(newest.history))
        return best if best is not None and best.exists() else None

    def _file_of(self, step: int) -> Path:
        return self._located() / step_file(step)

    def _located(self) -> Path:
        if self.locate is not None:
            self.path = self.locate()
        return Path(self.path)

    def files(self) -> list[Path]:
        """All checkpoints in the folder, newest first."""
        files = [file for file in self._located().glob("step-*.npz") if file.stem[5:].isdecimal()]
        return sorted(files, key=_step_of, reverse=True)


def step_file(step: int) -> str:
    """The name of the checkpoint after that minibatch."""
    return f"step-{step:09}.npz"


def _step_of(file: Path) -> int:
    """The number of the minibatch in the name of a checkpoint."""
    return int(file.stem[5:])


class CheckpointSaver:
    """Saves the checkpoints of a training. All ranks agree on when a checkpoint is due; rank 0 writes it.

    Collective: every rank of `comm` must create one.

    Args:
        folder: settings. Rank 0's are used; other ranks may pass None.
        facts: see `Checkpoint`; the same on every rank, since any rank may become rank 0.

    Attributes:
        folder: rank 0's settings, on every rank; None: no checkpoints are saved.
        time_is_up: whether rank 0 has asked for a checkpoint after the current minibatch; the same on every rank.
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

    def start(self, step: int) -> None:
        """Set aside, on rank 0, what another training has saved of later minibatches than this one starts after."""
        if self.folder is None or self._comm.rank != 0:
            return
        try:
            self.folder.set_aside(step)
        except OSError as error:
            message = f"checkpoints of later minibatches stay in {error.filename}: {error.strerror}"
            warnings.warn(message, TrainingWarning, stacklevel=3)

    def asks(self) -> bool:
        """Whether this rank asks for a checkpoint. Only rank 0 does, by its clock."""
        seconds = self._settings.get("every_seconds")
        return seconds is not None and self._comm.rank == 0 and time.monotonic() - self._saved_at >= seconds

    def is_due(self, history: History, *, must: bool) -> bool:
        """Whether a checkpoint is due now; the same on every rank.

        Args:
            must: save whatever the settings are.
        """
        if self.folder is None or history.steps in (0, self._saved_step):
            return False
        every_steps = self._settings["every_steps"]
        is_best = self._settings["keep_best"] and _best_step(history) == history.steps
        return must or self.time_is_up or is_best or (every_steps is not None and history.steps % every_steps == 0)

    def save(self, network: NetworkHandler, history: History) -> None:
        """Save a checkpoint. Every rank must call it, after the replicas were found equal.

        If saving fails, rank 0 warns, but not again until saving has succeeded.
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
            message = f"no checkpoint after minibatch {history.steps} ({reason}); training continues without it"
            if not self._failed:
                warnings.warn(message, TrainingWarning, stacklevel=3)
            self._failed = True
        else:
            self._failed = False

    def went_back(self) -> None:
        """Allow saving steps again. Their files may be damaged, or a lost rank 0 may have been writing the last one.
        Every rank must call it.
        """
        self._saved_step, self.time_is_up = -1, False


def facts_that_changed(facts: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, value before, value now) of every fact that differs from the earlier training."""
    before = {"precision": "float32", **before}  # older files have none
    for name, value in json.loads(json.dumps(facts)).items():
        if before.get(name) != value:
            yield name, before.get(name), value


def _best_step(history: History) -> int:
    """The minibatch with the best evaluation, by accuracy, then by loss; 0 if there was no evaluation."""
    quality = [(result.accuracy or 0.0, -result.loss, step) for step, _, result in history.evaluations]
    return max(quality, key=lambda one: one[:2], default=(0.0, 0.0, 0))[2]


def _cut(vector: Array, shapes: Mapping[str, Any] | None) -> dict[str, Array]:
    """Cut a vector of all parameters, or buffers, into named arrays."""
    arrays, start = {}, 0
    for name, shape in (shapes or {}).items():
        stop = start + math.prod(shape)
        arrays[name] = vector[start:stop].reshape(shape)
        start = stop
    return arrays


def _joined(name: str, description: Mapping[str, Any], arrays: Mapping[str, Array]) -> Array:
    """The state's vector of that name, joined from the arrays of an archive."""
    names = description.get(_CUT.get(name, ""))
    return np.concatenate([arrays[one].ravel() for one in names]) if names else arrays[f"{_STATE}{name}"]


def _restored(path: Path, archive: Archive) -> Checkpoint:
    """The checkpoint in an archive; CheckpointError if its contents are not valid, even if its checksum is right."""
    with naming_damage(path):
        return _restore(archive.description, archive.arrays)


def _restore(description: dict[str, Any], arrays: dict[str, Array]) -> Checkpoint:
    losses, evaluations = arrays["losses"], arrays["evaluations"]
    seen, seconds, lost, facts = (description[key] for key in ("samples_seen", "train_seconds", "lost_ranks", "facts"))
    # Older files lack exponents, further metrics, and what they were evaluated on; version 1 has no list of the state.
    exponents = description.get("exponents", [])
    others = description.get("other_metrics", [[]] * len(evaluations))
    others = [tuple((name, as_value(_unpacked(value))) for name, value in some) for some in others]
    roles = description.get("evaluated_on", ["test"] * len(evaluations))
    stored = [name.removeprefix(_STATE) for name in arrays if name.startswith(_STATE)]
    state = {name: _joined(name, description, arrays) for name in description.get("state", stored)}

    _require(losses.dtype == np.float64 and losses.ndim == 1, "losses are not one number for each minibatch")
    _require(np.isfinite(losses).all(), "losses are not finite")
    _require(evaluations.dtype == np.float64 and evaluations.shape[1:] == (5,), "evaluations are not five numbers each")
    steps, epochs, test_losses, accuracies, samples = evaluations.T
    whole = np.array([steps, epochs, samples])
    _require(((whole >= 0) & (whole < 2**53)).all(), "evaluations hold what is no minibatch, epoch or count of samples")
    _require(np.isfinite(test_losses).all(), "evaluations hold losses that are not finite")
    _require((np.isnan(accuracies) | (accuracies >= 0) & (accuracies <= 1)).all(), "evaluations hold no accuracies")
    for name, value in (one for some in others for one in some):
        _require(isinstance(name, str) and _is_value(value), "other metrics are not names and numbers")
    for role in roles:
        _require(role in ("test", "val"), "evaluations are on neither a test set nor a validation set")
    for count in (seen, lost):
        _require(type(count) is int and 0 <= count < 2**53, "samples seen and ranks lost are not counts")
    for exponent in exponents:
        _require(type(exponent) is int and abs(exponent) < 256, "exponents are not small integers")
    _require(isinstance(exponents, list) and isinstance(facts, dict), "exponents or facts are of another type")
    _require(isinstance(seconds, int | float) and 0 <= seconds < math.inf, "seconds are not a time")
    for name in ("seed", "epochs", "batch_size"):  # earlier versions stored numpy's integers as text
        written = re.fullmatch(r"(?:np\.u?int\d+\()?(\d+)\)?", str(facts.get(name)))
        if isinstance(facts.get(name), str) and written:
            facts[name] = int(written[1])
    if "grains" in facts:  # an earlier name
        facts["reproducible"] = facts.pop("grains")
    params = state["params"]
    _require(params.dtype in (np.float32, np.float64), "parameters are of another type")
    for name, vector in state.items():
        size = vector.size if name in ("params", "buffers") else description.get("trained", params.size)
        _require(vector.dtype == params.dtype and vector.shape == (size,), "vectors are not of one length and type")
        _require(np.isfinite(vector).all(), "vectors hold numbers that are not finite")

    tests = [
        (int(step), int(epoch), Evaluation(loss, None if math.isnan(accuracy) else accuracy, int(n), some, role))
        for (step, epoch, loss, accuracy, n), some, role in zip(evaluations.tolist(), others, roles, strict=True)
    ]
    history = History(losses.tolist(), tests, seen, float(seconds), lost_ranks=lost, exponents=exponents)
    return Checkpoint(facts, state, history, {name: description[name] for name in _NETWORK if name in description})


def _is_value(value: Any) -> bool:
    """Whether a value is a number, or nested tuples of numbers."""
    return all(map(_is_value, value)) if isinstance(value, tuple) else isinstance(value, int | float)


def _packed_metrics(evaluations: Sequence[tuple[tuple[str, Any], ...]]) -> list[list[tuple[str, Any]]]:
    """Further metrics of each evaluation as JSON. Arrays are stored of the newest evaluation only: those of hundreds of
    evaluations would not fit into a description, and would take seconds at every checkpoint.
    """
    numbers = [[(name, value) for name, value in some if not isinstance(value, tuple)] for some in evaluations]
    return [*numbers[:-1], *[[(name, _packed(value)) for name, value in some] for some in evaluations[-1:]]]


def _packed(value: Any) -> Any:
    """A metric's value as JSON. A confusion matrix is mostly zeros."""
    if not isinstance(value, tuple):
        return value
    array = np.array(value, np.float64)
    return {"shape": array.shape, "zlib": base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()}


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value  # a number, or a list, as in older files
    shape = tuple(value["shape"])
    size = 8 * math.prod(shape)
    _require(0 <= size <= _LARGEST_METRIC, "a metric is too large")
    content = zlib.decompressobj().decompress(base64.b64decode(value["zlib"]), size + 1)
    return np.frombuffer(content, np.float64).reshape(shape)


def _require(good: Any, problem: str) -> None:
    if not good:
        raise ValueError(problem)
