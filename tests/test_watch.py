"""A rank that never comes to a collective ends the job, with a message that names it; nothing else does."""

import json
import queue
import re
import socket
import sys
import threading
import time
from pathlib import Path

import launch
import pytest

import parallelcnn as pc
from parallelcnn import watch
from parallelcnn.comm import Serial, mpi_library
from parallelcnn.watch import Report, Sight, Watch, describe, find_missing

HERE = Path(__file__).parent
TIMEOUT = 2  # [s]
LATE = 5  # the end after the timeout at the latest, on a busy machine; a lost rank 0 is waited for 2.5 s longer [s]


# ---- several ranks of MPI

_HANGS = """
import ctypes, os, signal, sys, time
import numpy as np
import numba
import small
import parallelcnn as pc
from parallelcnn.comm import world
from parallelcnn.watch import Watch

how, victims, timeout = sys.argv[1], [int(rank) for rank in sys.argv[2].split(",")], float(sys.argv[3])

@numba.njit(nogil=True)
def spin(flags):
    while flags[0] == 0:
        flags[1] += 1

def hang():
    if how == "loops":
        while True:
            pass
    if how == "computes":
        spin(np.zeros(2))
    if how == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "holds the interpreter":
        ctypes.PyDLL(None).sleep(1000)
    time.sleep(1000)

class Victim:
    def minibatch(self, step, epoch, loss, samples):
        if step == 12:
            print("now", time.time(), flush=True)
            time.sleep(0.5)  # in which it reports
            hang()

    def evaluation(self, *_):
        pass

from mpi4py import MPI
victim = MPI.COMM_WORLD.Get_rank() in victims
if how == "computes":
    spin(np.ones(2))
if victim and how == "never comes":
    print("now", time.time(), flush=True)
    hang()

def train(epochs, timeout, reporter):
    comm = world()
    network, sets = small.network(), (small.dataset(211), small.dataset(97))
    with Watch(comm, timeout):
        pc.train(network, *sets, pc.SGD(0.1), epochs, 25, comm=comm, reporter=reporter)

if how != "never comes":
    train(1, 0, None)  # compiles
train(1000, timeout, Victim() if victim else None)
"""


def hang(how, victims, ranks=3, timeout=TIMEOUT):
    """The lines of the message, once the job has ended as it should."""
    who = ",".join(map(str, victims))
    ran = launch.run_ranks(ranks, ["-c", _HANGS, how, who, str(timeout)], limit=60, PYTHONPATH=str(HERE))
    ended = time.time()
    assert ran.code != 0
    began = max(float(moment) for moment in re.findall(r"\d+\.\d+", ran.out))
    assert timeout < ended - began < timeout + LATE + 2.5 * (0 in victims), ran.err
    messages = re.findall(r"parallelcnn: (rank .*?)\n(.*?)\n(All ranks end here.*?)\n", ran.err, re.DOTALL)
    assert len(messages) == 1, ran.err
    assert "Traceback" not in ran.err
    first, missing, _ = messages[0]
    assert re.match(
        rf"rank \d of {ranks}, on \S+, has waited \d\.\d s in .*, longer than --timeout {timeout}\. ", first
    )
    return first, missing.splitlines()


@pytest.mark.mpi
@pytest.mark.parametrize(("how", "victim"), [("sleeps", 0), ("sleeps", 2), ("loops", 0), ("loops", 2), ("computes", 0)])
def test_a_rank_that_is_busy_for_ever_is_named_with_what_it_does_and_where(how, victim):
    first, (missing,) = hang(how, [victim])
    assert "in sum_over_ranks (collective" in first
    assert first.endswith(" after computing minibatch 13 (epoch 2), longer than --timeout 2. Not arrived:")
    place = r"(spin|hang) \(<string>, line \d+\)"
    assert re.fullmatch(
        rf"    rank {victim} on \S+: computing minibatch 12 \(epoch 2\), at {place}, for \d\.\d s", missing
    )


@pytest.mark.mpi
@pytest.mark.parametrize("how", ["is stopped", "holds the interpreter"])
def test_a_rank_that_no_longer_reports_is_named_with_what_it_last_did(how):
    _, (missing,) = hang(how, [2])
    assert re.match(
        r"    rank 2 on \S+: has not been heard from for \d\.\d s; it was last computing minibatch 12 \(epoch 2\), at ",
        missing,
    )


