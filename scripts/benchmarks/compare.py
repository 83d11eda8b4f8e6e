#!/usr/bin/env python3
"""Time training with parallelcnn and with another checkout of it, or with other frameworks, on the same cores.

    scripts/benchmarks/compare.py --against ../before                # before and after a change, with start-up times
    scripts/benchmarks/compare.py --against ../before --only "VGG" --rounds 11
    scripts/peers.sh scripts/benchmarks/compare.py --data mnist --networks paper --cores 2 1 --epochs 3
    scripts/peers.sh scripts/benchmarks/compare.py --systems pytorch --batch-sizes 1 10 100 1000

All systems train the same network from the same initial weights, by plain SGD, over the same minibatches, in float32;
with pytorch-bfloat16, PyTorch and parallelcnn in bfloat16 as well. Only the training loop is timed. In every round
every system is started afresh; then they train in turns of --seconds each, while the others sleep. A system's time in
a round is that of its fastest turn, which other programs have disturbed least. Ratios are taken within a round; the
figures are medians over rounds (lowest to highest). If a framework can be set up in several ways, each way gets a
trial of a few turns, and the fastest takes part. A system that fails has no row; the rest of the page is written.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from networks import NETWORKS, flop_per_sample
from pages import (
    Spread,
    check_cores,
    existing_folder,
    file_to_write,
    markdown_table,
    matrix_product_rate,
    page_head,
    positive_integer,
    positive_number,
    print_page,
    run_to_the_end,
    three_digits,
)
from processes import CLONE, ProgramFailed, on_cores, run, run_json
from race import Race, System, Workload, amount, start

SLOWER = 1.02  # above this ratio a page says that this checkout is slower
TURNS = 20  # of each system in a round: many short ones, so that some are undisturbed
TRIAL_TURNS = 3  # of each way to set a framework up, of which the fastest counts
# How many times as fast as PyTorch parallelcnn should be: both in float32; and the fastest of both, in float32
# or bfloat16.
TARGET_FLOAT32, TARGET_EITHER = 1.5, 1.1


BEFORE_AND_AFTER = (
    Workload("paper"),
    Workload("paper", ranks=2),
    Workload("paper", threads=2),
    Workload("LeNet-5"),
    Workload("CIFAR-size"),
    Workload("VGG-like"),
)
FRAMEWORKS = {"pytorch": "PyTorch", "pytorch-bfloat16": "PyTorch", "keras": "Keras", "jax": "JAX"}
# Ways to set up a framework; its program in systems/ explains them.
_PYTORCH = ("channels_last", "contiguous", "compiled", "ddp", "ddp_channels_last")
VARIANTS = {
    "pytorch": _PYTORCH,
    "pytorch-bfloat16": tuple(f"bfloat16_{way}" for way in _PYTORCH),  # less exact arithmetic than all others
    "keras": ("function", "fit_many_steps", "fit", "fit_xla", "function_xla"),
    "jax": ("step", "reduce_window", "scan"),
}
STARTS = ("--help", "start-up, warm", "start-up, cold")


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        page = (before_and_after if options.against else beside_frameworks)(options, Path(folder))
    print_page(page, options.out)
    return 0


# ---- before and after


def before_and_after(options: argparse.Namespace, folder: Path) -> str:
    """The page that compares this checkout with another."""
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
            times = Race(workload, options, folder).run((now, before))
            add(workload.name, " us", 1e6, list(zip(times[now], times[before], strict=True)))
    for kind in STARTS:
        if options.only.lower() in kind:
            add(kind, " s", 1, start_pairs(now, before, kind, options, folder))
    header = ("workload", "now", "before", "now / before", "")
    return f"""{page_head("This checkout beside another", "numpy", "numba", "mpi4py")}.
Now: {_commit(CLONE)}; before: {_commit(options.against)}.

Networks: time per sample of the training loop, ranks x threads. Start-up: time of the whole command, for one epoch of
`parallelcnn train` on 60 images; cold: with an empty kernel cache. In each of {options.rounds} rounds
({options.cold_rounds} cold ones) both took turns, and the fastest turn counts; medians over rounds (lowest to highest),
ratios within a round. "Slower": a median ratio above {SLOWER}.

