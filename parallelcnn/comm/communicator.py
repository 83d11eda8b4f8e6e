"""The communicator: what ranks say to each other, over MPI or alone, and how they go on without one that is lost."""

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from parallelcnn.comm.launcher import tell_to_end_the_job
from parallelcnn.errors import ParallelCNNError, RankLostError

Array = np.ndarray
T = TypeVar("T")

_SECONDS_TO_END = 10.0  # for the ranks that are left to leave together
# Ranks that were killed together with the lost one die within this time. A death within Shrink would crash all that
# learn of it there: Open MPI 5.0.11 looks into a communicator that it has not finished.
_SECONDS_BEFORE_SHRINKING = 0.1
_CLOCK_TRIPS = 50  # by the tenth or so one of them met nothing on its way
_ULFM = "OMPI_MCA_mpi_ft_enable"  # what mpirun --with-ft ulfm sets
# No other messages of ours go from one rank to one other.
_CLOCK_TAG = 1989
_ROLL_CALL_TAG = 1990


class Communicator(Protocol):
    """The ranks that train together. Every method but `abort` is collective: every rank must call it.

    Attributes:
        survives: whether the others can go on without a rank that is lost. A method then raises RankLostError on all
            of them, and all must call `recover`, after which `rank` and `size` are others.
        activity: what this rank does between two collectives, for `Watch`: words; or, since a step has no time to make
            a sentence, words with {} in the places of the numbers that follow them.
        arrivals: collectives that this rank has come to.
        waiting: the one that it is in; "" while it is in none.
        watch: the `Watch` over these ranks, if there is one.
    """

    rank: int
    size: int
    survives: bool
    activity: str | tuple[str | int, ...]
    arrivals: int
    waiting: str
    watch: Any

    def sum_over_ranks(self, array: Array) -> None:
        """Replace `array`, on every rank, by its sum over ranks."""

    def largest_over_ranks(self, array: Array) -> None:
        """Replace `array`, on every rank, by its largest over ranks, element by element."""

    def broadcast(self, array: Array) -> None:
        """Replace `array`, on every rank, by rank 0's."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank. For small things, seldom: values travel pickled."""

    def barrier(self) -> None:
        """Return when every rank has come here."""

    def clock_offset(self, clock: Callable[[], int]) -> tuple[int, int]:
        """What to add to this rank's clock to get rank 0's, and by how much that may be wrong, in the clock's unit."""

    def ranks_on_node(self) -> list[int]:
        """The ranks that share this rank's memory, itself included, ascending."""

    def recover(self) -> None:
        """Go on without the ranks that are lost. The others keep their order; the first of them is rank 0.

        Raises:
            ParallelCNNError: on every rank, if none is lost.
        """

    def give_up(self, message: str) -> None:
        """Say why, on stderr, and end this rank, without which the others go on, where they can. If all give up, one
        speaks for all, and the exit code is 1. Collective in so far as the others come to `recover` meanwhile.
        """

    def roll_call(self, value: Any, came: Callable[[int, Any], None]) -> Any:
        """Rank 0's value. Rank 0 returns when all have come; before that it is told, by `came`, of each other rank that
        has and of its value. So it knows whom it waits for, as in no other collective.
        """

    def abort(self, code: int, message: str = "") -> None:
        """Say why, on stderr, and end all ranks now, with that exit code; with 1 where they may lose some."""

    def end_all(self, code: int, message: str) -> None:
        """The same for a rank that cannot go on, for which others would wait. Where they can be woken, they leave by
        themselves, and one speaks for all.
        """


