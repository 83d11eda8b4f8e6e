"""Start a command on some ranks, which get signals meanwhile, and report how it ended."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import environment, mpirun

RANK_PROGRAM = Path(__file__).resolve().with_name("soak_rank.py")
LIMIT = 60.0  # a start that takes longer hangs [s]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# Places in the program, see soak_rank.py, and the last call at which a signal is sent there.
_PLACES = {
    "while starting": {"join": 1, "share": 1, "compile": 1, "folder": 1},
    "in training": {"sum": 120, "evaluate": 6, "compare": 5},
    "while writing": {"write": 15, "flush": 15, "rename": 15},
    "while recovering": {"recover": 2, "rejoin": 1, "take over": 1},
    "at the end": {"model": 1, "summary": 1, "end": 1},
}
_OF_THE_WRITER = {"folder", "write", "flush", "rename", "take over", "model", "summary"}


@dataclass(frozen=True)
class Installation:
    """A Python with an MPI library."""

    python: str
    library: str

    @property
    def open_mpi(self) -> bool:
        return "Open MPI" in self.library

    @classmethod
    def of(cls, python: str) -> "Installation":
        """The installation of a Python; exits with a message if there is none."""
        script = "import parallelcnn; from mpi4py import MPI; print(MPI.Get_library_version().splitlines()[0])"
        try:
            said = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment())
        except OSError as error:
            sys.exit(f"{Path(sys.argv[0]).name}: --python {python} cannot be started: {error.strerror}")
        if said.returncode != 0:
            why = (said.stdout + said.stderr).strip()[-500:]
            sys.exit(f"{Path(sys.argv[0]).name}: --python {python} has no MPI that works:\n{why}")
        return cls(python, said.stdout.strip())

    def launch(self, ranks: int, survives: bool) -> list[str]:
        """The words before a Python program to start it on so many ranks; 0: without a launcher."""
        if ranks == 0:
            return [self.python]
        ulfm = ["--with-ft", "ulfm"] if survives else []
        return [mpirun(self.python), *ulfm, "-n", str(ranks), self.python]


@dataclass(frozen=True)
class PlannedSignal:
    """A signal for some ranks at the same time.

    Attributes:
        ranks: their numbers in the world that was started.
        place, call, delay: the time [s] after a rank has entered that place for the `call`-th time; or
        since, seconds: the time after the "launch", or after the first rank has begun to train.
    """

    number: int
    ranks: list[int]
    signal: int
    place: str | None = None
    call: int = 1
    delay: float = 0.0
    since: str = "launch"
    seconds: float = 0.0


@dataclass
class Ended:
    """How one start ended.

    Attributes:
        code: the exit code; None if it had to be killed.
        killed: ranks that got SIGKILL.
        asked: how many were asked to stop, by another signal.
        moments: how many planned signals were sent.
        seconds: from the last kill to the end [s].
        while_starting: whether a signal was sent before all ranks trained.
        left: processes that were left running, and files of shared memory that MPI left.
    """

    code: int | None
    killed: set[int]
    asked: int
    moments: int
    seconds: float
    while_starting: bool
    left: list[str]
    shared_memory: int
    output: str
    errors: str


def draw_signals(choose: random.Random, ranks: int, survivors: bool) -> list[PlannedSignal]:
    """Draw which ranks get which signals, and when.

    Args:
        survivors: whether at least one rank must not be killed.
    """
    stop = choose.random() < 0.12
    number = choose.choice(STOP_SIGNALS) if stop else signal.SIGKILL
    most = ranks if stop or not survivors else ranks - 1
    if most == 0:
        return []
    everyone = list(range(ranks))
    choose.shuffle(everyone)
    if choose.random() < 0.4:  # rank 0 writes the files
        everyone.sort(key=bool if choose.random() < 0.5 else int)
    victims = everyone[: choose.choice((1, choose.randint(1, most), most, most, most))]
    at_once = stop or choose.random() < 0.4
    groups = [victims] if at_once else [[victim] for victim in victims]
    return [_draw_signal(choose, turn, group, int(number)) for turn, group in enumerate(groups)]


def _draw_signal(choose: random.Random, turn: int, ranks: list[int], number: int) -> PlannedSignal:
    if choose.random() < 0.08:
        return PlannedSignal(turn, ranks, number, since="launch", seconds=choose.uniform(0, 5))
    if choose.random() < 0.5:
        return PlannedSignal(turn, ranks, number, since="training", seconds=choose.uniform(0, 0.8))
    often = {"while starting": 1, "in training": 4, "while writing": 3, "at the end": 3}
    if turn > 0:
        often["while recovering"] = 8
    (kind,) = choose.choices(list(often), list(often.values()))
    places = dict(_PLACES[kind])
    if min(ranks) > 0 and choose.random() < 0.8:  # another rank comes there only after rank 0 was lost
        places = {place: call for place, call in places.items() if place not in _OF_THE_WRITER} or {"sum": 120}
    place = choose.choice(list(places))
    delay = 0.0 if choose.random() < 0.4 else 10 ** choose.uniform(-4.5, -1.5)
    return PlannedSignal(turn, ranks, number, place, choose.randint(1, places[place]), delay)


def draw_many_losses(choose: random.Random, ranks: int) -> list[PlannedSignal]:
    """Draw kills of single and of several ranks, in a collective or while the others recover; few ranks are left."""
    victims = choose.sample(range(ranks), ranks - min(choose.choice((1, 1, 2, 3, ranks // 2)), ranks - 1))
    planned: list[PlannedSignal] = []
    while victims:
        size, turn = choose.choice((1, 1, 2, 3)), len(planned)
        group, victims = victims[:size], victims[size:]
        recovering = turn > 0 and choose.random() < 0.4
        place, call = ("recover", choose.randint(1, turn)) if recovering else ("sum", choose.randint(1, 25) + 25 * turn)
        delay = choose.choice((0.0, 0.0, 10 ** choose.uniform(-4.5, -1.5)))
        planned.append(PlannedSignal(turn, group, int(signal.SIGKILL), place, call, delay))
    return planned


def start(
    launch: Sequence[str],
    arguments: Sequence[str],
    ranks: int,
    signals: Sequence[PlannedSignal],
    notes: Path,
    limit: float = LIMIT,
    **variables: str,
) -> Ended:
    """Start the command, send the signals, wait for its end, and find what it leaves behind.

    Args:
        launch: see `Installation.launch`.
        arguments: those of `parallelcnn`.
        ranks: how many will be started, at least 1.
        notes: an empty folder for the output and for files of the ranks.
        limit: a command that takes longer is killed [s].
        variables: environment variables to set.
    """
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    inside = [vars(planned) for planned in signals if planned.place is not None]
    outside = [planned for planned in signals if planned.place is None]
    plan = json.dumps({"notes": str(notes), "signals": inside})
    line = [*launch, str(RANK_PROGRAM), *arguments]
    variables = {**variables, "SOAK_TOKEN": token, "SOAK_PLAN": plan, "PYTHONFAULTHANDLER": "1"}
    with (notes / "out").open("wb") as out, (notes / "err").open("wb") as err:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(**variables), start_new_session=True
        )
    began = time.monotonic()
    training_since: float | None = None
    while process.poll() is None and time.monotonic() - began < limit:
        now = time.monotonic()
        if training_since is None and any(notes.glob("training-*")):
            training_since = now
        for planned in list(outside):
            since = began if planned.since == "launch" else training_since
            if since is None or now - since < planned.seconds:
                continue
            victims = {rank: pid for pid, rank in processes_of(token) if rank in planned.ranks}
            if len(victims) < len(planned.ranks) and training_since is None:
                continue  # not all ranks have been started yet
            outside.remove(planned)
            for rank, pid in victims.items():
                with contextlib.suppress(ProcessLookupError):
                    (notes / f"sent-{planned.number}-{rank}-{planned.signal}").touch()
                    os.kill(pid, planned.signal)
        time.sleep(0.003)
    ended = time.time()
    code = process.poll()
    if code is None:
        _show_stacks(token)
    left = _wait_for_the_last(token, 0.0 if code is None else 5.0)
    process.wait()
    sent = [(note.stat().st_mtime, *map(int, note.name.split("-")[1:])) for note in notes.glob("sent-*")]
    kills = [(when, rank) for when, _, rank, number in sent if number == signal.SIGKILL]
    training = [note.stat().st_mtime for note in notes.glob("training-*")]
    return Ended(
        code,
        {rank for _, rank in kills},
        len(sent) - len(kills),
        len({number for _, number, _, _ in sent}),
        ended - max((when for when, _ in kills), default=ended),
        len(training) < ranks or any(when < max(training) for when, *_ in sent),
        [] if code is None else left,
        _remove_shared_memory(notes),
        (notes / "out").read_text(errors="replace"),
        (notes / "err").read_text(errors="replace"),
    )


def processes_of(token: str) -> Iterator[tuple[int, int | None]]:
    """(process, rank) of all running processes with the token in their environment; rank None if it is no rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pairs = (pair.partition(b"=") for pair in (folder / "environ").read_bytes().split(b"\0"))
            variables = {name: value for name, _, value in pairs}
            if variables.get(b"SOAK_TOKEN") != token.encode():
                continue
            if (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if len(words) < 2 or words[1] != os.fsencode(RANK_PROGRAM):  # a launcher, or a process before its exec
                yield int(folder.name), None
            else:
                rank = variables.get(b"OMPI_COMM_WORLD_RANK", variables.get(b"PMI_RANK", b"0"))
                yield int(folder.name), int(rank)


def _show_stacks(token: str) -> None:
    """Make every rank that hangs print its stacks: PYTHONFAULTHANDLER does so on SIGABRT."""
    for pid, rank in list(processes_of(token)):
        if rank is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
    time.sleep(2)


def _wait_for_the_last(token: str, seconds: float) -> list[str]:
    """Wait so long for processes that still run, then kill them; returns which they were."""
    until = time.monotonic() + seconds
    while True:
        found = list(processes_of(token))
        if not found:
            return []
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    left = []
    for pid, rank in found:
        with contextlib.suppress(OSError):
            left.append(f"process {pid}, " + ("no rank" if rank is None else f"rank {rank}"))
            os.kill(pid, signal.SIGKILL)
    return left


def _remove_shared_memory(notes: Path) -> int:
    """Remove the files that MPI has left in /dev/shm, since nobody else does; returns how many there were."""
    names = {name for note in notes.glob("shared-memory-*") for name in note.read_text().split()}
    count = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
            count += 1
    return count
