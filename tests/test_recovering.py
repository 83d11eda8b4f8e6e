"""What ranks do together when some are lost, without any training, under Open MPI's `mpirun --with-ft ulfm`."""

import sys

import launch
import pytest

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", autouse=True)
def _ulfm():
    launch.skip_unless_ranks_can_be_lost()


_ONE_DIES_IN_THE_START = """
import os, signal, sys, time
from parallelcnn.cli.command import _fail
from parallelcnn.comm import run_together
from parallelcnn.resilience import fault_tolerance
from parallelcnn.resilience.world import world

comm = world()
fault_tolerance._SECONDS_TO_END = 3.0
comm.barrier()
if comm.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    for _ in range(100):
        run_together(comm, lambda: None)
except BaseException as error:
    if comm.rank == int(sys.argv[2]):
        time.sleep(100)  # and does not come to where the others leave together
    sys.exit(_fail(error, comm))
"""


def end_in_the_start(victim, sleeper=-1):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "8", sys.executable, "-c", _ONE_DIES_IN_THE_START]
    ran = launch.run([*line, str(victim), str(sleeper)], limit=60)
    assert ran.code == 1, ran.err
    assert ran.seconds < 20
    return [said for said in ran.err.splitlines() if said.startswith("parallelcnn: ")]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_those_that_are_left_says_that_a_rank_died_in_the_start(victim):
    (said,) = end_in_the_start(victim)
    first_left = 1 if victim == 0 else 0
    assert said.startswith(f"parallelcnn: error: rank {first_left} of 8: ")


def test_a_rank_that_does_not_come_to_leave_together_does_not_silence_the_others():
    (said,) = end_in_the_start(victim=1, sleeper=0)
    assert "has lost another rank" in said


_ONE_CANNOT_GO_ON = """
import os, signal, sys
from parallelcnn.resilience.world import world
from parallelcnn.errors import RankLostError

comm = world()
comm.barrier()
if comm.rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    try:
        comm.barrier()
    except RankLostError:
        if comm.rank == int(sys.argv[1]):
            comm.end_all(1, f"parallelcnn: rank {comm.rank} cannot continue")
        comm.recover()
"""


@pytest.mark.parametrize("who", [0, 1, 3])
def test_where_one_of_those_that_are_left_cannot_go_on_the_others_do_not_wait_for_it(who):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_CANNOT_GO_ON, str(who)]
    ran = launch.run(line, limit=30)
    assert ran.code == 1, ran.err
    (said,) = [said for said in ran.err.splitlines() if said.startswith("parallelcnn: ")]
    assert "cannot continue" in said or "some ranks cannot continue" in said


_ONE_IS_INTERRUPTED = """
import os, signal, sys
from parallelcnn.cli.command import _fail
from parallelcnn.comm import run_together
from parallelcnn.resilience.fault_tolerance import retry_after_loss
from parallelcnn.resilience.world import world

comm = world()
comm.barrier()
try:
    if sys.argv[1] in (str(comm.rank), "all"):
        os.kill(os.getpid(), signal.SIGINT)
    retry_after_loss(comm, lambda: run_together(comm, lambda: None))
except BaseException as error:
    sys.exit(_fail(error, comm))
"""


@pytest.mark.parametrize("who", [0, 2, "all"])
def test_where_ranks_are_interrupted_outside_of_a_training_all_leave_and_one_says_so(who):
    """Open MPI's launcher once waited for ever although one of them had aborted."""
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_IS_INTERRUPTED, str(who)]
    ran = launch.run(line, limit=30)
    assert ran.code == 130, ran.err
    said = [said for said in ran.err.splitlines() if said.startswith("parallelcnn: ")]
    assert said == [f"parallelcnn: rank {0 if who == 'all' else who} of 4: interrupted"]


_ONE_NOTICES_WHILE_OTHERS_DO_NOT = """
import os, signal, sys, time
from parallelcnn.resilience.world import world
from parallelcnn.errors import RankLostError

comm = world()
started_as = comm.rank
comm.barrier()
if comm.rank == 3:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.3)
for _ in range(3):  # is lost once, and not again
    try:
        if comm.size == 4 and comm.rank == int(sys.argv[1]):
            raise RankLostError("it came to this one only")
        with comm.checked():  # for the others MPI's part went well
            pass
    except RankLostError:
        comm.recover()
ranks = comm.allgather(started_as)
if comm.rank == 0:
    print(ranks, flush=True)
comm.barrier()
"""


@pytest.mark.parametrize("who", [0, 1, 2])
def test_ranks_whose_collective_went_well_go_on_together_with_one_that_has_noticed_a_loss(who):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_NOTICES_WHILE_OTHERS_DO_NOT]
    ran = launch.run([*line, str(who)], limit=30)
    assert ran.code == 0, ran.err
    assert ran.out == "[0, 1, 2]\n"


_ONE_GETS_ANOTHER_ERROR = """
import os, signal, sys
from mpi4py import MPI
from parallelcnn.cli.command import _fail
from parallelcnn.resilience.world import world
from parallelcnn.errors import RankLostError

comm = world()
comm.barrier()
if comm.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    try:
        if comm.rank == 1:
            with comm.collective("allgather"):
                raise MPI.Exception(MPI.ERR_OTHER)
        while True:
            comm.barrier()
    except RankLostError:
        comm.recover()
    comm.barrier()
    if comm.rank == 0:
        print(f"{comm.size} continue", flush=True)
    comm.barrier()
except BaseException as error:
    sys.exit(_fail(error, comm))
"""