class Serial:
    """One process, alone."""

    rank = 0
    size = 1
    survives = False
    activity: str | tuple[str | int, ...] = "starting"
    arrivals = 0
    waiting = ""
    watch: Any = None

    def sum_over_ranks(self, array: Array) -> None:
        pass

    def largest_over_ranks(self, array: Array) -> None:
        pass

    def broadcast(self, array: Array) -> None:
        pass

    def gather(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        pass

    def clock_offset(self, clock: Callable[[], int]) -> tuple[int, int]:
        return 0, 0

    def ranks_on_node(self) -> list[int]:
        return [0]

    def recover(self) -> None:
        pass

    def give_up(self, message: str) -> None:
        self.abort(1, message)

    def roll_call(self, value: Any, came: Callable[[int, Any], None]) -> Any:
        return value

    def abort(self, code: int, message: str = "") -> None:
        say(message)
        os._exit(code)

    def end_all(self, code: int, message: str) -> None:
        self.abort(code, message)


class MPIRanks:
    """The ranks of an MPI communicator.

    Args:
        mpi_comm: an intracommunicator of mpi4py.
    """

    def __init__(self, mpi_comm: Any) -> None:
        from mpi4py import MPI

        self._in_place = MPI.IN_PLACE
        self._largest = MPI.MAX
        self._new_status = MPI.Status
        self._type_shared = MPI.COMM_TYPE_SHARED
        self._mpi_error, self._errors_return = MPI.Exception, MPI.ERRORS_RETURN
        self._noticed = ""  # of a lost rank
        self._have_agreed = False  # that one is lost
        self.survives = "Open MPI" in MPI.Get_library_version() and os.environ.get(_ULFM) == "1"
        self._comm = mpi_comm
        self.rank: int = mpi_comm.Get_rank()
        self.size: int = mpi_comm.Get_size()
        self._first_rank = self.rank
        self._ranks_on_node: list[int] = []
        self.activity: str | tuple[str | int, ...] = "starting"
        self.arrivals = 0
        self.waiting = ""
        self.watch: Any = None

    def _prepare(self) -> None:
        """What all ranks must do together first. Not when this is made: a `Watch` that says who is missing is later."""
        comm = self._comm
        with self._agreeing():
            if self.survives:  # an error is for whoever called, not for MPI to end the program with
                comm = self._comm.Dup()
                comm.Set_errhandler(self._errors_return)
            on_node = comm.Split_type(self._type_shared)
        with self._agreeing():
            ranks = self._readable(lambda: on_node.allgather((self.rank, self._first_rank)))
        on_node.Free()
        self._comm = comm
        self._ranks_on_node = sorted(rank for rank, _ in ranks)
        self._first_ranks_on_node = [first for _, first in ranks]

    @contextlib.contextmanager
    def _collective(self, name: str) -> Iterator[None]:
        self.arrivals += 1
        self.waiting = name
        try:
            if not self._ranks_on_node:
                self._prepare()
            with self._agreeing():
                yield
        finally:
            self.waiting = ""

    @contextlib.contextmanager
    def _agreeing(self) -> Iterator[None]:
        """What is done inside is done on all ranks, or they raise RankLostError on all.

        MPI alone tells some ranks of a loss and others not, and once handed over garbage without an error (Open MPI
        5.0.11). But it cannot agree without noticing who is lost. Beside a sum of 140 kB that takes 3 us of 70 on
        two ranks.
        """
        noticed = ""
        try:
            yield
        except self._mpi_error as error:
            if not self.survives:
                raise self._failure(error) from error
            noticed = _last_line(error)
        except _UnreadableError as error:
            noticed = str(error)
        if self.survives:
            try:
                all_is_well = self._comm.Agree(1) if not noticed else self._disagree()
            except self._mpi_error as error:
                noticed, all_is_well = noticed or _last_line(error), False
            if not all_is_well:
                self._have_agreed = True
                raise self._loss(noticed or "another one has noticed it")

    def _disagree(self) -> bool:
        """The Agree of a rank that has noticed a loss; False, or MPI's error, on all ranks."""
        with contextlib.suppress(self._mpi_error):
            self._comm.Revoke()  # so that all others notice, too, wherever they wait; but for those that agree
        no = np.zeros(1, np.intc)
        _patiently(self._comm.Iagree(no).Test)  # some may still compute, on this very core
        return bool(no[0])

    def _failure(self, error: Exception) -> ParallelCNNError:
        """Of MPI, where no rank can be spared. MPICH tells so of one that was killed while this one read its memory."""
        return ParallelCNNError(
            f"MPI failed in {self.waiting}, as it does if another rank is lost: {_last_line(error)}"
        )

    def _loss(self, noticed: str) -> RankLostError:
        """To be raised, and answered by `recover`."""
        self._noticed = noticed
        return RankLostError(f"rank {self.rank} of {self.size} is missing another one: {noticed}")

    def sum_over_ranks(self, array: Array) -> None:
        with self._collective("sum_over_ranks"):
            self._comm.Allreduce(self._in_place, array)

    def largest_over_ranks(self, array: Array) -> None:
        with self._collective("largest_over_ranks"):
            self._comm.Allreduce(self._in_place, array, self._largest)

    def broadcast(self, array: Array) -> None:
        with self._collective("broadcast"):
            self._comm.Bcast(array)

    def gather(self, value: T) -> list[T]:
        with self._collective("gather"):
            _patiently(self._comm.Ibarrier().Test)
            return self._readable(lambda: self._comm.allgather(value))

    def _readable(self, receive: Callable[[], T]) -> T:
        """What `receive` unpickles; an error of ours if that is garbage."""
        try:
            return receive()
        except self._mpi_error:
            raise
        except Exception as error:
            if not self.survives:
                raise
            raise _UnreadableError(f"it got unreadable values, {error}") from None

    def barrier(self) -> None:
        with self._collective("barrier"):
            _patiently(self._comm.Ibarrier().Test)

    def recover(self) -> None:
        size_before = self.size
        for _ in range(2 * size_before):  # one is lost in every turn but the last, or gives up, and is lost in the next
            if not self._shrink(goes_on=True):
                who = f"rank {self.rank} of {self.size}"
                message = f"parallelcnn: {who}: another one was lost, and some cannot go on without it"
                self._leave_with_the_others(1, message, knows_why=False, shrunken=True)
            with contextlib.suppress(RankLostError):
                left = self.gather((self._first_rank, self._noticed, False))
                if any(gives_up for _, _, gives_up in left):
                    continue
                if self.watch is not None:
                    self.watch.restart()
                break
        else:
            message = f"parallelcnn: error: MPI cannot go on without the ranks that are lost: {self._noticed}"
            self._leave_with_the_others(1, message, knows_why=False)
        self._noticed = ""
        self._ranks_on_node = [rank for rank, (first, *_) in enumerate(left) if first in self._first_ranks_on_node]
        if self.size == size_before:  # they would come here again and again
            noticed = "; ".join(f"rank {rank}: {said}" for rank, (_, said, _) in enumerate(left) if said)
            raise ParallelCNNError(f"MPI failed, although no rank is lost ({noticed})").together()

    def give_up(self, message: str) -> None:
        if not self.survives:
            self.abort(1, message)
        if not self._shrink(goes_on=True):
            self._leave_with_the_others(1, message, knows_why=True, shrunken=True)
        with contextlib.suppress(RankLostError):
            left = self.gather((self._first_rank, self._noticed, True))
            if all(gives_up for _, _, gives_up in left):
                say(message if self.rank == 0 else "")
                os._exit(1 if self.rank == 0 else 0)
        say(message)
        # With an exit code of its own it would not count as lost: the others were left waiting (Open MPI 5.0.11).
        os.kill(os.getpid(), signal.SIGKILL)

    def _shrink(self, *, goes_on: bool) -> bool:
        """Leave out the ranks that are lost; returns whether all that are left go on."""
        # MPI 5.0 draft, "User-Level Failure Mitigation". Within Shrink MPI agrees, too: all must have done so before,
        # or it would take the one for the other.
        self.waiting = "recover"
        if not self._have_agreed:
            self._have_agreed = True
            with contextlib.suppress(self._mpi_error):  # if one is lost; all are told alike
                self._disagree()
        while True:
            time.sleep(_SECONDS_BEFORE_SHRINKING)
            with contextlib.suppress(self._mpi_error):  # another one was lost, meanwhile
                self._comm = self._comm.Shrink()
                self._comm.Set_errhandler(self._errors_return)
                all_go_on = bool(self._comm.Agree(int(goes_on)))
                break
        self._have_agreed = False
        self.waiting = ""
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        return all_go_on

    def clock_offset(self, clock: Callable[[], int]) -> tuple[int, int]:
        # Cristian 1989, "Probabilistic clock synchronization": rank 0's answer was given between question and return,
        # so the middle is wrong by at most half the round trip. Of many trips the quickest tells most.
        offset, quickest = 0, 0
        time_of_0 = np.zeros(1, np.int64)
        with self._collective("clock_offset"):
            for rank, trip in itertools.product(range(1, self.size), range(_CLOCK_TRIPS)):
                if self.rank == 0:
                    self._comm.Recv(time_of_0, rank, _CLOCK_TAG)
                    time_of_0[0] = clock()
                    self._comm.Send(time_of_0, rank, _CLOCK_TAG)
                elif self.rank == rank:
                    asked = clock()
                    self._comm.Send(time_of_0, 0, _CLOCK_TAG)
                    self._comm.Recv(time_of_0, 0, _CLOCK_TAG)
                    answered = clock()
                    if trip == 0 or answered - asked < quickest:
                        quickest = answered - asked
                        offset = int(time_of_0[0]) - (asked + answered) // 2
        return offset, (quickest + 1) // 2

    def ranks_on_node(self) -> list[int]:
        if not self._ranks_on_node:
            with self._collective("ranks_on_node"):
                pass
        return self._ranks_on_node

    def roll_call(self, value: Any, came: Callable[[int, Any], None]) -> Any:
        self.arrivals += 1
        self.waiting = "the roll call"
        try:
            with self._agreeing():
                answer = self._call_the_roll(value, came)
                if self.survives:  # Agree takes a whole core while others have not come
                    _patiently(self._comm.Ibarrier().Test)
            return answer
        finally:
            self.waiting = ""

    def _call_the_roll(self, value: Any, came: Callable[[int, Any], None]) -> Any:
        if self.rank != 0:
            question = self._comm.isend(value, 0, _ROLL_CALL_TAG)
            answer = self._readable(_patiently(lambda: self._comm.improbe(0, _ROLL_CALL_TAG)).recv)
            question.wait()
            return answer
        answers = []
        for _ in range(1, self.size):
            status = self._new_status()
            came_in = _patiently(lambda: self._comm.improbe(tag=_ROLL_CALL_TAG))
            theirs = self._readable(functools.partial(came_in.recv, status))
            came(status.Get_source(), theirs)
            answers.append(self._comm.isend(value, status.Get_source(), _ROLL_CALL_TAG))
        for sent in answers:
            sent.wait()
        return value

    def abort(self, code: int, message: str = "") -> None:
        say(message)
        time.sleep(0.2)  # MPICH's launcher drops what it has not read by then: the reason of it all
        if self.survives:
            tell_to_end_the_job()
        self._comm.Abort(code)
        os._exit(code)  # MPICH's Abort sometimes returns, and the program would go on

    def end_all(self, code: int, message: str) -> None:
        if not self.survives:
            self.abort(code, message)
        self._leave_with_the_others(code, message, knows_why=not self._noticed)

    def _leave_with_the_others(self, code: int, message: str, *, knows_why: bool, shrunken: bool = False) -> NoReturn:
        """End this process, as all that are left do. They are woken, wherever they wait, and agree. Who knows why,
        or else the first, speaks and leaves with the code for all.

        Open MPI's launcher (5.0.11) waits for ever where many abort, or leave with a code other than 0, at once, and
        once did so where one of them aborted.
        """

        def leave_alone() -> None:
            say(message)
            tell_to_end_the_job()
            os._exit(code)

        # If one does not come, none of them knows who is to speak. The first that has waited ends all.
        alone = threading.Timer(_SECONDS_TO_END + min(self.rank, 20), leave_alone)
        alone.daemon = True
        alone.start()
        while True:
            if not shrunken:
                self._shrink(goes_on=False)
            shrunken = False  # any more, if another one is lost meanwhile
            with contextlib.suppress(RankLostError), self._agreeing():
                know_why = self._readable(lambda: self._comm.allgather(knows_why))
                break
        alone.cancel()
        speaks = self._comm.Get_rank() == know_why.index(max(know_why))
        say(message if speaks else "")
        os._exit(code if speaks else 0)


def say(message: str) -> None:
    """Print it on stderr, if it is one, and what was printed before. Never fails, so that what comes next is done."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody listens any more
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)


class _UnreadableError(Exception):
    """Garbage instead of other ranks' values."""


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _patiently(look: Callable[[], Any]) -> Any:
    """What `look` returns once that is something."""
    # MPI's own waiting takes a whole core. Where ranks share cores, those that wait for rank 0 to compile or to
    # read the data would keep it from doing so: eight ranks on two cores took 24 s for 4 s of compilation.
    pause = 0.0
    while not (found := look()):
        time.sleep(pause)
        pause = min(pause + 1e-4, 5e-3)  # [s]
    return found


def ulfm() -> tuple[bool, bool]:
    """Whether the MPI library has what it takes to go on without a lost rank, and whether this launch lets it:
    `mpirun --with-ft ulfm` of Open MPI.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return False, False
    known = "PROC_FAILED" in MPI.Get_error_string(MPI.ERR_PROC_FAILED)  # mpi4py has another number for those without
    return known, known and os.environ.get(_ULFM) == "1"
