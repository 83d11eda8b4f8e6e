"""The program that soak.py starts on every rank: the command `parallelcnn`, which can send signals to itself.

The environment variable SOAK_PLAN holds JSON: `notes`, a folder for files that say what happened, and `signals`, which
ranks send to themselves a moment after they have entered a place for the n-th time. Other signals come from soak.py.
"""

import functools
import importlib
import inspect
import json
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parallelcnn as pc

# Places in the program, each with the functions whose call means that a rank is there. They are searched in all modules
# of the package. Several names are alternatives, of which at least one must exist.
PLACES = {
    # while the ranks start
    "join": ("MPITransport.__init__",),
    "share": ("share_on_node",),
    "compile": ("compile_kernels",),
    "folder": ("RunDirectory.__init__", "RunDirectory.open"),
    # while they train
    "training": ("ReplicaCheck.__init__",),
    "sum": ("MPITransport.allreduce", "Serial.allreduce"),
    "evaluate": ("evaluate_by", "evaluate"),
    "compare": ("find_mismatch",),
    # while one of them writes a file
    "write": ("write_atomically",),
    "flush": ("os.fsync",),
    "rename": ("os.replace",),
    # while they continue without a lost rank
    "recover": ("FaultTolerantTransport.recover",),
    "rejoin": ("rejoin",),
    "take over": ("RunDirectory.take_over",),
    # after the training
    "model": ("save_model",),
    "summary": ("RunDirectory.write_summary",),
    "end": ("_finalize",),
}


def two_layers() -> tuple[pc.Layer, ...]:
    """A network that starts faster than the paper's."""
    return pc.Flatten(), pc.Dense(16, activation="relu"), pc.Dense(10)


def package_modules() -> list[Any]:
    """All modules of the package, imported."""
    names = [module.name for module in pkgutil.walk_packages(pc.__path__, "parallelcnn.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def owners_of(name: str, modules: list[Any]) -> list[tuple[Any, str]]:
    """(module or class, attribute) of every name through which a function is called."""
    first, _, last = name.partition(".")
    if first == "os":
        return [(os, last)]
    found = [vars(module)[first] for module in modules if first in vars(module)]
    if last:
        return [(owner, last) for owner in dict.fromkeys(found) if inspect.isclass(owner) and last in vars(owner)]
    return [(module, first) for module in modules if inspect.isfunction(vars(module).get(first))]


def when_entered(place: str, modules: list[Any], do: Callable[[], None]) -> None:
    """Make the functions of a place call `do` first."""
    owners = [owner for name in PLACES[place] for owner in owners_of(name, modules)]
    if not owners:
        sys.exit(f"soak_rank.py: the package has none of {', '.join(PLACES[place])}: PLACES must follow it")
    wrapped: dict[Any, Any] = {}
    for owner, name in owners:
        function = getattr(owner, name)
        wrapped.setdefault(function, _calling_first(do, function))
        setattr(owner, name, wrapped[function])


def _calling_first(do: Callable[[], None], function: Any) -> Any:
    @functools.wraps(function)
    def calling(*arguments: Any, **named: Any) -> Any:
        do()
        return function(*arguments, **named)

    return calling


def note_shared_memory(note: Path) -> None:
    """Write which files of shared memory MPI uses here: they should not exist after the end."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line}
    note.write_text("\n".join(sorted(mapped)))


def prepare(planned: dict[str, Any], notes: Path, rank: int, modules: list[Any]) -> None:
    """Send a planned signal when this rank enters its place."""
    calls = 0

    def send() -> None:
        time.sleep(planned["delay"])
        (notes / f"sent-{planned['number']}-{rank}-{planned['signal']}").touch()
        os.kill(os.getpid(), planned["signal"])

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == planned["call"] and planned["delay"] == 0:
            send()
        elif calls == planned["call"]:
            threading.Thread(target=send, daemon=True).start()

    when_entered(planned["place"], modules, count)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in the command until it begins to train
    plan = json.loads(os.environ["SOAK_PLAN"])
    notes = Path(plan["notes"])
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
    modules = package_modules()
    when_entered("training", modules, (notes / f"training-{rank}").touch)
    when_entered("share", modules, lambda: note_shared_memory(notes / f"shared-memory-{rank}"))
    for planned in plan["signals"]:
        if rank in planned["ranks"]:
            prepare(planned, notes, rank, modules)
    from parallelcnn import cli

    code = cli.main()
    (notes / f"over-{rank}").write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