{markdown_table(header, rows)}
"""


def start_pairs(
    now: System, before: System, kind: str, options: argparse.Namespace, folder: Path
) -> list[tuple[float, float]]:
    """(now, before): seconds that a whole command took in every round."""
    data = folder / "start-up-data"
    _write_small_set(data)
    words = ["--help"] if kind == "--help" else ["train", "--data", str(data), "--epochs", "1", "--batch-size", "30"]
    command = [sys.executable, "-m", "parallelcnn", *words, "--threads", "1"][: -2 if kind == "--help" else None]
    cold = kind.endswith("cold")

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


# ---- beside other frameworks


def beside_frameworks(options: argparse.Namespace, folder: Path) -> str:
    """The page that compares parallelcnn with other frameworks."""
    sections = []
    for cores in options.cores:
        with on_cores(cores):
            sections.append(section(cores, options, folder))
    packages = ("numpy", "numba", "mpi4py", "torch", "tensorflow-cpu", "keras", "jax")
    body = "\n\n".join(sections)
    return f"""{page_head("parallelcnn beside other frameworks", *packages)}.
{_commit(CLONE)[0].upper() + _commit(CLONE)[1:]}.

Data: {Path(options.data).name}. Plain SGD, float32 where nothing else is said; the time of the training loop alone.
In each of {options.rounds} rounds the fastest of {options.turns} turns counts; medians over rounds (lowest to highest),
ratios within a round.
Rates count two operations for each product of convolutions and dense layers.

