"""One start of a command on some ranks, with strokes that fall meanwhile: what scripts/soak.py does again and again."""

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

from launching import environment

RANK_PROGRAM = Path(__file__).resolve().with_name("soak_rank.py")
LIMIT = 60.0  # what takes longer hangs [s]
LEAVE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# Places in the program, see soak_rank.py, and up to which call a stroke waits there.
_PLACES = {
    "while starting": {"join": 1, "share": 1, "compile": 1, "folder": 1, "start": 1},
    "in training": {"sum": 120, "evaluate": 6, "compare": 5},
    "while writing": {"write": 15, "flush": 15, "rename": 15},
    "while recovering": {"recover": 2, "rejoin": 1, "take over": 1},
    "at the end": {"finish": 1, "model": 1, "summary": 1, "end": 1},
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
        """What is installed there; the end of this program where it is nothing."""
        script = "from parallelcnn.comm import mpi_library; print(mpi_library())"
        try:
            said = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment())
        except OSError as error:
            sys.exit(f"{Path(sys.argv[0]).name}: --python {python} cannot be started: {error.strerror}")
        if said.returncode != 0 or said.stdout.startswith("none"):
            why = (said.stdout + said.stderr).strip()[-500:]
            sys.exit(f"{Path(sys.argv[0]).name}: --python {python} has no MPI that works:\n{why}")
        return cls(python, said.stdout.strip())

    def launch(self, ranks: int, survives: bool) -> list[str]:
        """What stands in front of a Python program on so many ranks; 0: without a launcher."""
        if ranks == 0:
            return [self.python]
        beside = Path(self.python).parent / "mpirun"
        ulfm = ["--with-ft", "ulfm"] if survives else []
        return [str(beside) if beside.exists() else "mpirun", *ulfm, "-n", str(ranks), self.python]


@dataclass(frozen=True)
class Stroke:
    """A signal for some ranks at once.

    Attributes:
        ranks: numbers in the world that was started.
        place, call, delay: so long [s] after a rank has come to that place for the `call`-th time; or
        since, seconds: so long after the "launch", or after the first rank has begun to train.
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
    """What came of one start.

    Attributes:
        code: None if it had to be ended.
        killed: ranks that got SIGKILL.
        asked: how many were asked to leave, by another signal.
        moments: how many strokes fell.
        seconds: from the last kill to the end [s].
        while_starting: whether a stroke fell before all ranks trained.
        left: processes that were left running, files of shared memory that MPI left.
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


def draw_strokes(choose: random.Random, ranks: int, survivors: bool) -> list[Stroke]:
    """When which of the ranks get which signal.

    Args:
        survivors: whether at least one must not be killed.
    """
    leave = choose.random() < 0.12
    number = choose.choice(LEAVE_SIGNALS) if leave else signal.SIGKILL
    most = ranks if leave or not survivors else ranks - 1
    if most == 0:
        return []
    everyone = list(range(ranks))
    choose.shuffle(everyone)
    if choose.random() < 0.4:  # it is rank 0 that writes the files
        everyone.sort(key=bool if choose.random() < 0.5 else int)
    victims = everyone[: choose.choice((1, choose.randint(1, most), most, most, most))]
    at_once = leave or choose.random() < 0.4
    groups = [victims] if at_once else [[victim] for victim in victims]
    return [_draw_stroke(choose, turn, group, int(number)) for turn, group in enumerate(groups)]


def _draw_stroke(choose: random.Random, turn: int, ranks: list[int], number: int) -> Stroke:
    if choose.random() < 0.08:
        return Stroke(turn, ranks, number, since="launch", seconds=choose.uniform(0, 5))
    if choose.random() < 0.5:
        return Stroke(turn, ranks, number, since="training", seconds=choose.uniform(0, 0.8))
    often = {"while starting": 1, "in training": 4, "while writing": 3, "at the end": 3}
    if turn > 0:
        often["while recovering"] = 8
    (kind,) = choose.choices(list(often), list(often.values()))
    places = dict(_PLACES[kind])
    if min(ranks) > 0 and choose.random() < 0.8:  # rank 0 must have been lost before another one comes there
        places = {place: call for place, call in places.items() if place not in _OF_THE_WRITER} or {"sum": 120}
    place = choose.choice(list(places))
    delay = 0.0 if choose.random() < 0.4 else 10 ** choose.uniform(-4.5, -1.5)
    return Stroke(turn, ranks, number, place, choose.randint(1, places[place]), delay)


