"""Several hosts on one Linux machine: a network namespace for each, and a network of known latency and rate.

Each host has a network and a UTS namespace (a host name of its own), and one network device, a TUN device. What a host
sends is read by a thread of this process, which delivers it to the receiving host when the emulated network would
have: the frames leave one after the other at the rate of the link, and arrive one latency later. The threads do the
work that `tc` with netem does in the kernel, since many kernels of virtual machines lack netem.

MPI starts its ranks through `on_host.sh` instead of ssh. Ranks on different hosts share no memory: MPI uses TCP.
"""

import contextlib
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numba import njit
from processes import ProgramFailed, environment, mpirun

AGENT = Path(__file__).with_name("on_host.sh")
_SUBNET = "10.77.0"
_HEADER = 10  # bytes of virtio's header before each packet, which lets packets of 64 KB pass, as a network card does
_FRAME = 38  # bytes of Ethernet around an IP packet, with preamble and gap between frames
_LONGEST = 70_000  # bytes of a packet with its header
_QUEUE_BYTES, _QUEUE_PACKETS = 1 << 22, 1024  # on their way from one host
# A thread that sleeps wakes up 20 to 80 us late in a virtual machine, so it polls for the last part of a wait.
_POLL = 60_000  # ns
_PRIORITY = 10
# Reno is the one congestion control that every namespace may choose. Without losses, cubic sends as it does.
_PRIVATE = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv4.tcp_congestion_control=reno")


def _function(name: str, arguments: int) -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    function = getattr(ctypes.CDLL(None), name)
    function.argtypes, function.restype = [ctypes.c_ssize_t] * arguments, ctypes.c_ssize_t
    return function


_read, _write = _function("read", 3), _function("write", 3)
_ppoll, _clock_gettime = _function("ppoll", 4), _function("clock_gettime", 2)


def why_impossible() -> str:
    """Why hosts cannot be emulated here; "" if they can."""
    if os.geteuid() != 0:
        return "root is needed to make network namespaces"
    missing = [program for program in ("ip", "sysctl", "taskset", "unshare") if shutil.which(program) is None]
    if missing:
        return f"the program {missing[0]} is needed (Debian: iproute2, procps, util-linux)"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened: {error.strerror}"
    name = f"pcnhosts-{os.getpid()}-try"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return f"ip netns cannot make a network namespace: {made.stderr.strip()}" if made.returncode != 0 else ""


