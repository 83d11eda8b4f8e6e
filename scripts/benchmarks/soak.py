#!/usr/bin/env python3
"""Kill ranks of short trainings at random moments, and check that neither the run nor any bit of its result is lost.

    scripts/benchmarks/soak.py --python .venv-test-mpich/bin/python .venv-test-openmpi/bin/python --kills 1000
    scripts/benchmarks/soak.py --seed 3 --trial 17 --findings FOLDER      # repeat that trial

A trial is one training, `parallelcnn train --reproducible 8 --checkpoint-every K --resume`, with random settings on a
random number of ranks. It is started repeatedly, on other numbers of ranks, until it is done. Meanwhile ranks get
signals, mostly SIGKILL: at random times, or just after they have entered a certain function (see soak_rank.py). There
are four modes:

    ends        mpirun: a killed rank ends the job within 10 s, not with exit code 0; its files are readable; it resumes
    survives    Open MPI's mpirun --with-ft ulfm: once training has begun, the remaining ranks finish it
    recoveries  the same with eight ranks that are killed as quickly as possible, also while the others recover
    alone       one process without mpirun

In the end the parameters must have the same bits as those of an undisturbed training. The files must exist and be
readable, with every minibatch once in metrics.jsonl. No other file and no process may be left behind.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pages import file_to_write, markdown_table, page_head, positive_integer, run_to_the_end, write_page
from soak_start import Ended, Installation, PlannedSignal, draw_many_losses, draw_signals, start

import parallelcnn as pc

MODES = {"ends": 3, "survives": 6, "recoveries": 2, "alone": 1}  # and how often each is chosen
ENDS_WITHIN = 10.0  # after a kill that ends the job [s]
# Under ULFM, if a rank is lost while the ranks start, because the others first wait for it.
ENDS_IN_THE_START_WITHIN = 20.0  # [s]
TIMEOUT = 25.0  # --timeout of the trainings; shorter than the time after which this script reports a hang [s]
RIGHT = ("trials", "starts", "moments", "killed", "asked to stop", "survived", "ended", "while starting", "resumed")
WRONG = ("hangs", "timeouts", "late ends", "lost runs", "wrong sums", "unreadable files", "left behind", "tracebacks")
_SMALL_MODEL = f"{Path(__file__).resolve().with_name('soak_rank.py')}:two_layers"
# Settings that change the result: for each there is an undisturbed training. In the second one the last minibatch of an
# epoch is smaller.
RECIPES = (
    ["--epochs", "8", "--batch-size", "40", "--momentum", "0.9"],
    ["--epochs", "5", "--batch-size", "23", "--model", _SMALL_MODEL],
)
N_TRAIN, N_TEST = 1000, 300
_KEPT_FILES = {".lock", "config.toml", "model.npz", "metrics.jsonl", "loss.png", "report.html", "summary.json"}
_ULFM_MODES = {"survives", "recoveries"}


@dataclass
class Expected:
    """The results of an undisturbed training."""

    sha256: str
    losses: list[float]
    samples_seen: int


@dataclass
class Trial:
    """One training, started as often as necessary.

    Attributes:
        counts: how often each outcome in `RIGHT` and `WRONG` occurred.
        findings: what was wrong.
    """

    number: int
    mode: str
    recipe: int
    settings: list[str]
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def survives(self) -> bool:
        """Whether the other ranks continue without a lost one."""
        return self.mode in _ULFM_MODES

    def wrong(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.findings.append(f"{kind}: {what}")


@dataclass
class Place:
    """Shared by all trials: a folder with data set and kernel cache, and the expected results of each recipe."""

    folder: Path
    installations: list[Installation]
    expected: dict[int, Expected] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def launch(
        self, trial: Trial, installation: Installation, ranks: int, signals: Sequence[PlannedSignal], threads: int
    ) -> Ended:
        """Start the command of the trial again; 0 ranks: one process without mpirun."""
        number = trial.counts["starts"] = trial.counts["starts"] + 1
        notes, temporary = trial.folder / f"start-{number}", trial.folder / "tmp"
        notes.mkdir(parents=True)
        temporary.mkdir(exist_ok=True)
        line = ["train", "--data", str(self.folder / "data"), "--out", str(trial.out), "--resume", "--learning-rate"]
        line += ["0.05", "--reproducible", "8", "--threads", str(threads), "--timeout", str(TIMEOUT)]
        line += [*RECIPES[trial.recipe], *trial.settings]
        launch = installation.launch(ranks, trial.survives)
        what = {"command": [*launch, *line], "signals": [asdict(planned) for planned in signals]}
        (notes / "what.json").write_text(json.dumps(what, indent=1))
        cache = os.environ.get("NUMBA_CACHE_DIR", str(self.folder / "numba"))
        return start(launch, line, max(ranks, 1), signals, notes, NUMBA_CACHE_DIR=cache, TMPDIR=str(temporary))

    def expected_of(self, recipe: int) -> Expected:
        """The results of an undisturbed training by a recipe; the first one also compiles, for all installations."""
        with self.lock:
            if recipe not in self.expected:
                for installation in self.installations[: 1 if self.expected else None]:
                    trial = Trial(
                        -1, "alone", recipe, [], self.folder / f"undisturbed-{recipe}-{installation.open_mpi}"
                    )
                    ended = self.launch(trial, installation, 0, [], 1)
                    if ended.code != 0:
                        sys.exit(f"soak.py: the undisturbed training failed:\n{ended.errors[-2000:]}")
                summary = json.loads((trial.out / "summary.json").read_text())
                newest = max((trial.out / "checkpoints").glob("step-*.npz"))
                losses = pc.load_checkpoint(newest).history.losses
                self.expected[recipe] = Expected(summary["parameters_sha256"], losses, summary["samples_seen"])
            return self.expected[recipe]


def run_trial(place: Place, seed: int, number: int, modes: Sequence[str]) -> Trial:
    """Run one trial. Everything random in it is determined by the seed and the number of the trial."""
    choose = random.Random(f"{seed} {number}")
    with_ulfm = [one for one in place.installations if one.open_mpi]
    possible = [mode for mode in modes if with_ulfm or mode not in _ULFM_MODES]
    (mode,) = choose.choices(possible, [MODES[mode] for mode in possible])
    settings = ["--checkpoint-every", choose.choice(["1", "2", "5", "10", "37"]), "--keep-last", choose.choice("123")]
    settings += ["--keep-best"] if choose.random() < 0.3 else []
    settings += ["--evaluate-every", choose.choice(["4", "10", "30"])] if choose.random() < 0.5 else []
    trial = Trial(number, mode, choose.randrange(len(RECIPES)), settings, place.folder / f"trial-{number}")
    trial.counts["trials"] = 1
    expected = place.expected_of(trial.recipe)
    for turn in range(6):
        disturbed = turn < 5 and (turn == 0 or choose.random() < 0.7)
        installation = choose.choice(with_ulfm if trial.survives else place.installations)
        # The last start, on few ranks, shows that the training can be resumed.
        numbers = (2, 3, 4, 4, 8) if trial.survives else (1, 2, 3, 4, 8) if disturbed else (1, 2, 3)
        ranks = {"alone": 0, "recoveries": 8}.get(mode, choose.choice(numbers))
        signals = draw_signals(choose, max(ranks, 1), trial.survives) if disturbed else []
        if mode == "recoveries" and disturbed:
            signals = draw_many_losses(choose, ranks)
        ended = place.launch(trial, installation, ranks, signals, choose.choice((1, 1, 2)))
        judge(trial, ended, expected)
        if is_done(trial, ended):
            check_results(trial, expected)
        if is_done(trial, ended) or not disturbed:
            break
    return trial


def is_done(trial: Trial, ended: Ended) -> bool:
    """Whether the training is done, by the exit code and the files: Open MPI's mpirun --with-ft ulfm returns 0 even if
    all ranks were killed."""
    return ended.code == 0 and (trial.out / "summary.json").exists()


def judge(trial: Trial, ended: Ended, expected: Expected) -> None:
    """Count the outcome of a start, and check the files that exist so far."""
    counts, name = trial.counts, f"start {trial.counts['starts']}"
    counts["moments"] += ended.moments
    counts["killed"] += len(ended.killed)
    counts["asked to stop"] += ended.asked
    counts["shared memory"] += ended.shared_memory
    counts["resumed"] += "resumed after minibatch" in ended.output
    if ended.left:
        trial.wrong("left behind", f"{name}: {', '.join(ended.left)}")
    # Before the command has started, Python handles Ctrl-C.
    python_was = ended.while_starting and ended.asked and "KeyboardInterrupt" in ended.errors
    if "Traceback" in ended.errors and ended.code is not None and not python_was:
        trial.wrong("tracebacks", f"{name}, exit code {ended.code}")
    if "longer than --timeout" in ended.errors:
        trial.wrong("timeouts", name)
    if ended.code is None:
        trial.wrong("hangs", name)
    elif is_done(trial, ended):
        counts["survived"] += bool(ended.killed)
    elif ended.moments == 0:
        trial.wrong("lost runs", f"{name}: undisturbed, but exit code {ended.code}")
    elif ended.code == 0 and not trial.survives:
        trial.wrong("lost runs", f"{name}: exit code 0, but not done")
    else:
        counts["ended"] += 1
        in_the_start = trial.survives and ended.while_starting
        if ended.killed and ended.seconds > (ENDS_IN_THE_START_WITHIN if in_the_start else ENDS_WITHIN):
            trial.wrong("late ends", f"{name}: {ended.seconds:.1f} s after the last kill")
        if in_the_start:
            counts["while starting"] += 1
        elif trial.survives and not ended.asked:
            trial.wrong("lost runs", f"{name}: the others did not finish, exit code {ended.code}")
    if not is_done(trial, ended):
        check_checkpoints(trial, expected)


def check_checkpoints(trial: Trial, expected: Expected) -> int:
    """Every file named like a checkpoint must be a checkpoint of this training; returns the minibatch of the newest."""
    steps = [0]
    for file in sorted((trial.out / "checkpoints").glob("step-*.npz")):
        try:
            losses = pc.load_checkpoint(file).history.losses
        except (pc.ParallelCNNError, OSError) as error:
            trial.wrong("unreadable files", f"start {trial.counts['starts']}: {error}")
            continue
        steps.append(len(losses))
        if losses != expected.losses[: len(losses)]:
            trial.wrong("wrong sums", f"start {trial.counts['starts']}: the losses in {file.name}")
    return max(steps)


def check_results(trial: Trial, expected: Expected) -> None:
    """A finished training must have written all its files and left nothing else behind."""
    if check_checkpoints(trial, expected) != len(expected.losses):
        trial.wrong("unreadable files", "no checkpoint of the last minibatch")
    try:
        summary = json.loads((trial.out / "summary.json").read_text())
        if summary["parameters_sha256"] != expected.sha256:
            trial.wrong("wrong sums", "parameters_sha256")
        if summary["samples_seen"] != expected.samples_seen:
            trial.wrong("wrong sums", f"{summary['samples_seen']} samples seen instead of {expected.samples_seen}")
        if pc.load_model(trial.out / "model.npz").parameters_sha256() != expected.sha256:
            trial.wrong("wrong sums", "model.npz")
        check_metrics(trial, expected)
    except (OSError, ValueError, KeyError) as error:
        trial.wrong("unreadable files", f"{type(error).__name__}: {error}")
    # The requested number, the best one, and one on which the replicas are known to have agreed.
    keep = int(trial.settings[trial.settings.index("--keep-last") + 1]) + ("--keep-best" in trial.settings) + 1
    checkpoints = sorted(path.name for path in trial.out.glob("checkpoints/*"))
    if len(checkpoints) > keep or any(name.startswith(".") for name in checkpoints):
        trial.wrong("left behind", f"checkpoints: {checkpoints}")
    # A start without a checkpoint to resume moves earlier files into their own folders.
    strange = [path for path in trial.out.glob("*") if path.name not in _KEPT_FILES | {"checkpoints"}]
    strange = [path for path in strange if not path.name.startswith("before-")]
    strange += (trial.folder / "tmp").iterdir()
    if strange:
        trial.wrong("left behind", ", ".join(sorted(str(path.relative_to(trial.folder)) for path in strange)))


def check_metrics(trial: Trial, expected: Expected) -> None:
    """Check that every minibatch and every evaluation is there once, in order, in complete lines."""
    text = (trial.out / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    tests = [line["step"] for line in lines if "test_loss" in line]
    if [step for step, _ in losses] != list(range(1, len(expected.losses) + 1)) or not text.endswith("\n"):
        trial.wrong("unreadable files", f"metrics.jsonl does not have every minibatch once: {len(losses)} lines")
    elif not all(math.isclose(loss, expected.losses[step - 1], rel_tol=1e-7) for step, loss in losses):
        trial.wrong("wrong sums", "the losses in metrics.jsonl")
    newest = pc.load_checkpoint(max(trial.out.glob("checkpoints/step-*.npz"))).history
    if tests != [step for step, _, _ in newest.evaluations]:
        trial.wrong("unreadable files", f"metrics.jsonl has the evaluations after minibatches {tests}")


def write_data(folder: Path) -> None:
    """Write four IDX files of noise with random labels, on which a training does not converge."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        for name, shape, limit in (("images-idx3", (n, 28, 28), 256), ("labels-idx1", (n,), 10)):
            content = rng.integers(0, limit, shape).astype(np.uint8).tobytes()
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + content)