@pytest.mark.mpi
@pytest.mark.parametrize("how", ["is stopped"])
def test_where_rank_0_is_lost_another_rank_says_so(how):
    first, (missing,) = hang(how, [0])
    assert first.startswith("rank 1 of 3")
    assert first.endswith(". Rank 0, which would say for whom, does not:")
    assert re.match(
        r"    rank 0 on \S+: has not been heard from for \d\.\d s; it was last computing minibatch 12 \(epoch 2\), at ",
        missing,
    )


@pytest.mark.mpi
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_never_comes_to_the_training_is_named(victim):
    first, (missing,) = hang("never comes", [victim])
    assert "in the roll call (collective 1) after starting" in first
    assert re.fullmatch(
        rf"    rank {victim} on \S+: has not come since the start, so what it does is not known", missing
    )


@pytest.mark.mpi
@pytest.mark.parametrize("victims", [[1, 2], [0, 2]])
def test_all_who_are_missing_are_named(victims):
    _, missing = hang("sleeps", victims)
    assert [line.split(" on ")[0] for line in missing] == [f"    rank {victim}" for victim in victims]


_IS_SLOW = """
import sys, time
import small
import parallelcnn as pc
from parallelcnn.comm import world
from parallelcnn.watch import Watch

comm = world()

class Slow:
    def minibatch(self, step, epoch, loss, samples):
        if step % 9 == 0:
            time.sleep(0.4)

    def evaluation(self, *_):
        pass

def train(epochs, reporter):
    network, sets = small.network(), (small.dataset(211), small.dataset(97))
    pc.train(network, *sets, pc.SGD(0.1), epochs, 25, comm=comm, reporter=reporter)

train(1, None)  # compiles
with Watch(comm, 1):
    with Watch(comm, 0.1):  # the outer one counts
        train(3, Slow() if comm.rank == 1 else None)
    comm.barrier()
    time.sleep(1.5)  # nobody waits
    comm.barrier()
comm.barrier()
if comm.rank == 1:
    time.sleep(1.5)  # nobody watches
comm.barrier()
print("done", flush=True)
"""


@pytest.mark.mpi
def test_ranks_that_wait_less_than_the_timeout_or_outside_the_watch_are_left_alone():
    ran = launch.run_ranks(3, ["-c", _IS_SLOW], limit=60, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    assert ran.out.count("done") == 3
    assert "parallelcnn" not in ran.err


_RESTARTS = """
import os, sys, time
from mpi4py import MPI
from parallelcnn.comm import MPIRanks
from parallelcnn.watch import Watch

comm = MPIRanks(MPI.COMM_WORLD)
lost = comm.rank == 0
with Watch(comm, 2) as watch:
    comm.barrier()
    left = MPI.COMM_WORLD.Split(lost)
    if lost:
        time.sleep(1000)
    comm._comm, comm.rank, comm.size = left, left.Get_rank(), left.Get_size()
    watch.restart()
    for _ in range(5):
        comm.barrier()
        time.sleep(0.1)
    print("goes on", flush=True)
    if comm.rank == 1:
        comm.activity = "counting {} and {}", 1, 2
        time.sleep(1000)
    comm.barrier()
"""


@pytest.mark.mpi
def test_after_a_restart_the_ranks_that_are_left_are_watched_by_a_new_rank_0():
    ran = launch.run_ranks(3, ["-c", _RESTARTS], limit=30)
    assert ran.code != 0
    assert ran.out.count("goes on") == 2
    assert "parallelcnn: rank 0 of 2, on " in ran.err
    assert "rank 1 on" in ran.err
    assert ": counting 1 and 2, at <module> (<string>, line " in ran.err


_IS_KILLED_THEN_HANGS = """
import os, signal, time
import small
import parallelcnn as pc
from parallelcnn.comm import world
from parallelcnn.watch import Watch

comm = world()
first_rank = comm.rank

class Victims:
    def minibatch(self, step, epoch, loss, samples):
        if step == 12 and first_rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 60 and first_rank == 2:
            time.sleep(1000)

    def evaluation(self, *_):
        pass

def train(epochs, reporter):
    network, sets = small.network(), (small.dataset(211), small.dataset(97))
    pc.train(network, *sets, pc.SGD(0.1), epochs, 25, comm=comm, reporter=reporter)

train(1, None)  # compiles
with Watch(comm, 2):
    train(1000, Victims())
"""


@pytest.mark.mpi
def test_the_survivors_of_a_lost_rank_0_are_watched():
    if "Open MPI" not in mpi_library():
        pytest.skip("only Open MPI goes on without a rank")
    launcher = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-W", "ignore"]
    ran = launch.run([*launcher, "-c", _IS_KILLED_THEN_HANGS], limit=60, PYTHONPATH=str(HERE))
    assert ran.code != 0
    assert "parallelcnn: rank 0 of 2, on " in ran.err
    assert re.search(r"    rank 1 on \S+: computing minibatch 60 \(epoch 7\), at Victims.minibatch", ran.err), ran.err


@pytest.mark.mpi
def test_the_command_trains_and_evaluates_under_a_timeout(folder, tmp_path):
    out = tmp_path / "out"
    for arguments in (["train", "--out", out], ["evaluate", out]):
        ran = launch.parallelcnn(*arguments, "--data", folder, "--timeout", 60, ranks=3)
        assert ran.code == 0, ran.err


_READS_FOR_EVER = """
import os, time
from parallelcnn import Dense, Flatten

def model():
    if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))) == 1:
        time.sleep(1000)
    return Flatten(), Dense(10)
"""


@pytest.mark.mpi
def test_the_command_names_the_rank_that_hangs_before_training(folder, tmp_path):
    (tmp_path / "own.py").write_text(_READS_FOR_EVER)
    model = f"{tmp_path / 'own.py'}:model"
    ran = launch.parallelcnn("train", "--data", folder, "--model", model, "--timeout", TIMEOUT, ranks=2, limit=30)
    assert ran.code != 0
    assert "has waited" in ran.err
    assert re.search(r"    rank 1 on \S+: building the network, at model \(own.py, line 7\), for", ran.err), ran.err


# ---- the command's option


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "-0.5"])
@pytest.mark.parametrize("command", ["train", "evaluate x.npz"])
def test_a_timeout_that_is_no_time_is_refused_in_one_sentence(command, timeout):
    ran = launch.parallelcnn(*command.split(), f"--timeout={timeout}")
    assert ran.code == 2
    assert ran.err == (
        f"parallelcnn: error: timeout must be a number of seconds of at least 0, where 0 lets ranks wait for ever, "
        f"got {float(timeout)}\n"
    )