class EmulatedHosts:
    """Some hosts with one switch between them. Use it in a `with` statement, which removes everything at its end.

    Args:
        hosts: their number.
        cores: host i and the network behind it use the core cores[i % len(cores)].

    Attributes:
        settings: a file of two float64, the rate [bytes/ns] and the latency [ns] that the network adds to what the
            machine itself needs. Write to it to change the network; see `set_network`.
    """

    def __init__(self, hosts: int, cores: Sequence[int]) -> None:
        self.hosts, self._cores = hosts, cores
        self._prefix = f"pcnhosts-{os.getpid()}"
        self._stop = np.zeros(1, np.int64)
        self._threads: list[threading.Thread] = []
        self._devices: list[int] = []
        self._made: list[str] = []

    def __enter__(self) -> "EmulatedHosts":
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove)
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=f"{self._prefix}-")))
            self.settings = folder / "network"
            self._numbers = network_settings(self.settings)
            # Compile while there is nothing to remove: an interrupt may be lost while LLVM compiles.
            _deliver(
                0,
                np.zeros(1, np.int64),
                self._numbers,
                np.ones(1, np.int64),
                np.zeros(1, np.int64),
                np.zeros(1, np.uint8),
            )
            for number in range(1, self.hosts + 1):
                self._make(number)
            self._start_network()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def run(self, command: Sequence[str], limit: float = 600) -> str:
        """Run a command on one rank on every host, and return what it prints.

        Raises:
            ProgramFailed: if its exit code is not 0, or it takes longer than the limit [s].
        """
        addresses = [f"{_SUBNET}.{number}" for number in range(1, self.hosts + 1)]
        started = [str(AGENT), addresses[0], shlex.join([*launch_options(addresses, self._device(1)), *command])]
        variables = environment(
            PARALLELCNN_HOSTS=self._prefix, PATH=os.environ["PATH"], **_MPICH_VARIABLES, OPENBLAS_NUM_THREADS="1"
        )
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                started,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
            try:
                code: int | str = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = f"none within {limit:g} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            printed = output.read()
        if code != 0:
            raise ProgramFailed(f"{started[-1]}: exit code {code}\n{printed[-6000:]}")
        return printed

    def _device(self, number: int) -> str:
        return f"pcn{os.getpid()}-{number}"

    def _make(self, number: int) -> None:
        """Make the namespace of a host, with its device; number: from 1."""
        namespace, device = f"{self._prefix}-{number}", self._device(number)
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._devices.append(file)
        flags = 0x1 | 0x1000 | 0x4000  # IFF_TUN, IFF_NO_PI, IFF_VNET_HDR
        fcntl.ioctl(file, 0x400454CA, struct.pack("16sH14x", device.encode(), flags))  # TUNSETIFF
        fcntl.ioctl(file, 0x400454D0, 1 | 2 | 4 | 8)  # TUNSETOFFLOAD: no checksums, TCP in large packets
        _ip("link", "set", device, "netns", namespace)
        inside = ["ip", "netns", "exec", namespace]
        subprocess.run([*inside, "sysctl", "-qw", *_PRIVATE], check=True)
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{_SUBNET}.{number}/24", "dev", device)
        _ip("-n", namespace, "link", "set", device, "up")

    def _start_network(self) -> None:
        devices, free = np.array(self._devices), np.zeros(self.hosts, np.int64)

        def run(host: int) -> None:
            os.sched_setaffinity(0, {self._cores[host % len(self._cores)]})  # of this thread alone
            # Before the ranks, which poll while they wait: a network does not wait for a processor.
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
            _deliver(host, devices, self._numbers, self._stop, free, np.zeros(_QUEUE_BYTES, np.uint8))

        self._threads = [threading.Thread(target=run, args=(host,), daemon=True) for host in range(self.hosts)]
        for thread in self._threads:
            thread.start()

    def _remove(self) -> None:
        """End what runs on the hosts, and remove them."""
        for namespace in self._made:
            for _ in range(100):
                found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
                for process in found.split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                if not found.split():
                    break
                time.sleep(0.05)
        self._stop[0] = 1
        for thread in self._threads:
            thread.join()
        for namespace in self._made:
            subprocess.run(["ip", "netns", "delete", namespace])
        for file in self._devices:
            os.close(file)  # which removes the device
        self._threads, self._made, self._devices = [], [], []


# UCX, and libfabric, find shared memory where the host names differ: only TCP is allowed. If this program is stopped
# for a while (SIGSTOP), UCX must not take the silent network for broken: MPICH then crashes, or hangs.
_MPICH_VARIABLES = {
    "UCX_TLS": "tcp,self",
    "UCX_TCP_KEEPIDLE": "inf",
    "UCX_KEEPALIVE_INTERVAL": "inf",
    "FI_PROVIDER": "tcp",
}


def launch_options(addresses: Sequence[str], device: str) -> list[str]:
    """The launcher with the options that start one rank on each of these hosts; it runs on the first one."""
    launcher = mpirun()
    printed = subprocess.run([launcher, "--version"], capture_output=True, text=True, env=environment()).stdout
    if "Open MPI" not in printed:
        hosts = ["-hosts", ",".join(addresses), "-ppn", "1", "-n", str(len(addresses))]
        return [launcher, "-launcher", "ssh", "-launcher-exec", str(AGENT), "-localhost", addresses[0], *hosts]
    network = ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", f"{_SUBNET}.0/24"]
    agent = ["--prtemca", "plm_ssh_agent", str(AGENT), "--prtemca", "prte_if_include", f"{_SUBNET}.0/24"]
    hosts = ["--host", ",".join(f"{address}:1" for address in addresses), "-n", str(len(addresses))]
    return [launcher, "--allow-run-as-root", "--bind-to", "none", *agent, *network, *hosts]


