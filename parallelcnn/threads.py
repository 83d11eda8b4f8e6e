"""How many threads: of a rank, and of the BLAS that numpy's matrix product brings along."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from parallelcnn.errors import InputError

_LEAST_MULTIPLY_ADDS = 12_000_000  # of a thread between two meetings: a fifth of a millisecond
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_MOST_THREADS = 4096  # twice what the largest machines with one memory have


def check_threads(threads: int | None) -> None:
    """Raise InputError unless that is a number of threads, or None."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1:
        raise InputError(f"threads must be an integer of at least 1, got {threads!r}")
    if threads > _MOST_THREADS:
        raise InputError(
            f"threads must be at most {_MOST_THREADS:,}, which is more cores than machines have, got {threads}"
        )


def fair_share(rank: int, cores: Mapping[int, frozenset[int]], quota: int | None) -> int:
    """How many threads a rank should compute on, at least 1, so that all ranks of a node leave no core to two threads.

    A core that several ranks may use is divided among them, and each rank's sum is rounded down: so it does not matter
    whether the launcher has bound the ranks to cores of their own (Open MPI, srun) or not (MPICH).

    Args:
        cores: for each rank of the node, the cores that it may use.
        quota: cores that all of them together may use up; None: all.
    """
    parts = sum(Fraction(1, sum(core in others for others in cores.values())) for core in cores[rank])
    if quota is not None:
        parts = min(parts, Fraction(quota, len(cores)))
    return max(1, int(parts))


def worth_waking(multiply_adds: int) -> int:
    """How many threads, at least 1, so much work is worth.

    A step of the paper's network takes 71 us on one thread and 214 us on two for 1 sample, 298 and 406 us for 32, 592
    and 539 us for 64, 1213 and 889 us for 128.
    """
    return max(1, multiply_adds // _LEAST_MULTIPLY_ADDS)


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


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, a matrix product runs on one thread, unless the environment asks for a number of them.

    The ranks and their threads already use the cores: with a thread per core in each, they would wait for one another.
    """
    if any(variable in os.environ for variable in _VARIABLES):
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def blas_threads() -> list[tuple[str, int]]:
    """(library, threads) of each BLAS that is loaded."""
    from threadpoolctl import threadpool_info

    return [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]
