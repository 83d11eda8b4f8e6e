"""`parallelcnn runs`: list the runs in a directory, and compare them."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelcnn.cli.options import path
from parallelcnn.cli.output import aligned, say
from parallelcnn.errors import InputError, shown
from parallelcnn.training.config import TrainConfig

if TYPE_CHECKING:
    from parallelcnn.comm import Transport
    from parallelcnn.files.run_files import StoredRun

_EXAMPLES = """\
examples:
  parallelcnn runs                                the runs in runs/, newest first
  parallelcnn runs runs --sort accuracy           the best first
  parallelcnn runs runs --plot comparison.html    draw their curves together
"""

_COLUMNS = ("model", "data")  # settings that are listed even if all runs agree
_OF_RANKS = ("ranks", "threads")
_UNLISTED = (*_COLUMNS, "epochs", "data_dir")
_LONGEST = 32  # characters of a setting

# Values to sort by, and what stands last. The best, the shortest and the newest run come first.
_ORDERS: "dict[str, Callable[[StoredRun], Any]]" = {
    "started": lambda run: -run.started.timestamp() if run.started else 0.0,
    "accuracy": lambda run: 1.0 if run.accuracy is None else -run.accuracy,
    "loss": lambda run: float("inf") if run.loss is None else run.loss,
    "time": lambda run: float("inf") if run.seconds is None else run.seconds,
    "name": lambda run: str(run.path),
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "runs",
        help="list runs and compare them",
        usage="parallelcnn runs [DIR] [options]",
        description="List the runs in a directory and below it: when they started, the settings in which they\n"
        "differ, and their results.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=None, timeout=0)
    parser.add_argument("directory", nargs="?", default="runs", type=path, metavar="DIR", help="by default runs/")
    parser.add_argument(
        "--sort",
        choices=_ORDERS,
        default="started",
        metavar="KEY",
        help=f"{', '.join(_ORDERS)} [default: started, the newest first]",
    )
    parser.add_argument("--plot", type=path, metavar="FILE.html", help="draw their curves together, in an HTML file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn.files.run_files import find_runs
    from parallelcnn.resilience.launch import launched_rank

    if launched_rank() != 0:
        return 0
    directory = Path(options.directory)
    if not directory.is_dir():
        raise InputError(f"runs takes a directory, got {options.directory!r}, which is none")
    found = sorted(find_runs(directory), key=_ORDERS[options.sort])
    if not found:
        raise InputError(f"{directory} holds no runs: `parallelcnn train --out {directory / 'NAME'}` writes one")
    rows = _without_empty_columns(table_of_runs(found, directory))
    if options.json:
        say(json.dumps([_as_json(run) for run in found], indent=2))
    else:
        say("\n".join(aligned(rows)))
    if options.plot is not None:
        _plot(Path(options.plot), found, rows, directory)
    return 0


def table_of_runs(found: "Sequence[StoredRun]", directory: Path) -> list[tuple[str, ...]]:
    """A row of names, and a row for each run."""
    names = differing(found)
    return [
        ("run", "started (UTC)", *_COLUMNS, *names, "epochs", "accuracy", "loss", "time", "status"),
        *(_row(run, names, directory) for run in found),
    ]


def differing(found: "Sequence[StoredRun]") -> list[str]:
    """The settings in which the runs differ, as in `TrainConfig`, and ranks and threads. Damaged runs do not count."""
    from parallelcnn.files.run_files import DAMAGED

    known = [run.settings for run in found if run.status != DAMAGED]
    # config.toml does not name what is None, nor settings of later versions. Ranks and threads are known at the end.
    values = {
        one.name: [_as_listed(settings.get(one.name, one.default)) for settings in known] for one in fields(TrainConfig)
    }
    for name in _OF_RANKS:
        values[name] = [settings[name] for settings in known if name in settings]
    return [name for name, some in values.items() if name not in _UNLISTED and len(set(map(repr, some))) > 1]


def _as_listed(value: Any) -> Any:
    """A setting as config.toml holds it: without tuples."""
    return list(value) if isinstance(value, tuple) else value


def _row(run: "StoredRun", names: Sequence[str], directory: Path) -> tuple[str, ...]:
    from parallelcnn.training.progress import percent
    from parallelcnn.wording import duration

    planned = run.settings.get("epochs")
    return (
        _name(run, directory),
        "" if run.started is None else f"{run.started:%Y-%m-%d %H:%M}",
        *(_value(run.settings.get(name)) for name in (*_COLUMNS, *names)),
        "" if run.epochs is None else f"{run.epochs}/{planned}" if isinstance(planned, int) else f"{run.epochs}",
        "" if run.accuracy is None else percent(run.accuracy),
        "" if run.loss is None else f"{run.loss:.4f}",
        "" if run.seconds is None else duration(run.seconds),
        f"{run.status}: {run.problem}" if run.problem else run.status,
    )


def _name(run: "StoredRun", directory: Path) -> str:
    """The path of a run below the directory."""
    name = str(run.path.relative_to(directory))
    return run.path.resolve().name if name == "." else name


def _value(value: Any) -> str:
    if value is None or value == []:
        return ""
    text = (
        " ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
    if os.path.isabs(text):
        relative = os.path.relpath(text)
        text = text if relative.startswith(os.pardir) or relative == os.curdir else relative
    text = shown(text)
    return text if len(text) <= _LONGEST else f"...{text[3 - _LONGEST :]}"  # the end of a path says more


def _without_empty_columns(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _as_json(run: "StoredRun") -> dict[str, Any]:
    return {
        "path": str(run.path),
        "status": run.status,
        "problem": run.problem or None,
        "started": None if run.started is None else run.started.isoformat(),
        "settings": run.settings,
        "epochs_done": run.epochs,
        "test_accuracy": run.accuracy,
        "test_loss": run.loss,
        "train_seconds": run.seconds,
    }


def _plot(file: Path, found: "Sequence[StoredRun]", rows: Sequence[Sequence[str]], directory: Path) -> None:
    from parallelcnn.files.atomic import write_atomically
    from parallelcnn.report.comparison import comparison

    names = [_name(run, directory) for run in found]
    try:
        write_atomically(file, comparison(str(directory), found, names, *rows))
    except OSError as error:
        raise InputError(f"--plot {file} cannot be written: {error.strerror}") from None
    say(f"written    {file}")
