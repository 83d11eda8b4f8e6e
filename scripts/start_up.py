#!/usr/bin/env python3
"""Times how `parallelcnn` starts, and prints Markdown tables: to --help, to the first step, and where the time goes.

    scripts/start_up.py --data mnist --data-dir FOLDER
    scripts/start_up.py --cold-starts 20     # so often: eight ranks, then two jobs at once, start with an empty cache

Every time is counted from the moment when the command was given, so that the launcher and the start of Python are
in it. The kernels' cache is a temporary folder of this script's own: "warm" is the second start and later ones,
"cold" is one with an empty cache, which compiles every kernel that training the paper's network needs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from parallelcnn.comm import mpirun

HELP, FIRST_STEP, COLD = 0.2, 1.5, 15.0  # what is promised [s]


def main() -> int:
    options = _options()
    if options.cold_starts:
        return start_cold_together(options)
    with numba_cache():
        cold = [run_train(options, 1, empty_the_cache=True) for _ in range(options.cold_rounds)]
        rounds = [one_round(options) for _ in range(options.rounds)]
    print("| from the command | median | least | most | promised |\n|---|--:|--:|--:|--:|")
    print_row("to the end of `--help`", [each["help"] for each in rounds], HELP)
    for ranks in options.ranks:
        starts = [each[ranks] for each in rounds]
        print_row(f"to the end of the first step, {ranks} rank{'s' * (ranks > 1)}", starts, FIRST_STEP)
    print_row("of which compiling all kernels, cold", [run["compile_seconds"] for run in cold], COLD)
    print("\n| one rank, warm | ends after, median |\n|---|--:|")
    for phase in rounds[0]["phases"]:
        print(f"| {phase} | {statistics.median(each['phases'][phase] for each in rounds):.3f} s |")
    return 0


def one_round(options: argparse.Namespace) -> dict:
    """Everything once, so that a slow spell of the machine does not meet one of them alone."""
    times: dict = {"help": run_help()}
    for ranks in options.ranks:
        times[ranks] = run_train(options, ranks)["first_step"]
    times["phases"] = run_phases(options)
    return times


def run_help() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "parallelcnn", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def run_train(options: argparse.Namespace, ranks: int, empty_the_cache: bool = False) -> dict:
    """The summary of one training, and in it as `first_step` the time from the command to its first step's end [s]."""
    if empty_the_cache:
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(dir=os.path.dirname(os.environ["NUMBA_CACHE_DIR"]))
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        subprocess.run(train_command(options, ranks, folder), check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "summary.json").read_text())
    process_started = datetime.fromisoformat(summary["started"]).timestamp()
    return {**summary, "first_step": process_started - started + summary["first_step_seconds"]}


