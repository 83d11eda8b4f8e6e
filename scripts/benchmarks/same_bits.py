#!/usr/bin/env python3
"""Check that results have the same bits on any ranks and threads, with both MPI libraries, resumed or with lost ranks.

    scripts/benchmarks/same_bits.py --data mnist --python .venv-mpich/bin/python .venv-openmpi/bin/python --out page.md
    scripts/benchmarks/same_bits.py --quick                                     # the built-in digits, a minute

Trains the paper's network many times with `parallelcnn train --reproducible N`, and writes a page with the SHA-256 of
the parameters of every training. With --everything: a network with batch normalisation, dropout, a residual block and a
depthwise convolution, by AdamW with warm-up, clipped gradients, label smoothing and averaged parameters.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pages import (
    command_line,
    existing_folder,
    file_to_write,
    markdown_table,
    positive_integer,
    print_page,
    processor,
    run_to_the_end,
    versions,
)
from processes import options_as_words
from soak_start import Ended, Installation, PlannedSignal, start

# Ranks, and threads of each.
_LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 1), (3, 1), (4, 1), (5, 1), (8, 1), (2, 2), (3, 2))
_QUICK_LAYOUTS = ((1, 2), (2, 1))
_FLOAT_LAYOUTS = ((1, 1), (1, 2), (2, 1), (3, 1))
_EVERYTHING = {
    "model": f"{Path(__file__).with_name('networks.py')}:everything",
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "schedule": "cosine",
    "warmup": 20,
    "clip_norm": 1,
    "label_smoothing": 0.1,
    "ema": 0.99,
    "validation_split": 0.1,
}
_LIMIT = 300.0  # time limit of a training; the first may compile [s]


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
    print_page(page_of(options, installations, fixed, floats), options.out)
    different = len({run.sha256 for run in fixed})
    if different > 1:
        print(f"same_bits.py: {different} different hashes, where there should be one", file=sys.stderr)
    return 0 if different == 1 else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "Pythons with parallelcnn, each with an MPI library of its own; otherwise this one"
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="PATH", help=what)
    parser.add_argument("--data", default="digits", help="digits, mnist or a folder")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of mnist")
    parser.add_argument("--epochs", type=positive_integer, default=1)
    parser.add_argument("--batch-size", type=positive_integer, default=100)
    parser.add_argument("--reproducible", type=positive_integer, default=8, metavar="N", help="shards of a minibatch")
    parser.add_argument("--folder", type=existing_folder, default=Path(), help="folder for the runs, which are removed")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    parser.add_argument("--everything", action="store_true", help="another network and recipe; see above")
    parser.add_argument("--quick", action="store_true", help="few trainings")
    options = parser.parse_args()
    if options.data_dir:
        options.data_dir = str(Path(options.data_dir).resolve())
    return options


class Trainings:
    """Trains the same network on the same data many times.

    Args:
        folder: for all files that the trainings write.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._number = 0
        self._steps: int | None = None  # of a whole training

    def reproducible(self, one: Installation) -> list[Run]:
        """On all numbers of ranks and threads, with a resume, and with a lost rank if MPI can continue without it."""
        words = ["--reproducible", str(self._options.reproducible)]
        layouts = _QUICK_LAYOUTS if self._options.quick else _LAYOUTS
        runs = [self._undisturbed(one, ranks, threads, words) for ranks, threads in layouts]
        runs.append(self._resumed(one, words))
        if one.open_mpi:
            runs += [self._with_a_rank_killed(one, rank, words) for rank in (1, 0)]
        return runs

    def of_floats(self, one: Installation) -> list[Run]:
        layouts = _FLOAT_LAYOUTS[:1] if self._options.quick else _FLOAT_LAYOUTS
        return [self._undisturbed(one, ranks, threads, []) for ranks, threads in layouts]

    def _undisturbed(self, one: Installation, ranks: int, threads: int, words: Sequence[str]) -> Run:
        out = self._next_folder()
        ended = self._start(one, ranks, threads, [*words, "--out", str(out)])
        if ended.code != 0:
            sys.exit(f"same_bits.py: a training failed with exit code {ended.code}:\n{ended.errors[-2000:]}")
        return self._run_of(one, out, str(ranks), threads, "undisturbed")

    def _resumed(self, one: Installation, words: Sequence[str]) -> Run:
        """Two ranks are asked to stop in the middle of the training; three resume it."""
        out, middle = self._next_folder(), self._middle()
        words = [*words, "--out", str(out)]
        asked = PlannedSignal(0, [1], signal.SIGUSR1, "sum", middle)
        ended = self._start(one, 2, 1, words, asked)
        if ended.code == 0 or (out / "summary.json").exists():
            sys.exit(f"same_bits.py: a training did not stop when it was asked to:\n{ended.errors[-2000:]}")
        ended = self._start(one, 3, 1, [*words, "--resume"])
        if ended.code != 0:
            sys.exit(f"same_bits.py: a resumed training failed with exit code {ended.code}:\n{ended.errors[-2000:]}")
        return self._run_of(
            one, out, "2, then 3", 1, f"stopped at minibatch {_resumed_after(ended)} (SIGUSR1), resumed"
        )

    def _with_a_rank_killed(self, one: Installation, rank: int, words: Sequence[str]) -> Run:
        out, middle = self._next_folder(), self._middle()
        kill = PlannedSignal(0, [rank], signal.SIGKILL, "sum", middle)
        ended = self._start(one, 3, 1, [*words, "--out", str(out)], kill)
        if ended.code != 0 or ended.killed != {rank}:
            sys.exit(f"same_bits.py: a training did not survive (exit code {ended.code}):\n{ended.errors[-2000:]}")
        what = f"rank {rank} killed in allreduce {middle} (`--with-ft ulfm`)"
        return self._run_of(one, out, "3, then 2", 1, what)

    def _start(
        self, one: Installation, ranks: int, threads: int, words: Sequence[str], *signals: PlannedSignal
    ) -> Ended:
        options = self._options
        notes = self._folder / f"notes-{self._number}"
        self._number += 1
        notes.mkdir()
        names = ("data", "data_dir", "epochs", "batch_size")
        shared = {name: getattr(options, name) for name in names} | {"threads": threads}
        shared |= _EVERYTHING if options.everything else {}
        arguments = ["train", *options_as_words(shared), *words]
        survives = any(planned.signal == signal.SIGKILL for planned in signals)
        return start(one.launch(ranks if ranks > 1 else 0, survives), arguments, ranks, signals, notes, _LIMIT)

    def _next_folder(self) -> Path:
        return self._folder / f"run-{self._number}"

    def _middle(self) -> int:
        """The number of an allreduce in the middle of the training: there is about one for each minibatch."""
        assert self._steps is not None  # undisturbed trainings come first
        return self._steps // 2 + 2  # ranks sum before the first minibatch, too

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
    """The minibatch after which a training was resumed, as it says."""
    said = [line for line in ended.output.splitlines() if line.startswith("resumed after minibatch ")]
    if not said:
        sys.exit(f"same_bits.py: a training began anew instead of continuing:\n{ended.output[-2000:]}")
    return said[0].split()[-1]


