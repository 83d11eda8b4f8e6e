#!/usr/bin/env python3
"""Loses ranks as quickly as possible, without any training: what MPI and parallelcnn.comm make of very many losses.

    scripts/recoveries.py --python .venv-test-openmpi/bin/python --runs 200 --seed 1

A run is eight ranks under Open MPI's `mpirun --with-ft ulfm` that sum and gather numbers of which they know what comes
out. Ranks kill themselves, one after the other or several at once, where they come to a collective or begin to recover
from another loss, or up to 30 ms later. Those that are left in the end do one round more, undisturbed, and tell what
they have seen. scripts/soak.py does the same to whole trainings, in which losses are much rarer.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from launching import environment
from measuring import file_to_write, markdown_table, page_head, positive_integer, print_page, run_to_the_end
from soak_start import Installation

from parallelcnn.comm import Communicator, world
from parallelcnn.errors import RankLostError

COUNTS = ("runs", "killed", "recoveries", "hangs", "crashed", "wrong values", "tracebacks")
_LIMIT = 40.0  # what takes longer hangs [s]
_SUMS = 40  # in a round; every fifth comes with a gather
_NUMBERS = 35_000  # in a sum: about the paper's network


def draw_plan(choose: random.Random, ranks: int) -> list[dict[str, Any]]:
    """How which ranks die: a group of them once those before it are `gone` or, in the recovery from that loss, `going`:
    when they come to `calls` more places, or to a recovery if that is `where`; and `delay` later [s].
    """
    victims = choose.sample(range(ranks), ranks - min(choose.choice((1, 1, 2, 3, ranks // 2)), ranks - 1))
    plan: list[dict[str, Any]] = []
    going = 0
    while victims:
        gone, size = len(plan), choose.choice((1, 1, 2, 3, ranks - 1))
        group, victims = victims[:size], victims[size:]
        calls = choose.randint(1, 25)
        for rank in group:
            delay = choose.choice((0.0, 0.0, 10 ** choose.uniform(-4.5, -1.5)))
            where = choose.choice(("collective", "collective", "recover"))
            later = choose.choice((0, 0, 1))
            plan.append({"rank": rank, "gone": gone, "going": going, "calls": calls + later, "where": where})
            plan[-1]["delay"] = delay
        going = gone
    return plan


class Rank:
    """One rank of a run, that dies as planned."""

    def __init__(self, comm: Communicator, plan: list[dict[str, Any]]) -> None:
        self._comm, self._started_as, self._size = comm, comm.rank, comm.size
        self._death = next((one for one in plan if one["rank"] == comm.rank), None)
        self._left = self._size - len(plan)
        self._calls = self.recoveries = self.wrong = 0

    def live(self) -> None:
        """Do rounds until all that should die have; then one more."""
        self._comm.barrier()
        while True:
            all_are_gone = self._comm.size == self._left
            try:
                self._round()
            except RankLostError:
                self._come_to("recover")
                self._comm.recover()
                self.recoveries += 1
                continue
            if all_are_gone:
                return

    def _round(self) -> None:
        numbers = np.arange(_NUMBERS)
        for turn in range(1, _SUMS + 1):
            self._come_to("collective")
            summed = numbers * turn
            self._comm.sum_over_ranks(summed)
            self.wrong += not np.array_equal(summed, numbers * (turn * self._comm.size))
            if turn % 5 == 0:
                self._come_to("collective")
                ranks = self._comm.gather(self._started_as)
                self.wrong += ranks != sorted(ranks) or len(ranks) != self._comm.size

    def _come_to(self, where: str) -> None:
        death, lost = self._death, self._size - self._comm.size
        if death is None:
            return
        in_time = where == death["where"] == "recover" and death["gone"] > 0 and lost >= death["going"]
        if lost < death["gone"] and not in_time:
            return
        self._calls += 1
        if in_time or self._calls >= death["calls"]:
            if death["delay"] > 0:
                threading.Thread(target=self._die, args=(death["delay"],), daemon=True).start()
            else:
                self._die(0)

    @staticmethod
    def _die(after: float) -> None:
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)


def run(installation: Installation, ranks: int, seed: int, number: int) -> tuple[Counter[str], str]:
    """What came of a run, by the words in COUNTS, and what it printed."""
    plan = draw_plan(random.Random(f"{seed} {number}"), ranks)
    line = [*installation.launch(ranks, survives=True), str(Path(__file__).resolve()), "--plan", json.dumps(plan)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    counts = Counter(runs=1, killed=len(plan))
    try:
        said, _ = process.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        counts["hangs"] = 1
    told = [json.loads(text) for text in said.splitlines() if text.startswith('{"recoveries"')]
    counts["recoveries"] = max((one["recoveries"] for one in told), default=0)
    counts["wrong values"] = sum(one["wrong"] for one in told)
    counts["tracebacks"] = "Traceback" in said
    counts["crashed"] = not counts["hangs"] and len(told) < ranks - len(plan)
    return counts, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="with parallelcnn and Open MPI (this)")
    parser.add_argument("--runs", type=positive_integer, default=20)
    parser.add_argument("--ranks", type=positive_integer, default=8, help="at least 2 (8)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    parser.add_argument("--page", type=file_to_write, help="Markdown file for the counts")
    parser.add_argument("--plan", help=argparse.SUPPRESS)  # of a rank of a run
    options = parser.parse_args()
    if options.plan is not None:
        rank = Rank(world(), json.loads(options.plan))
        rank.live()
        print(json.dumps({"recoveries": rank.recoveries, "wrong": rank.wrong}) + "\n", end="", flush=True)
        return 0
    if options.ranks < 2:
        parser.error(f"--ranks must be at least 2, got {options.ranks}")
    installation = Installation.of(options.python)
    if not installation.open_mpi:
        sys.exit(f"recoveries.py: --python {options.python} must have Open MPI, got {installation.library}")
    table: Counter[str] = Counter()
    for number in range(options.runs):
        counts, said = run(installation, options.ranks, options.seed, number)
        table += counts
        wrong = [name for name in COUNTS[3:] if counts[name]]
        if wrong:
            print(f"run {number}: {', '.join(wrong)}\n{said[-3000:]}", flush=True)
    rows = markdown_table(["", "all"], [[name, f"{table[name]:,}"] for name in COUNTS])
    head = page_head(f"{table['killed']:,} ranks lost in {table['runs']:,} runs", "numpy", "mpi4py")
    print_page(f"{head}, {installation.library}.\n\n{rows}\n\n{__doc__.split(chr(10), 4)[4]}", options.page)
    return 1 if any(table[name] for name in COUNTS[3:]) else 0


if __name__ == "__main__":
    run_to_the_end(main)
