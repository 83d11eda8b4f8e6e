"""Ranks that are lost, under Open MPI's `mpirun --with-ft ulfm`: the others go on, and with grains to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
import small

import parallelcnn as pc

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent

_DIES = """
import json, os, signal, sys, warnings
import small
import parallelcnn as pc
from parallelcnn.comm import world

comm = world()
started_as = comm.rank
deaths = json.loads(sys.argv[1])  # rank, as it was started -> [when, how]
when, how = deaths.get(str(started_as), [None, None])

def die():
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "out of memory":
        raise MemoryError("on purpose")
    if how == "leaves":
        sys.exit(3)

class Dies:
    def minibatch(self, step, epoch, loss, samples):
        if step == when:
            die()

    def evaluation(self, step, epoch, result, history):
        if f"evaluation {epoch}" == when:
            die()

if when == "in the sum":
    count, sum_over_ranks = 0, comm.sum_over_ranks
    def sum_and_die(array):
        global count
        count += 1
        if count == 20:
            die()
        sum_over_ranks(array)
    comm.sum_over_ranks = sum_and_die

grains = json.loads(sys.argv[2])
network = small.network(seed=started_as)
sets = small.dataset(211), small.dataset(97, seed=1)
with warnings.catch_warnings(record=True, action="always") as said:
    history = pc.train(
        network, *sets, pc.SGD(0.1, momentum=0.9), 4, 25, comm=comm, reporter=Dies(), grains=grains, evaluate_every=5
    )
if comm.rank == 0:
    found = {"sha256": network.parameters_sha256(), "left": comm.size, "losses": history.losses,
        "lost": history.lost_ranks, "tests": [(s, e, r.loss, r.accuracy) for s, e, r in history.evaluations],
        "said": [str(one.message) for one in said]}
    print(json.dumps(found), flush=True)
