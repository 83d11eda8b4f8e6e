#!/usr/bin/env python3
"""Writes a report that stands side by side with the paper's: its Tables I to IV and its figures of the training loss.

    scripts/peers.sh                                                                # makes .venv-peers
    scripts/peers.sh scripts/reproduce_paper.py --data mnist --rounds 3 --out scripts/results/paper

The paper is M. Guryn, "Efficient Automatic Differentiation Library for Convolutional Neural Networks in Julia
Language"; PAPER holds its numbers. The report, in Markdown with PNG figures, also shows what each optimisation brought
(`ladder.py`), as the paper's section V does. Round i trains with seed i; within a round everything is run once, in
turns. The bytes allocated are counted in a run of their own.
"""

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ladder import RUNGS
from launching import (
    CLONE,
    PEERS,
    as_elsewhere,
    matrix_product_rate_of,
    on_cores,
    on_ranks,
    options_as_words,
    peer_command,
    run_program,
)
from measuring import (
    Spread,
    command_line,
    markdown_table,
    positive_integer,
    processor,
    require_packages,
    run_to_the_end,
    three_digits,
    versions,
    write_page,
)
from networks import flop_per_sample
from tqdm import tqdm

import parallelcnn as pc
from parallelcnn.resources import usable_cores

sys.path.append(str(CLONE / "scripts" / "peers"))
from allocations import build_counter

Result = dict[str, Any]

MEASURES = {
    "time [s]": "train_seconds",
    "allocated [GiB]": "allocated",
    "train accuracy [%]": "train_accuracy",
    "test accuracy [%]": "test_accuracy",
    "test loss": "test_loss",
}
FIRST_STEP, OPTIMISED_STEP = 0.01, 0.5
# Its Tables I to IV as printed, in the order of MEASURES.
PAPER = {
    "I": ("263.4", "371.161", "89.82", "90.78", "0.30766"),
    "II": ("46.42", "10.917", "96.87", "96.46", "0.11469"),
    "III": ("1.70", "0.756", "97.75", "98.19", "0.0723"),
    "IV": ("11.73", "8.512", "94.41", "94.79", "0.18542"),
}


@dataclass(frozen=True)
class Trainer:
    """One column of the report.

    Attributes:
        name: its head.
        command: a program with the command line of scripts/peers, without the options that all share.
        learning_rate: its step.
        once: too slow for rounds: it is run once, and allocations are counted in that run.
    """

    name: str
    command: tuple[str, ...]
    learning_rate: float
    once: bool = False


def main() -> int:
    options = _options()
    import matplotlib

    matplotlib.use("Agg")
    folder = options.out
    with tempfile.TemporaryDirectory() as scratch, on_cores(options.cores):
        counter = build_counter(scratch)
        runs, counted, losses = run_trainers(options, counter, Path(scratch))
        rungs, counted_rungs = climb(options, counter)
        rate = matrix_product_rate_of(options.cores)
    (folder / "runs.json").write_text(json.dumps({"trainings": runs, "rungs": rungs}, indent=1) + "\n")
    for step in (FIRST_STEP, OPTIMISED_STEP):
        draw_losses(folder / f"loss-{step}.png", step, losses[step])
    draw_ladder(folder / "ladder.png", rungs)
    page = report(options, runs, counted, rungs, counted_rungs, rate)
    write_page(folder / "report.md", page)
    print(page)
    return 0


def trainers(options: argparse.Namespace) -> dict[str, list[Trainer]]:
    """The columns of each of the paper's tables; the first is the one to hold against the paper's."""
    cores = options.cores
    programs = CLONE / "scripts"
    ladder = (sys.executable, str(programs / "ladder.py"))
    ours = (sys.executable, str(programs / "peers" / "train_parallelcnn.py"), "--threads", str(cores))
    ours = tuple(on_ranks(cores, ours))
    ranks = f"{cores} rank{'s' if cores > 1 else ''}"

    def peer(framework: str, variant: str) -> Trainer:
        return Trainer(f"{framework}, {variant}", tuple(peer_command(framework, variant, cores)), OPTIMISED_STEP)

    return {
        "I": [
            Trainer("naive.py, one core", (*ladder, "--variant", "naive"), FIRST_STEP, once=True),
            Trainer(f"parallelcnn, {ranks}", ours, FIRST_STEP),
        ],
        "II": [Trainer(f"parallelcnn, {ranks}", ours, OPTIMISED_STEP)],
        "III": [peer("Keras", PEERS["Keras"][1][0]), peer("Keras", "fit")],
        "IV": [
            peer("Flux", PEERS["Flux"][1][0]),
            peer("PyTorch", PEERS["PyTorch"][1][0]),
            peer("JAX", PEERS["JAX"][1][0]),
        ],
    }