@pytest.mark.parametrize("lost", [True, False])
def test_any_error_of_mpi_is_taken_for_a_loss_and_is_one_on_all_ranks_where_none_is_lost(lost):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_GETS_ANOTHER_ERROR]
    ran = launch.run([*line, "3" if lost else "-1"], limit=30)
    said = [line for line in ran.err.splitlines() if line.startswith("parallelcnn")]
    if lost:
        assert (ran.code, ran.out, said) == (0, "3 continue\n", [])
    else:
        assert (ran.code, ran.out, len(said)) == (1, "", 1)
        assert said[0].startswith("parallelcnn: error: MPI failed, although no rank is lost (")
        assert "rank 1: MPI_ERR_OTHER" in said[0]


_GETS_GARBAGE = """
import os, signal, sys
import numpy as np
from parallelcnn.resilience.world import world
from parallelcnn.errors import RankLostError

class HandsOverGarbage:
    def __init__(self, mpi_comm):
        self.mpi_comm = mpi_comm

    def __getattr__(self, name):
        return getattr(self.mpi_comm, name)

    def Allreduce(self, _, array):
        array[:] = 12345

    def allgather(self, value):
        raise ValueError("unsupported pickle protocol: 215")

    class Ibarrier:
        def Test(self):
            return True

comm = world()
started_as = comm.rank
comm.barrier()
if comm.rank == 3:
    os.kill(os.getpid(), signal.SIGKILL)
if comm.rank == 1:
    comm.mpi_comm = HandsOverGarbage(comm.mpi_comm)
ones = np.ones(5)
try:
    comm.allreduce(ones) if sys.argv[1] == "sum" else comm.allgather(comm.rank)
except RankLostError:
    comm.recover()
    ones[:] = 1
    comm.allreduce(ones)
    print(f"{started_as}: {ones} {comm.allgather(started_as)}\\n", end="", flush=True)
comm.barrier()
"""


@pytest.mark.parametrize("collective", ["sum", "allgather"])
def test_garbage_that_mpi_hands_over_for_what_a_lost_rank_has_is_not_taken(collective):
    """Open MPI 5.0.11 once did so without an error."""
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _GETS_GARBAGE, collective]
    ran = launch.run(line, limit=30)
    assert ran.code == 0, ran.err
    assert sorted(ran.out.splitlines()) == [f"{rank}: [3. 3. 3. 3. 3.] [0, 1, 2]" for rank in range(3)]


_ONE_DIES_IN_THE_FIRST_COLLECTIVE = """
import os, signal, sys
from parallelcnn.resilience.world import world
from parallelcnn.training.threads import choose_threads
from parallelcnn.errors import RankLostError

comm = world()
if comm.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    comm.barrier()
except RankLostError:
    comm.recover()
found = comm.allgather((comm.ranks_on_node(), choose_threads(comm, None) > 0))
if comm.rank == 0:
    print(found, flush=True)
comm.barrier()
"""


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_lost_in_the_very_first_collective_leaves_the_others_knowing_each_other(victim):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_DIES_IN_THE_FIRST_COLLECTIVE]
    ran = launch.run([*line, str(victim)], limit=30)
    assert ran.code == 0, ran.err
    assert ran.out == f"{[([0, 1, 2], True)] * 3}\n"


_ONE_ENDS_ALL_WHILE_OTHERS_AGREE = """
import sys, time
from parallelcnn.cli.command import _fail
from parallelcnn.resilience.world import world

comm = world()
comm.barrier()
if comm.rank == int(sys.argv[1]):
    time.sleep(float(sys.argv[2]))
    comm.end_all(1, f"parallelcnn: rank {comm.rank} cannot continue")
try:
    time.sleep(0.3)
    with comm.checked():
        pass
    if float(sys.argv[2]) == 0:
        print("all is well", flush=True)
    while True:
        with comm.checked():
            pass
except BaseException as error:
    sys.exit(_fail(error, comm))
"""


@pytest.mark.parametrize(("who", "after"), [(0, 0.0), (2, 0.0), (1, 1.0)])
def test_ranks_that_agree_are_not_told_that_all_is_well_by_one_that_ends_the_job(who, after):
    """Nobody is lost then, so that MPI's Agree of the ones would do for the Agree within Shrink of the other."""
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_ENDS_ALL_WHILE_OTHERS_AGREE]
    ran = launch.run([*line, str(who), str(after)], limit=40)
    assert ran.code == 1, ran.err
    assert "all is well" not in ran.out
    assert ran.seconds < 10
    assert [said for said in ran.err.splitlines() if said.startswith("parallelcnn")] == [
        f"parallelcnn: rank {who} cannot continue"
    ]


_DIE_AT_THE_END = """
import atexit, os, signal
import parallelcnn as pc
ranks = pc.world()
ranks.barrier()
if ranks.rank in (1, 3):
    atexit.register(os.kill, os.getpid(), signal.SIGKILL)
"""


def test_ranks_end_although_others_die_between_all_work_and_the_end_of_mpi():
    """MPI's own end waited for ever in every third attempt."""
    for _ in range(4):
        line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _DIE_AT_THE_END]
        ran = launch.run(line, limit=30)
        assert ran.code == 0, ran.err