comm.barrier()
"""


@pytest.fixture(scope="module", autouse=True)
def _open_mpi():
    loads = [sys.executable, "-c", "from parallelcnn.comm import mpi_library; print(mpi_library())"]
    launch.mpiexec()
    if "Open MPI" not in subprocess.run(loads, capture_output=True, text=True, env=launch.environment()).stdout:
        pytest.skip("only Open MPI goes on without a rank")


def survive(ranks, deaths, grains=6):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", str(ranks), sys.executable, "-c", _DIES]
    ran = launch.run([*line, json.dumps(deaths), json.dumps(grains)], limit=60, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.out + ran.err
    (found,) = [json.loads(text) for text in ran.out.splitlines() if text.startswith("{")]
    return found, ran.err


@pytest.fixture(scope="module")
def undisturbed():
    network = small.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    history = pc.train(network, *sets, pc.SGD(0.1, momentum=0.9), 4, 25, comm=pc.Serial(), grains=6, evaluate_every=5)
    tests = [[step, epoch, result.loss, result.accuracy] for step, epoch, result in history.evaluations]
    return network.parameters_sha256(), history.losses, tests


@pytest.mark.parametrize(
    ("ranks", "deaths"),
    [
        (3, {1: [12, "killed"]}),
        (3, {0: [12, "killed"]}),
        (2, {0: [1, "killed"]}),
        (4, {0: [9, "killed"], 2: [9, "killed"]}),
        (4, {0: [5, "killed"], 1: [11, "killed"], 3: [20, "killed"]}),
        (5, {0: [7, "killed"], 1: [7, "killed"], 2: [7, "killed"], 3: [7, "killed"]}),
        (3, {2: ["evaluation 2", "killed"]}),
        (3, {0: ["in the sum", "killed"]}),
        (3, {1: [36, "killed"]}),
        (3, {1: [12, "out of memory"]}),
        (3, {0: [12, "leaves"]}),
    ],
    ids=str,
)
def test_the_others_take_over_and_the_result_has_the_bits_of_an_undisturbed_run(ranks, deaths, undisturbed):
    found, err = survive(ranks, deaths)
    assert found["left"] == ranks - len(deaths)
    assert found["lost"] == len(deaths)
    assert (found["sha256"], found["losses"], found["tests"]) == undisturbed
    assert any(f"{len(deaths)} of {ranks} ranks lost by minibatch" in one for one in found["said"])
    if "out of memory" in str(deaths):
        assert "rank 1 of 3 failed" in err
        assert "on purpose" in err


def test_without_grains_the_result_is_that_of_an_undisturbed_run_up_to_rounding(undisturbed):
    found, _ = survive(3, {0: [12, "killed"]}, grains=None)
    assert found["losses"] == pytest.approx(undisturbed[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("victims", [[0], [1, 2]], ids=str)
def test_the_command_goes_on_and_leaves_complete_files(victims, folder, tmp_path):
    """Rank 0 has the files open; another one takes them over."""
    line = [sys.executable, "-m", "parallelcnn", "train", "--data", str(folder), "--batch-size", "10", "--threads", "1"]
    line += ["--reproducible", "6", "--seed", "3"]
    out = tmp_path / "out"
    command = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", *line, "--epochs", "150", "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=launch.environment()
    )
    for shown in process.stdout:
        if shown.startswith("epoch 5/"):
            break
    for rank in victims:
        os.kill(process_of_rank(rank, out), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert f"{len(victims)} of 3 ranks lost by minibatch" in err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == 3 - len(victims)
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in lines if "loss" in one] == list(range(1, 150 * 23 + 1))
    assert [one["epoch"] for one in lines if "test_loss" in one] == list(range(1, 151))
    assert pc.load_model(out / "model.npz").parameters_sha256() == summary["parameters_sha256"]
    assert len(list((out / "checkpoints").iterdir())) == 2
    alone = launch.run([*line, "--epochs", "150", "--out", str(tmp_path / "alone")])
    assert alone.code == 0, alone.err
    wanted = json.loads((tmp_path / "alone" / "summary.json").read_text())["parameters_sha256"]
    assert summary["parameters_sha256"] == wanted


def process_of_rank(rank, out):
    """The process that is that rank of the training into `out`."""
    for _ in range(100):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                is_it = str(out).encode() in (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if is_it and f"OMPI_COMM_WORLD_RANK={rank}".encode() in variables:
                return int(folder.name)
        time.sleep(0.05)
    raise AssertionError(f"no process of rank {rank}")


_ONE_DIES_IN_THE_START = """
import os, signal, sys, time
from parallelcnn.cli import _fail
from parallelcnn.comm import communicator, run_together, world

comm = world()
communicator._SECONDS_TO_END = 3.0
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
    assert "is missing another one" in said


_ONE_CANNOT_GO_ON = """
import os, signal, sys
from parallelcnn.comm import world
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
            comm.end_all(1, f"parallelcnn: rank {comm.rank} cannot go on")
        comm.recover()
"""


@pytest.mark.parametrize("who", [0, 1, 3])
def test_where_one_of_those_that_are_left_cannot_go_on_the_others_do_not_wait_for_it(who):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _ONE_CANNOT_GO_ON, str(who)]
    ran = launch.run(line, limit=30)
    assert ran.code == 1, ran.err
    (said,) = [said for said in ran.err.splitlines() if said.startswith("parallelcnn: ")]
    assert "cannot go on" in said


_ONE_IS_INTERRUPTED = """
import os, signal, sys
from parallelcnn.cli import _fail
from parallelcnn.comm import do_with_survivors, run_together, world

comm = world()
comm.barrier()
try:
    if sys.argv[1] in (str(comm.rank), "all"):
        os.kill(os.getpid(), signal.SIGINT)
    do_with_survivors(comm, lambda: run_together(comm, lambda: None))
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
from parallelcnn.comm import world
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
        with comm._agreeing():  # for the others MPI's part went well
            pass
    except RankLostError:
        comm.recover()
ranks = comm.gather(started_as)
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


_FAIL_TOGETHER = """
import json, sys
import small
import parallelcnn as pc
from parallelcnn.comm import world