def train_command(options: argparse.Namespace, ranks: int, folder: str) -> list[str]:
    launcher = [mpirun(), "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, "-m", "parallelcnn", *train_arguments(options, folder)]


def train_arguments(options: argparse.Namespace, folder: str) -> list[str]:
    data = ["--data", options.data, *(["--data-dir", options.data_dir] if options.data_dir else [])]
    return ["train", "--epochs", "1", "--out", folder, *data]


_PHASES = """
import sys, time
command_given, data, data_dir = float(sys.argv[1]), sys.argv[2], sys.argv[3] or None
def done(phase): print(f"{phase}\\t{time.time() - command_given}", flush=True)
done("Python has started")
import numpy
done("numpy is imported")
import numba
done("numba is imported")
import parallelcnn as pc, parallelcnn.reporting, parallelcnn.training, parallelcnn.models
done("the package is imported")
sets = pc.load_data(data, data_dir)
done(f"the data set is read")
network = pc.NetworkHandler(pc.paper(), sets[0].input_shape)
parallelcnn.training.compile_kernels(network, sets[0], pc.SGD(0.1), pc.SoftmaxCrossEntropy())
done("the kernels are loaded from the cache")
class Reporter:
    def minibatch(self, step, *_):
        done("the first step is done")
        sys.exit()
pc.train(network, *sets, pc.SGD(0.1), 1, 100, reporter=Reporter())
"""


def run_phases(options: argparse.Namespace) -> dict[str, float]:
    """What a start goes through, in a program that does the same as the command; when each ended [s]."""
    command = [sys.executable, "-c", _PHASES, repr(time.time()), options.data, options.data_dir or ""]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {phase: float(seconds) for phase, seconds in (line.split("\t") for line in out.splitlines())}


_TRAIN_AND_COUNT = """
import contextlib, io, json, os, sys
from numba.core import event
from parallelcnn.cli import main
from parallelcnn.comm import world
compilations = event.RecordingListener()
event.register("numba:compile", compilations)
with contextlib.redirect_stdout(io.StringIO()):
    code = main(sys.argv[1:])
counts = world().gather(sum(record.is_start for _, record in compilations.buffer))
if world().rank == 0:
    print(json.dumps(counts))
sys.exit(code)
"""


def start_cold_together(options: argparse.Namespace) -> int:
    """Many starts with an empty cache: of one job on eight ranks, and of two jobs on two ranks each; 0 if all is well.

    All is well if no rank failed, of each job rank 0 alone compiled, and all jobs ended with the same parameters as
    those on as many ranks.
    """
    failures, parameters = 0, {}
    print("| start | jobs x ranks | kernels compiled by each rank | seconds | |\n|--:|---|---|--:|---|")
    for start in range(1, options.cold_starts + 1):
        for jobs, ranks in ((1, 8), (2, 2)):
            started = time.perf_counter()
            ended = run_cold(options, jobs, ranks)
            seconds = time.perf_counter() - started
            well = all(
                job is not None
                and job["counts"][0] > 0
                and not any(job["counts"][1:])
                and parameters.setdefault(ranks, job["parameters_sha256"]) == job["parameters_sha256"]
                for job in ended
            )
            failures += not well
            counts = " and ".join("failed" if job is None else " ".join(map(str, job["counts"])) for job in ended)
            verdict = "as it should" if well else "WRONG"
            print(f"| {start} | {jobs} x {ranks} | {counts} | {seconds:.1f} | {verdict} |", flush=True)
    print(f"\n{failures} of {2 * options.cold_starts} starts went wrong")
    return 1 if failures else 0


def run_cold(options: argparse.Namespace, jobs: int, ranks: int) -> list[dict | None]:
    """Start jobs at once, with one empty cache; of each its summary and every rank's `counts`, None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": os.path.join(folder, "cache")}
        outs = [os.path.join(folder, str(job)) for job in range(jobs)]
        program = [sys.executable, "-c", _TRAIN_AND_COUNT]
        few_steps = ["--batch-size", "6000"]  # they are not what is tried here
        running = [
            subprocess.Popen(
                [mpirun(), "-n", str(ranks), *program, *train_arguments(options, out), *few_steps],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for out in outs
        ]
        counts = [process.communicate()[0] for process in running]
        return [
            {**json.loads(Path(out, "summary.json").read_text()), "counts": json.loads(count)}
            if process.returncode == 0
            else None
            for process, out, count in zip(running, outs, counts, strict=True)
        ]


@contextmanager
def numba_cache() -> Iterator[None]:
    """Inside, kernels are kept in a folder of their own, empty at first."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = os.path.join(folder, "first")
        yield


def print_row(what: str, seconds: list[float], promised: float) -> None:
    columns = [f"{value:.2f} s" for value in (statistics.median(seconds), min(seconds), max(seconds))]
    print(f"| {what} | {' | '.join(columns)} | {promised:g} s |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits, mnist or a folder (default: digits)")
    parser.add_argument("--data-dir", help="where mnist lies")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--rounds", type=int, default=7, help="warm starts of each kind (default: 7)")
    parser.add_argument("--cold-rounds", type=int, default=3, help="starts with an empty cache (default: 3)")
    parser.add_argument("--cold-starts", type=int, help="start many ranks with an empty cache, so many times")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
