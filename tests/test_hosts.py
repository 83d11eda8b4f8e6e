"""hosts.py: what follows from the times, the emulated network, and a small run across two emulated hosts."""

import argparse
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import emulated_hosts
import hosts
import launch
import numpy as np
import pytest
from conftest import BENCHMARKS

LINKS = [hosts.Link(25e-6, 10.0), hosts.Link(1e-4, 1.0)]


@pytest.fixture
def options(monkeypatch):
    """The options of hosts.py, by its command line."""

    def read(*words):
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "hosts.py"), *words])
        return hosts._options()

    return read


def test_a_further_host_pays_off_as_soon_as_it_saves_more_than_its_allreduce_takes():
    times = {n: n * 1e-3 for n in (1, 10, 100)}
    assert hosts.first_that_pays(times, (1, 0.0), (2, 10e-3)) == 21  # half of 20 ms are 10 ms: no gain yet
    assert hosts.first_that_pays(times, (1, 0.0), (2, 100e-3)) == 201  # beyond what was measured
    assert hosts.first_that_pays(times, (2, 10e-3), (4, 20e-3)) == 41
    assert hosts.first_that_pays(times, (1, 0.0), (4, 0.0)) == 4
    assert hosts.first_that_pays(dict.fromkeys(times, 1e-3), (1, 0.0), (2, 1e-3)) is None


def test_many_short_steps_are_computed_for_an_allreduce_and_one_long_one():
    assert [hosts.period(seconds) for seconds in (1e-4, 0.03, 0.1, 7.0)] == [40, 4, 1, 1]


def test_a_link_has_a_latency_and_a_rate():
    assert hosts.link("100us-2.5Gb/s") == hosts.Link(pytest.approx(1e-4), 2.5)
    for text in ("100us", "10Gb/s", "us-Gb/s", "0us-1Gb/s", "1us-nanGb/s"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a latency and a rate such as 25us-10Gb/s, got"):
            hosts.link(text)


def a_round(options, noise=1.0):
    """As measured with 1 ms for a sample on one core, and an Allreduce that takes a ms for each host."""
    found = {}
    for name, case in hosts.compute_cases(options).items():
        found[name] = 1e-3 * case["batch_size"] / case["hosts"]
    for number in options.hosts:
        for name, case in hosts.network_cases(options, number, found).items():
            found[name] = {
                "latency": lambda _: {"latency": 25e-6, "rate": 9.5},
                "allreduce": lambda case, number=number: noise * number * 1e-3 * case["part"],
                "step": lambda case, number=number: 1.25 * (1e-3 * case["batch_size"] / number + noise * number * 1e-3),
                "overlap": lambda _: {"after": 20e-3, "meanwhile": 19e-3, "none": 18e-3},
            }[case["kind"]](case)
    return found


def rows_of(page, section):
    part = page.partition(f"## {section}")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in part.splitlines() if row.startswith("| ")][
        2:
    ]


