"""Fault tolerance: training continues without ranks that are lost.

It needs Open MPI's ULFM (MPI 5.0 draft, "User-Level Failure Mitigation"): `mpirun --with-ft ulfm`. If a rank is lost,
the next collective raises RankLostError on all other ranks, which then call `recover`.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol, TypeGuard, TypeVar

import numpy as np

from parallelcnn.comm import MPITransport, Transport, last_line, load_mpi, say, wait_patiently
from parallelcnn.errors import ParallelCNNError, RankLostError
from parallelcnn.resilience.launch import end_the_job

T = TypeVar("T")

_SECONDS_TO_END = 10.0  # for the remaining ranks to end together
# Ranks that are killed together with the lost one die within this time. If a rank died during Shrink, all ranks that
# learn of it there would crash: Open MPI 5.0.11 uses an unfinished communicator.
_SECONDS_BEFORE_SHRINKING = 0.1
_ENABLED = "OMPI_MCA_mpi_ft_enable"  # set by mpirun --with-ft ulfm


def fault_tolerance() -> tuple[bool, bool]:
    """Whether the MPI library can continue without a lost rank, and whether this launch allows it."""
    try:
        MPI = load_mpi()
    except (ImportError, RuntimeError):
        return False, False
    known = "PROC_FAILED" in MPI.Get_error_string(MPI.ERR_PROC_FAILED)  # mpi4py always defines the number
    return known, known and os.environ.get(_ENABLED) == "1"


def transport_over(mpi_comm: Any) -> MPITransport:
    """Create the transport for an mpi4py intracommunicator; fault tolerant if this launch is."""
    if "Open MPI" not in load_mpi().Get_library_version() or os.environ.get(_ENABLED) != "1":
        return MPITransport(mpi_comm)
    _finalize_without_waiting()
    return FaultTolerantTransport(mpi_comm)


def _finalize_without_waiting() -> None:
    """Make MPI's Finalize not wait for other ranks. In one of 80 runs it waited for ever for a lost rank.

    This is for programs that import mpi4py's MPI themselves: mpi4py finalises MPI when they exit. Open MPI reads its
    parameter async_mpi_finalize from the environment when MPI starts, and so it cannot be set there any more.
    """
    with contextlib.suppress(OSError, ValueError):  # a later Open MPI may not have this variable
        ctypes.c_bool.in_dll(ctypes.CDLL("libmpi.so.40"), "ompi_async_mpi_finalize").value = True


class FaultTolerant(Transport, Protocol):
    """Interface of transports that continue without lost ranks; see `FaultTolerantTransport`."""

    def recover(self) -> None: ...

    def give_up(self, message: str) -> NoReturn: ...

    def end_all(self, code: int, message: str) -> NoReturn: ...


def is_fault_tolerant(comm: Transport) -> TypeGuard[FaultTolerant]:
    """Whether training with this transport can continue without a lost rank."""
    return comm.fault_tolerant


def recover(comm: Transport) -> None:
    """Continue without the lost ranks, after RankLostError; see `FaultTolerantTransport.recover`."""
    if is_fault_tolerant(comm):
        comm.recover()


def retry_after_loss(comm: Transport, work: Callable[[], T]) -> T:
    """Run collective work. If a rank is lost meanwhile, recover and run it again.

    Collective: every rank of `comm` must call it.
    """
    while True:
        try:
            return work()
        except RankLostError:
            recover(comm)


class FaultTolerantTransport(MPITransport):
    """Transport over an MPI communicator that continues without lost ranks."""

    fault_tolerant = True

    def __init__(self, mpi_comm: Any) -> None:
        super().__init__(mpi_comm)
        self._first_rank = self.rank  # ranks are renumbered when one is lost
        self._noticed = ""  # how this rank noticed the loss
        self._have_agreed = False  # whether the ranks have agreed that a rank is lost

    def recover(self) -> None:
        """Continue without the lost ranks. The remaining ranks keep their order; the first one is the new rank 0.

        Collective: every remaining rank must call it.

        Raises:
            ParallelCNNError: on every rank, if no rank is lost.
        """
        size_before = self.size
        # In every iteration but the last a rank is lost, or gives up and is lost in the next iteration.
        for _ in range(2 * size_before):
            if not self._shrink(continues=True):
                who = f"rank {self.rank} of {self.size}"
                message = f"parallelcnn: {who}: another rank was lost, and some ranks cannot continue without it"
                self._end_together(1, message, knows_why=False, has_shrunk=True)
            with contextlib.suppress(RankLostError):
                remaining = self.allgather((self._first_rank, self._noticed, False))
                if any(gives_up for _, _, gives_up in remaining):
                    continue
                if self.watchdog is not None:
                    self.watchdog.restart()
                break
        else:
            message = f"parallelcnn: error: MPI cannot continue without the lost ranks: {self._noticed}"
            self._end_together(1, message, knows_why=False)
        self._noticed = ""
        self._ranks_on_node = [rank for rank, (first, *_) in enumerate(remaining) if first in self._first_on_node]
        if self.size == size_before:  # otherwise they would recover again and again
            noticed = "; ".join(f"rank {rank}: {text}" for rank, (_, text, _) in enumerate(remaining) if text)
            raise ParallelCNNError(f"MPI failed, although no rank is lost ({noticed})").together()

    def give_up(self, message: str) -> NoReturn:
        """Print the message and end this rank; the others recover. If all ranks give up, one of them prints for all,
        and the exit code is 1.
        """
        if not self._shrink(continues=True):
            self._end_together(1, message, knows_why=True, has_shrunk=True)
        with contextlib.suppress(RankLostError):
            remaining = self.allgather((self._first_rank, self._noticed, True))
            if all(gives_up for _, _, gives_up in remaining):
                say(message if self.rank == 0 else "")
                os._exit(1 if self.rank == 0 else 0)
        say(message)
        # With an exit code the rank would not count as lost, and the others would wait (Open MPI 5.0.11).
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL")

    def end_all(self, code: int, message: str) -> NoReturn:
        """End all ranks because this one cannot continue. The others wake up from any wait and end themselves."""
        self._end_together(code, message, knows_why=not self._noticed)

    def abort(self, code: int, message: str = "") -> None:
        say(message)
        time.sleep(0.2)
        end_the_job()
        self.mpi_comm.Abort(code)
        os._exit(code)

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Context in which an operation succeeds on all ranks, or raises RankLostError on all.

        MPI itself reports a loss only to some ranks, and once returned garbage without an error (Open MPI 5.0.11). But
        its Agree cannot succeed without noticing lost ranks. It adds 3 us to an allreduce of 140 kB on two ranks, which
        takes 70 us.
        """
        noticed = ""
        try:
            yield
        except self._MPI.Exception as error:
            noticed = last_line(error)
        except _UnreadableError as error:
            noticed = str(error)
        try:
            all_is_well = self.mpi_comm.Agree(1) if not noticed else self._disagree()
        except self._MPI.Exception as error:
            noticed, all_is_well = noticed or last_line(error), False
        if not all_is_well:
            self._have_agreed = True
            self._noticed = noticed or "another rank has noticed it"
            raise RankLostError(f"rank {self.rank} of {self.size} has lost another rank: {self._noticed}")

    def unpickle(self, receive: Callable[[], T]) -> T:
        try:
            return receive()
        except self._MPI.Exception:
            raise
        except Exception as error:  # garbage can make pickle raise anything
            raise _UnreadableError(f"it got unreadable values, {error}") from None

    def _prepare(self) -> None:
        with self.checked():
            # MPI must return errors to the caller, not end the program.
            mpi_comm = self.mpi_comm.Dup()
            mpi_comm.Set_errhandler(self._MPI.ERRORS_RETURN)
            node = mpi_comm.Split_type(self._MPI.COMM_TYPE_SHARED)
        with self.checked():
            ranks = self.unpickle(lambda: node.allgather((self.rank, self._first_rank)))
        node.Free()
        self.mpi_comm = mpi_comm
        self._ranks_on_node = sorted(rank for rank, _ in ranks)
        self._first_on_node = [first for _, first in ranks]
        self._shared_sum = self._share_sums()

    def look_for_losses(self) -> None:
        super().look_for_losses()
        if self.mpi_comm.Is_revoked() or self.mpi_comm.Get_failed().Get_size() > 0:
            raise self._MPI.Exception(self._MPI.ERR_PROC_FAILED)

    def _disagree(self) -> bool:
        """Call Agree on a rank that has noticed a loss; the result is False, or MPI's error, on all ranks."""
        with contextlib.suppress(self._MPI.Exception):
            self.mpi_comm.Revoke()  # so that the others notice the loss, wherever they wait, except in Agree
        no = np.zeros(1, np.intc)
        wait_patiently(self.mpi_comm.Iagree(no).Test)  # other ranks may still compute on this core
        return bool(no[0])

    def _shrink(self, *, continues: bool) -> bool:
        """Remove the lost ranks from the communicator; returns whether all remaining ranks continue."""
        # Shrink also calls Agree internally. All ranks must have finished the Agree before it, or MPI would confuse
        # the two.
        self.waiting = "recover"
        if not self._have_agreed:
            self._have_agreed = True
            with contextlib.suppress(self._MPI.Exception):  # raised on all ranks if one is lost
                self._disagree()
        while True:
            time.sleep(_SECONDS_BEFORE_SHRINKING)
            with contextlib.suppress(self._MPI.Exception):  # another rank was lost meanwhile
                self.mpi_comm = self.mpi_comm.Shrink()
                self.mpi_comm.Set_errhandler(self._MPI.ERRORS_RETURN)
                all_continue = bool(self.mpi_comm.Agree(int(continues)))
                break
        self._have_agreed = False
        self.waiting = ""
        self.rank, self.size = self.mpi_comm.Get_rank(), self.mpi_comm.Get_size()
        self._shared_sum = None  # a lost rank may have written a part of its array: go on with MPI's sums
        return all_continue

    def _end_together(self, code: int, message: str, *, knows_why: bool, has_shrunk: bool = False) -> NoReturn:
        """End this process, as all remaining ranks do. A rank that knows the reason, or else the first rank, prints the
        message and ends with the exit code.

        Open MPI's launcher (5.0.11) waits for ever if many ranks abort at once, or end with a code other than 0. It
        once did so when a single rank aborted.
        """

        def end_alone() -> None:
            say(message)
            end_the_job()
            os._exit(code)

        # If a rank never comes, the others cannot agree who prints. The first rank whose timer runs out ends all.
        alone = threading.Timer(_SECONDS_TO_END + min(self.rank, 20), end_alone)
        alone.daemon = True
        alone.start()
        while True:
            if not has_shrunk:
                self._shrink(continues=False)
            has_shrunk = False  # shrink again if another rank is lost meanwhile
            with contextlib.suppress(RankLostError), self.checked():
                know_why = self.unpickle(lambda: self.mpi_comm.allgather(knows_why))
                break
        alone.cancel()
        speaks = self.mpi_comm.Get_rank() == know_why.index(max(know_why))
        say(message if speaks else "")
        os._exit(code if speaks else 0)


class _UnreadableError(Exception):
    """Values of other ranks that cannot be unpickled."""