def run_trainers(
    options: argparse.Namespace, counter: dict[str, str] | None, scratch: Path
) -> tuple[dict[str, dict[str, list[Result]]], dict[str, dict[str, Result]], dict[float, list[float]]]:
    """Every training of Tables I to IV.

    Returns:
        the results by table and column; those of the counting runs likewise; parallelcnn's losses by step, seed 0.
    """
    tables = trainers(options)
    runs: dict[str, dict[str, list[Result]]] = {
        table: {trainer.name: [] for trainer in columns} for table, columns in tables.items()
    }
    counted: dict[str, dict[str, Result]] = {table: {} for table in tables}
    losses: dict[float, list[float]] = {}
    everyone = [(table, trainer) for table, columns in tables.items() for trainer in columns]
    for number in tqdm(range(options.rounds + 1), desc="rounds", disable=None):
        for table, trainer in everyone:
            counting = number == 0
            known = counted[table].get(trainer.name, {})
            if "skipped" in known or (trainer.once and not counting):
                continue
            file = scratch / "losses"
            shared = options_as_words(
                {name: getattr(options, name) for name in ("data", "data_dir", "samples", "epochs", "batch_size")}
                | {"learning_rate": trainer.learning_rate, "seed": max(number - 1, 0), "losses": file}
            )
            result = run_program([*trainer.command, *shared], counter if counting else None)
            if counting:
                counted[table][trainer.name] = result
            if "skipped" not in result and (trainer.once or not counting):
                runs[table][trainer.name].append(result)
            if trainer.name.startswith("parallelcnn") and number == 1:
                losses[trainer.learning_rate] = [float(line) for line in file.read_text().split()]
            _say(f"table {table}: {trainer.name}: {result.get('skipped') or round(result['train_seconds'], 2)}")
    return runs, counted, losses


def climb(
    options: argparse.Namespace, counter: dict[str, str] | None
) -> tuple[dict[str, list[Result]], dict[str, Result]]:
    """Every rung of the ladder on one core, and the last also on a second rank: results by name, and the counted."""
    ladder = (sys.executable, str(CLONE / "scripts" / "ladder.py"))
    commands = {name: [*ladder, "--variant", name] for name in RUNGS}
    if options.cores > 1:
        last = [*ladder, "--variant", list(RUNGS)[-1], "--threads", str(options.cores)]
        commands["ranks"] = on_ranks(options.cores, last)
    shared = {"data": options.data, "data_dir": options.data_dir, "samples": options.ladder_samples, "epochs": 1}
    words = options_as_words(shared | {"batch_size": options.batch_size})
    results: dict[str, list[Result]] = {name: [] for name in commands}
    counted: dict[str, Result] = {}
    for number in tqdm(range(options.rounds + 1), desc="ladder", disable=None):
        for name, command in commands.items():
            with on_cores(options.cores if name == "ranks" else 1):
                result = run_program([*command, *words], None if number else counter)
            if number:
                results[name].append(result)
            else:
                counted[name] = result
            _say(f"rung {name}: {result['train_seconds']:.3f} s")
    return results, counted