def soak(options: argparse.Namespace, place: Place, table: dict[str, Counter[str]]) -> bool:
    """Run trials until enough ranks have been killed; returns False if anything was wrong."""
    numbers = iter([options.trial] if options.trial is not None else range(10**9))
    wrong, killed = 0, 0
    running: set[Future[Trial]] = set()
    began = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        while True:
            enough = killed >= options.kills or time.monotonic() - began > options.minutes * 60
            while len(running) < options.at_once and not enough and (number := next(numbers, None)) is not None:
                running.add(pool.submit(run_trial, place, options.seed, number, options.modes))
            if not running:
                return wrong == 0
            try:
                done, running = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                print("interrupted: the trials that have begun are the last ones", file=sys.stderr)
                options.kills = 0
                continue
            for future in done:
                trial = future.result()
                table[trial.mode] += trial.counts
                killed += trial.counts["killed"]
                wrong += bool(trial.findings)
                notable = "  " + "; ".join(trial.findings) if trial.findings else ""
                summary = ", ".join(f"{trial.counts[name]} {name}" for name in RIGHT[1:] if trial.counts[name])
                print(f"{killed:5} killed  trial {trial.number} ({trial.mode}): {summary}{notable}", flush=True)
                if trial.findings and options.findings:
                    options.findings.mkdir(parents=True, exist_ok=True)
                    kept = options.findings / trial.folder.name
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(trial.folder, kept)
                    (kept / "findings").write_text("\n".join(trial.findings) + "\n")
                shutil.rmtree(trial.folder)


