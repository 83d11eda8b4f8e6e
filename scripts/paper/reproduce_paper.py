#!/usr/bin/env python3
"""Write a report to compare with the paper: its Tables I to IV and its figures of the training loss.

    scripts/peers.sh                                                                # makes .venv-peers
    scripts/peers.sh scripts/paper/reproduce_paper.py --data mnist --rounds 3 --out scripts/paper/results

The paper is M. Guryn, "Efficient Automatic Differentiation Library for Convolutional Neural Networks in Julia
Language"; PAPER holds its numbers. Round i trains with seed i; within a round every system trains once, in turns. The
bytes allocated are counted in a separate run. A system that fails has no column.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from allocations import build_counter

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from networks import NETWORKS, flop_per_sample
from pages import (
    Spread,
    command_line,
    markdown_table,
    matrix_product_rate,
    positive_integer,
    processor,
    run_to_the_end,
    versions,
    write_page,
)
from processes import ProgramFailed, on_cores, on_ranks, options_as_words, run_json

SYSTEMS = Path(__file__).resolve().parents[1] / "benchmarks" / "systems"
Result = dict[str, Any]

MEASURES = {
    "time [s]": "train_seconds",
    "allocated [GiB]": "allocated",
    "train accuracy [%]": "train_accuracy",
    "test accuracy [%]": "test_accuracy",
    "test loss": "test_loss",
}
FIRST_STEP, OPTIMISED_STEP = 0.01, 0.5
# The paper's Tables I to IV as printed, in the order of MEASURES.
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
        name: the head of the column.
        command: a program of benchmarks/systems, without the options that all programs share.
        learning_rate: of SGD.
    """

    name: str
    command: tuple[str, ...]
    learning_rate: float


