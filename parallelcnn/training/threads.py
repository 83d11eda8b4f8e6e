"""Choose the number of threads of a rank, and limit the threads of numpy's BLAS."""

import contextlib
import os
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from parallelcnn.arguments import check_integer
from parallelcnn.comm import Transport
from parallelcnn.data.sampler import shard
from parallelcnn.errors import InputError
from parallelcnn.resources import core_quota, usable_cores

_LEAST_MULTIPLY_ADDS = 12_000_000  # per thread between two synchronisations: a fifth of a millisecond
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_MOST_THREADS = 4096  # twice the cores of the largest shared-memory machines


def check_threads(threads: int | None) -> None:
    """Raise InputError unless `threads` is a valid number of threads, or None."""
    if threads is None:
        return
    check_integer("threads", threads, 1)
    if threads > _MOST_THREADS:
        raise InputError(
            f"threads must be at most {_MOST_THREADS:,}, which is more cores than machines have, got {threads}"
        )


def fair_share(rank: int, cores: Mapping[int, frozenset[int]], quota: int | None) -> int:
    """A rank's share of its node's cores as a number of threads, at least 1, such that no core gets two threads.

    A core that several ranks may use is divided among them. Each rank's sum is rounded down. So it does not matter
    whether the launcher binds the ranks to separate cores (Open MPI, srun) or not (MPICH).

    Args:
        cores: for each rank of the node, the cores that it may use.
        quota: number of cores that all ranks of the node together may use; None: no limit.
    """
    parts = sum(Fraction(1, sum(core in others for others in cores.values())) for core in cores[rank])
    if quota is not None:
        parts = min(parts, Fraction(quota, len(cores)))
    return max(1, int(parts))


def worth_waking(multiply_adds: int) -> int:
    """The number of threads, at least 1, that pays for this much work.

    A step of the paper's network takes 71 us on one thread and 214 us on two for 1 sample, 298 and 406 us for 32, 592
    and 539 us for 64, 1213 and 889 us for 128.
    """
    return max(1, multiply_adds // _LEAST_MULTIPLY_ADDS)


def choose_threads(
    comm: Transport, asked: int | None, multiply_adds: int | None = None, shards: int | None = None
) -> int:
    """Choose the number of threads of this rank: `asked`, or for None this rank's share of the node's cores, but no
    more threads than it has work for.

    Collective: every rank of `comm` must call it; the arguments may differ.

    Args:
        multiply_adds: work of all ranks together between two synchronisations of threads; None: no limit on threads.
        shards: number of shards of a minibatch, each computed by one thread; None: as many as there are threads.
    """
    cores = comm.allgather(usable_cores())
    if asked is not None:
        return asked
    share = fair_share(comm.rank, {rank: cores[rank] for rank in comm.ranks_on_node()}, core_quota())
    if multiply_adds is not None:
        share = min(share, worth_waking(multiply_adds // comm.size))
    if shards is not None:
        share = min(share, max(1, len(shard(np.arange(shards), comm.rank, comm.size))))
    return share


class _BlasLimit:
    """Limits BLAS to one thread inside a `with` statement.

    With most builds of BLAS the limit applies to the whole process. So if several threads are inside, the last one to
    leave restores the limit that the first one found. If each thread restored its own, the limit could stay for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            limit = threadpool_limits(1, user_api="blas")  # in every thread: some builds have a limit per thread
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
    """Context in which BLAS uses one thread, unless an environment variable sets the number of threads.

    The ranks and their threads already use all cores: further BLAS threads would compete for them.
    """
    asked_for = any(variable in os.environ for variable in _VARIABLES)
    return contextlib.nullcontext() if asked_for else blas_limit


def blas_threads() -> list[tuple[str, int]]:
    """(library, number of threads) of each loaded BLAS."""
    from threadpoolctl import threadpool_info

    _ = np.zeros((2, 2)) @ np.zeros((2, 2))  # loads numpy's BLAS
    return [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]
