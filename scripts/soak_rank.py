"""What scripts/soak.py starts on every rank: the command `parallelcnn`, which can be told where to die.

The environment's SOAK_PLAN holds JSON: `marks`, a folder for notes about what happened, and `strokes`: signals that
ranks send themselves a moment after they have come to a place for the n-th time. Signals at moments that no place
names come from outside.
"""

import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# By name, functions that have been entered when a stroke falls: (module, name in it).
PLACES = {
    # while the ranks start
    "join": [("parallelcnn.comm", "MPIRanks.__init__")],
    "share": [("parallelcnn.cli.run", "load_data_sets")],
    "compile": [("parallelcnn.trainer", "compile_kernels")],
    "folder": [
        ("parallelcnn.cli.run_directory", "RunDirectory.__init__"),
        ("parallelcnn.cli.run_directory", "RunDirectory.open"),
    ],
    "start": [("parallelcnn.trainer", "start")],
    # while they train
    "sum": [("parallelcnn.comm", "MPIRanks.sum_over_ranks"), ("parallelcnn.comm", "Serial.sum_over_ranks")],
    "update": [("parallelcnn.network", "NetworkHandler.update")],
    "evaluate": [("parallelcnn.trainer", "evaluate_by")],
    "compare": [("parallelcnn.resilience.replica_check", "find_mismatch")],
    # while one of them writes a file
    "write": [("parallelcnn.files.atomic", "write_atomically"), ("parallelcnn.files.archive", "write_atomically")],
    "flush": [("os", "fsync")],
    "rename": [("os", "replace")],
    # while they go on without a lost one
    "recover": [("parallelcnn.comm", "MPIRanks.recover")],
    "rejoin": [("parallelcnn.resilience.replica_check", "rejoin")],
    "take over": [("parallelcnn.cli.metrics", "MetricsFile.rewrite")],
    # after the training
    "finish": [("parallelcnn.cli.run", "evaluate")],
    "model": [("parallelcnn.cli.run", "save_model")],
    "summary": [("parallelcnn.cli.run_directory", "RunDirectory.write_summary")],
    "end": [("parallelcnn.comm.starting", "_finalize")],
}


def two_layers() -> tuple[Any, ...]:
    """A network that starts more quickly than the paper's."""
    from parallelcnn import Dense, Flatten

    return Flatten(), Dense(16, activation="relu"), Dense(10)


def strike(marks: Path, stroke: int, rank: int, number: int) -> None:
    """Send this process a signal, and leave a note that says so."""
    (marks / f"struck-{stroke}-{rank}-{number}").touch()
    os.kill(os.getpid(), number)


def strike_after(seconds: float, *how: Any) -> None:
    time.sleep(seconds)
    strike(*how)


def when_entered(module: str, name: str, do: Callable[[], None]) -> None:
    """Have the function of that name call `do` first."""
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for attribute in path:
        owner = getattr(owner, attribute)
    function = getattr(owner, last)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        do()
        return function(*arguments, **named)

    setattr(owner, last, wrapped)


def note_shared_memory(note: Path) -> None:
    """Write down which files of shared memory MPI uses here: they should be gone when all is over."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line}
    note.write_text("\n".join(sorted(mapped)))


def prepare(stroke: dict[str, Any], marks: Path, rank: int) -> None:
    """Wait for the place of a stroke."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls != stroke["call"]:
            return
        how = marks, stroke["number"], rank, stroke["signal"]
        if stroke["delay"] == 0:
            strike(*how)
        else:
            threading.Thread(target=strike_after, args=(stroke["delay"], *how), daemon=True).start()

    for module, name in PLACES[stroke["place"]]:
        when_entered(module, name, count)


def main() -> int:
    plan = json.loads(os.environ["SOAK_PLAN"])
    marks = Path(plan["marks"])
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
    from parallelcnn.resilience import signals

    signals.let_interrupts_end_the_process()  # as the command does before it imports what follows
    from parallelcnn import cli
    from parallelcnn.comm import initialising

    initialising.START_TIMEOUT = 20.0  # shorter than what the script takes for a hang [s]
    when_entered("parallelcnn.trainer", "TrainingSafeguard", (marks / f"training-{rank}").touch)
    when_entered("parallelcnn.cli.run", "load_data_sets", lambda: note_shared_memory(marks / f"shared-memory-{rank}"))
    for stroke in plan["strokes"]:
        if rank in stroke["ranks"]:
            prepare(stroke, marks, rank)
    code = cli.main()
    (marks / f"over-{rank}").write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
