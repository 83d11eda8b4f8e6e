"""Threads that numpy's matrix product brings along."""

import contextlib
import os
from collections.abc import Iterator

_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, a matrix product runs on one thread, unless the environment asks for a number of them.

    The ranks already use the cores: with a thread per core in each, they would wait for one another.
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


def usable_cores() -> int:
    """Cores that this process may use: the launcher may have bound it to fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
