#!/usr/bin/env python3
"""Times training with parallelcnn beside another checkout of it, on the same cores.

    scripts/benchmarks/compare.py --against ../before                # before and after a change, with start-up times
    scripts/benchmarks/compare.py --against ../before --only "VGG" --rounds 11

All train the same network from the same start values, by plain SGD in float32, over the same minibatches; the time is
that of the training loop alone. In every round every system is started afresh; then they take turns of --seconds,
interleaved, while the others sleep. A system's time in a round is that of its fastest turn, which other programs have
disturbed least; ratios are taken within a round, and the figures are medians over rounds (lowest to highest).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pages import (
    Spread,
    existing_folder,
    file_to_write,
    markdown_table,
    page_head,
    positive_integer,
    positive_number,
    print_page,
    run_to_the_end,
)
from processes import CLONE, Contestant, ProgramFailed, on_ranks, options_as_words, run

SLOWER = 1.02  # from this ratio on a page says that this checkout is slower
SETTLE = 0.02  # after a turn, threads may spin for a while, waiting for work [s]
TURNS = 20  # of each system in a round: many short ones, of which some are undisturbed


@dataclass(frozen=True)
class Workload:
    """What every system trains."""

    network: str
    batch_size: int = 100
    ranks: int = 1
    threads: int = 1

    @property
    def name(self) -> str:
        return f"{self.network}, minibatch {self.batch_size}, {self.ranks} x {self.threads}"


@dataclass(frozen=True)
class System:
    """One way to train: a program of `systems/`, as a checkout or a variant has it."""

    name: str
    program: str
    variant: str | None = None
    checkout: Path = CLONE
    cache: str = ""

    def command(self, workload: Workload, options: argparse.Namespace) -> list[str]:
        words = options_as_words(
            {
                "network": workload.network,
                "batch_size": workload.batch_size,
                "threads": workload.threads,
                "variant": self.variant,
                "data": options.data,
                "data_dir": options.data_dir,
                "learning_rate": options.learning_rate,
            }
        )
        program = Path(__file__).with_name("systems") / f"train_{self.program}.py"
        return on_ranks(workload.ranks, [sys.executable, str(program), *words])

    def variables(self) -> dict[str, str]:
        """This checkout's package, and a folder of its own for its compiled kernels."""
        return {"PYTHONPATH": str(self.checkout), **({"NUMBA_CACHE_DIR": self.cache} if self.cache else {})}


BEFORE_AND_AFTER = (
    Workload("paper"),
    Workload("paper", ranks=2),
    Workload("paper", threads=2),
    Workload("LeNet-5"),
    Workload("CIFAR-size"),
    Workload("VGG-like"),
)
STARTS = ("--help", "start-up, warm", "start-up, cold")


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        page = before_and_after(options, Path(folder))
    print_page(page, options.out)
    return 0


# ---- turns


@contextmanager
def started(
    systems: Sequence[System], workload: Workload, options: argparse.Namespace, folder: Path
) -> Iterator[dict[System, Contestant]]:
    """The systems, each in a process of its own, ready for their turns."""
    with ExitStack() as stack:
        contestants = {}
        for system in systems:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            contestant = Contestant(system.command(workload, options), place, system.variables())
            stack.callback(contestant.close)
            package = contestant.about.get("parallelcnn")
            if package is not None and Path(package).parent != system.checkout:
                raise ProgramFailed(f"{system.name} loaded {package}, not the package in {system.checkout}")
            contestants[system] = contestant
        yield contestants


