"""What this process may use of its machine: cores, as affinity, control groups and SLURM allow."""

import contextlib
import os
from itertools import chain
from pathlib import Path

from parallelcnn.errors import ShapeError


def usable_cores() -> frozenset[int]:
    """The cores that this process may use: a launcher, SLURM or taskset may have left it fewer than the machine has."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def core_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many cores' time the ranks of this node may use up, at least 1; None: as much as there is.

    What limits it is a container's quota, in version 1 or 2 of Linux's control groups, or a SLURM job's allocation,
    which on some clusters binds no process.
    """
    limits: list[int] = []
    for line in groups.read_text(errors="surrogateescape").split("\n") if groups.exists() else ():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        version_1 = "cpu" in controllers.split(",")
        folder = root / ("cpu" if version_1 else "") / path.strip("/")
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version_1 else ("cpu.max",)
        for group in chain((folder,), folder.parents):
            # No such file, or no number in it: no limit.
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = " ".join((group / name).read_text() for name in names).split()
                limits += [int(quota) // int(period)] if int(quota) > 0 else []
    allocated = number_in("SLURM_CPUS_ON_NODE")
    limits += [] if allocated is None else [allocated]
    return max(1, min(limits)) if limits else None


def number_in(variable: str) -> int | None:
    """The number, at least 0, that a variable of the environment holds; None if it holds none, or one beyond reason."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() and len(value) < 10 else None


def check_memory(what: str, n_bytes: int) -> None:
    """Raise ShapeError if that many bytes are more than this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > memory:
        raise ShapeError(f"{what} take {n_bytes >> 20:,} MiB, more than the {memory >> 20:,} MiB of this machine")
