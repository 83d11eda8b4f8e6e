"""Transport: the collective operations that training needs, over MPI or in a single process."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np

from parallelcnn.comm.messages import last_line, say
from parallelcnn.comm.shared_sum import SharedSum, can_share, create_memory
from parallelcnn.errors import ParallelCNNError

Array = np.ndarray
T = TypeVar("T")


class Transport(Protocol):
    """The ranks that train together. Every method but `abort` is collective: all ranks must call it.

    Attributes:
        fault_tolerant: whether training can continue without a lost rank. Then the methods raise RankLostError on all
            other ranks; see `resilience.fault_tolerance`.
        status: what this rank is doing, for the watchdog: a text, or a format string with {} and its numbers, since
            formatting would slow down a training step.
        arrivals: number of collectives that this rank has entered.
        waiting: the name of the current collective, or "".
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
        """Replace `array` by its sum over all ranks."""

    def allreduce_max(self, array: Array) -> None:
        """Replace `array` by its element-wise maximum over all ranks."""

    def broadcast(self, array: Array) -> None:
        """Replace `array` by rank 0's array."""

    def allgather(self, value: T) -> list[T]:
        """Gather the values of all ranks, by rank. Use it for small values and rarely: they are pickled."""

    def barrier(self) -> None:
        """Wait until all ranks have called it."""

    def ranks_on_node(self) -> list[int]:
        """The ranks that share this rank's memory, this one included, in ascending order."""

    def abort(self, code: int, message: str = "") -> None:
        """Print the message on stderr and end all ranks with this exit code."""


class Serial:
    """Transport of a single process."""

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
    """Transport over an MPI communicator.

    Args:
        mpi_comm: an mpi4py intracommunicator.
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
        self._shared_sum: SharedSum | None = None

    def allreduce(self, array: Array) -> None:
        with self.collective("allreduce"):
            if self._shared_sum is not None and self._shared_sum.takes(array):
                self._shared_sum.add(array, self.look_for_losses)
            else:
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
        time.sleep(0.2)  # MPICH's launcher drops messages it has not read by then, and so the reason for the end
        self.mpi_comm.Abort(code)
        os._exit(code)  # MPICH's Abort sometimes returns

    @contextlib.contextmanager
    def collective(self, name: str, *, prepare: bool = True) -> Iterator[None]:
        """Context for a collective: reports it to the watchdog, and checks its errors.

        Args:
            prepare: whether to set up the transport first, if this is the first collective. The constructor does not,
                because no watchdog would name a missing rank.
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
        """Turn MPI errors into ParallelCNNError. MPICH raises one if this rank reads the memory of a killed rank."""
        try:
            yield
        except self._MPI.Exception as error:
            failed = f"MPI failed in {self.waiting}, as it does if another rank is lost"
            raise ParallelCNNError(f"{failed}: {last_line(error)}") from error

    def look_for_losses(self) -> None:
        """Let MPI notice lost ranks while this rank waits without it; may raise MPI's error."""
        self.mpi_comm.Iprobe()

    def unpickle(self, receive: Callable[[], T]) -> T:
        """Call `receive`, which unpickles values of other ranks; returns its result."""
        return receive()

    def _prepare(self) -> None:
        with self.checked():
            node = self.mpi_comm.Split_type(self._MPI.COMM_TYPE_SHARED)
            self._ranks_on_node = sorted(node.allgather(self.rank))
            node.Free()
        self._shared_sum = self._share_sums()

    def _share_sums(self) -> SharedSum | None:
        """Memory for sums if all ranks are on this node and all can map it, otherwise None."""
        if len(self._ranks_on_node) < self.size or not can_share(self.size):
            return None
        descriptor, file = -1, None
        if self.rank == 0:
            with contextlib.suppress(OSError):
                descriptor, file = create_memory(self.size)
        try:
            with self.checked():
                file = self.unpickle(lambda: self.mpi_comm.bcast(file))
            memory = None if file is None else file.map(writable=True)
            have_all = np.array([memory is not None], np.intc)
            with self.checked():
                self.mpi_comm.Allreduce(self._MPI.IN_PLACE, have_all, self._MPI.MIN)
        finally:
            if descriptor >= 0:
                os.close(descriptor)  # all have mapped it
        return SharedSum(memory, self.rank, self.size) if memory is not None and have_all[0] else None


def wait_patiently(look: Callable[[], Any]) -> Any:
    """Call `look` until it returns a true value, with pauses; returns that value.

    MPI's own waiting takes a whole core. If ranks share cores, ranks that wait for rank 0 to compile or read data would
    slow it down: eight ranks on two cores took 24 s for 4 s of compilation.
    """
    pause = 0.0
    while not (found := look()):
        time.sleep(pause)
        pause = min(pause + 1e-4, 5e-3)  # [s]
    return found
