"""Sums in memory that the ranks of a node share: the same bits on all ranks, and lost ranks are noticed."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from parallelcnn.comm import shared_sum
from parallelcnn.comm.shared_sum import SharedSum, bytes_for, can_share, create_memory


def sums_of(ranks):
    memory = memoryview(bytearray(bytes_for(ranks)))
    return [SharedSum(memory, rank, ranks) for rank in range(ranks)]


def at_once(work, ranks):
    """The results of `work(rank)`, each called on a thread of its own."""
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(work, range(ranks)))


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.float64])
def test_all_ranks_get_the_same_bits_sum_after_sum(ranks, dtype, rng):
    sizes = rng.integers(1, shared_sum._MOST_BYTES // 8 + 1, 30)
    terms = [[rng.normal(0, 1000, size).astype(dtype) for size in sizes] for _ in range(ranks)]
    sums = sums_of(ranks)

    def add_all(rank):
        found = []
        for i, term in enumerate(terms[rank]):
            array = term.copy()
            if (i + rank) % 7 == 0:
                time.sleep(0.002)  # the others wait, and then sleep
            sums[rank].add(array, lambda: None)
            found.append(array)
        return found

    results = at_once(add_all, ranks)
    for i in range(len(sizes)):
        wanted = terms[0][i] + terms[1][i]
        for others in terms[2:]:
            wanted += others[i]
        for result in results:
            np.testing.assert_array_equal(result[i], wanted)


def test_a_fast_rank_does_not_change_what_a_slow_rank_still_reads(monkeypatch):
    """The fast rank enters the next sum while the slow one has not read its array of this sum."""
    fast, slow = sums_of(2)
    add, arrived = np.add, []

    def add_late(*arguments, **keywords):
        if len(arrived) == 0:
            arrived.append(True)
            time.sleep(0.1)
        return add(*arguments, **keywords)

    def work(rank):
        found = []
        for i in range(3):
            array = np.full(1000, 10.0 ** (i + rank))
            if rank == 1 and i == 0:
                monkeypatch.setattr(shared_sum.np, "add", add_late)
            (fast, slow)[rank].add(array, lambda: None)
            found.append(array[0])
        return found

    assert at_once(work, 2) == [[11, 110, 1100]] * 2


def test_a_rank_that_waits_notices_that_another_one_is_lost():
    first, _ = sums_of(2)
    looked = []

    def look():
        looked.append(time.monotonic())
        if len(looked) == shared_sum._IMPATIENT + 3:
            raise ConnectionError("lost")

    with pytest.raises(ConnectionError, match="lost"):
        first.add(np.ones(10), look)
    assert looked[-1] - looked[-3] >= 2e-4  # it slept


def test_large_arrays_and_views_are_left_to_mpi():
    first, _ = sums_of(2)
    assert first.takes(np.zeros(shared_sum._MOST_BYTES, np.uint8))
    assert not first.takes(np.zeros(shared_sum._MOST_BYTES + 1, np.uint8))
    assert not first.takes(np.zeros(20)[::2])


def test_a_rank_alone_and_many_ranks_do_not_share():
    assert [can_share(ranks) for ranks in (1, 2, 8, 9)] == [False, True, True, False]


def test_memory_is_found_by_other_processes_until_it_is_closed():
    descriptor, file = create_memory(2)
    memory = file.map(writable=True)
    other = file.map(writable=True)
    memory[5] = 7
    assert other[5] == 7
    assert len(memory) == bytes_for(2)
    os.close(descriptor)
    assert file.map(writable=True) is None
    assert other[5] == 7


def test_a_sum_that_is_not_finite_neither_warns_nor_raises():
    """As in MPI's Allreduce: the check of the loss tells that a training diverges."""
    sums, terms = sums_of(3), [(np.inf, 3e38), (-np.inf, 0), (1, 3e38)]

    def work(rank):
        array = np.array(terms[rank], np.float32)
        with np.errstate(all="raise"):  # it belongs to a thread
            sums[rank].add(array, lambda: None)
        return array

    for result in at_once(work, 3):
        np.testing.assert_array_equal(result, np.array([np.nan, np.inf], np.float32))
