"""How many threads: of a rank, and of the BLAS that numpy's matrix product brings along."""

import contextlib
import os
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from parallelcnn.comm import Transport
from parallelcnn.errors import InputError
from parallelcnn.resources import core_quota, usable_cores

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


def choose_threads(comm: Transport, asked: int | None, multiply_adds: int | None = None) -> int:
    """How many threads this rank computes on: as many as asked for, or, for None, its part of the node's cores, as far
    as it has work for them.

    Collective: every rank of `comm` must call it, with whatever numbers.

    Args:
        multiply_adds: of all ranks together, from one meeting of threads to the next; None: more than enough.
    """
    cores = comm.allgather(usable_cores())
    if asked is not None:
        return asked
    share = fair_share(comm.rank, {rank: cores[rank] for rank in comm.ranks_on_node()}, core_quota())
    return share if multiply_adds is None else min(share, worth_waking(multiply_adds // comm.size))


class _BlasLimit:
    """Limits BLAS to one thread inside a `with` statement.

    With most builds of BLAS the limit holds for the whole process. So where several threads are inside, the last to
    leave restores what the first has found. If each restored what it had found itself, the limit could stay for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            limit = threadpool_limits(1, user_api="blas")  # by each: some builds count threads for each caller apart
            if self._inside == 0:
                self._limit = limit
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()


blas_limit = _BlasLimit()


def one_blas_thread() -> contextlib.AbstractContextManager[None]:
    """Inside, a matrix product runs on one thread, unless the environment asks for a number of them.

    The ranks and their threads already use the cores: with a thread per core in each, they would wait for one another.
    """
    asked_for = any(variable in os.environ for variable in _VARIABLES)
    return contextlib.nullcontext() if asked_for else blas_limit


def blas_threads() -> list[tuple[str, int]]:
    """(library, threads) of each BLAS that is loaded."""
    from threadpoolctl import threadpool_info

    _ = np.zeros((2, 2)) @ np.zeros((2, 2))  # loads numpy's BLAS
    return [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]
