#!/usr/bin/env python3
"""Times the training of the paper's network with parallelcnn and with every framework installed, on the same cores.

    scripts/peers.sh                                        # makes .venv-peers, where the frameworks are
    scripts/peers.sh scripts/compare_with_peers.py --data mnist --cores 2 1 --rounds 5 --out scripts/results/peers.md

All train the same network from the same start, by plain SGD, over minibatches of the same size in float32, and the
time is that of the training loop alone: no start-up, no compilation, no loading of data, no evaluation. Frameworks
have the whole training set as float32 in memory beforehand and a warm-up; see the programs in scripts/peers, which can
be run one by one. Where a framework can be set up in several ways, each way trains one epoch first, and the quickest
goes on.

Machines are noisy: every round runs everything once, in turns that begin with another one each round, and so does
numpy's float32 matrix product. Ratios are taken within a round; figures are medians over rounds, (lowest to highest).
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching import (
    PEERS,
    as_elsewhere,
    matrix_product_rate_of,
    on_cores,
    on_ranks,
    options_as_words,
    peer_command,
    run_program,
    summary_of,
)
from measuring import (
    Spread,
    file_to_write,
    markdown_table,
    page_head,
    positive_integer,
    positive_number,
    print_page,
    run_to_the_end,
)
from networks import flop_per_sample
from tqdm import tqdm

import parallelcnn as pc
from parallelcnn.resources import usable_cores

Result = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to train the network on a number of cores.

    Attributes:
        name: as the tables call it.
        command: what is run, without the options that all have in common.
    """

    name: str
    command: tuple[str, ...]
    ours: bool = False

    def train(self, options: argparse.Namespace, epochs: int | None = None) -> Result:
        """One training in a process of its own; what it tells, or {"skipped": why}.

        Raises:
            SystemExit: if it fails.
        """
        command = [*self.command, *shared_options(options, epochs)]
        return summary_of(command) if self.ours else run_program(command)


def main() -> int:
    options = _options()
    sections = []
    for cores in options.cores:
        with on_cores(cores):
            sections.append(compare(options, cores))
    page = describe(options) + "\n\n" + "\n\n".join(sections) + "\n"
    print_page(page, options.out)
    return 0


def compare(options: argparse.Namespace, cores: int) -> str:
    """Qualify, run the rounds, and return the section on that many cores."""
    peers, trials = qualify(options, cores)
    contenders = [*our_contenders(cores), *peers]
    results: dict[Contender, list[Result]] = {contender: [] for contender in contenders}
    rates = []
    for number in tqdm(range(options.rounds), desc=f"{cores} cores", unit="round", disable=None):
        rates.append(matrix_product_rate_of(cores))
        for turn in range(len(contenders)):
            contender = contenders[(number + turn) % len(contenders)]
            results[contender].append(contender.train(options))
            say(f"round {number + 1}: {contender.name}: {results[contender][-1]['train_seconds']:.2f} s")
    return section(options, cores, results, rates, trials)


def qualify(options: argparse.Namespace, cores: int) -> tuple[list[Contender], list[str]]:
    """The quickest way to set up each framework, by one epoch of each way, and a line about every trial."""
    chosen, lines = [], []
    for framework in options.peers:
        seconds: dict[Contender, float] = {}
        for variant in PEERS[framework][1]:
            if cores == 1 and variant.startswith("ddp"):
                continue
            contender = Contender(f"{framework}, {variant}", tuple(peer_command(framework, variant, cores)))
            result = contender.train(options, epochs=1)
            if "skipped" in result:
                lines.append(f"{framework}, {variant}: {result['skipped']}")
                if "is not installed" in result["skipped"]:
                    break
            else:
                seconds[contender] = result["train_seconds"]
                lines.append(f"{contender.name}: {seconds[contender]:.2f} s")
            say(lines[-1])
        if seconds:
            chosen.append(min(seconds, key=lambda contender: seconds[contender]))
    return chosen, lines


def our_contenders(cores: int) -> list[Contender]:
    """parallelcnn with a rank a core, and with a thread a core."""
    train = [sys.executable, "-m", "parallelcnn", "train"]
    ranks = on_ranks(cores, train)
    name = f"parallelcnn, {cores} rank{'s' if cores > 1 else ''}"
    contenders = [Contender(name, (*ranks, "--threads", "1"), ours=True)]
    if cores > 1:
        contenders.append(Contender(f"parallelcnn, {cores} threads", (*train, "--threads", str(cores)), ours=True))
    return contenders


