"""Watchdog: if a rank waits too long for others, a message names the missing ranks, and the job ends.

A collective ends when the last rank has entered it. If a rank never does (it computes for ever, reads from a dead file
server, was stopped, or its machine is gone), MPI lets the others wait without a message. So every rank has a thread
that regularly reads three attributes of the transport, which the main thread only assigns: its status, the number of
collectives it has entered, and the name of the current one. The threads do not use MPI, which may hang. They send
datagrams to rank 0, whose thread knows the state of all ranks, prints the message and ends the job. If rank 0 itself is
stopped or gone, the other ranks notice it and end themselves.
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

from parallelcnn.comm import this_host
from parallelcnn.errors import InputError
from parallelcnn.resilience.handshake import handshake

DEFAULT_TIMEOUT = 300.0  # [s]

_LOOKS = 20  # per timeout
_LONGEST_INTERVAL = 5.0  # [s]
_LARGEST_DATAGRAM = 8192  # bytes
_LONGEST_TEXT = 300  # characters
_SECONDS_TO_END = 4.0  # for printing and MPI's Abort, which may both hang [s]
_HERE = "127.0.0.1"
_GET_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def check_timeout(seconds: object) -> None:
    """Raise InputError unless `seconds` is a valid timeout."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise InputError(
            f"timeout must be a number of seconds of at least 0, where 0 lets ranks wait for ever, got {seconds!r}"
        ).together()


class Watchdog:
    """Ends the job, with a message on stderr and exit code 1, if a rank waits too long in a collective.

    Use it as `with Watchdog(comm, seconds): ...` around code that communicates. It does nothing with a single rank, or
    inside another watchdog of the same transport. Entering it is collective and already watched: the message names
    ranks that never enter.

    Args:
        timeout_seconds: how long a rank may wait [s], the same on every rank; 0: no limit.

    Raises:
        InputError: see `check_timeout`.
    """

    def __init__(self, comm: Any, timeout_seconds: float = DEFAULT_TIMEOUT) -> None:
        check_timeout(timeout_seconds)
        self._comm, self._timeout = comm, timeout_seconds
        self._observer: _Observer | None = None

    def __enter__(self) -> Self:
        if self._comm.watchdog is None:
            self._comm.watchdog = self
            try:
                self._begin()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._comm.watchdog is self:
            self._comm.watchdog = None
            self._end()

    def restart(self) -> None:
        """Restart with the current ranks of `comm`: after a loss another process may be rank 0.

        Collective: every remaining rank must call it.
        """
        watchdog = self._comm.watchdog or self
        watchdog._end()
        watchdog._begin()

    def _begin(self) -> None:
        comm = self._comm
        if comm.size == 1 or self._timeout == 0:
            return
        if comm.rank == 0:
            rank_0 = _RankZero(comm, self._timeout)
            self._observer = rank_0
            rank_0.start()
            handshake(comm, rank_0.contact(), rank_0.came)
        else:
            other = _OtherRank(comm, self._timeout)
            self._observer = other
            other.start()
            other.meet_rank_0(handshake(comm, other.own_report(), lambda *_: None))

    def _end(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()


@dataclass(frozen=True)
class Report:
    """The state of a rank, as its watchdog thread reports it.

    Attributes:
        status: see `Transport`.
        place: the line that the main thread is executing.
        arrivals: number of collectives that the rank has entered.
        waiting: the name of the current collective, or "".
        seconds: time since `arrivals` and `waiting` last changed [s].
    """

    rank: int
    host: str
    status: str
    place: str
    arrivals: int
    waiting: str
    seconds: float

    def datagram(self, token: str) -> bytes:
        return json.dumps({"token": token, **asdict(self)}).encode()

    @staticmethod
    def read(datagram: bytes, token: str, size: int) -> "Report | None":
        """Read the report in a datagram; None if no rank of this job sent it: any program can send to a socket."""
        if token.encode() not in datagram:
            return None
        try:
            fields = json.loads(datagram)
            if fields.pop("token") != token:
                return None
            report = Report(**fields)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None
        texts = (report.host, report.status, report.place, report.waiting)
        well_formed = (
            all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts)
            and all(type(number) is int and number >= 0 for number in (report.rank, report.arrivals))
            and report.rank < size
            and type(report.seconds) in (int, float)
            and 0 <= report.seconds < math.inf
        )
        return report if well_formed else None

    def doing(self) -> str:
        """Describe what the rank is doing, between collectives or in one."""
        if self.waiting:
            return f"waiting in {self.waiting} (collective {self.arrivals}) after {self.status}"
        return f"{self.status}, at {self.place}" if self.place else self.status


@dataclass
class RankView:
    """Rank 0's knowledge of a rank.

    Attributes:
        report: the rank's last report; None before the handshake.
        heard: whether a datagram from the rank has arrived.
        silent: time since the last datagram [s].
    """

    report: Report | None = None
    heard: bool = False
    silent: float = 0.0