def count_table(table: dict[str, Counter[str]]) -> str:
    """A Markdown table with a row for each outcome and a column for each mode."""
    modes = [mode for mode in MODES if table[mode]]
    rows = [[name, *(f"{table[mode][name]:,}" for mode in modes)] for name in (*RIGHT, *WRONG, "shared memory")]
    rows = [[*row, f"{sum(table[mode][row[0]] for mode in modes):,}"] for row in rows]
    return markdown_table(["", *modes, "all"], rows)


def page(options: argparse.Namespace, table: dict[str, Counter[str]], seconds: float) -> str:
    libraries = " and ".join(sorted({one.library for one in options.installations}))
    killed = sum(counts["killed"] for counts in table.values())
    return f"""{page_head(f"{killed:,} killed ranks", "numpy", "numba", "mpi4py")}, {libraries}.
{datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes, {options.at_once} trials at once.
The first lines tell what was done, those from "hangs" on what went wrong.

{count_table(table)}

{__doc__.split(chr(10), 5)[5].rstrip()}

"killed" are ranks that got SIGKILL, at so many "moments", "asked to stop" those that got SIGTERM, SIGUSR1 or SIGINT.
"survived" are starts that ended well although ranks were killed, "ended" those that did not, under ULFM also
because ranks were killed "while starting", before there was anything to survive with. A hang is a start that takes more
than 60 s, a timeout one that `--timeout 25` ended, a late end one that takes more than 10 s after the last kill (20 s
under ULFM while ranks start), a lost run one that fails without a reason.
"shared memory" counts files in /dev/shm that the MPI library leaves when ranks are killed, which is no fault of this
library but can fill that file system.
"""


