"""Sums of small arrays over the ranks of one node, in memory that they share."""

import os
import time
from collections.abc import Callable

import numpy as np

from parallelcnn.comm.mapping import SharedFile

Array = np.ndarray

# MPI moves larger arrays as fast: 1.1 MB take 175 us in 160 kB pieces, and 170 (MPICH 5.0.2) or 130 (Open MPI 5.0.11).
_MOST_BYTES = 160_000
_MOST_RANKS = 8  # each rank reads the arrays of all; times were measured with two ranks only
_BYTES_OF_A_FLAG = 128  # flags of different ranks are on different cache lines, which processors fetch in pairs
_PAUSES = 1000  # 28 us on AMD Zen 3
_IMPATIENT = 40  # times that a rank looks, after so many pauses each, before it sleeps between two looks


class SharedSum:
    """Adds the arrays of all ranks of a node.

    Each rank copies its array into its place, sets its flag, waits for the flags of the others, and adds all arrays in
    the order of the ranks, so that all ranks have the same bits. Each rank has two places, which take turns: a slow
    rank may still read one of them while a fast rank writes the next array.

    142 kB on two ranks take 0.4 times as long as MPI's Allreduce, 21 instead of 53 us (MPICH 5.0.2, AMD Zen 3).

    Args:
        memory: of `bytes_for(ranks)` bytes, zero at first, the same for all ranks.
    """

    def __init__(self, memory: memoryview, rank: int, ranks: int) -> None:
        from parallelcnn.kernels.waiting import tell_and_wait  # imports numba, which some commands do without

        self._tell_and_wait = tell_and_wait
        flags = ranks * _BYTES_OF_A_FLAG
        self._flags = np.frombuffer(memory, np.int64, flags // 8)
        self._places = np.frombuffer(memory, np.uint8, offset=flags).reshape(2, ranks, _MOST_BYTES)
        self._rank, self._ranks, self._sums = rank, ranks, 0

    def takes(self, array: Array) -> bool:
        """Whether this array can be added here; the same on all ranks."""
        return array.nbytes <= _MOST_BYTES and array.flags.c_contiguous

    def add(self, array: Array, look: Callable[[], object]) -> None:
        """Replace `array` by its sum over the ranks. Collective: every rank must call it.

        Args:
            look: called now and then while this rank waits; raises an error if another rank is lost.
        """
        self._sums += 1
        first, second, *others = (
            place[: array.nbytes].view(array.dtype).reshape(array.shape) for place in self._places[self._sums % 2]
        )
        np.copyto((first, second, *others)[self._rank], array)
        for rank in range(self._ranks):
            self._wait_for(rank, look)
        with np.errstate(all="ignore"):  # as MPI: the check of the loss tells that a training diverges
            np.add(first, second, out=array)
            for other in others:
                np.add(array, other, out=array)

    def _wait_for(self, rank: int, look: Callable[[], object]) -> None:
        mine, theirs = (number * _BYTES_OF_A_FLAG // 8 for number in (self._rank, rank))
        looked = 0
        while not self._tell_and_wait(self._flags, mine, self._sums, theirs, self._sums, _PAUSES, 0):
            looked += 1
            look()
            # If ranks share cores, another rank may need this core. A sleep takes 50 us longer than asked for.
            if looked < _IMPATIENT:
                os.sched_yield()
            else:
                time.sleep(1e-4)


def bytes_for(ranks: int) -> int:
    """The memory that the ranks of a node need for their sums."""
    return ranks * (_BYTES_OF_A_FLAG + 2 * _MOST_BYTES)


def can_share(ranks: int) -> bool:
    """Whether so many ranks on a node add their arrays in shared memory."""
    return 2 <= ranks <= _MOST_RANKS and hasattr(os, "memfd_create")


def create_memory(ranks: int) -> tuple[int, SharedFile]:
    """A descriptor of new memory for so many ranks, and where the others find it. Raises OSError if there is none."""
    descriptor = os.memfd_create("parallelcnn sums")
    os.ftruncate(descriptor, bytes_for(ranks))
    return descriptor, SharedFile.of(descriptor)
