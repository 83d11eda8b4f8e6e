"""What other programs leave of the cores, as the system accounts for it."""

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from parallelcnn.comm import Transport

_IDLE = (3, 4)  # of the columns of a core: idle, and idle but for a disk


class Load:
    """Watches the cores of this rank's node, from its making on.

    Args:
        cores: that the ranks of the node may use.
        threads: of this rank.
    """

    def __init__(self, cores: Collection[int], threads: int) -> None:
        self._cores, self._threads = cores, threads
        self._began = (time.perf_counter(), time.process_time(), busy_seconds(cores))

    def taken(self, comm: Transport) -> float:
        """How many cores the ranks of a node lacked because of other programs, or, in a virtual machine, of other
        machines on the same host; of the node that lacked most. Collective: every rank of `comm` must call it.
        """
        seconds, own, busy = (
            now - then
            for now, then in zip(
                (time.perf_counter(), time.process_time(), busy_seconds(self._cores)), self._began, strict=True
            )
        )
        everyone = comm.allgather((own, self._threads))
        here = [everyone[rank] for rank in comm.ranks_on_node()]
        others = max(0.0, busy - sum(own for own, _ in here)) / seconds
        lacking = others + sum(threads for _, threads in here) - len(self._cores)
        return max(comm.allgather(min(others, max(0.0, lacking))))


def busy_seconds(cores: Collection[int], stat: Path = Path("/proc/stat")) -> float:
    """For how long these cores have done anything since the machine was started; 0 where the system does not tell."""
    ticks = 0
    with contextlib.suppress(OSError, ValueError):
        for line in stat.read_text().splitlines():
            name, *counts = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
                # Beyond the eighth come the guests', which are in the first two already.
                ticks += sum(int(count) for i, count in enumerate(counts[:8]) if i not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