def amount(contestant: Contestant, workload: Workload, seconds: float) -> tuple[int, int]:
    """(samples, epochs) that take about so many seconds: whole minibatches, several epochs if the data set is short."""
    few = 3 * workload.batch_size
    contestant.turn(few, 1)  # compiles
    per_sample = contestant.turn(few, 1) / few
    wanted = max(workload.batch_size, round(seconds / per_sample))
    epochs = -(-wanted // _longest_epoch(workload))
    return -(-wanted // epochs // workload.batch_size) * workload.batch_size, epochs


def _longest_epoch(workload: Workload) -> int:
    """Samples: what every data set has (see systems/contract.py), in whole minibatches."""
    return max(4000 // workload.batch_size, 1) * workload.batch_size


def one_round(
    contestants: dict[System, Contestant], amounts: dict[System, tuple[int, int]], turns: int, first: int
) -> dict[System, float]:
    """Seconds per sample of each, in its fastest turn; the first turn warms up and does not count."""
    order = list(contestants)
    order = order[first % len(order) :] + order[: first % len(order)]
    times: dict[System, list[float]] = {system: [] for system in order}
    for turn in range(turns + 1):
        for system in order if turn % 2 else order[::-1]:
            samples, epochs = amounts[system]
            seconds = contestants[system].turn(samples, epochs)
            if turn > 0:
                times[system].append(seconds / (samples * epochs))
            time.sleep(SETTLE)
    return {system: min(some) for system, some in times.items()}


# ---- before and after


def before_and_after(options: argparse.Namespace, folder: Path) -> str:
    """The page of this checkout beside another."""
    now, before = (
        System(name, "parallelcnn", checkout=checkout, cache=str(folder / f"cache-{name}"))
        for name, checkout in (("now", CLONE), ("before", options.against))
    )
    rows = []

    def add(name: str, unit: str, scale: float, pairs: list[tuple[float, float]]) -> None:
        ratio = Spread.of(one / other for one, other in pairs)
        times = [Spread.of(scale * value for value in values).text(unit=unit) for values in zip(*pairs, strict=True)]
        verdict = "**slower**" if ratio.median > SLOWER else ""
        rows.append((name, *times, ratio.text(3), verdict))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    for workload in BEFORE_AND_AFTER:
        if options.only.lower() in workload.name.lower():
            add(workload.name, " us", 1e6, time_pairs(now, before, workload, options, folder))
    for start in STARTS:
        if options.only.lower() in start:
            add(start, " s", 1, start_pairs(now, before, start, options, folder))
    header = ("workload", "now", "before", "now / before", "")
    return f"""{page_head("This checkout beside another", "numpy", "numba", "mpi4py")}.
Now: {_commit(CLONE)}; before: {_commit(options.against)}.

Networks: time per sample of the training loop, ranks x threads. Start-up: time of the whole command, for one epoch of
`parallelcnn train` on 60 images; cold: with an empty kernel cache. In each of {options.rounds} rounds
({options.cold_rounds} cold ones) both took turns, and the fastest turn counts; medians over rounds (lowest to highest),
ratios within a round. "Slower": a median ratio above {SLOWER}.

{markdown_table(header, rows)}
"""


def time_pairs(
    now: System, before: System, workload: Workload, options: argparse.Namespace, folder: Path
) -> list[tuple[float, float]]:
    """(now, before): seconds per sample in every round."""
    pairs: list[tuple[float, float]] = []
    amounts: dict[System, tuple[int, int]] = {}
    for number in range(options.rounds):
        with started((now, before), workload, options, folder) as contestants:
            if not amounts:
                amounts = dict.fromkeys((now, before), amount(contestants[now], workload, options.seconds))
            times = one_round(contestants, amounts, options.turns, number)
            pairs.append((times[now], times[before]))
    return pairs


def start_pairs(
    now: System, before: System, start: str, options: argparse.Namespace, folder: Path
) -> list[tuple[float, float]]:
    """(now, before): seconds of a whole command in every round."""
    data = folder / "start-up-data"
    _write_small_set(data)
    words = ["--help"] if start == "--help" else ["train", "--data", str(data), "--epochs", "1", "--batch-size", "30"]
    command = [sys.executable, "-m", "parallelcnn", *words, "--threads", "1"][: -2 if start == "--help" else None]
    cold = start.endswith("cold")

    def seconds(system: System) -> float:
        variables = system.variables()
        if cold:
            variables["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
        started = time.perf_counter()
        run(command, variables)
        return time.perf_counter() - started

    if not cold:
        for system in (now, before):
            seconds(system)
    pairs = []
    for number in range(options.cold_rounds if cold else options.rounds):
        times = {system: seconds(system) for system in ((now, before) if number % 2 else (before, now))}
        pairs.append((times[now], times[before]))
    return pairs


def _write_small_set(folder: Path) -> None:
    """Four IDX files, of 60 and 10 images."""
    folder.mkdir(exist_ok=True)
    for part, n in (("train", 60), ("t10k", 10)):
        header = b"".join(size.to_bytes(4, "big") for size in (n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + header + bytes(range(196)) * 4 * n)
        labels = bytes(i % 10 for i in range(n))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + n.to_bytes(4, "big") + labels)


def _commit(checkout: Path) -> str:
    """The commit of a checkout, as a page names it."""
    line = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    done = subprocess.run(line, capture_output=True, text=True)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "a folder without a commit"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=existing_folder, metavar="DIR", help="another checkout of parallelcnn")
    parser.add_argument("--only", default="", metavar="TEXT", help="only workloads with TEXT in their names")
    parser.add_argument("--data", default="random", help="random, digits, mnist or a folder (default: random)")
    parser.add_argument("--data-dir", help="folder that holds mnist")
    parser.add_argument("--learning-rate", type=positive_number, default=0.01, help="(default: 0.01)")
    parser.add_argument("--rounds", type=positive_integer, default=7, help="(default: 7)")
    parser.add_argument("--cold-rounds", type=positive_integer, default=3, help="starts without a cache (default: 3)")
    parser.add_argument("--turns", type=positive_integer, default=TURNS, help=f"in a round (default: {TURNS})")
    parser.add_argument("--seconds", type=positive_number, default=0.05, help="length of a turn (default: 0.05)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    options = parser.parse_args()
    if options.against is None:
        parser.error("--against DIR is needed")
    if not (options.against / "parallelcnn" / "__init__.py").exists():
        parser.error(f"--against must be a checkout of parallelcnn, got {str(options.against)!r}")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