{body}
"""


def section(cores: int, options: argparse.Namespace, folder: Path) -> str:
    """The table for one number of cores, and the result of every trial."""
    trials: list[str] = []
    rows, leads = [], []
    rates = [matrix_product_rate()]
    ours = [System(f"parallelcnn, {_count(cores, 'rank')}", "parallelcnn", cores_as="ranks")]
    if cores > 1:
        ours.append(System(f"parallelcnn, {_count(cores, 'thread')}", "parallelcnn", cores_as="threads"))
    if "pytorch-bfloat16" in options.systems:
        rounding = [
            dataclasses.replace(system, name=system.name.replace(",", ", bfloat16,"), variant="bfloat16")
            for system in ours
        ]
        ours += rounding
    for network in options.networks:
        for batch_size in options.batch_sizes:
            workload = Workload(network, batch_size, threads=cores)
            chosen = [fastest_variant(name, workload, options, folder, trials) for name in options.systems]
            systems = [*ours, *(system for system in chosen if system is not None)]
            failures: dict[System, str] = {}
            times = Race(workload, options, folder, failures).run(systems)
            rates.append(matrix_product_rate())
            trials += [f"{workload.name}: {system.name}: failed: {why}" for system, why in failures.items()]
            rows += rows_of(workload, times, rates[-1] * cores, options)
            leads += lead_over_pytorch(workload, times)
    extra = ["test accuracy", "peak memory [MiB]"] if options.epochs else []
    header = ["network", "minibatch", "", "time per sample [us]", f"times as long as {ours[0].name}", "GFLOP/s"]
    header += ["of the matrix product's rate", *extra]
    lines = [f"* {' '.join(line.split())[:300]}" for line in trials]
    return "\n\n".join(
        [
            f"## On {_count(cores, 'core')}",
            f"numpy's float32 matrix product of 512 x 512 on one thread: {Spread.of(rates).text(0, ' GFLOP/s')}.",
            *(_leads_and_targets(leads) if leads else []),
            markdown_table(header, rows),
            *(
                ["Trials, of which the fastest of each framework went into the table:", "\n".join(lines)]
                if lines
                else []
            ),
        ]
    )


def lead_over_pytorch(workload: Workload, times: dict[System, list[float]]) -> list[list[str]]:
    """A row with how many times as fast as PyTorch parallelcnn is; none unless both were timed in both precisions."""
    timed = {(system.program, "bfloat16" in (system.variant or "")) for system in times}
    if not timed >= {("parallelcnn", False), ("parallelcnn", True), ("pytorch", False), ("pytorch", True)}:
        return []
    cells = []
    for precision, target in (("float32", TARGET_FLOAT32), ("either", TARGET_EITHER)):
        some = {
            system: seconds
            for system, seconds in times.items()
            if precision == "either" or "bfloat16" not in (system.variant or "")
        }
        ours, theirs = (
            [min(turn) for turn in zip(*(some[system] for system in some if system.program == program), strict=True)]
            for program in ("parallelcnn", "pytorch")
        )
        ratio = Spread.of(their / our for our, their in zip(ours, theirs, strict=True))
        cells.append(ratio.text() if ratio.median >= target else f"**{ratio.text()}**")
    return [[workload.network, str(workload.batch_size), *cells]]


def _leads_and_targets(leads: list[list[str]]) -> list[str]:
    """A table of all leads, and the sentence above it."""
    targets = [f"float32 (target {TARGET_FLOAT32:g})", f"either precision (target {TARGET_EITHER:g})"]
    header = ["network", "minibatch", *targets]
    return [
        "How many times as fast as PyTorch parallelcnn is: both in float32; and the fastest of both, in either\n"
        "precision. Bold: below the target.",
        markdown_table(header, leads),
        "All systems:",
    ]


def fastest_variant(
    name: str, workload: Workload, options: argparse.Namespace, folder: Path, trials: list[str]
) -> System | None:
    """The fastest way to set up a framework, by one trial of each; None if none works. Adds a line for each trial."""
    found: dict[System, float] = {}
    for variant in VARIANTS[name]:
        ddp = "ddp" in variant
        if ddp and workload.threads == 1:
            continue
        program = name.partition("-")[0]
        system = System(f"{FRAMEWORKS[name]}, {variant}", program, variant, cores_as="ranks" if ddp else "threads")
        try:
            with ExitStack() as stack:
                contestant = start(system, workload, options, folder, stack)
                samples, epochs = amount(contestant, workload, options.seconds)
                turns = [contestant.turn(samples, epochs) for _ in range(1 + TRIAL_TURNS)]
                found[system] = min(turns[1:]) / (samples * epochs)
                trials.append(f"{workload.name}: {system.name}: {1e6 * found[system]:.1f} us per sample")
        except ProgramFailed as error:
            trials.append(f"{workload.name}: {system.name}: {error}")
            if "is not installed" in str(error):
                break
        print(trials[-1], file=sys.stderr, flush=True)
    return min(found, key=lambda system: found[system]) if found else None


def rows_of(
    workload: Workload, times: dict[System, list[float]], rate: float, options: argparse.Namespace
) -> list[list[str]]:
    """A row for each system; the others are compared with the first."""
    flop = flop_per_sample(*NETWORKS[workload.network])
    first = next(iter(times), None)
    rows = []
    for system, seconds in times.items():
        speed = flop / Spread.of(seconds).median / 1e9
        ratio = Spread.of(theirs / ours for theirs, ours in zip(seconds, times[first], strict=True))
        said = "" if system is first else ratio.text() if ratio.median >= 1 else f"**faster: {ratio.text()}**"
        row = [workload.network, str(workload.batch_size), system.name, Spread.of(1e6 * s for s in seconds).text(1)]
        rows.append(
            [*row, said, three_digits(speed), f"{speed / rate:.0%}", *whole_training(system, workload, options)]
        )
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def whole_training(system: System, workload: Workload, options: argparse.Namespace) -> list[str]:
    """Test accuracy and peak memory of one training of --epochs."""
    if not options.epochs:
        return []
    try:
        found = run_json([*system.command(workload, options), "--epochs", str(options.epochs)], system.variables())
    except ProgramFailed:
        return ["failed", ""]
    processes = f"{found['processes']} x " if found["processes"] > 1 else ""
    return [f"{100 * found['test_accuracy']:.2f} %", f"{processes}{found['peak_rss_bytes'] / 2**20:,.0f}"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _commit(checkout: Path) -> str:
    """The commit of a checkout, for a page."""
    line = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    done = subprocess.run(line, capture_output=True, text=True)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "a folder without a commit"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=existing_folder, metavar="DIR", help="another checkout of parallelcnn")
    parser.add_argument("--only", default="", metavar="TEXT", help="only workloads with TEXT in their name")
    parser.add_argument(
        "--systems", nargs="*", choices=FRAMEWORKS, default=list(FRAMEWORKS), help="frameworks (default: all)"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="(default: all)")
    parser.add_argument("--batch-sizes", type=positive_integer, nargs="+", default=[100], help="(default: 100)")
    parser.add_argument(
        "--cores", type=positive_integer, nargs="+", default=[1], help="a table for each number (default: 1)"
    )
    parser.add_argument(
        "--epochs", type=positive_integer, help="also run one whole training of so many epochs, for accuracy and memory"
    )
    parser.add_argument("--data", default="random", help="random, digits, mnist or a folder (default: random)")
    parser.add_argument("--data-dir", help="folder with the files of mnist")
    parser.add_argument("--learning-rate", type=positive_number, default=0.01, help="(default: 0.01)")
    parser.add_argument("--rounds", type=positive_integer, default=7, help="(default: 7)")
    parser.add_argument("--cold-rounds", type=positive_integer, default=3, help="starts without a cache (default: 3)")
    parser.add_argument("--turns", type=positive_integer, default=TURNS, help=f"turns in a round (default: {TURNS})")
    parser.add_argument("--seconds", type=positive_number, default=0.05, help="length of a turn (default: 0.05)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    options = parser.parse_args()
    check_cores(parser, options.cores)
    if options.against and not (options.against / "parallelcnn" / "__init__.py").exists():
        parser.error(f"--against must be a checkout of parallelcnn, got {str(options.against)!r}")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
