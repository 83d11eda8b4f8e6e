"""The clocks of the ranks, compared."""

from collections.abc import Callable

import numpy as np

from parallelcnn.comm import Transport

_TRIPS = 50  # by the tenth or so one of them was not disturbed


def clock_offset(comm: Transport, clock: Callable[[], int]) -> tuple[int, int]:
    """What to add to this rank's clock to get rank 0's, and the largest possible error, in the clock's unit.

    Cristian 1989, "Probabilistic clock synchronization": rank 0 reads its clock between two times of this rank's, so
    their mean is wrong by at most half their distance. Of many trips the shortest tells most. Collective: every
    rank of `comm` must call it.
    """
    offset, shortest = 0, 0
    time_of_0 = np.zeros(1, np.int64)
    for trip in range(_TRIPS if comm.size > 1 else 0):
        began = clock()
        comm.allreduce_max(time_of_0)  # no rank leaves it before all have entered it
        time_of_0[0] = clock() if comm.rank == 0 else np.iinfo(np.int64).min
        comm.allreduce_max(time_of_0)
        ended = clock()
        if trip == 0 or ended - began < shortest:
            shortest = ended - began
            offset = int(time_of_0[0]) - (began + ended) // 2
    return (offset, (shortest + 1) // 2) if comm.rank != 0 else (0, 0)
