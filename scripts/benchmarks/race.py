"""Systems that train the same network in turns, each in a process of its own, while the others sleep."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import CLONE, Contestant, ProgramFailed, on_ranks, options_as_words

SETTLE = 0.02  # pause after a turn, in which threads may still spin, waiting for work [s]


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
    """One way to train: a program of `systems/`, in a checkout or a variant."""

    name: str
    program: str
    variant: str | None = None
    checkout: Path = CLONE
    cache: str = ""
    cores_as: str | None = None  # "ranks" or "threads"; None: what the workload says

    def command(self, workload: Workload, options: argparse.Namespace) -> list[str]:
        cores = workload.ranks * workload.threads
        layouts = {"ranks": (cores, 1), "threads": (1, cores), None: (workload.ranks, workload.threads)}
        ranks, threads = layouts[self.cores_as]
        words = options_as_words(
            {
                "network": workload.network,
                "batch_size": workload.batch_size,
                "threads": threads,
                "variant": self.variant,
                "data": options.data,
                "data_dir": options.data_dir,
                "learning_rate": options.learning_rate,
            }
        )
        program = Path(__file__).with_name("systems") / f"train_{self.program}.py"
        return on_ranks(ranks, [sys.executable, str(program), *words])

    def variables(self) -> dict[str, str]:
        """Environment variables: the package of this checkout, and a folder for its own compiled kernels."""
        return {"PYTHONPATH": str(self.checkout), **({"NUMBA_CACHE_DIR": self.cache} if self.cache else {})}


class Race:
    """Systems that take turns on one workload.

    Args:
        failures: receives the systems that fail, which are left out; None: a failure ends the race.
    """

    def __init__(
        self,
        workload: Workload,
        options: argparse.Namespace,
        folder: Path,
        failures: dict[System, str] | None = None,
    ) -> None:
        self._workload, self._options, self._folder, self._failures = workload, options, folder, failures
        self._amounts: dict[System, tuple[int, int]] = {}
        self.contestants: dict[System, Contestant] = {}

    def run(self, systems: Sequence[System]) -> dict[System, list[float]]:
        """Seconds per sample of each system in every round.

        Raises:
            ProgramFailed: if a system fails and `failures` is None.
        """
        times: dict[System, list[float]] = {system: [] for system in systems}
        for number in range(self._options.rounds):
            with ExitStack() as stack:
                for system in times:
                    with self._leave_out_if_it_fails(system):
                        contestant = start(system, self._workload, self._options, self._folder, stack)
                        self.contestants[system] = contestant
                        if system not in self._amounts:
                            found = amount(contestant, self._workload, self._options.seconds)
                            # Checkouts of the same program get the same amount of work.
                            same = systems if self._failures is None else [system]
                            self._amounts |= dict.fromkeys(same, found)
                for system, seconds in self.one_round(number, self._amounts).items():
                    times[system].append(seconds)
            times = {system: times[system] for system in self.contestants}
            self.contestants = {}
        return times

    def one_round(self, number: int, amounts: dict[System, tuple[int, int]]) -> dict[System, float]:
        """Seconds per sample of each system in its fastest turn; the first turn is a warm-up and does not count."""
        order = list(self.contestants)
        order = order[number % max(len(order), 1) :] + order[: number % max(len(order), 1)]
        times: dict[System, list[float]] = {system: [] for system in order}
        for turn in range(self._options.turns + 1):
            for system in order if turn % 2 else order[::-1]:
                if system in self.contestants:
                    samples, epochs = amounts[system]
                    with self._leave_out_if_it_fails(system):
                        times[system].append(self.contestants[system].turn(samples, epochs) / (samples * epochs))
                    time.sleep(SETTLE)
        return {system: min(times[system][1:]) for system in order if system in self.contestants}

    @contextmanager
    def _leave_out_if_it_fails(self, system: System) -> Iterator[None]:
        try:
            yield
        except ProgramFailed as error:
            if self._failures is None:
                raise
            self._failures[system] = str(error)
            self.contestants.pop(system, None)


def start(
    system: System, workload: Workload, options: argparse.Namespace, folder: Path, stack: ExitStack
) -> Contestant:
    """A system in a process of its own, ready for its turns until the stack is left."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
    contestant = Contestant(system.command(workload, options), place, system.variables())
    stack.callback(contestant.close)
    if "skipped" in contestant.about:
        raise ProgramFailed(contestant.about["skipped"])
    package = Path(contestant.about["parallelcnn"])
    if package.parent != system.checkout:
        raise ProgramFailed(f"{system.name} loaded {package}, not the package in {system.checkout}")
    return contestant


def amount(contestant: Contestant, workload: Workload, seconds: float) -> tuple[int, int]:
    """(samples, epochs) that take about so many seconds: whole minibatches; several epochs if the data set is small."""
    few = 3 * workload.batch_size
    contestant.turn(few, 1)  # compiles
    per_sample = contestant.turn(few, 1) / few
    wanted = max(workload.batch_size, round(seconds / per_sample))
    epochs = -(-wanted // _longest_epoch(workload))
    return -(-wanted // epochs // workload.batch_size) * workload.batch_size, epochs


def _longest_epoch(workload: Workload) -> int:
    """Samples that every data set has (see systems/contract.py), in whole minibatches."""
    return max(4000 // workload.batch_size, 1) * workload.batch_size
