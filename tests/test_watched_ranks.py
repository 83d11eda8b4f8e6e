"""On several ranks of MPI: one that never comes to a collective ends the job, named; nothing else does."""

import re
import sys
import time
from pathlib import Path

import launch
import pytest

from parallelcnn.comm import mpi_library

HERE = Path(__file__).parent
TIMEOUT = 2  # [s]
LATE = 5  # the end after the timeout at the latest, on a busy machine; a lost rank 0 is waited for 2.5 s longer [s]


_HANGS = """
import ctypes, os, signal, sys, time
import numpy as np
import numba
import small
from parallelcnn.resilience.world import world
from parallelcnn.resilience.watchdog import Watchdog

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

def hang_at_12(step):
    if step == 12:
        print("now", time.time(), flush=True)
        time.sleep(0.5)  # in which it reports
        hang()

from mpi4py import MPI
victim = MPI.COMM_WORLD.Get_rank() in victims
if how == "computes":
    spin(np.ones(2))
if victim and how == "never comes":
    print("now", time.time(), flush=True)
    hang()

comm = world()
if how != "never comes":
    small.train(comm, 1)  # compiles
with Watchdog(comm, timeout):
    small.train(comm, 1000, hang_at_12 if victim else None)
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
    assert "in allreduce (collective" in first
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
    assert "in the handshake (collective 1) after starting" in first
    assert re.fullmatch(
        rf"    rank {victim} on \S+: has not come since the start, so what it does is not known", missing
    )


@pytest.mark.mpi
@pytest.mark.parametrize("victims", [[1, 2], [0, 2]])
def test_all_who_are_missing_are_named(victims):
    _, missing = hang("sleeps", victims)
    assert [line.split(" on ")[0] for line in missing] == [f"    rank {victim}" for victim in victims]


_IS_SLOW = """
import time
import small
from parallelcnn.resilience.world import world
from parallelcnn.resilience.watchdog import Watchdog

comm = world()

def dawdle(step):
    if step % 9 == 0:
        time.sleep(0.4)

small.train(comm, 1)  # compiles
with Watchdog(comm, 1):
    with Watchdog(comm, 0.1):  # the outer one counts
        small.train(comm, 3, dawdle if comm.rank == 1 else None)
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
from parallelcnn.comm import MPITransport
from parallelcnn.resilience.watchdog import Watchdog

comm = MPITransport(MPI.COMM_WORLD)
lost = comm.rank == 0
with Watchdog(comm, 2) as watchdog:
    comm.barrier()
    left = MPI.COMM_WORLD.Split(lost)
    if lost:
        time.sleep(1000)
    comm.mpi_comm, comm.rank, comm.size = left, left.Get_rank(), left.Get_size()
    watchdog.restart()
    for _ in range(5):
        comm.barrier()
        time.sleep(0.1)
    print("continues", flush=True)
    if comm.rank == 1:
        comm.status = "counting {} and {}", 1, 2
        time.sleep(1000)
    comm.barrier()
"""


@pytest.mark.mpi
def test_after_a_restart_the_ranks_that_are_left_are_watched_by_a_new_rank_0():
    ran = launch.run_ranks(3, ["-c", _RESTARTS], limit=30)
    assert ran.code != 0
    assert ran.out.count("continues") == 2
    assert "parallelcnn: rank 0 of 2, on " in ran.err
    assert "rank 1 on" in ran.err
    assert ": counting 1 and 2, at <module> (<string>, line " in ran.err


_IS_KILLED_THEN_HANGS = """
import os, signal, time
import small
from parallelcnn.resilience.world import world
from parallelcnn.resilience.watchdog import Watchdog

comm = world()
first_rank = comm.rank

def die_or_hang(step):
    if step == 12 and first_rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 60 and first_rank == 2:
        time.sleep(1000)

small.train(comm, 1)  # compiles
with Watchdog(comm, 2):
    small.train(comm, 1000, die_or_hang)
"""


@pytest.mark.mpi
def test_the_survivors_of_a_lost_rank_0_are_watched():
    if "Open MPI" not in mpi_library():
        pytest.skip("only Open MPI continues without a rank")
    launcher = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-W", "ignore"]
    ran = launch.run([*launcher, "-c", _IS_KILLED_THEN_HANGS], limit=60, PYTHONPATH=str(HERE))
    assert ran.code != 0
    assert "parallelcnn: rank 0 of 2, on " in ran.err
    assert re.search(r"    rank 1 on \S+: computing minibatch 60 \(epoch 7\), at die_or_hang", ran.err), ran.err


@pytest.mark.slow
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