def find_missing(views: list[RankView], silent_after: float) -> tuple[Report | None, list[int]]:
    """Find the earliest collective in which a rank waits, and the ranks that have not entered it.

    A rank that has sent no datagram for `silent_after` [s] is missing, whatever it reported.

    Returns:
        the report of the rank that has waited longest there, or None if no rank waits; and the missing ranks.
    """
    alive = [view.report for view in views if view.report and view.silent < silent_after]
    waiting = [report for report in alive if report.waiting]
    if not waiting:
        return None, []
    earliest = min(report.arrivals for report in waiting)
    # A rank that has left the collective is not missing: the sender of a broadcast may leave before others enter.
    present = {report.rank for report in alive if report.arrivals >= earliest}
    first = max((report for report in waiting if report.arrivals == earliest), key=lambda report: report.seconds)
    return first, [rank for rank in range(len(views)) if rank not in present]


def describe(views: list[RankView], silent_after: float, timeout: float, host_of_all: str = "") -> str:
    """The message if a rank waits too long: which ranks wait, and which are missing.

    Args:
        host_of_all: the host of all ranks, if it is known before the handshake.
    """
    waiter, missing = find_missing(views, silent_after)
    assert waiter is not None
    what = _describe_waiter(waiter, len(views), timeout)
    if missing:
        lines = [f"{what}. Not arrived:"]
        lines += [f"    {_describe_missing(rank, views[rank], silent_after, host_of_all)}" for rank in missing]
    else:
        lines = [f"{what}, although no rank is missing. Either MPI hangs, or ranks are in different collectives:"]
        lines += [
            f"    rank {view.report.rank} on {view.report.host}: {view.report.doing()}" for view in views if view.report
        ]
    return "\n".join([*lines, _HINT])


_HINT = "All ranks end here. With a larger --timeout they wait longer, with 0 for ever."


def _describe_waiter(report: Report, size: int, timeout: float) -> str:
    return (
        f"rank {report.rank} of {size}, on {report.host}, has waited {_seconds(report.seconds)} in {report.waiting} "
        f"(collective {report.arrivals}) after {report.status}, longer than --timeout {timeout:g}"
    )


def _describe_missing(rank: int, view: RankView, silent_after: float, host_of_all: str) -> str:
    report = view.report
    if report is None:
        where = f" on {host_of_all}" if host_of_all else ""
        return f"rank {rank}{where}: has not come since the start, so what it does is not known"
    who = f"rank {rank} on {report.host}"
    if not view.heard:
        return f"{who}: none of its reports has arrived (UDP), so what it does is not known"
    if view.silent >= silent_after:
        return f"{who}: has not been heard from for {_seconds(view.silent)}; it was last {report.doing()}"
    return f"{who}: {report.doing()}, for {_seconds(report.seconds)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