def main() -> int:
    options = _options()
    os.nice(5)
    # If a shell runs this in the background, Ctrl-C is ignored, also by all processes that this starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options.installations = [Installation.of(python) for python in options.python or [sys.executable]]
    if set(options.modes) <= _ULFM_MODES and not any(one.open_mpi for one in options.installations):
        sys.exit(f"soak.py: --modes {' '.join(options.modes)} needs a --python with Open MPI")
    table: dict[str, Counter[str]] = {mode: Counter() for mode in MODES}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        place = Place(Path(folder), options.installations)
        write_data(place.folder / "data")
        right = soak(options, place, table)
    print(f"\n{count_table(table)}")
    if options.out:
        write_page(options.out, page(options, table, time.monotonic() - began))
    return 0 if right else 1


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=positive_integer, default=100, help="stop after so many killed ranks (default: 100)"
    )
    parser.add_argument("--minutes", type=positive_integer, default=10**6, help="stop after so many minutes as well")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--trial", type=int, metavar="N", help="run only this trial")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="run only these modes")
    parser.add_argument("--at-once", type=positive_integer, default=2, help="trials at the same time (default: 2)")
    what = "Pythons with parallelcnn, each with an MPI library of its own (this one)"
    parser.add_argument("--python", nargs="+", action="extend", metavar="PATH", help=what)
    parser.add_argument("--findings", type=Path, help="folder to keep the files of trials that went wrong")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write a page with the counts there")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_to_the_end(main)