@pytest.mark.parametrize("timeout", [True, "5", None, -1, float("nan"), float("inf")])
def test_the_library_refuses_it_too(timeout):
    with pytest.raises(pc.ParallelCNNError, match="timeout must be a number of seconds"):
        Watch(Serial(), timeout)


# ---- the message


def report(rank, arrivals, waiting="", seconds=7.0, activity="computing"):
    return Report(rank, f"node{rank}", activity, "f (a.py, line 3)", arrivals, waiting, seconds)


def sights(*reports, silent=()):
    return [Sight(one, True, 9.0 if rank in silent else 0.1) for rank, one in enumerate(reports)]


def test_whoever_has_come_to_fewer_collectives_is_missing():
    seen = sights(report(0, 5, "barrier", 20), report(1, 4), report(2, 5, "barrier", 30))
    waiter, missing = find_missing(seen, 1)
    assert waiter.rank == 2
    assert missing == [1]


def test_a_rank_that_has_left_the_collective_is_not_missing_in_it():
    """The sender of a broadcast goes on before others have come, to compute or to wait in the next one."""
    for sender in (report(0, 5), report(0, 6, "gather", 50)):
        waiter, missing = find_missing(sights(sender, report(1, 5, "broadcast"), report(2, 4)), 1)
        assert waiter.rank == 1
        assert missing == [2]


def test_a_silent_rank_is_missing_wherever_it_said_that_it_was():
    for last in (report(2, 5, "barrier"), report(2, 4, "gather"), report(2, 9)):
        waiter, missing = find_missing(sights(report(0, 5, "barrier"), report(1, 5, "barrier"), last, silent=[2]), 1)
        assert waiter.arrivals == 5
        assert missing == [2]


def test_nobody_is_missing_where_nobody_waits():
    assert find_missing(sights(report(0, 5), report(1, 2)), 1) == (None, [])


def test_the_message():
    seen = sights(
        report(0, 5, "gather", 301.2, "reading the data set"), report(1, 4, seconds=302), report(2, 4), silent=[2]
    )
    seen += [Sight(), Sight(report(4, 1, "the roll call"), False, 300)]
    assert describe(seen, 1, 300) == (
        "rank 0 of 5, on node0, has waited 301 s in gather (collective 5) after reading the data set, longer than "
        "--timeout 300. Not arrived:\n"
        "    rank 1 on node1: computing, at f (a.py, line 3), for 302 s\n"
        "    rank 2 on node2: has not been heard from for 9.0 s; it was last computing, at f (a.py, line 3)\n"
        "    rank 3: has not come since the start, so what it does is not known\n"
        "    rank 4 on node4: none of its reports has arrived (UDP), so what it does is not known\n"
        "All ranks end here. With a larger --timeout they wait longer, with 0 for ever."
    )