def page_of(
    options: argparse.Namespace, installations: Sequence[Installation], fixed: Sequence[Run], floats: Sequence[Run]
) -> str:
    different = len({run.sha256 for run in fixed})
    header = ["MPI library", "ranks", "threads each", "what happened", "SHA-256 of the parameters", "test accuracy"]
    header.append("training [s]")
    network = "The network `everything` of `networks.py`" if options.everything else "The paper's network"
    libraries = " and ".join("Open MPI" if one.open_mpi else "MPICH" for one in installations)
    parts = [
        "# The same bits on any number of ranks and threads",
        f"    {command_line()}",
        f"{processor()}; {len(os.sched_getaffinity(0))} usable. {versions('numpy', 'numba', 'mpi4py')}; {libraries}.",
        f"{network} on {Path(options.data).name}, {options.epochs} "
        f"epoch{'s' if options.epochs > 1 else ''} of minibatches of {options.batch_size}, "
        f"`parallelcnn train --reproducible {options.reproducible}`. First 16 digits of `parameters_sha256` in "
        f"`summary.json`; seconds of the training loop, measured once, also with more ranks than cores. "
        f"One rank uses no MPI library: it is that Python's.",
        f"**{len(fixed)} runs, {different} different hash{'es' if different > 1 else ''}.**",
        markdown_table(header, [run.row() for run in fixed]),
        "For comparison without `--reproducible`: float32 sums, whose rounding depends on the order of summation. The "
        "hash is expected to depend on ranks and threads, and the accuracy to agree. "
        f"{len(floats)} runs, {len({run.sha256 for run in floats})} different hashes.",
        markdown_table(header, [run.row() for run in floats]),
        "All of it on one kind of processor: another instruction set may round the sums within a shard differently. "
        "What reproducible sums, checkpoints and checks cost: [same-bits-cost.md](same-bits-cost.md).",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    run_to_the_end(main)