def report(
    options: argparse.Namespace,
    runs: dict[str, dict[str, list[Result]]],
    counted: dict[str, dict[str, Result]],
    rungs: dict[str, list[Result]],
    counted_rungs: dict[str, Result],
    rate: float,
) -> str:
    """The page, in Markdown."""
    epochs = "1 epoch" if options.epochs == 1 else f"{options.epochs} epochs"
    packages = versions("numpy", "numba", "mpi4py", "torch", "tensorflow-cpu", "keras", "jax")
    flop = flop_per_sample(pc.NetworkHandler(pc.paper(), (1, 28, 28)))

    def table(number: str) -> str:
        return paper_table(number, runs[number], counted[number])

    return f"""# The paper, reproduced

    {as_elsewhere(shlex.split(command_line()))}

The paper: M. Guryn, "Efficient Automatic Differentiation Library for Convolutional Neural Networks in Julia Language".
It names neither its hardware nor its network; the network here is that of the course it comes from
(`parallelcnn/models.py`), {flop / 1e6:.2f} MFLOP per sample, forward and backward.

This machine: {processor()}, of which {options.cores} in use. numpy's float32 matrix product of 512 x 512 runs at
{rate:.0f} GFLOP/s there. {packages}.

Every training took {epochs} of {Path(options.data).name}{_of_samples(options.samples)} in minibatches
of {options.batch_size}, by plain SGD. Times are of the training loop alone. Figures are medians over {options.rounds}
rounds, each with a seed of its own, (lowest to highest). All but Flux start from the same parameters and, but for
`fit`, take the same minibatches.

"Allocated" are all bytes ever asked for, freed or not, which is what Julia's `@time` tells and the paper shows; in
brackets, the part that was for loading the data set. Flux's are `@time`'s; all others' are what the process, numpy and
every Python object included, asked of the C library (`scripts/peers/count_allocations.c`). A framework that keeps
memory in a pool of its own and uses it again, as TensorFlow does, counts with what the pool asked for. Several
processes count together.

## Table I: the first version, step {FIRST_STEP}

Here, the formulas in numpy (`scripts/naive.py`), run once; and today's library with the same step.

{table("I")}

![training loss over minibatches, step {FIRST_STEP}](loss-{FIRST_STEP}.png)

## Table II: the optimised version, step {OPTIMISED_STEP}

{table("II")}

![training loss over minibatches, step {OPTIMISED_STEP}](loss-{OPTIMISED_STEP}.png)

## Table III: Keras

With step {OPTIMISED_STEP}. The variants are explained in `scripts/peers/train_keras.py`. The paper's figure of what
Keras allocated may have been counted in another way.

{table("III")}

## Table IV: Flux, and beside it PyTorch and JAX

With step {OPTIMISED_STEP}.

{table("IV")}

## What each optimisation brought

Every rung trains the same network from the same start over the same minibatches, on one core, and to the same loss:
{options.ladder_samples:,} samples in minibatches of {options.batch_size}, in turns, {options.rounds} rounds.

{ladder_table(rungs, counted_rungs, options)}

![time of a minibatch, rung by rung](ladder.png)
"""


def paper_table(number: str, runs: dict[str, list[Result]], counted: dict[str, Result]) -> str:
    """One of the paper's tables on its side: a row a measure, the paper's numbers behind the first column."""
    columns = []
    notes = []
    for name, results in runs.items():
        if results:
            columns.append((name, [_cell(measure, results, counted[name]) for measure in MEASURES.values()]))
        else:
            notes.append(f"{name}: {counted[name]['skipped']}.")
            columns.append((name, ["-"] * len(MEASURES)))
    columns.insert(1, ("the paper's", list(PAPER[number])))
    rows = [[measure, *(cells[i] for _, cells in columns)] for i, measure in enumerate(MEASURES)]
    return "\n\n".join([markdown_table(["", *(name for name, _ in columns)], rows), *notes])


def _cell(measure: str, results: list[Result], counted: Result) -> str:
    if measure == "allocated":
        if counted["allocated_bytes"] is None:
            return "not counted: no C compiler, or no glibc"
        loaded, trained = counted["loading_allocated_bytes"] / 2**30, counted["allocated_bytes"] / 2**30
        return f"{loaded + trained:.3f} ({loaded:.3f})"
    scale, digits = (100, 2) if measure.endswith("accuracy") else (1, 4 if measure == "test_loss" else 2)
    spread = Spread.of(scale * result[measure] for result in results)
    return spread.text(digits) if len(results) > 1 else f"{spread.median:.{digits}f}"


