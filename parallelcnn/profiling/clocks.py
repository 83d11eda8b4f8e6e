"""The clocks of the ranks, compared."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

_TRIPS = 50  # by the tenth or so one of them was not disturbed
_TAG = 1989


def clock_offset(comm: Any, clock: Callable[[], int]) -> tuple[int, int]:
    """What to add to this rank's clock to get rank 0's, and the largest possible error, in the clock's unit.

    Cristian 1989, "Probabilistic clock synchronization": rank 0 reads its clock between question and answer, so their
    mean is wrong by at most half the round trip. Of many trips the shortest tells most. Two ranks at a time, with
    messages between them: with collectives the error is 30 times as large. Collective: every rank must call it.

    Args:
        comm: a `Transport`.
    """
    if comm.size == 1:
        return 0, 0
    offset, shortest = 0, 0
    time_of_0 = np.zeros(1, np.int64)
    with comm.collective("clock_offset"):
        for rank, trip in itertools.product(range(1, comm.size), range(_TRIPS)):
            if comm.rank == 0:
                comm.mpi_comm.Recv(time_of_0, rank, _TAG)
                time_of_0[0] = clock()
                comm.mpi_comm.Send(time_of_0, rank, _TAG)
            elif comm.rank == rank:
                asked = clock()
                comm.mpi_comm.Send(time_of_0, 0, _TAG)
                comm.mpi_comm.Recv(time_of_0, 0, _TAG)
                answered = clock()
                if trip == 0 or answered - asked < shortest:
                    shortest = answered - asked
                    offset = int(time_of_0[0]) - (asked + answered) // 2
    return offset, (shortest + 1) // 2
