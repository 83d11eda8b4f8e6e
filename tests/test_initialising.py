"""Ranks that die, or do not come, before MPI has begun."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest

from parallelcnn.resilience import start_up


@pytest.fixture
def start_rank(monkeypatch):
    """Starts a process that looks like a rank of this process's job, which is rank 0 of four."""
    started = []

    def start(rank, job="job of the test"):
        variables = {**os.environ, "PMIX_NAMESPACE": job, "OMPI_COMM_WORLD_RANK": str(rank)}
        started.append(subprocess.Popen(["sleep", "60"], env=variables))
        wait_until(lambda: Path(f"/proc/{started[-1].pid}/comm").read_text() == "sleep\n")
        return started[-1]

    monkeypatch.setenv("PMIX_NAMESPACE", "job of the test")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until(met, seconds=10):
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_ranks_of_this_job_that_live_on_this_machine_are_found(start_rank):
    assert start_up.living_ranks() == set()
    third, twelfth, _ = start_rank(3), start_rank(12), start_rank(5, job="another job")
    start_rank("no number")
    assert start_up.living_ranks() == {3, 12}
    third.kill()  # and is a zombie until somebody waits for it
    wait_until(lambda: start_up.living_ranks() == {12})
    twelfth.kill()
    twelfth.wait()
    assert start_up.living_ranks() == set()


def test_outside_of_open_mpi_no_process_is_looked_at(monkeypatch):
    monkeypatch.delenv("PMIX_NAMESPACE", raising=False)
    monkeypatch.setattr(start_up.Path, "glob", lambda *_: pytest.fail("looked"))
    assert start_up.living_ranks() == set()