def section(
    options: argparse.Namespace,
    cores: int,
    results: dict[Contender, list[Result]],
    rates: list[float],
    trials: list[str],
) -> str:
    """The table of one number of cores, in Markdown."""
    first = next(iter(results))
    flop = flop_per_sample(pc.NetworkHandler(pc.paper(), (1, 28, 28)))
    samples = [result["samples_seen"] for result in results[first]]
    header = [
        "",
        "training time [s]",
        f"times as long as {first.name}",
        "share of the matrix product's rate",
        "test accuracy [%]",
        "peak memory [MiB]",
    ]
    rows = []
    for contender, runs in results.items():
        seconds = [run["train_seconds"] for run in runs]
        ratios = [theirs / ours["train_seconds"] for theirs, ours in zip(seconds, results[first], strict=True)]
        shares = [
            100 * flop * seen / time / (1e9 * rate) for seen, time, rate in zip(samples, seconds, rates, strict=True)
        ]
        accuracy = Spread.of(100 * run["test_accuracy"] for run in runs)
        memory = max(run["peak_rss_bytes"] for run in runs) / 2**20
        processes = runs[0].get("ranks", runs[0].get("processes", 1))
        rows.append(
            [
                contender.name,
                Spread.of(seconds).text(),
                "1" if contender is first else Spread.of(ratios).text(),
                Spread.of(shares).text(1, " %"),
                accuracy.text() if accuracy.low < accuracy.high else f"{accuracy.median:.2f}",
                f"{memory:,.0f}" if processes == 1 else f"{processes} x {memory:,.0f}",
            ]
        )
    commands = [as_elsewhere([*contender.command, *shared_options(options)]) for contender in results]
    return "\n".join(
        [
            f"## On {cores} core{'s' if cores > 1 else ''}",
            "",
            f"numpy's float32 matrix product of 512 x 512, a process a core: {Spread.of(rates).text(0, ' GFLOP/s')} in "
            f"all. The network takes {flop / 1e6:.3f} MFLOP per sample, forward and backward.",
            "",
            markdown_table(header, rows),
            "",
            "Commands:",
            "",
            *(f"    {command}" for command in commands),
            "",
            "Trials of one epoch each, of which the quickest of each framework went into the table:",
            "",
            *(f"* {line}" for line in trials),
        ]
    )


def describe(options: argparse.Namespace) -> str:
    """The head of the page: machine, versions, method."""
    packages = ("numpy", "numba", "mpi4py", "torch", "tensorflow-cpu", "keras", "jax")
    epochs = "1 epoch" if options.epochs == 1 else f"{options.epochs} epochs"
    return f"""{page_head("parallelcnn against its peers", *packages)}.

The paper's network, {epochs} of {Path(options.data).name} in minibatches of {options.batch_size}, plain SGD, float32;
the time of the training loop alone. Rounds: {options.rounds}; each ran everything once, in turns. Ratios and shares are
taken within a round; figures are medians over rounds, (lowest to highest). Memory is the peak of a process."""


def shared_options(options: argparse.Namespace, epochs: int | None = None) -> list[str]:
    """The options that parallelcnn's command and the peers' programs have in common."""
    names = ("data", "data_dir", "epochs", "batch_size", "learning_rate", "seed")
    return options_as_words({name: getattr(options, name) for name in names} | {"epochs": epochs or options.epochs})


def say(line: str) -> None:
    """Tell of progress, beside the bar where there is one."""
    tqdm.write(line, file=sys.stderr)


def _options() -> argparse.Namespace:
    usable = len(usable_cores())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="digits, mnist or a folder (default: mnist)")
    parser.add_argument("--data-dir", help="where mnist lies")
    parser.add_argument("--epochs", type=positive_integer, default=3)
    parser.add_argument("--batch-size", type=positive_integer, default=100)
    parser.add_argument("--learning-rate", type=positive_number, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cores",
        type=positive_integer,
        nargs="+",
        metavar="N",
        default=list(dict.fromkeys([usable, 1])),
        help="a table for each number of cores (default: all, and one)",
    )
    parser.add_argument("--rounds", type=positive_integer, default=5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="(default: all)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="write the page there, too")
    options = parser.parse_args()
    if max(options.cores) > usable:
        parser.error(f"--cores must be at most {usable}, the cores that this process may use, got {max(options.cores)}")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