def start(
    launch: Sequence[str],
    arguments: Sequence[str],
    ranks: int,
    strokes: Sequence[Stroke],
    notes: Path,
    limit: float = LIMIT,
    **variables: str,
) -> Ended:
    """Start the command, strike, wait for its end, and see what it leaves.

    Args:
        launch: see `Installation.launch`.
        arguments: of `parallelcnn`.
        ranks: how many there will be, at least 1.
        notes: an empty folder for the output, and for what the ranks note.
        limit: what takes longer is ended [s].
        variables: for the environment.
    """
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    inside = [vars(stroke) for stroke in strokes if stroke.place is not None]
    outside = [stroke for stroke in strokes if stroke.place is None]
    plan = json.dumps({"marks": str(notes), "strokes": inside})
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
        for stroke in list(outside):
            since = began if stroke.since == "launch" else training_since
            if since is None or now - since < stroke.seconds:
                continue
            victims = {rank: pid for pid, rank in processes_of(token) if rank in stroke.ranks}
            if len(victims) < len(stroke.ranks) and training_since is None:
                continue  # not all of them have been started yet
            outside.remove(stroke)
            for rank, pid in victims.items():
                with contextlib.suppress(ProcessLookupError):
                    (notes / f"struck-{stroke.number}-{rank}-{stroke.signal}").touch()
                    os.kill(pid, stroke.signal)
        time.sleep(0.003)
    ended = time.time()
    code = process.poll()
    if code is None:
        _show_stacks(token, notes)
    left = _wait_for_the_last(token, 0.0 if code is None else 5.0)
    process.wait()
    struck = [(note.stat().st_mtime, *map(int, note.name.split("-")[1:])) for note in notes.glob("struck-*")]
    kills = [(when, rank) for when, _, rank, number in struck if number == signal.SIGKILL]
    training = [note.stat().st_mtime for note in notes.glob("training-*")]
    return Ended(
        code,
        {rank for _, rank in kills},
        len(struck) - len(kills),
        len({stroke for _, stroke, _, _ in struck}),
        ended - max((when for when, _ in kills), default=ended),
        len(training) < ranks or any(when < max(training) for when, *_ in struck),
        [] if code is None else left,
        _remove_shared_memory(notes),
        (notes / "out").read_text(errors="replace"),
        (notes / "err").read_text(errors="replace"),
    )


def processes_of(token: str) -> Iterator[tuple[int, int | None]]:
    """(process, its rank) of all that live and have the token in their environment; None for what is no rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pairs = (pair.partition(b"=") for pair in (folder / "environ").read_bytes().split(b"\0"))
            variables = {name: value for name, _, value in pairs}
            if variables.get(b"SOAK_TOKEN") != token.encode():
                continue
            if (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if len(words) < 2 or words[1] != os.fsencode(RANK_PROGRAM):  # a launcher, or not yet what it will be
                yield int(folder.name), None
            else:
                rank = variables.get(b"OMPI_COMM_WORLD_RANK", variables.get(b"PMI_RANK", b"0"))
                yield int(folder.name), int(rank)


def _show_stacks(token: str, notes: Path) -> None:
    """Have every rank that hangs show where, in Python and, where there is a gdb, in C."""
    for pid, rank in list(processes_of(token)):
        if rank is None:
            continue
        with (notes / f"stack-{rank}").open("wb") as file, contextlib.suppress(OSError, subprocess.TimeoutExpired):
            line = ["gdb", "-batch", "-p", str(pid), "-ex", "thread apply all bt 12"]
            subprocess.run(line, stdout=file, stderr=file, timeout=20)
    for pid, rank in list(processes_of(token)):
        if rank is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
    time.sleep(2)


def _wait_for_the_last(token: str, seconds: float) -> list[str]:
    """Give what still runs so long, and kill it then; what it was."""
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
    """Remove what MPI has left in /dev/shm, which nobody else does; how many files it was."""
    names = {name for note in notes.glob("shared-memory-*") for name in note.read_text().split()}
    count = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
            count += 1
    return count