@pytest.fixture
def verdict(monkeypatch):
    """What the watch of a rank comes to; "" if it believes that all are well."""
    monkeypatch.setattr(start_up, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(start_up, "_BELIEVED_AFTER", 0.2)
    said = []
    monkeypatch.setattr(start_up._StartWatch, "_end", lambda watch, why, _: (said.append(why), watch._over.set()))

    def verdict(do, rank=0, size=4):
        said.clear()
        with start_up._StartWatch(rank, size, 300.0):
            do()
            time.sleep(1.0)
        return "".join(said)

    return verdict


def test_a_rank_that_is_gone_is_named(start_rank, verdict):
    ranks = [start_rank(rank) for rank in range(4)]

    def kill_the_third():
        time.sleep(0.1)
        ranks[2].kill()

    assert verdict(lambda: None) == ""
    assert verdict(kill_the_third).startswith("rank 2 died before MPI had begun")


def test_a_rank_that_was_gone_before_anybody_looked_is_named(start_rank, verdict):
    for rank in (0, 1, 3):
        start_rank(rank)
    assert verdict(lambda: None).startswith("rank 2 died before MPI had begun")


def test_of_ranks_on_many_machines_those_that_were_seen_here_are_named(start_rank, verdict):
    last = [start_rank(rank) for rank in (8, 9, 10, 11)][-1]

    def kill_the_last():
        time.sleep(0.1)
        last.kill()

    assert verdict(kill_the_last, rank=8, size=16).startswith("rank 11 died before MPI had begun")


def test_a_rank_in_a_container_of_its_own_that_sees_no_other_takes_none_for_dead(start_rank, verdict, monkeypatch):
    start_rank(0)
    assert verdict(lambda: None) == ""
    monkeypatch.setattr(start_up, "launcher", lambda: 1234)  # and so not in a container
    assert verdict(lambda: None).startswith("rank 1, 2, 3 died before MPI had begun")


def test_a_rank_that_does_not_see_itself_takes_no_other_for_dead(start_rank, verdict):
    """A process may overwrite what is seen of it, to show another title; so may all of them."""
    ranks = [start_rank(rank) for rank in range(1, 4)]

    def kill_all():
        time.sleep(0.1)
        for rank in ranks:
            rank.kill()

    assert verdict(kill_all) == ""


@pytest.mark.parametrize(
    ("name", "namespace", "found"),
    [
        ("prterun", "prterun-host-$$@1", True),
        ("prte", "prterun-host-$$@1", False),
        ("prterun", "prterun-host-1@1", False),
    ],
)
def test_only_the_launcher_of_this_very_job_is_told_to_end_it(name, namespace, found, tmp_path):
    """A daemon that serves many jobs, or a job around this one, must not be."""
    program = tmp_path / name
    program.write_text(f'#!/bin/sh\nPMIX_NAMESPACE={namespace} "$@"\necho $$\n')
    program.chmod(0o755)
    asks = "from parallelcnn.resilience.launch import launcher\ntry: print(launcher())\nexcept OSError: print('none')"
    ran = launch.run([str(program), "sh", "-c", f'"{sys.executable}" -c "$0"; true', asks])
    said, started = ran.out.split()
    assert said == (started if found else "none"), ran.err


_DIES_BEFORE_MPI = """
import os, signal, sys, time
import parallelcnn as pc
time.sleep(float(sys.argv[2]) if os.environ["OMPI_COMM_WORLD_RANK"] in sys.argv[1] else 0)
if os.environ["OMPI_COMM_WORLD_RANK"] in sys.argv[1]:
    os.kill(os.getpid(), signal.SIGKILL)
pc.world()
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "victims", "after", "who"),
    [
        (3, "1", 0, "rank 1"),
        (4, "0", 2, "rank 0"),
        (2, "1", 2, "rank 1"),
        (2, "0", 0, "rank 0"),
        (4, "12", 0, "rank 1, 2"),
    ],
)
def test_ranks_do_not_wait_for_one_that_died_before_mpi_began(ranks, victims, after, who):
    """Under ULFM MPI's start would wait for it for ever; one of the others says so and ends the job."""
    if not launch.is_open_mpi():
        pytest.skip("MPICH's launcher ends the job by itself")
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", str(ranks), sys.executable, "-c", _DIES_BEFORE_MPI]
    ran = launch.run([*line, victims, str(after)], limit=30)
    assert ran.code == 1, ran.err
    said = [line for line in ran.err.splitlines() if line.startswith("parallelcnn")]
    assert said == [f"parallelcnn: error: {who} died before MPI had begun, and MPI would wait for ever; the job ends"]
    assert "Traceback" not in ran.err
    assert ran.seconds < 10 + after


_ONE_DOES_NOT_COME = """
import os, signal, sys, time
import parallelcnn as pc
from parallelcnn.resilience import start_up
start_up.LEAST_TIMEOUT = 1.0
if "1" in (os.environ.get("OMPI_COMM_WORLD_RANK"), os.environ.get("PMI_RANK")):
    os.kill(os.getpid(), signal.SIGSTOP)
pc.world(timeout=2)
"""


@pytest.mark.mpi
def test_ranks_wait_for_one_that_is_stopped_before_mpi_begins_no_longer_than_the_timeout():
    ran = launch.run_ranks(2, ["-c", _ONE_DOES_NOT_COME], limit=30)
    # MPICH's launcher may see the stopped rank end first, which it kills itself.
    assert ran.code in ((1,) if launch.is_open_mpi() else (1, 9)), ran.err
    assert "parallelcnn: error: MPI has not begun after 2 s: it waits for ranks that do not come" in ran.err
    assert ran.seconds < 15


def test_of_the_living_ranks_the_stopped_ones_are_found(start_rank):
    stopped, _ = start_rank(2), start_rank(3)
    stopped.send_signal(signal.SIGSTOP)
    wait_until(lambda: start_up.stopped_ranks() == {2})


def test_the_timeout_of_the_start_is_that_of_the_command_unless_mpi_could_not_start_in_it():
    timeouts = [start_up._StartWatch(0, 1, asked)._timeout for asked in (0, 1, 60)]
    assert timeouts == [math.inf, start_up.LEAST_TIMEOUT, 60]