def main() -> int:
    options = _options()
    import matplotlib

    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory() as scratch, on_cores(options.cores):
        rate = matrix_product_rate()
        runs, counted, losses = run_trainers(options, build_counter(scratch), Path(scratch))
    (options.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    for step in (FIRST_STEP, OPTIMISED_STEP):
        draw_losses(options.out / f"loss-{step}.png", step, losses[step])
    page = report(options, runs, counted, rate)
    write_page(options.out / "report.md", page)
    print(page)
    return 0


def trainers(cores: int) -> dict[str, list[Trainer]]:
    """The columns of each of the paper's tables; compare the first one with the paper's."""

    def program(name: str, *words: str) -> tuple[str, ...]:
        return sys.executable, str(SYSTEMS / f"train_{name}.py"), *words

    def peer(framework: str, name: str, variant: str) -> Trainer:
        command = program(name, "--variant", variant, "--threads", str(cores))
        return Trainer(f"{framework}, {variant}", command, OPTIMISED_STEP)

    ours = tuple(on_ranks(cores, program("parallelcnn")))
    ranks = f"parallelcnn, {cores} rank{'s' if cores > 1 else ''}"
    return {
        "I": [Trainer(ranks, ours, FIRST_STEP)],
        "II": [Trainer(ranks, ours, OPTIMISED_STEP)],
        "III": [peer("Keras", "keras", "function"), peer("Keras", "keras", "fit")],
        "IV": [peer("PyTorch", "pytorch", "channels_last"), peer("JAX", "jax", "step")],
    }


def run_trainers(
    options: argparse.Namespace, counter: dict[str, str] | None, scratch: Path
) -> tuple[dict[str, dict[str, list[Result]]], dict[str, dict[str, Result]], dict[float, list[float]]]:
    """Every training of Tables I to IV.

    Returns:
        the results by table and column; those of the counting runs likewise; parallelcnn's losses with the first seed.
    """
    tables = trainers(options.cores)
    runs: dict[str, dict[str, list[Result]]] = {
        table: {trainer.name: [] for trainer in columns} for table, columns in tables.items()
    }
    counted: dict[str, dict[str, Result]] = {table: {} for table in tables}
    losses: dict[float, list[float]] = {}
    file = scratch / "losses"
    for number in range(options.rounds + 1):
        for table, trainer in [(table, trainer) for table, columns in tables.items() for trainer in columns]:
            counting = number == 0
            if "skipped" in counted[table].get(trainer.name, {}):
                continue
            shared = {name: getattr(options, name) for name in ("data", "data_dir", "samples", "epochs", "batch_size")}
            shared |= {"learning_rate": trainer.learning_rate, "seed": max(number - 1, 0), "losses": file}
            try:
                result = run_json([*trainer.command, *options_as_words(shared)], counter if counting else None)
            except ProgramFailed as error:
                result = {"skipped": f"failed: {error}"}
            if counting or "skipped" in result:
                counted[table][trainer.name] = result
            if "skipped" not in result and not counting:
                runs[table][trainer.name].append(result)
            if trainer.name.startswith("parallelcnn") and number == 1:
                losses[trainer.learning_rate] = [float(line) for line in file.read_text().split()]
            said = result.get("skipped") or f"{result['train_seconds']:.2f} s"
            print(f"table {table}: {trainer.name}: {said}", file=sys.stderr, flush=True)
    return runs, counted, losses


def report(
    options: argparse.Namespace,
    runs: dict[str, dict[str, list[Result]]],
    counted: dict[str, dict[str, Result]],
    rate: float,
) -> str:
    """The page, in Markdown."""
    epochs = "1 epoch" if options.epochs == 1 else f"{options.epochs} epochs"
    samples = "" if options.samples is None else f" (its first {options.samples:,} samples)"
    table = {number: paper_table(number, runs[number], counted[number]) for number in PAPER}
    return f"""# The paper, reproduced

    {command_line()}

The paper: M. Guryn, "Efficient Automatic Differentiation Library for Convolutional Neural Networks in Julia Language".
It names neither its hardware nor its network; the network here is that of the course it comes from
(`parallelcnn.paper()`), {flop_per_sample(*NETWORKS["paper"]) / 1e6:.2f} MFLOP per sample, forward and backward.

This machine: {processor()}, of which {options.cores} in use. numpy's float32 matrix product of 512 x 512 runs at
{rate:.0f} GFLOP/s on one thread. {versions("numpy", "numba", "mpi4py", "torch", "tensorflow-cpu", "keras", "jax")}.

Every training took {epochs} of {Path(options.data).name}{samples} in minibatches of {options.batch_size}, by plain SGD.
Times are of the training loop alone. Figures are medians over {options.rounds} rounds, each with its own seed (lowest
to highest). All start from the same parameters and, except `fit`, take the same minibatches.

"Allocated" are all bytes ever requested, freed or not, which is what Julia's `@time` shows and the paper prints; in
brackets, the part for loading the data set. They are what the process, numpy and every Python object included, requests
from the C library (`../count_allocations.c`). A framework that keeps memory in a pool, as TensorFlow does, counts with
what the pool requests. Several processes count together.

## Table I: the first version, step {FIRST_STEP}

Today's library with the step of the paper's first version.

{table["I"]}

![training loss over minibatches, step {FIRST_STEP}](loss-{FIRST_STEP}.png)

## Table II: the optimised version, step {OPTIMISED_STEP}

{table["II"]}

![training loss over minibatches, step {OPTIMISED_STEP}](loss-{OPTIMISED_STEP}.png)

## Table III: Keras, step {OPTIMISED_STEP}

The variants are explained in `../../benchmarks/systems/train_keras.py`. The paper's figure of what Keras allocated may
have been counted in another way.

{table["III"]}

## Table IV: Flux, and beside it PyTorch and JAX, step {OPTIMISED_STEP}

Flux is in the paper's column only.

{table["IV"]}

What each optimisation of this library brought, from formulas in numpy on: [ladder.md](ladder.md).
"""


def paper_table(number: str, runs: dict[str, list[Result]], counted: dict[str, Result]) -> str:
    """One of the paper's tables, transposed: a row for each measure, the paper's numbers after the first column."""
    columns = []
    notes = []
    for name, results in runs.items():
        if results:
            columns.append((name, [_cell(measure, results, counted[name]) for measure in MEASURES.values()]))
        else:
            notes.append(f"{name}: {' '.join(counted[name]['skipped'].split())[:300]}.")
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


def draw_losses(path: Path, step: float, losses: list[float]) -> None:
    """Draw the training loss over minibatches, raw and smoothed, and the final test loss of the paper."""
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


def _options() -> argparse.Namespace:
    usable = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="digits, mnist or a folder (default: mnist)")
    parser.add_argument("--data-dir", help="folder with the files of mnist")
    parser.add_argument("--samples", type=positive_integer, help="train on the first N samples only, for a trial")
    parser.add_argument("--epochs", type=positive_integer, default=3)
    parser.add_argument("--batch-size", type=positive_integer, default=100)
    parser.add_argument("--cores", type=positive_integer, default=usable, help="(default: all usable ones)")
    parser.add_argument("--rounds", type=positive_integer, default=3)
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", default="report", help="folder for report.md and its figures"
    )
    options = parser.parse_args()
    if options.cores > usable:
        parser.error(f"--cores must be at most {usable}, the cores that this process may use, got {options.cores}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be made: {error.strerror}")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