comm = world()
started_as = comm.rank

class Fails:
    def minibatch(self, step, epoch, loss, samples):
        if step == 5 and started_as in json.loads(sys.argv[1]):
            raise ValueError("on purpose")

    def evaluation(self, *_):
        pass

sets = small.dataset(211), small.dataset(97, seed=1)
options = dict(comm=comm, reporter=Fails(), grains=6)
history = pc.train(small.network(seed=1), *sets, pc.SGD(0.1, momentum=0.9), 1, 25, **options)
print(json.dumps([started_as, history.steps, history.lost_ranks]) + "\\n", end="", flush=True)
comm.barrier()
"""


def fail_together(ranks):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _FAIL_TOGETHER, json.dumps(ranks)]
    return launch.run(line, limit=60, PYTHONPATH=str(HERE))


def test_ranks_that_fail_together_are_left_out_together():
    ran = fail_together([0, 2])
    assert ran.code == 0, ran.err
    assert sorted(map(json.loads, ran.out.splitlines())) == [[1, 9, 2], [3, 9, 2]]
    assert ran.err.count("ValueError: on purpose") == 2


def test_where_all_ranks_fail_together_one_says_so_and_the_job_has_failed():
    """Each of them used to kill itself, for the others to go on, and mpirun returned 0."""
    ran = fail_together([0, 1, 2, 3])
    assert ran.code == 1, ran.err
    assert ran.err.count("ValueError: on purpose") == 1
    assert ran.err.count("parallelcnn: rank 0 of 4 failed\n") == 1


_RANK_0_DIES_IN_THE_LAST_CHECKPOINT = """
import os, signal, sys, warnings
import small
import parallelcnn as pc
from parallelcnn.comm import world

comm = world()
started_as = comm.rank
seen = 0

class Counts:
    def minibatch(self, step, epoch, loss, samples):
        global seen
        seen = step

    def evaluation(self, *_):
        pass

class DiesInTheLast(pc.CheckpointFolder):
    def save_if_due(self, facts, network, history, due):
        if due and started_as == 0 and history.steps > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().save_if_due(facts, network, history, due)

sets = small.dataset(211), small.dataset(97, seed=1)
options = dict(comm=comm, reporter=Counts(), grains=6, checkpoints=DiesInTheLast(sys.argv[1], every_steps=100))
if sys.argv[2] == "leaves":
    options["leave"] = lambda: seen == 4
warnings.simplefilter("ignore")
history = pc.train(small.network(seed=1), *sets, pc.SGD(0.1, momentum=0.9), 1, 25, **options)
if comm.rank == 0:
    newest = pc.CheckpointFolder(sys.argv[1]).newest().history
    print(started_as, history.steps, newest.steps, history.lost_ranks, history.left, flush=True)
comm.barrier()
"""


@pytest.mark.parametrize(("how", "steps"), [("leaves", 5), ("comes to the end", 9)])
def test_where_rank_0_is_lost_while_it_saves_at_the_end_another_one_saves(how, steps, tmp_path):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-c", _RANK_0_DIES_IN_THE_LAST_CHECKPOINT]
    ran = launch.run([*line, str(tmp_path), how], limit=60, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    assert ran.out == f"1 {steps} {steps} 1 {how == 'leaves'}\n"


_ONE_GETS_ANOTHER_ERROR = """
import os, signal, sys
from mpi4py import MPI
from parallelcnn.cli import _fail
from parallelcnn.comm import world
from parallelcnn.errors import RankLostError

comm = world()
comm.barrier()
if comm.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    try:
        if comm.rank == 1:
            with comm._collective("gather"):
                raise MPI.Exception(MPI.ERR_OTHER)
        while True:
            comm.barrier()
    except RankLostError:
        comm.recover()
    comm.barrier()
    if comm.rank == 0:
        print(f"{comm.size} go on", flush=True)
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
        assert (ran.code, ran.out, said) == (0, "3 go on\n", [])
    else:
        assert (ran.code, ran.out, len(said)) == (1, "", 1)
        assert said[0].startswith("parallelcnn: error: MPI failed, although no rank is lost (")
        assert "rank 1: MPI_ERR_OTHER" in said[0]


