"""The watch over ranks that wait for each other: what would be a hang becomes a message that names who is missing.

A collective ends when the last rank has come. If one never does (it computes for ever, reads from a dead file server,
was stopped, or its machine is gone), MPI lets the others wait in silence. So every rank has a thread that looks now and
then at three attributes of the communicator, which the main thread merely assigns: what it does, how many collectives
it has come to, and which it is in. The threads do not talk through MPI, which may be what hangs, but send datagrams to
rank 0, whose thread knows so of everybody, says what there is to say, and ends the job. If rank 0 is the one that is
stopped or gone, the others notice, and end by themselves.
"""

import contextlib
import faulthandler
import fcntl
import json
import math
import os
import socket
import struct
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from parallelcnn.comm import Communicator, this_host
from parallelcnn.errors import InputError

DEFAULT_TIMEOUT = 300.0  # [s]

_LOOKS = 20  # in the time of a timeout
_LONGEST_INTERVAL = 5.0  # [s]
_LARGEST_DATAGRAM = 8192  # bytes
_LONGEST_TEXT = 300  # characters
_SECONDS_TO_END = 4.0  # for printing and MPI's Abort, either of which may hang itself [s]
_HERE = "127.0.0.1"
_GET_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def check_timeout(seconds: object) -> None:
    """Raise InputError for what is no time to wait."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise InputError(
            f"timeout must be a number of seconds of at least 0, where 0 lets ranks wait for ever, got {seconds!r}"
        ).together()


class Watch:
    """Ends the job, with a message on stderr and exit code 1, once a rank waits too long in a collective.

    Used as `with Watch(comm, seconds): ...` around what communicates. Inside another watch over the same communicator
    it does nothing, nor on one rank. Entering it is collective, and watched already: a rank that never comes is named.

    Args:
        timeout_seconds: the longest that a rank may wait, the same on every rank; 0: for ever [s].

    Raises:
        InputError: see `check_timeout`.
    """

    def __init__(self, comm: Communicator, timeout_seconds: float = DEFAULT_TIMEOUT) -> None:
        check_timeout(timeout_seconds)
        self._comm, self._timeout = comm, timeout_seconds
        self._lookout: _Lookout | None = None

    def __enter__(self) -> Self:
        if self._comm.watch is None:
            self._comm.watch = self
            try:
                self._begin()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._comm.watch is self:
            self._comm.watch = None
            self._end()

    def restart(self) -> None:
        """Begin anew with the ranks that `comm` has now: after some were lost, another may be rank 0.

        Collective: every rank that is left must call it.
        """
        watch = self._comm.watch or self
        watch._end()
        watch._begin()

    def _begin(self) -> None:
        comm = self._comm
        if comm.size == 1 or self._timeout == 0:
            return
        if comm.rank == 0:
            judge = _Judge(comm, self._timeout)
            self._lookout = judge
            judge.start()
            comm.roll_call(judge.contact(), judge.came)
        else:
            witness = _Witness(comm, self._timeout)
            self._lookout = witness
            witness.start()
            witness.meet_judge(comm.roll_call(witness.own_report(), lambda *_: None))

    def _end(self) -> None:
        lookout, self._lookout = self._lookout, None
        if lookout is not None:
            lookout.leave()


@dataclass(frozen=True)
class Report:
    """What a rank does, as its thread sees it.

    Attributes:
        activity: in words.
        place: the line that its main thread is at.
        arrivals: collectives that it has come to.
        waiting: the collective that it is in; "" while it is in none.
        seconds: for how long these two have been the same [s].
    """

    rank: int
    host: str
    activity: str
    place: str
    arrivals: int
    waiting: str
    seconds: float

    def datagram(self, token: str) -> bytes:
        return json.dumps({"token": token, **asdict(self)}).encode()

    @staticmethod
    def read(datagram: bytes, token: str, size: int) -> "Report | None":
        """The report in a datagram; None for what no rank of this job has sent, since anybody may send to a socket."""
        if token.encode() not in datagram:
            return None
        try:
            fields = json.loads(datagram)
            if fields.pop("token") != token:
                return None
            report = Report(**fields)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None
        texts = (report.host, report.activity, report.place, report.waiting)
        well_formed = (
            all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts)
            and all(type(number) is int and number >= 0 for number in (report.rank, report.arrivals))
            and report.rank < size
            and type(report.seconds) in (int, float)
            and 0 <= report.seconds < math.inf
        )
        return report if well_formed else None

    def doing(self) -> str:
        """What it does, between collectives or in one."""
        if self.waiting:
            return f"waiting in {self.waiting} (collective {self.arrivals}) after {self.activity}"
        return f"{self.activity}, at {self.place}" if self.place else self.activity


@dataclass
class Sight:
    """A rank as rank 0 sees it.

    Attributes:
        report: the last one; None before it has come to the roll call.
        heard: whether a datagram of it has arrived.
        silent: for how long none has [s].
    """

    report: Report | None = None
    heard: bool = False
    silent: float = 0.0


def find_missing(sights: list[Sight], silent_after: float) -> tuple[Report | None, list[int]]:
    """Who waits in the earliest collective in which anybody waits, and who has not come to it.

    A rank that has not been heard from for `silent_after` [s] counts as missing, wherever it said that it was.

    Returns:
        the report of the rank that has waited longest there, or None if nobody waits; the missing ranks.
    """
    alive = [sight.report for sight in sights if sight.report and sight.silent < silent_after]
    waiting = [report for report in alive if report.waiting]
    if not waiting:
        return None, []
    earliest = min(report.arrivals for report in waiting)
    # A rank that has left it, as the sender of a broadcast may before others come, is not what they wait for.
    present = {report.rank for report in alive if report.arrivals >= earliest}
    first = max((report for report in waiting if report.arrivals == earliest), key=lambda report: report.seconds)
    return first, [rank for rank in range(len(sights)) if rank not in present]


def describe(sights: list[Sight], silent_after: float, timeout: float, host_of_all: str = "") -> str:
    """The message about ranks of which one waits too long.

    Args:
        host_of_all: the host of all ranks, where that is known before they have come.
    """
    waiter, missing = find_missing(sights, silent_after)
    assert waiter is not None
    what = _describe_waiter(waiter, len(sights), timeout)
    if missing:
        lines = [f"{what}. Not arrived:"]
        lines += [f"    {_describe_missing(rank, sights[rank], silent_after, host_of_all)}" for rank in missing]
    else:
        lines = [f"{what}, although no rank is missing. Either MPI hangs, or ranks are in different collectives:"]
        lines += [
            f"    rank {sight.report.rank} on {sight.report.host}: {sight.report.doing()}"
            for sight in sights
            if sight.report
        ]
    return "\n".join([*lines, _HINT])


_HINT = "All ranks end here. With a larger --timeout they wait longer, with 0 for ever."


def _describe_waiter(report: Report, size: int, timeout: float) -> str:
    return (
        f"rank {report.rank} of {size}, on {report.host}, has waited {_seconds(report.seconds)} in {report.waiting} "
        f"(collective {report.arrivals}) after {report.activity}, longer than --timeout {timeout:g}"
    )


def _describe_missing(rank: int, sight: Sight, silent_after: float, host_of_all: str) -> str:
    report = sight.report
    if report is None:
        where = f" on {host_of_all}" if host_of_all else ""
        return f"rank {rank}{where}: has not come since the start, so what it does is not known"
    who = f"rank {rank} on {report.host}"
    if not sight.heard:
        return f"{who}: none of its reports has arrived (UDP), so what it does is not known"
    if sight.silent >= silent_after:
        return f"{who}: has not been heard from for {_seconds(sight.silent)}; it was last {report.doing()}"
    return f"{who}: {report.doing()}, for {_seconds(report.seconds)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


class _Lookout(ABC):
    """The thread of one rank: looks what the main thread does, and talks about it."""

    def __init__(self, comm: Communicator, timeout: float) -> None:
        self.comm, self.rank, self.size, self.timeout = comm, comm.rank, comm.size, timeout
        # Rank 0 reads 100 reports in one go at most, which fit into a socket, and on many ranks seldom enough not to be
        # slowed by it.
        self.interval = min(timeout / _LOOKS, _LONGEST_INTERVAL + comm.size / 100)
        self.pause = self.interval / (1 + comm.size // 100 if comm.rank == 0 else 1)
        self.silent_after = max(4 * self.interval, 1.0)
        self.now = 0.0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", 0))
        self.socket.setblocking(False)
        self._clock = time.monotonic()
        self._state, self._since = (-1, ""), 0.0
        self._launcher = os.getppid()
        self._main_thread = threading.get_ident()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._live, name="parallelcnn watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """End the thread."""
        self._leave.set()
        self._thread.join()
        self.socket.close()

    @abstractmethod
    def look(self) -> None:
        """What there is to do once in every pause."""

    def _live(self) -> None:
        while not self._leave.wait(self.pause):
            read = time.monotonic()
            # A job that is suspended and goes on later, as SLURM does to make room, has not waited in between.
            self.now += min(read - self._clock, max(2 * self.pause, min(1.0, self.timeout / 4)))
            self._clock = read
            # With --with-ft ulfm, Open MPI's mpirun may leave behind a rank that does not come back to MPI.
            if os.getppid() != self._launcher:
                self.end_all(f"rank {self.rank} of {self.size}, on {this_host()}: what started the ranks is gone")
            self.look()

    def own_report(self) -> Report:
        comm = self.comm
        activity, arrivals, waiting = comm.activity, comm.arrivals, comm.waiting
        if (arrivals, waiting) != self._state:
            self._state, self._since = (arrivals, waiting), self.now
        if not isinstance(activity, str):
            label, *numbers = activity
            activity = str(label).format(*numbers)
        place = _place(self._main_thread)[:_LONGEST_TEXT]
        seconds = self.now - self._since
        return Report(self.rank, this_host(), activity[:_LONGEST_TEXT], place, arrivals, waiting, seconds)

    def received(self) -> Iterator[tuple[bytes, Any]]:
        """The datagrams that have come, each with its sender's address."""
        for _ in range(10 * self.size):  # nobody who floods us keeps us from looking
            try:
                yield self.socket.recvfrom(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # told here of an earlier datagram that found nobody
                continue

    def send(self, datagram: bytes, address: Any) -> None:
        with contextlib.suppress(OSError):  # a network that is down now may be up the next time
            self.socket.sendto(datagram, address)

    def end_all(self, message: str) -> None:
        """Say it and end the job, whatever the main thread holds or hangs in."""
        # From a thread that needs no interpreter lock.
        faulthandler.dump_traceback_later(_SECONDS_TO_END, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody listens any more
            print(f"parallelcnn: {message}", file=sys.stderr, flush=True)
        self.comm.abort(1)
        self._leave.set()


@dataclass(frozen=True)
class Contact:
    """How rank 0 is reached.

    Attributes:
        machine: what it calls itself, to those who may be the same.
        host: its name in messages.
        addresses: all of the machine's; which of them others reach, they try.
        token: known to the ranks of this job alone.
    """

    machine: str
    host: str
    addresses: list[str]
    port: int
    token: str


class _Judge(_Lookout):
    """Rank 0's thread: hears what all ranks do, and ends the job when one waits too long."""

    def __init__(self, comm: Communicator, timeout: float) -> None:
        super().__init__(comm, timeout)
        self.token = os.urandom(16).hex()
        self._sights = [Sight() for _ in range(comm.size)]
        self._heard_at = [0.0] * comm.size
        self._too_long_since: float | None = None

    def came(self, rank: int, report: Report) -> None:
        """Rank `rank` has come to the roll call."""
        self._heard_at[rank] = self.now
        self._sights[rank].report = report

    def contact(self) -> Contact:
        port = self.socket.getsockname()[1]
        return Contact(socket.gethostname(), this_host(), _interface_addresses(self.socket), port, self.token)

    def look(self) -> None:
        own = self.own_report()
        self._hear(own)
        for datagram, sender in self.received():
            report = Report.read(datagram, self.token, self.size)
            if report is not None and report.rank != 0:
                self._hear(report)
                self.send(own.datagram(self.token), sender)
        for sight, heard_at in zip(self._sights, self._heard_at, strict=True):
            sight.silent = self.now - heard_at
        if not any(self._waits_too_long(sight) for sight in self._sights):
            self._too_long_since = None
        elif self._too_long_since is None:
            self._too_long_since = self.now
        elif self.now - self._too_long_since >= self.interval:  # by now everybody has told what it does
            self.end_all(describe(self._sights, self.silent_after, self.timeout, _host_of_all()))

    def _hear(self, report: Report) -> None:
        self._heard_at[report.rank] = self.now
        self._sights[report.rank].report = report
        self._sights[report.rank].heard = True

    def _waits_too_long(self, sight: Sight) -> bool:
        report = sight.report
        return (
            report is not None
            and report.waiting != ""
            and report.seconds > self.timeout
            and sight.silent < self.silent_after
        )


class _Witness(_Lookout):
    """Another rank's thread: tells rank 0 what it does, and ends the job if rank 0 does not."""

    def __init__(self, comm: Communicator, timeout: float) -> None:
        super().__init__(comm, timeout)
        # Rank 0 comes to its verdict within four intervals. Of the others one speaks, and ends the rest before they do.
        self._patience = timeout + max(4 * self.interval, 2.0) + 0.5 * comm.rank
        self._token = ""
        self._addresses: list[tuple[str, int]] = []
        self._judge_host = _host_of_all()
        self._last_from_judge: Report | None = None
        self._heard_at = 0.0

    def meet_judge(self, contact: Contact) -> None:
        """Rank 0 has come."""
        others = [address for address in contact.addresses if address != _HERE]
        addresses = [_HERE, *others] if contact.machine == socket.gethostname() else others
        self._heard_at = self.now
        self._judge_host = contact.host
        self._addresses = [(address, contact.port) for address in addresses]
        self._token = contact.token

    def look(self) -> None:
        own = self.own_report()
        for datagram, sender in self.received():
            report = Report.read(datagram, self._token, self.size) if self._token else None
            if report is not None and report.rank == 0:
                self._last_from_judge, self._heard_at = report, self.now
                self._addresses = [sender]  # that one works
        for address in self._addresses:
            self.send(own.datagram(self._token), address)
        if own.waiting and own.seconds > self._patience:
            self.end_all(self._message(own))

    def _message(self, own: Report) -> str:
        sight = Sight(self._last_from_judge, self._last_from_judge is not None, self.now - self._heard_at)
        if not self._token:
            judge = _describe_missing(0, Sight(), self.silent_after, self._judge_host)
        elif sight.report is None:
            judge = f"rank 0 on {self._judge_host}: no answer of it has arrived (UDP), so what it does is not known"
        else:
            judge = _describe_missing(0, sight, self.silent_after, self._judge_host)
        waiter = _describe_waiter(own, self.size, self.timeout)
        return f"{waiter}. Rank 0, which would say for whom, does not:\n    {judge}\n{_HINT}"


def _place(thread: int) -> str:
    """The line of Python that a thread is at."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"


def _host_of_all() -> str:
    """This rank's host if the launcher says that all of its ranks are on it, otherwise ""."""
    for here, all_ranks in (("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"), ("MPI_LOCALNRANKS", "PMI_SIZE")):
        if here in os.environ and os.environ[here] == os.environ.get(all_ranks):
            return this_host()
    return ""


def _interface_addresses(any_socket: socket.socket) -> list[str]:
    """This machine's IPv4 addresses. Its name may not be known to others, or mean 127.0.1.1 to itself."""
    addresses = []
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # an interface without one
            answer = fcntl.ioctl(any_socket, _GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()[:15]))
            addresses.append(socket.inet_ntoa(answer[20:24]))
    return addresses or [_HERE]