def ladder_table(rungs: dict[str, list[Result]], counted: dict[str, Result], options: argparse.Namespace) -> str:
    """A row a rung."""
    steps = -(-options.ladder_samples // options.batch_size)
    rows = []
    below: list[float] = []
    bottom = [result["train_seconds"] for result in rungs["naive"]]
    for name, results in rungs.items():
        seconds = [result["train_seconds"] for result in results]
        gain = Spread.of(b / s for b, s in zip(below, seconds, strict=True)).text() if below else ""
        allocated = counted[name]["allocated_bytes"]
        rows.append(
            [
                _news(name, options),
                Spread.of(1e3 * s / steps for s in seconds).text(),
                gain,
                three_digits(Spread.of(b / s for b, s in zip(bottom, seconds, strict=True)).median),
                "-" if allocated is None else three_digits(allocated / 2**20),
                f"{results[0]['test_loss']:.5f}",
            ]
        )
        below = seconds
    header = [
        "what is new",
        "time of a minibatch [ms]",
        "times as fast as the rung above",
        "as the first",
        "allocated in all [MiB]",
        "test loss",
    ]
    return markdown_table(header, rows)


def _news(name: str, options: argparse.Namespace) -> str:
    return RUNGS[name].news if name in RUNGS else f"{options.cores} ranks, on a core each"


def draw_losses(path: Path, step: float, losses: list[float]) -> None:
    """The training loss over minibatches, as it is and smoothed, and where the paper's test loss ended."""
    from matplotlib.figure import Figure

    window = max(1, len(losses) // 60)
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(losses) + 1), losses, color="tab:blue", alpha=0.25, linewidth=0.6)
    label = f"parallelcnn, training loss (and its mean over {window} minibatches)"
    axes.plot(np.arange(len(smooth)) + (window + 1) / 2, smooth, color="tab:blue", label=label)
    table = "I" if step == FIRST_STEP else "II"
    axes.axhline(
        float(PAPER[table][-1]),
        color="tab:red",
        linestyle="--",
        label=f"the paper's test loss at the end (Table {table})",
    )
    axes.set(xlabel="minibatch", ylabel="loss", yscale="log", title=f"step {step}")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path)


def draw_ladder(path: Path, rungs: dict[str, list[Result]]) -> None:
    """The time of each rung against the first, as bars."""
    from matplotlib.figure import Figure

    medians = [Spread.of(result["train_seconds"] for result in results).median for results in rungs.values()]
    shares = [medians[0] / median for median in medians]
    figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(rungs), shares, color="tab:blue")
    axes.bar_label(bars, [f" {three_digits(share)}" for share in shares])
    axes.set(xlabel="times as fast as the naive trainer", xscale="log", xlim=(0.8, 2 * max(shares)))
    axes.invert_yaxis()
    figure.savefig(path)


def _of_samples(samples: int | None) -> str:
    return "" if samples is None else f" (its first {samples:,} samples)"


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _options() -> argparse.Namespace:
    usable = len(usable_cores())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="digits, mnist or a folder (default: mnist)")
    parser.add_argument("--data-dir", help="where mnist lies")
    parser.add_argument("--samples", type=positive_integer, help="train on the first so many only, for a trial")
    parser.add_argument("--epochs", type=positive_integer, default=3)
    parser.add_argument("--batch-size", type=positive_integer, default=100)
    parser.add_argument("--cores", type=positive_integer, default=usable, help="(default: all that may be used)")
    parser.add_argument("--rounds", type=positive_integer, default=3)
    parser.add_argument(
        "--ladder-samples", type=positive_integer, default=6000, help="that a rung trains on (default: 6000)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", default="report", help="receives report.md and its figures"
    )
    options = parser.parse_args()
    require_packages(parser, "matplotlib")
    if options.cores > usable:
        parser.error(f"--cores must be at most {usable}, the cores that this process may use, got {options.cores}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be made: {error.strerror}")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
