"""The watch within one process: whose timeout is a time, and what neither ends nor blinds it."""

import queue
import re
import socket
import threading
import time

import launch
import pytest

import parallelcnn as pc
from parallelcnn.comm import Serial
from parallelcnn.resilience import watchdog as watch
from parallelcnn.resilience.watchdog import Report, Watchdog

# ---- the command's option


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "-0.5"])
@pytest.mark.parametrize("command", ["train", "evaluate x.npz"])
def test_a_timeout_that_is_no_time_is_refused_in_one_sentence(command, timeout):
    ran = launch.parallelcnn(*command.split(), f"--timeout={timeout}")
    assert ran.code == 2
    assert re.fullmatch(
        rf"parallelcnn: error: timeout must be a .*number.* of at least 0.*, got {float(timeout)}\n", ran.err
    )


@pytest.mark.parametrize("timeout", [True, "5", None, -1, float("nan"), float("inf")])
def test_the_library_refuses_it_too(timeout):
    with pytest.raises(pc.ParallelCNNError, match="timeout must be a number of seconds"):
        Watchdog(Serial(), timeout)


# ---- ranks that are threads


class Thread(Serial):
    """A rank that is a thread of this process."""

    size = 2

    def __init__(self, rank, mail):
        self.rank, self.mail, self.ended = rank, mail, threading.Event()

    def abort(self, code):
        assert code == 1
        self.ended.set()


def handshake(comm, value, came):
    comm.mail[1 - comm.rank].put(value)
    theirs = comm.mail[comm.rank].get(timeout=5)
    came(1 - comm.rank, theirs)
    return theirs


@pytest.fixture
def pair(monkeypatch):
    """Two ranks, the second one watched from a thread of its own until the test is over."""
    monkeypatch.setattr(watch, "handshake", handshake)
    monkeypatch.setattr(watch.faulthandler, "dump_traceback_later", lambda *_, file, **__: file.close())
    mail = [queue.SimpleQueue(), queue.SimpleQueue()]
    ranks = [Thread(rank, mail) for rank in range(2)]
    over = threading.Event()

    def second():
        with Watchdog(ranks[1], 0.6):
            over.wait()

    other = threading.Thread(target=second)
    other.start()
    yield ranks
    over.set()
    other.join()


def test_foreign_datagrams_neither_end_nor_blind_the_watch(pair, capsys):
    zero, one = pair
    with Watchdog(zero, 0.6) as watching:
        port = watching._observer.socket.getsockname()[1]
        witness = one.watchdog._observer.socket.getsockname()[1]
        lie = Report(1, "node1", "computing", "f (a.py, line 3)", 99, "barrier", 1e6).datagram("guessed")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(200):
                for datagram in (b"", b"\0" * 2000, b'{"rank": 1}', lie):
                    for target in (port, witness):
                        stranger.sendto(datagram, ("127.0.0.1", target))
                time.sleep(0.005)
        assert not zero.ended.is_set()
        assert not one.ended.is_set()
        one.arrivals, one.waiting = 1, "barrier"
        zero.status = "dreaming"
        assert zero.ended.wait(5)
    message = capsys.readouterr().err
    assert message.startswith("parallelcnn: rank 1 of 2, on ")
    assert "in barrier (collective 1)" in message
    assert ": dreaming, at " in message


def test_a_long_status_of_many_letters_still_arrives(pair, capsys):
    zero, one = pair
    one.status = "ж" * 10_000
    with Watchdog(zero, 0.6):
        zero.arrivals, zero.waiting = 1, "gather"
        assert zero.ended.wait(5)
    assert f"{'ж' * 300}, at " in capsys.readouterr().err


def test_a_job_that_was_suspended_has_not_waited_meanwhile(pair, monkeypatch):
    zero, one = pair
    with Watchdog(zero, 0.6):
        zero.arrivals, zero.waiting = 1, "gather"
        one.arrivals, one.waiting = 1, "gather"
        time.sleep(0.1)
        clock = time.monotonic
        monkeypatch.setattr(watch.time, "monotonic", lambda: clock() + 3600)
        time.sleep(0.1)
        zero.arrivals = one.arrivals = 2
        time.sleep(0.2)
        assert not zero.ended.is_set()
        assert not one.ended.is_set()


def test_one_rank_or_no_timeout_needs_no_thread():
    before = threading.active_count()
    two = Thread(0, [])
    with Watchdog(Serial(), 5), Watchdog(two, 0):
        assert threading.active_count() == before
