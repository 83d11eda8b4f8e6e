"""Transport: the collective operations that training needs, over MPI or in a single process."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np

from parallelcnn.comm.messages import last_line, say
from parallelcnn.errors import ParallelCNNError

Array = np.ndarray
T = TypeVar("T")


class Transport(Protocol):
    """The ranks that train together. Every method but `abort` is collective: all ranks must call it.

    Attributes:
        fault_tolerant: whether training can continue without a lost rank. Then the methods raise RankLostError on all
            other ranks; see `resilience.fault_tolerance`.
        status: what this rank is doing, for the watchdog: a text, or a text with {} and the numbers to put there,
            since a training step has no time to format them.
        arrivals: how many collectives this rank has entered.
        waiting: the name of the collective that it is in, or "".
        watchdog: the `Watchdog` of these ranks, or None.
    """

    rank: int
    size: int
    fault_tolerant: bool
    status: str | tuple[str | int, ...]
    arrivals: int
    waiting: str
    watchdog: Any

    def allreduce(self, array: Array) -> None:
        """Replace `array` by its sum over ranks."""

    def allreduce_max(self, array: Array) -> None:
        """Replace `array` by its element-wise maximum over ranks."""

    def broadcast(self, array: Array) -> None:
        """Replace `array` by rank 0's."""

    def allgather(self, value: T) -> list[T]:
        """Every rank's value, by rank. For small values, and seldom: they are pickled."""

    def barrier(self) -> None:
        """Return once all ranks have called it."""

    def ranks_on_node(self) -> list[int]:
        """The ranks that share this rank's memory, this one included, in ascending order."""

    def abort(self, code: int, message: str = "") -> None:
        """Print the message on stderr and end all ranks with this exit code."""


class Serial:
    """A single process."""

    rank = 0
    size = 1
    fault_tolerant = False
    status: str | tuple[str | int, ...] = "starting"
    arrivals = 0
    waiting = ""
    watchdog: Any = None

    def allreduce(self, array: Array) -> None:
        pass

    def allreduce_max(self, array: Array) -> None:
        pass

    def broadcast(self, array: Array) -> None:
        pass

    def allgather(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        pass

    def ranks_on_node(self) -> list[int]:
        return [0]

    def abort(self, code: int, message: str = "") -> None:
        say(message)
        os._exit(code)


class MPITransport:
    """The ranks of an MPI communicator.

    Args:
        mpi_comm: an intracommunicator of mpi4py.
    """

    fault_tolerant = False

    def __init__(self, mpi_comm: Any) -> None:
        from mpi4py import MPI

        self._MPI = MPI
        self.mpi_comm = mpi_comm
        self.rank: int = mpi_comm.Get_rank()
        self.size: int = mpi_comm.Get_size()
        self.status: str | tuple[str | int, ...] = "starting"
        self.arrivals = 0
        self.waiting = ""
        self.watchdog: Any = None
        self._ranks_on_node: list[int] = []

    def allreduce(self, array: Array) -> None:
        with self.collective("allreduce"):
            self.mpi_comm.Allreduce(self._MPI.IN_PLACE, array)

    def allreduce_max(self, array: Array) -> None:
        with self.collective("allreduce"):
            self.mpi_comm.Allreduce(self._MPI.IN_PLACE, array, self._MPI.MAX)

    def broadcast(self, array: Array) -> None:
        with self.collective("broadcast"):
            self.mpi_comm.Bcast(array)

    def allgather(self, value: T) -> list[T]:
        with self.collective("allgather"):
            wait_patiently(self.mpi_comm.Ibarrier().Test)
            return self.unpickle(lambda: self.mpi_comm.allgather(value))

    def barrier(self) -> None:
        with self.collective("barrier"):
            wait_patiently(self.mpi_comm.Ibarrier().Test)

    def ranks_on_node(self) -> list[int]:
        if not self._ranks_on_node:
            with self.collective("ranks_on_node"):
                pass
        return self._ranks_on_node

    def abort(self, code: int, message: str = "") -> None:
        say(message)
        time.sleep(0.2)  # MPICH's launcher drops what it has not read by then, which is the reason for all this
        self.mpi_comm.Abort(code)
        os._exit(code)  # MPICH's Abort sometimes returns

    @contextlib.contextmanager
    def collective(self, name: str, *, prepare: bool = True) -> Iterator[None]:
        """Run a collective inside: the watchdog sees this rank in it, and its errors are checked.

        Args:
            prepare: first set up what the first collective needs. Not when the transport is created, because
                then no watchdog says which rank is missing.
        """
        self.arrivals += 1
        self.waiting = name
        try:
            if prepare and not self._ranks_on_node:
                self._prepare()
            with self.checked():
                yield
        finally:
            self.waiting = ""

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Turn errors of MPI into ours. MPICH raises one if a rank is killed while this one reads its memory."""
        try:
            yield
        except self._MPI.Exception as error:
            failed = f"MPI failed in {self.waiting}, as it does if another rank is lost"
            raise ParallelCNNError(f"{failed}: {last_line(error)}") from error

    def unpickle(self, receive: Callable[[], T]) -> T:
        """What `receive` returns, which comes from other ranks."""
        return receive()

    def _prepare(self) -> None:
        with self.checked():
            node = self.mpi_comm.Split_type(self._MPI.COMM_TYPE_SHARED)
            self._ranks_on_node = sorted(node.allgather(self.rank))
            node.Free()


def wait_patiently(look: Callable[[], Any]) -> Any:
    """What `look` returns once it is true.

    MPI's own waiting takes a whole core. Where ranks share cores, ranks that wait for rank 0 to compile or to read the
    data would keep it from doing so: eight ranks on two cores took 24 s for 4 s of compilation.
    """
    pause = 0.0
    while not (found := look()):
        time.sleep(pause)
        pause = min(pause + 1e-4, 5e-3)  # [s]
    return found
