"""Find run directories, and read their files: whatever these hold, nothing waits, and little memory is taken."""

import contextlib
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parallelcnn.files.regular import open_regular

DONE, UNFINISHED, DAMAGED = "done", "unfinished", "damaged"

_SUMMARY_LIMIT = 2**24  # bytes that are read of a summary.json: hosts and threads of 100,000 ranks
_CONFIG_LIMIT = 2**20
_METRICS_LIMIT = 2**27  # 2 million minibatches
_LONGEST_ROW = 2**20
_TAIL = 2**20  # bytes at the end of a metrics.jsonl in which the last evaluation is looked for
_LARGEST_NUMBER = 1e30
_NOT_RUNS = ("checkpoints", "tensorboard")  # directories inside a run

Row = dict[str, Any]


@dataclass(frozen=True)
class StoredRun:
    """A run directory, as far as its files can be read.

    Attributes:
        path: of the directory.
        status: "done", "unfinished" (it is still running, was stopped or was killed), or "damaged".
        problem: what is damaged.
        started: when it started; for an unfinished run, when its settings were written.
        settings: of its config.toml, and the numbers of ranks and threads, by name.
        summary: the content of its summary.json.
        last: the row of its last evaluation in metrics.jsonl.
    """

    path: Path
    status: str
    problem: str = ""
    started: datetime | None = None
    settings: Row = field(default_factory=dict)
    summary: Row = field(default_factory=dict)
    last: Row = field(default_factory=dict)

    @property
    def epochs(self) -> int | None:
        """The epoch of the last evaluation."""
        epoch = self.last.get("epoch")
        return epoch if isinstance(epoch, int) else None

    @property
    def accuracy(self) -> float | None:
        """On the test set; before the end, of the last evaluation."""
        return self.result("accuracy")

    @property
    def loss(self) -> float | None:
        return self.result("loss")

    @property
    def seconds(self) -> float | None:
        """Time of the training loop."""
        return number_of(self.summary, "train_seconds")

    def result(self, name: str) -> float | None:
        values = [number_of(self.summary, f"test_{name}")] if self.summary else []
        values += [number_of(self.last, f"{role}_{name}") for role in ("test", "val")]
        return next((value for value in values if value is not None), None)


def find_runs(directory: Path) -> list[StoredRun]:
    """All runs in a directory and below it, newest first. Links to directories are not followed."""
    found = []
    for path, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _NOT_RUNS)
        if _is_run(set(files)):
            found.append(read_run(Path(path)))
    long_ago = datetime.fromtimestamp(0, UTC)
    return sorted(found, key=lambda run: run.started or long_ago, reverse=True)


def read_run(path: Path) -> StoredRun:
    """What the files of a run directory say."""
    problems = []
    config, problem = _read(path / "config.toml", _CONFIG_LIMIT, tomllib.loads)
    problems += [problem] if problem else []
    summary, problem = _read(path / "summary.json", _SUMMARY_LIMIT, json.loads)
    problems += [problem] if problem else []
    if summary and "parameters_sha256" not in summary:
        problems.append("summary.json holds no results of a run")
        summary = {}
    status = DAMAGED if problems else DONE if summary else UNFINISHED
    settings = config or {name: value for name, value in summary.items() if isinstance(value, str | int | float)}
    last, started = last_evaluation(path), _started(path, summary)
    return StoredRun(path, status, "; ".join(problems), started, settings | _of_ranks(summary), summary, last)


def read_summary(directory: Path) -> Row:
    """The content of a run's summary.json; empty if that is missing or damaged."""
    return _read(directory / "summary.json", _SUMMARY_LIMIT, json.loads)[0]


def read_config(directory: Path) -> Row:
    """The settings in a run's config.toml; empty if that is missing or damaged."""
    return _read(directory / "config.toml", _CONFIG_LIMIT, tomllib.loads)[0]


def rows_of_metrics(directory: Path) -> Iterator[Row]:
    """The rows of a run's metrics.jsonl. Rows that cannot be read are left out, as is what follows after 128 MiB."""
    with contextlib.suppress(OSError, ValueError), open_regular(directory / "metrics.jsonl") as file:
        left = _METRICS_LIMIT
        while left > 0 and (line := file.readline(_LONGEST_ROW)):
            left -= len(line)
            yield from _rows([line])


def last_evaluation(directory: Path) -> Row:
    """The last row of an evaluation in a run's metrics.jsonl; empty if there is none near its end."""
    try:
        with open_regular(directory / "metrics.jsonl") as file:
            size = os.fstat(file.fileno()).st_size
            content = os.pread(file.fileno(), _TAIL, max(0, size - _TAIL))
    except (OSError, ValueError):
        return {}
    lines = [line for line in content.decode(errors="replace").split("\n") if '_loss"' in line]
    return next(_rows(reversed(lines)), {})


def number_of(row: Row, name: str) -> float | None:
    """The number of that name; None if there is none, or it is too large for a result."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST_NUMBER:
        return None
    return float(value)


def _is_run(files: set[str]) -> bool:
    """Whether a directory with these files is a run directory: other programs, too, write a config.toml."""
    return "metrics.jsonl" in files or len(files & {".lock", "config.toml", "model.npz", "summary.json"}) > 1


def _read(file: Path, limit: int, parse: Callable[[str], Any]) -> tuple[Row, str]:
    """What a file says, and what is wrong with it. A missing file says nothing, and nothing is wrong with it."""
    try:
        with open_regular(file) as opened:
            found = parse(opened.read(limit))
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{file.name} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):  # not UTF-8, or not JSON or TOML
        return {}, f"{file.name} is damaged"
    return (found, "") if isinstance(found, dict) else ({}, f"{file.name} is damaged")


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _started(path: Path, summary: Row) -> datetime | None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        started = datetime.fromisoformat(summary["started"])
        return started if started.tzinfo else started.replace(tzinfo=UTC)
    for name in ("config.toml", "metrics.jsonl"):
        with contextlib.suppress(OSError, OverflowError, ValueError):
            return datetime.fromtimestamp((path / name).stat().st_mtime, UTC)
    return None


def _of_ranks(summary: Row) -> Row:
    """The numbers of ranks and of threads of each rank."""
    threads = summary.get("threads")
    several = sorted({one for one in threads if isinstance(one, int)}) if isinstance(threads, list) else []
    counts = {"ranks": summary.get("ranks"), "threads": several[0] if len(several) == 1 else several}
    return {name: count for name, count in counts.items() if count}