_GETS_GARBAGE = """
import os, signal, sys
import numpy as np
from parallelcnn.comm import world
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
    comm._comm = HandsOverGarbage(comm._comm)
ones = np.ones(5)
try:
    comm.sum_over_ranks(ones) if sys.argv[1] == "sum" else comm.gather(comm.rank)
except RankLostError:
    comm.recover()
    ones[:] = 1
    comm.sum_over_ranks(ones)
    print(f"{started_as}: {ones} {comm.gather(started_as)}\\n", end="", flush=True)
comm.barrier()
"""


@pytest.mark.parametrize("collective", ["sum", "gather"])
def test_garbage_that_mpi_hands_over_for_what_a_lost_rank_has_is_not_taken(collective):
    """Open MPI 5.0.11 once did so without an error."""
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _GETS_GARBAGE, collective]
    ran = launch.run(line, limit=30)
    assert ran.code == 0, ran.err
    assert sorted(ran.out.splitlines()) == [f"{rank}: [3. 3. 3. 3. 3.] [0, 1, 2]" for rank in range(3)]


_ONE_DIES_IN_THE_FIRST_COLLECTIVE = """
import os, signal, sys
from parallelcnn.comm import choose_threads, world
from parallelcnn.errors import RankLostError

comm = world()
if comm.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    comm.barrier()
except RankLostError:
    comm.recover()
found = comm.gather((comm.ranks_on_node(), choose_threads(comm, None) > 0))
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
from parallelcnn.cli import _fail
from parallelcnn.comm import world

comm = world()
comm.barrier()
if comm.rank == int(sys.argv[1]):
    time.sleep(float(sys.argv[2]))
    comm.end_all(1, f"parallelcnn: rank {comm.rank} cannot go on")
try:
    time.sleep(0.3)
    with comm._agreeing():
        pass
    if float(sys.argv[2]) == 0:
        print("all is well", flush=True)
    while True:
        with comm._agreeing():
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
        f"parallelcnn: rank {who} cannot go on"
    ]


_MPI_DOES_NOT_RECOVER = """
import os, signal, sys, time
import small
import parallelcnn as pc
from parallelcnn.comm import world

comm = world()

class NeverShrinks:
    def __init__(self, mpi_comm):
        self.mpi_comm = mpi_comm

    def __getattr__(self, name):
        return getattr(self.mpi_comm, name)

    def Shrink(self):
        time.sleep(1000)

class Dies:
    def minibatch(self, step, epoch, loss, samples):
        if step == 5:
            comm._comm = NeverShrinks(comm._comm)
        if step == 5 and comm.rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

sets = small.dataset(211), small.dataset(97, seed=1)
optimizer = pc.SGD(0.1, momentum=0.9)
pc.train(small.network(seed=1), *sets, optimizer, 4, 25, comm=comm, reporter=Dies(), grains=6, timeout=5.0)
"""


@pytest.mark.usefixtures("undisturbed")  # has its kernels compiled: that may take longer than the timeout
@pytest.mark.parametrize("victim", [0, 2])
def test_ranks_do_not_wait_for_ever_for_mpi_to_leave_out_a_lost_one(victim):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _MPI_DOES_NOT_RECOVER, str(victim)]
    ran = launch.run(line, limit=40, PYTHONPATH=str(HERE))
    assert ran.code == 1, ran.err
    said = [line for line in ran.err.splitlines() if line.startswith("parallelcnn")]
    assert len(said) == 1, ran.err
    assert "in recover (collective " in said[0]
    assert "Traceback" not in ran.err
    assert ran.seconds < 35


_DIE_AT_THE_END = """
import atexit, os, signal
import parallelcnn.comm as comm
ranks = comm.world()
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
