"""The run directory: its lock, and the files of a run, such as metrics.jsonl, summary.json and report.html."""

import contextlib
import errno
import importlib.util
import io
import itertools
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from parallelcnn.cli.metrics import MetricsFile, evaluation_row
from parallelcnn.comm import Transport
from parallelcnn.errors import InputError, TrainingWarning, shown
from parallelcnn.files.atomic import lock, make_new, remove_unfinished, utc_now, write_atomically
from parallelcnn.files.regular import open_regular
from parallelcnn.profiling import Profiler
from parallelcnn.training.callbacks import Callback, Logs
from parallelcnn.training.history import History

_FILES = [
    *("model.npz", "config.toml", "metrics.jsonl", "loss.png", "summary.json", "profile.txt", "trace.json"),
    "report.html",
    *("epochs.csv", "tensorboard", "checkpoints"),
]
DEFAULT_OUT = Path("runs")  # a new directory in it
_LOCK = ".lock"
_LONGEST_END = 5.0  # of a process that was killed and still holds the lock [s]
_POLL_EVERY = 0.1  # [s]
_REPLACED = "was removed or replaced during the run"


class DirectoryInUseError(InputError):
    """Another run writes to the directory."""


class RunDirectory:
    """The directory that receives the files of a run; one run at a time. Existing files stay until `open`.

    The run holds a file locked that contains its token. If the directory is removed or replaced during the run, the
    token is no longer there: the run continues in a new directory beside it, and touches no file of another run.

    Args:
        path: created if missing; None: `runs/` and the time in UTC.
        token: of the run; a new one by default.

    Raises:
        InputError: if nothing can be written there.
        DirectoryInUseError: if another run writes there.

    Attributes:
        path: of the directory; changes if the directory is removed or replaced.
        moved_to: where `open` has moved the files of an earlier run.
    """

    def __init__(self, path: str | Path | None, token: str | None = None) -> None:
        self._now = utc_now()
        self.token = token or f"{_this_job()}{os.urandom(8).hex()}"
        self.moved_to: Path | None = None
        self._metrics: MetricsFile | None = None
        self.path = DEFAULT_OUT / self._now if path is None else Path(path)
        if self.path.name in ("", ".."):  # a new directory beside it could not be named
            self.path = Path(os.path.abspath(self.path))
        with self._refusing_what_fails():
            if path is None:
                self.path = make_new(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            taken = lock(self.path / _LOCK)
        if taken is None:
            raise DirectoryInUseError(
                f"--out {self.path} must belong to one run at a time, but another run is writing there"
            )
        self._lock = taken

    @classmethod
    def take_over(cls, path: Path, token: str) -> "RunDirectory":
        """The directory of a run whose rank 0 is lost, to continue in; a new one if it is no longer the run's.

        Raises:
            OSError: if it cannot be written now, as on a full disk.
        """
        try:
            return cls._take_over(path, token)
        except InputError as error:
            raise error.__cause__ or OSError(errno.EBUSY, str(error), str(path)) from None

    @classmethod
    def _take_over(cls, path: Path, token: str) -> "RunDirectory":
        directory = None
        give_up_at = time.monotonic() + _LONGEST_END
        while directory is None and _token_in(path) == token and time.monotonic() < give_up_at:
            try:
                directory = cls(path, token)
            except DirectoryInUseError:
                time.sleep(_POLL_EVERY)
        if directory is None:
            why = "is still locked by the lost rank" if _token_in(path) == token else _REPLACED
            directory = cls(make_new(path, 2), token)
        try:
            directory.open(resume=True)
            directory.metrics.start_again(directory.path / "metrics.jsonl")
        except BaseException:
            directory.close()
            if directory.path != path:
                shutil.rmtree(directory.path, ignore_errors=True)
            raise
        if directory.path != path:
            _warn_moved(path, why, directory.path)
        return directory

    @staticmethod
    def begun_by_this_job(path: Path) -> Path | None:
        """The directory of the run that an earlier start of this SLURM job has begun in `path`. It is path-2, ... if
        the run has moved there, because `path` was removed, replaced or locked. None: there is no such run.
        """
        job = _this_job()
        if not job:
            return None
        token = _token_in(path) or ""
        found = path if token.startswith(job) else None
        wanted = job if found is None else token  # another run of this job beside it is a training of its own
        for number in itertools.count(2):
            candidate = Path(f"{path}-{number}")
            if not candidate.is_dir():
                break
            if (_token_in(candidate) or "").startswith(wanted):
                found = candidate
        return found

    @staticmethod
    def forget_lock(path: Path) -> None:
        """Remove the lock of a process that is known to be gone. If it is not, it continues in a new directory."""
        (path / _LOCK).unlink(missing_ok=True)

    def open(self, *, resume: bool) -> None:
        """Write the token, and move the files of an earlier run to a new directory inside this one, unless `resume`.

        Raises:
            InputError: if nothing can be written there.
        """
        with self._refusing_what_fails():
            if _token_in(self.path) != self.token:
                _write_token(self._lock, self.token)
            for directory in (self.path, self.checkpoints):
                remove_unfinished(directory)
            earlier = [self.path / name for name in _FILES if (self.path / name).exists()]
            if earlier and not resume:
                self.moved_to = make_new(self.path / f"before-{self._now}")
                for file in earlier:
                    file.rename(self.moved_to / file.name)
            self._metrics = MetricsFile(self.path / "metrics.jsonl")

    @contextlib.contextmanager
    def _refusing_what_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            inside = error.filename is not None and Path(error.filename).parent == self.path
            what = f"{Path(error.filename).name}: " if inside else ""
            raise InputError(f"--out {self.path} cannot be written: {what}{error.strerror}") from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> MetricsFile:
        """The file of metrics, after `open`."""
        assert self._metrics is not None
        return self._metrics

    def stay_ours(self) -> None:
        """Call before files are written or deleted: if the directory is no longer this run's, continue in a new one.

        Raises:
            OSError: if no new directory can be created.
        """
        if _token_in(self.path) == self.token:
            return
        new = make_new(self.path, 2)
        try:
            taken = lock(new / _LOCK)
            if taken is not None:
                _write_token(taken, self.token)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if taken is None:  # another run was quicker
            return self.stay_ours()
        _warn_moved(self.path, _REPLACED, new)
        self._lock.close()
        self.path, self._lock = new, taken
        self.metrics.start_again(new / "metrics.jsonl")

    def close(self) -> None:
        """Flush the metrics, and release the directory for other runs."""
        if self._metrics is not None:
            self._metrics.close()
        self._lock.close()

    def write_config(self, text: str) -> None:
        """Write `config.toml`, or warn: the run does not need it."""
        with self._optional("config.toml") as path:
            write_atomically(path, text.encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def write_extras(self, history: History, profiler: Profiler | None) -> None:
        """Write `loss.png`, if matplotlib is installed, and the profiler's `profile.txt` and `trace.json`.

        If one of them fails, a warning says why.
        """
        with self._optional("loss.png") as path:
            if importlib.util.find_spec("matplotlib") is not None:
                plot_losses(path, history)
        if profiler is not None:
            with self._optional("profile.txt") as path:
                write_atomically(path, f"{profiler.table()}\n".encode())
            with self._optional("trace.json") as path:
                profiler.save_trace(path)

    def write_report(self, make: Callable[[], bytes]) -> None:
        """Write `report.html`, or warn: the run does not need it.

        Args:
            make: returns its content.
        """
        with self._optional("report.html") as path:
            write_atomically(path, make())

    @contextlib.contextmanager
    def _optional(self, name: str) -> Iterator[Path]:
        try:
            yield self.path / name
        except Exception as error:  # a matplotlib that was built for another numpy raises anything
            reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            warnings.warn(shown(f"no {name}: {reason or error}"), TrainingWarning, stacklevel=4)


class RunReporter(Callback):
    """Reports a run: progress on the terminal, and `metrics.jsonl`.

    Every rank has one; only rank 0 prints and writes. If rank 0 is lost, the new rank 0 takes the directory over.

    Args:
        directory: of the run, on rank 0; None on the others.
        path, token: of that directory, on every rank.
        samples: samples in an epoch.

    Attributes:
        history: of the training, once known.
        first_step_at: when the first minibatch was done, by `time.perf_counter` [s].
    """

    def __init__(self, comm: Transport, directory: RunDirectory | None, path: Path, token: str, samples: int) -> None:
        self._comm, self._path, self._token, self._samples = comm, path, token, samples
        self.directory = directory
        self.history: History | None = None
        self.first_step_at = math.nan

    def on_train_begin(self, logs: Logs) -> None:
        self.history = self.training.history

    def on_resume(self, logs: Logs) -> None:
        self.history = history = self.training.history
        if self._comm.rank != 0:
            return
        with contextlib.suppress(OSError):  # no new directory for now: the metrics are completed later
            self.directory_to_write().metrics.rewrite(history, self._samples)

    def directory_to_write(self) -> RunDirectory:
        """The run directory, on rank 0; taken over if this rank is rank 0 because an earlier rank 0 is lost.

        Raises:
            OSError: if the directory is no longer the run's, and no new one can be created.
        """
        if self.directory is None:
            self.directory = RunDirectory.take_over(self._path, self._token)
        self.directory.stay_ours()
        return self.directory

    def on_batch_end(self, step: int, logs: Logs) -> None:
        if math.isnan(self.first_step_at):
            self.first_step_at = time.perf_counter()
        if self.directory is not None:
            self.directory.metrics.append_loss(step, logs["epoch"], logs["loss"])

    def on_test_end(self, logs: Logs) -> None:
        self.history = history = self.training.history
        if self.directory is None:
            return
        self.directory.metrics.append(evaluation_row(*history.evaluations[-1]), flush=True)
        with contextlib.suppress(OSError):
            self.directory_to_write().metrics.complete(history, self._samples)

    def close(self) -> None:
        """Complete the metrics, and release the directory."""
        if self.directory is None:
            return
        if self.history is not None:
            with contextlib.suppress(OSError):
                self.directory_to_write().metrics.complete(self.history, self._samples, last_chance=True)
        self.directory.close()


def plot_losses(path: Path, history: History) -> None:
    """Plot the losses into a file; see `History.plot`."""
    if "matplotlib" not in sys.modules:
        # Jupyter names its own backend here. Where that is not installed, matplotlib refuses to be imported, although
        # a figure that is only saved needs no backend.
        os.environ.pop("MPLBACKEND", None)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=100)
    history.plot(figure.add_axes((0.13, 0.12, 0.85, 0.85)))  # finding the margins took 0.3 s, a tenth of a short run
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _this_job() -> str:
    """The beginning of the tokens of this SLURM job; empty outside SLURM."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"slurm-{job}-" if job.isdecimal() and len(job) < 20 else ""


def _write_token(locked: TextIO, token: str) -> None:
    locked.truncate(0)
    os.write(locked.fileno(), token.encode())  # unbuffered: what cannot be written now is not written at the end
    os.fsync(locked.fileno())  # the file stays open, and a rank on another node may have to read it


def _token_in(path: Path) -> str | None:
    """The token of the last run in the directory; None if there is none that can be read."""
    try:
        with open_regular(path / _LOCK) as file:
            return file.read(100)
    except (OSError, ValueError):
        return None


def _warn_moved(path: Path, why: str, new: Path) -> None:
    warnings.warn(f"{path} {why}; from here on the run writes to {new}", TrainingWarning, stacklevel=3)
