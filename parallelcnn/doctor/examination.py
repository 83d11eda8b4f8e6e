"""The checks, in the order of the report."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.comm import Transport, mpi_library
from parallelcnn.data.dataset import Dataset
from parallelcnn.doctor import folders, launch, speed
from parallelcnn.doctor.finding import Finding
from parallelcnn.kernels.sgd import sgd
from parallelcnn.network import NetworkHandler
from parallelcnn.profiling.clocks import clock_offset

_MOST_SAMPLES = 60_000  # as many as MNIST has


def some_images(batch_size: int) -> Dataset:
    """A minibatch of random dummy images, 28 x 28, in ten classes."""
    rng = np.random.default_rng(0)
    n = max(1, min(batch_size, _MOST_SAMPLES))
    return Dataset(rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n), 10, "the doctor's images")


def examine(
    comm: Transport, network: NetworkHandler, dataset: Dataset, batch_size: int, threads: int | None, out: Path
) -> Iterator[Finding]:
    """Run one check after the other; every rank gets the same findings.

    Collective: every rank of `comm` must take all findings.

    Args:
        threads: of each rank; None: as many as training would use.
        out: the folder for results.
    """
    multiply_adds = network.multiply_adds(batch_size, training=True)
    library, nbytes = mpi_library(), network.reduction_buffer.nbytes
    ranks = launch.all_ranks(comm, threads, multiply_adds)
    mine = ranks[comm.rank]
    yield launch.check_software(ranks)
    yield launch.check_runtimes(launch.installed_runtimes())
    yield launch.check_library(library)
    yield launch.check_launcher(comm.size, library)
    yield launch.check_ulfm(library, comm.size)
    cut_off = launch.is_cut_off(comm.size)
    if not cut_off:  # otherwise this rank does not see the others, and findings about all of them would be wrong
        yield launch.check_hosts(ranks, library)
        yield launch.check_binding(ranks, library, threads, multiply_adds)
        yield launch.check_blas(ranks)
    yield launch.check_processors(ranks)
    if len({rank.host for rank in ranks}) > 1:
        offset, _ = clock_offset(comm, time.time_ns)
        yield launch.check_clocks(ranks, comm.allgather(offset / 1e9))

    first_on_node = mine.number == mine.node
    yield folders.check_out(_on(comm, comm.rank == 0, lambda: folders.try_folder(out, nbytes))[0], nbytes)
    if any(rank.number != rank.node for rank in ranks):
        temporary = _on(comm, first_on_node, lambda: folders.try_folder(folders.temporary_folder(), nbytes))
        yield folders.check_shared_data(temporary)
    if ranks[0].interpreted:
        return
    cache = _cache()
    caches = _on(comm, first_on_node, lambda: cache and folders.try_folder(cache, nbytes))
    yield folders.check_cache(caches, os.environ.get("NUMBA_CACHE_DIR", ""))
    if cut_off:
        return
    before = folders.kept_kernels(cache)[0] if cache else 0
    cores = frozenset().union(*(rank.offered for rank in ranks if rank.node == mine.node))
    measured = speed.measure(comm, network, dataset, batch_size, mine.threads, cores)
    new = comm.allgather(folders.kept_kernels(cache)[0] - before if cache else None)[0]
    yield speed.check_compilation(measured, new)
    yield speed.check_load(measured)
    yield speed.check_sum(measured, comm.size, batch_size)
    yield speed.check_step(measured, comm.size, batch_size)


def _on(comm: Transport, my_turn: bool, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns on the ranks whose turn it is."""
    return [result for turn, result in comm.allgather((my_turn, work() if my_turn else None)) if turn]


def _cache() -> Path | None:
    """The folder of compiled kernels; None if there is none that is safe and can be written to."""
    kernel: Any = sgd  # numba's type, which the type checker does not know
    return None if kernel.stats.cache_path is None else Path(kernel.stats.cache_path)