def test_the_page_says_what_is_measured_and_what_is_composed(options, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    asked = options("--networks", "paper", "--batch-sizes", "8", "40")
    rounds = [a_round(asked, noise) for noise in (1.0, 1.0, 2.0)]
    page = hosts.page(asked, rounds, {"mpi": "MPI 1"})
    strong = rows_of(page, "Strong scaling")
    assert [row[:4] for row in strong[:4]] == [["25 us, 10 Gb/s", "paper", p, n] for p in "24" for n in ("8", "40")]
    assert strong[1][4:] == [
        "40.0 (40.0 to 40.0)",
        "27.5 (27.5 to 30.0) [1.45]",
        "7 %",
        "0.80",
        "27.5 (27.5 to 30.0) [1.45]",
    ]
    assert strong[3][5].startswith("17.5 ")
    assert strong[3][8] == ""  # four hosts on two cores are not measured directly
    assert [row[3:5] for row in rows_of(page, "Weak scaling")[:2]] == [[n, "100 (100 to 100)"] for n in ("200", "400")]
    assert rows_of(page, "When a further host pays off")[0][3:] == ["5", "6", "9"]
    # On two hosts 8 samples take 7.5 ms, of which 16 bits save 1 at most; on four 7.5, of which they save 2.
    assert [row[5:] for row in rows_of(page, "Would an Allreduce of 16-bit")[:2]] == [["13 %", "4 %"], ["27 %", "11 %"]]
    assert rows_of(page, "Would it pay to hide")[0][2:] == [
        *("18.0 (18.0 to 18.0)", "20.0 (20.0 to 20.0)", "19.0 (19.0 to 19.0)"),
        "5 %",
    ]
    ways = [row[1:3] for row in rows_of(page, "The networks")]
    assert ways[0::2] == [["2", "dilated, D = 20"]] * 2 + [["4", "dilated, D = 40"]]
    assert ways[1:4:2] == [["2", "directly"]] * 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--hosts 1", "--hosts must be from 2 to 64, got 1"),
        ("--hosts 2 65", "--hosts must be from 2 to 64, got 65"),
        ("--batch-sizes 3", "--batch-sizes must be at least 4, the hosts, got 3"),
        ("--samples-per-host 2000", "times the hosts must be at most 4096, got 8000"),
        ("--links 25us", "must be a latency and a rate such as 25us-10Gb/s, got '25us'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(words, complaint, options, capsys):
    with pytest.raises(SystemExit) as ended:
        options(*words.split())
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_without_root_one_sentence_says_so(options, monkeypatch, capsys):
    options("--rounds", "1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert hosts.main() == 2
    expected = "hosts.py: hosts cannot be emulated here: root is needed to make network namespaces\n"
    assert capsys.readouterr() == ("", expected)


def packet(receiver, size, content=0):
    """A packet to a host, counted from 0, of `size` bytes with virtio's header, as a TUN device hands it over."""
    address = bytes([10, 77, 0, receiver + 1])
    return bytes(10) + bytes([0x45]) + bytes(15) + address + struct.pack("<q", content) + bytes(size - 38)


@contextlib.contextmanager
def network(latency, gigabits, queue=1 << 22):
    """Sockets of two hosts in place of their devices, with the emulated network between them."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    for _, device in pairs:
        device.setblocking(False)
    settings, stop, free = np.zeros(2), np.zeros(1, np.int64), np.zeros(2, np.int64)
    emulated_hosts.set_network(settings, latency, gigabits)
    devices = np.array([device.fileno() for _, device in pairs])
    arguments = [(host, devices, settings, stop, free, np.zeros(queue, np.uint8)) for host in range(2)]
    emulated_hosts._deliver(0, devices, settings, np.ones(1, np.int64), *arguments[0][4:])  # compiles it
    threads = [threading.Thread(target=emulated_hosts._deliver, args=some) for some in arguments]
    for thread in threads:
        thread.start()
    try:
        yield [host for host, _ in pairs]
    finally:
        stop[0] = 1
        for thread in threads:
            thread.join()
        for one in pairs:
            for end in one:
                end.close()


def test_packets_arrive_after_the_latency_one_after_the_other_at_the_rate():
    size = 20_010  # with virtio's header; 20,038 bytes on the wire, 16 ms at 0.01 Gb/s
    with network(30e-3, 0.01) as (one, other):
        started = time.perf_counter()
        for number in range(3):
            one.send(packet(1, size, number))
        arrived = []
        for number in range(3):
            assert other.recv(70_000)[30:38] == struct.pack("<q", number)
            arrived.append(time.perf_counter() - started)
    assert all(after >= 30e-3 + (number + 1) * 20_038 * 8 / 0.01e9 for number, after in enumerate(arrived))
    assert arrived[2] < 1  # on a busy machine


def test_frames_of_a_large_packet_have_their_own_headers_on_the_wire():
    """Of 10,040 bytes with 40 of headers, in frames of 1,000: ten frames, each with 40 and 38 more bytes."""
    with network(0, 0.001) as (one, other):
        large = bytearray(packet(1, 10_050))
        large[1], large[2:4], large[4:6] = 1, struct.pack("<H", 40), struct.pack("<H", 1000)
        started = time.perf_counter()
        one.send(bytes(large))
        assert other.recv(70_000) == bytes(large)
        assert time.perf_counter() - started >= (10_040 + 9 * 40 + 10 * 38) * 8 / 0.001e9


def test_packets_of_all_sizes_arrive_whole_and_in_order_through_a_small_queue(rng):
    sizes = rng.integers(40, 15_000, 1000)
    window = threading.Semaphore(8)  # a socket, unlike a device, refuses packets if too many are unread

    def send(one):
        for number, size in enumerate(sizes):
            window.acquire()
            one.send(packet(1, int(size), number))

    with network(1e-3, 5, queue=150_000) as (one, other):
        sender = threading.Thread(target=send, args=[one], daemon=True)
        sender.start()
        other.settimeout(30)
        for number, size in enumerate(sizes):
            assert other.recv(70_000) == packet(1, int(size), number)
            window.release()
        sender.join()


@pytest.fixture
def emulation():
    """Skips the test where hosts cannot be emulated."""
    launch.mpiexec()
    impossible = emulated_hosts.why_impossible()
    if impossible:
        pytest.skip(f"hosts cannot be emulated here: {impossible}")


def left_by(process):
    """What a run of hosts.py has left on this machine."""
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    devices = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    lines = [*found.splitlines(), *devices.splitlines()]
    return [line for line in lines if f"pcnhosts-{process}-" in line or f"pcn{process}-" in line]


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.usefixtures("emulation")
def test_a_network_is_trained_across_two_emulated_hosts(tmp_path):
    page = tmp_path / "page.md"
    words = (
        f"--hosts 2 --networks paper --batch-sizes 8 --samples-per-host 4 --links 3000us-1Gb/s --rounds 1 --out {page}"
    )
    line = [sys.executable, str(BENCHMARKS / "hosts.py"), *words.split(), "--seconds", "0.01"]
    ran = launch.run(line, limit=300)
    assert ran.code == 0, ran.err
    text = page.read_text()
    latencies = {row[2]: float(row[3].split()[0]) for row in rows_of(text, "The networks")}
    assert 2900 < latencies["dilated, D = 20"] < 6000
    (strong,) = rows_of(text, "Strong scaling")
    assert strong[:4] == ["3000 us, 1 Gb/s", "paper", "2", "8"]
    assert float(strong[5].split()[0]) > 6  # the Allreduce takes at least two latencies
    assert str(tmp_path) not in text


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_removes_its_hosts(number):
    words = "--networks paper --hosts 2 --batch-sizes 8 --samples-per-host 4 --seconds 0.01"
    line = [sys.executable, str(BENCHMARKS / "hosts.py"), *words.split()]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=launch.environment()) as process:
        try:
            until = time.monotonic() + 300  # one host is measured first
            while process.poll() is None and time.monotonic() < until:
                # The second host: before it, a namespace is made and deleted only to try whether this is possible.
                if any(f"pcnhosts-{process.pid}-2" in one for one in left_by(process.pid)):
                    break
                time.sleep(0.1)
            assert left_by(process.pid)
            time.sleep(1)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "hosts.py: interrupted\n")
    assert left_by(process.pid) == []