def network_settings(file: Path) -> np.ndarray:
    """The two numbers of `EmulatedHosts.settings`, shared by all processes that open the file."""
    if not file.exists():
        np.array([1.25, 0.0]).tofile(file)
    return np.asarray(np.memmap(file, np.float64, "r+"))


def set_network(settings: np.ndarray, latency: float, gigabits: float) -> None:
    """Set the latency that the network adds [s], and the rate of each link [Gb/s]."""
    settings[:] = gigabits / 8, max(latency * 1e9, 0)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A context that SIGTERM and SIGHUP leave as Ctrl-C does, so that everything is removed."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@njit(nogil=True)
def _now(moment):
    _clock_gettime(1, moment.ctypes.data)
    return moment[0] * 1_000_000_000 + moment[1]


@njit(nogil=True)
def _deliver(host, devices, settings, stop, free, queue):
    """Deliver what a host sends, until stop[0] is not 0.

    Args:
        devices: (hosts,), the file of each host's device.
        free: (hosts,), when the link from the switch to each host will be free [ns].
        queue: bytes for the packets on their way.
    """
    moment, longest, waiting = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(1, np.int64)
    waiting[0] = devices[host] | (1 << 32)  # struct pollfd: file, and POLLIN
    starts, lengths, receivers, due = np.zeros((4, _QUEUE_PACKETS), np.int64)
    first, packets, end, own_free = 0, 0, 0, 0
    memory = queue.ctypes.data
    while stop[0] == 0:
        now = _now(moment)
        while packets > 0 and due[first] <= now:
            _write(devices[receivers[first]], memory + starts[first], lengths[first])
            first, packets = (first + 1) % _QUEUE_PACKETS, packets - 1
            now = _now(moment)
        if packets < _QUEUE_PACKETS:
            in_order = packets == 0 or starts[first] < end  # otherwise the newest packets are at the queue's beginning
            if in_order and end + _LONGEST > len(queue) and (packets == 0 or starts[first] >= _LONGEST):
                end, in_order = 0, packets == 0
            ahead = len(queue) - end if in_order else starts[first] - end
            size = _read(devices[host], memory + end, _LONGEST) if ahead >= _LONGEST else -1
            if size > 0:
                packet = queue[end : end + size]
                receiver = np.int64(packet[_HEADER + 19]) - 1  # the last byte of the address
                if packet[_HEADER] >> 4 == 4 and 0 <= receiver < len(devices):
                    # TCP hands over up to 64 KB, which a network card sends as frames, each with its own headers.
                    body = size - _HEADER
                    frames, headers = 1, 0
                    if packet[1] != 0:
                        headers = packet[2] + 256 * packet[3]
                        payload = packet[4] + 256 * packet[5]
                        frames = (body - headers + payload - 1) // payload
                    duration = np.int64((body + (frames - 1) * headers + frames * _FRAME) / settings[0])
                    own_free = free[receiver] = max(now, own_free, free[receiver]) + duration
                    place = (first + packets) % _QUEUE_PACKETS
                    starts[place], lengths[place], receivers[place] = end, size, receiver
                    due[place] = own_free + np.int64(settings[1])
                    end += (size + 63) // 64 * 64
                    packets += 1
                continue
        wait = due[first] - now - _POLL if packets > 0 else 100_000_000
        if wait > 0:
            longest[1] = min(wait, 100_000_000)
            _ppoll(waiting.ctypes.data, 1, longest.ctypes.data, 0)