def test_the_message_where_ranks_are_in_different_collectives():
    text = describe(sights(report(0, 5, "gather", 6), report(1, 5, "barrier", 5)), 1, 2)
    assert "although no rank is missing" in text
    assert "rank 0 on node0: waiting in gather (collective 5) after computing\n" in text
    assert "rank 1 on node1: waiting in barrier (collective 5) after computing\n" in text


# ---- datagrams


def test_a_report_survives_its_journey():
    sent = report(1, 4, "sum_over_ranks", activity="é\n" * 100)
    assert Report.read(sent.datagram("token"), "token", 2) == sent


GOOD = json.loads(report(1, 4).datagram("token"))


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"token",
        b"token\xff",
        b"[" * 5000 + b"token",
        b'"token"',
        b'["token"]',
        b'{"a": "token"}',
        b'{"token": "token"}',
        *(
            json.dumps({**GOOD, **changed}).encode()
            for changed in (
                {"token": "another", "host": "token"},
                {"rank": 2},
                {"rank": -1},
                {"rank": True},
                {"rank": "1"},
                {"arrivals": -1},
                {"arrivals": 1.5},
                {"seconds": -1},
                {"seconds": float("nan")},
                {"seconds": float("inf")},
                {"seconds": "7"},
                {"activity": "x" * 301},
                {"activity": None},
                {"more": 1},
            )
        ),
        json.dumps(GOOD).encode()[:-1],
    ],
)
def test_a_datagram_that_no_rank_sent_is_no_report(datagram):
    assert Report.read(datagram, "token", 2) is None


class Thread(Serial):
    """A rank that is a thread of this process."""

    size = 2

    def __init__(self, rank, mail):
        self.rank, self.mail, self.ended = rank, mail, threading.Event()

    def roll_call(self, value, came):
        self.mail[1 - self.rank].put(value)
        theirs = self.mail[self.rank].get(timeout=5)
        came(1 - self.rank, theirs)
        return theirs

    def abort(self, code):
        assert code == 1
        self.ended.set()


@pytest.fixture
def pair(monkeypatch):
    """Two ranks, the second one watched from a thread of its own until the test is over."""
    monkeypatch.setattr(watch.faulthandler, "dump_traceback_later", lambda *_, file, **__: file.close())
    mail = [queue.SimpleQueue(), queue.SimpleQueue()]
    ranks = [Thread(rank, mail) for rank in range(2)]
    over = threading.Event()

    def second():
        with Watch(ranks[1], 0.6):
            over.wait()

    other = threading.Thread(target=second)
    other.start()
    yield ranks
    over.set()
    other.join()


def test_foreign_datagrams_neither_end_nor_blind_the_watch(pair, capsys):
    zero, one = pair
    with Watch(zero, 0.6) as watching:
        port = watching._lookout.socket.getsockname()[1]
        witness = one.watch._lookout.socket.getsockname()[1]
        lie = report(1, 99, "barrier", 1e6).datagram("guessed")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(200):
                for datagram in (b"", b"\0" * 2000, b'{"rank": 1}', lie):
                    for target in (port, witness):
                        stranger.sendto(datagram, ("127.0.0.1", target))
                time.sleep(0.005)
        assert not zero.ended.is_set()
        assert not one.ended.is_set()
        one.arrivals, one.waiting = 1, "barrier"
        zero.activity = "dreaming"
        assert zero.ended.wait(5)
    message = capsys.readouterr().err
    assert message.startswith("parallelcnn: rank 1 of 2, on ")
    assert "in barrier (collective 1)" in message
    assert ": dreaming, at " in message


def test_a_long_activity_of_many_letters_still_arrives(pair, capsys):
    zero, one = pair
    one.activity = "ж" * 10_000
    with Watch(zero, 0.6):
        zero.arrivals, zero.waiting = 1, "gather"
        assert zero.ended.wait(5)
    assert f"{'ж' * 300}, at " in capsys.readouterr().err


def test_a_job_that_was_suspended_has_not_waited_meanwhile(pair, monkeypatch):
    zero, one = pair
    with Watch(zero, 0.6):
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
    with Watch(Serial(), 5), Watch(two, 0):
        assert threading.active_count() == before