class _Observer(ABC):
    """The watchdog thread of one rank: reads the state of the main thread and reports it."""

    def __init__(self, comm: Any, timeout: float) -> None:
        self.comm, self.rank, self.size, self.timeout = comm, comm.rank, comm.size, timeout
        # Rank 0 reads at most 100 reports at once, which fit into a socket's buffer. With many ranks it reads rarely
        # enough not to slow down training.
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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="parallelcnn watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
        self.socket.close()

    @abstractmethod
    def look(self) -> None:
        """Read and send reports; called once per pause."""

    def _live(self) -> None:
        while not self._stop.wait(self.pause):
            read = time.monotonic()
            # Do not count the time in which the job was suspended, as SLURM does to make room.
            self.now += min(read - self._clock, max(2 * self.pause, min(1.0, self.timeout / 4)))
            self._clock = read
            # With --with-ft ulfm, Open MPI's mpirun may leave a rank behind that does not return to MPI.
            if os.getppid() != self._launcher:
                self.end_all(f"rank {self.rank} of {self.size}, on {this_host()}: what started the ranks is gone")
            self.look()

    def own_report(self) -> Report:
        comm = self.comm
        status, arrivals, waiting = comm.status, comm.arrivals, comm.waiting
        if (arrivals, waiting) != self._state:
            self._state, self._since = (arrivals, waiting), self.now
        if not isinstance(status, str):
            label, *numbers = status
            status = str(label).format(*numbers)
        place = _place(self._main_thread)[:_LONGEST_TEXT]
        seconds = self.now - self._since
        return Report(self.rank, this_host(), status[:_LONGEST_TEXT], place, arrivals, waiting, seconds)

    def received(self) -> Iterator[tuple[bytes, Any]]:
        """The datagrams that have arrived, each with its sender's address."""
        for _ in range(10 * self.size):  # limited, so that a flood of datagrams does not keep this thread busy
            try:
                yield self.socket.recvfrom(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # an earlier datagram had no receiver
                continue

    def send(self, datagram: bytes, address: Any) -> None:
        with contextlib.suppress(OSError):  # the network may work again next time
            self.socket.sendto(datagram, address)

    def end_all(self, message: str) -> None:
        """Print the message and end the job, even if the main thread hangs or holds a lock."""
        # The thread of faulthandler needs no interpreter lock.
        faulthandler.dump_traceback_later(_SECONDS_TO_END, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed
            print(f"parallelcnn: {message}", file=sys.stderr, flush=True)
        self.comm.abort(1)
        self._stop.set()


@dataclass(frozen=True)
class Contact:
    """How to reach rank 0.

    Attributes:
        machine: the machine's own name, by which ranks know that they are on the same machine.
        host: the machine's name in messages.
        addresses: all addresses of the machine. The other ranks try them all.
        token: a secret of this job.
    """

    machine: str
    host: str
    addresses: list[str]
    port: int
    token: str


class _RankZero(_Observer):
    """Rank 0's thread: receives the reports of all ranks, and ends the job if one waits too long."""

    def __init__(self, comm: Any, timeout: float) -> None:
        super().__init__(comm, timeout)
        self.token = os.urandom(16).hex()
        self._views = [RankView() for _ in range(comm.size)]
        self._heard_at = [0.0] * comm.size
        self._too_long_since: float | None = None

    def came(self, rank: int, report: Report) -> None:
        """Note that `rank` has come to the handshake."""
        self._heard_at[rank] = self.now
        self._views[rank].report = report

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
        for view, heard_at in zip(self._views, self._heard_at, strict=True):
            view.silent = self.now - heard_at
        if not any(self._waits_too_long(view) for view in self._views):
            self._too_long_since = None
        elif self._too_long_since is None:
            self._too_long_since = self.now
        elif self.now - self._too_long_since >= self.interval:  # by now all ranks have reported
            self.end_all(describe(self._views, self.silent_after, self.timeout, _host_of_all()))

    def _hear(self, report: Report) -> None:
        self._heard_at[report.rank] = self.now
        self._views[report.rank].report = report
        self._views[report.rank].heard = True

    def _waits_too_long(self, view: RankView) -> bool:
        report = view.report
        return (
            report is not None
            and report.waiting != ""
            and report.seconds > self.timeout
            and view.silent < self.silent_after
        )


class _OtherRank(_Observer):
    """The thread of any other rank: reports to rank 0, and ends the job if rank 0 does not."""

    def __init__(self, comm: Any, timeout: float) -> None:
        super().__init__(comm, timeout)
        # Rank 0 decides within four intervals. If it does not, the first other rank prints and ends the rest.
        self._patience = timeout + max(4 * self.interval, 2.0) + 0.5 * comm.rank
        self._token = ""
        self._addresses: list[tuple[str, int]] = []
        self._host_of_0 = _host_of_all()
        self._last_from_0: Report | None = None
        self._heard_at = 0.0

    def meet_rank_0(self, contact: Contact) -> None:
        """Note how to reach rank 0, which has come to the handshake."""
        others = [address for address in contact.addresses if address != _HERE]
        addresses = [_HERE, *others] if contact.machine == socket.gethostname() else others
        self._heard_at = self.now
        self._host_of_0 = contact.host
        self._addresses = [(address, contact.port) for address in addresses]
        self._token = contact.token

    def look(self) -> None:
        own = self.own_report()
        for datagram, sender in self.received():
            report = Report.read(datagram, self._token, self.size) if self._token else None
            if report is not None and report.rank == 0:
                self._last_from_0, self._heard_at = report, self.now
                self._addresses = [sender]  # this address works
        for address in self._addresses:
            self.send(own.datagram(self._token), address)
        if own.waiting and own.seconds > self._patience:
            self.end_all(self._message(own))

    def _message(self, own: Report) -> str:
        view = RankView(self._last_from_0, self._last_from_0 is not None, self.now - self._heard_at)
        if not self._token:
            rank_0 = _describe_missing(0, RankView(), self.silent_after, self._host_of_0)
        elif view.report is None:
            rank_0 = f"rank 0 on {self._host_of_0}: no answer of it has arrived (UDP), so what it does is not known"
        else:
            rank_0 = _describe_missing(0, view, self.silent_after, self._host_of_0)
        waiter = _describe_waiter(own, self.size, self.timeout)
        return f"{waiter}. Rank 0, which would say for whom, does not:\n    {rank_0}\n{_HINT}"


def _place(thread: int) -> str:
    """The line of Python that a thread is executing."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"


def _host_of_all() -> str:
    """This rank's host if the launcher says that all ranks are on it, otherwise ""."""
    for here, all_ranks in (("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"), ("MPI_LOCALNRANKS", "PMI_SIZE")):
        if here in os.environ and os.environ[here] == os.environ.get(all_ranks):
            return this_host()
    return ""


def _interface_addresses(any_socket: socket.socket) -> list[str]:
    """This machine's IPv4 addresses. Other machines may not know its name, and on itself it may mean 127.0.1.1."""
    addresses = []
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # an interface without an address
            answer = fcntl.ioctl(any_socket, _GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()[:15]))
            addresses.append(socket.inet_ntoa(answer[20:24]))
    return addresses or [_HERE]
