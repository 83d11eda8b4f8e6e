"""The cores and the memory that this process may use, by affinity, control groups, ulimit and SLURM."""

import contextlib
import os
import platform
import resource
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from parallelcnn.errors import ShapeError

_GROUPS = Path("/proc/self/cgroup")
_GROUPS_ROOT = Path("/sys/fs/cgroup")


def usable_cores() -> frozenset[int]:
    """The cores that this process may use. A launcher, SLURM or taskset may restrict them."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def processor_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor, as Linux knows it; else that of its architecture."""
    with contextlib.suppress(OSError, ValueError):
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "Model", "cpu\t")):
                return " ".join(line.partition(":")[2].split())
    return platform.machine()


def core_quota(groups: Path = _GROUPS, root: Path = _GROUPS_ROOT) -> int | None:
    """The CPU quota of this node's ranks in cores, at least 1; None: no limit.

    The quota comes from a container, in version 1 or 2 of Linux's control groups, or from a SLURM job's allocation,
    which on some clusters does not bind processes to cores.
    """
    limits: list[int] = []
    for setting in _settings("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max",), groups, root):
        with contextlib.suppress(ValueError, ZeroDivisionError):  # not numbers: no limit
            quota, period = map(int, setting.split())
            limits += [quota // period] if quota > 0 else []
    allocated = number_in("SLURM_CPUS_ON_NODE")
    limits += [] if allocated is None else [allocated]
    return max(1, min(limits)) if limits else None


def memory_limit(groups: Path = _GROUPS, root: Path = _GROUPS_ROOT) -> tuple[int, str]:
    """The memory that this process may use [bytes], and the name of the limit: the smallest of all limits.

    The limits are the machine's memory; the control groups of a container or job, version 1 or 2; the shell's ulimit;
    and a SLURM job's memory on this node. Memory that other processes use is not subtracted.
    """
    limits = [(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine")]
    for setting in _settings("memory", ("memory.limit_in_bytes",), ("memory.max",), groups, root):
        with contextlib.suppress(ValueError):  # "max"
            limits.append((int(setting), "this container or job (its control group)"))
    for kind, name in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        limit, _ = resource.getrlimit(kind)
        limits += [] if limit == resource.RLIM_INFINITY else [(limit, name)]
    per_node, per_core = number_in("SLURM_MEM_PER_NODE"), number_in("SLURM_MEM_PER_CPU")  # MiB; 0: all there is
    limits += [(per_node << 20, "SLURM_MEM_PER_NODE")] if per_node else []
    cores = number_in("SLURM_CPUS_ON_NODE")
    limits += [(per_core * cores << 20, f"SLURM_MEM_PER_CPU on {cores} CPUs")] if per_core and cores else []
    return min((limit, name) for limit, name in limits if limit >= 0)


def _settings(
    controller: str, version_1: tuple[str, ...], version_2: tuple[str, ...], groups: Path, root: Path
) -> Iterator[str]:
    """The contents of these files in the control groups of this process and in all parent groups."""
    for line in groups.read_text(errors="surrogateescape").split("\n") if groups.exists() else ():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, names = root / path.strip("/"), version_2
        elif controller in controllers.split(","):
            folder, names = root / controller / path.strip("/"), version_1
        else:
            continue
        for group in chain((folder,), folder.parents):
            with contextlib.suppress(OSError, ValueError):  # the files do not exist, or are not text
                yield " ".join((group / name).read_text() for name in names)


def number_in(variable: str) -> int | None:
    """The number of at least 0 in an environment variable; None if there is none, or it is unreasonably large."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() and len(value) < 10 else None


def check_memory(what: str, n_bytes: int) -> None:
    """Raise ShapeError if `n_bytes` is more memory than this process may use."""
    memory, source = memory_limit()
    if n_bytes > memory:
        raise ShapeError(f"{what} take {n_bytes >> 20:,} MiB, more than the {memory >> 20:,} MiB of {source}")
