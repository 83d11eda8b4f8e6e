"""Ranks that are lost under Open MPI's `mpirun --with-ft ulfm`: the others continue, to the same bits."""

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
from parallelcnn.resilience.world import world

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
    def on_batch_end(self, step, logs):
        if step == when:
            die()

    def on_test_end(self, logs):
        if f"evaluation {logs['epoch']}" == when:
            die()

if when == "in the sum":
    count, allreduce = 0, comm.allreduce
    def sum_and_die(array):
        global count
        count += 1
        if count == 20:
            die()
        allreduce(array)
    comm.allreduce = sum_and_die

reproducible = json.loads(sys.argv[2])
network = small.network(seed=started_as)
sets = small.dataset(211), small.dataset(97, seed=1)
with warnings.catch_warnings(record=True, action="always") as said:
    history = pc.train(
        network, *sets, pc.SGD(0.1, momentum=0.9), 4, 25, comm=comm, callbacks=[Dies()], verbose=0,
        reproducible=reproducible, evaluate_every=5,
    )
if comm.rank == 0:
    found = {"sha256": network.parameters_sha256(), "left": comm.size, "losses": history.losses,
        "lost": history.lost_ranks, "tests": [(s, e, r.loss, r.accuracy) for s, e, r in history.evaluations],
        "said": [str(one.message) for one in said]}
    print(json.dumps(found), flush=True)
comm.barrier()
"""


@pytest.fixture(scope="module", autouse=True)
def _ulfm():
    launch.skip_unless_ranks_can_be_lost()


def survive(ranks, deaths, reproducible=6):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", str(ranks), sys.executable, "-c", _DIES]
    ran = launch.run([*line, json.dumps(deaths), json.dumps(reproducible)], limit=60, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.out + ran.err
    (found,) = [json.loads(text) for text in ran.out.splitlines() if text.startswith("{")]
    return found, ran.err


@pytest.fixture(scope="module")
def undisturbed():
    network = small.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    history = pc.train(
        network, *sets, pc.SGD(0.1, momentum=0.9), 4, 25, comm=pc.Serial(), reproducible=6, evaluate_every=5
    )
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
    found, _ = survive(3, {0: [12, "killed"]}, reproducible=None)
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
    assert pc.load_model(out / "model.npz").parameters_sha256() == summary["parameters_sha256"]
    assert len(list((out / "checkpoints").iterdir())) == 2
    report = (out / "report.html").read_text()
    assert f"<li>Lost {len(victims)} rank{'s' if len(victims) > 1 else ''} during training; the others" in report
    assert ">Confusion matrix</h2>" in report
    alone = launch.run([*line, "--epochs", "150", "--out", str(tmp_path / "alone")])
    assert alone.code == 0, alone.err
    wanted = json.loads((tmp_path / "alone" / "summary.json").read_text())["parameters_sha256"]
    assert summary["parameters_sha256"] == wanted
    assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()


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


_FAIL_TOGETHER = """
import json, sys
import small
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()
started_as = comm.rank

class Fails:
    def on_batch_end(self, step, logs):
        if step == 5 and started_as in json.loads(sys.argv[1]):
            raise ValueError("on purpose")


sets = small.dataset(211), small.dataset(97, seed=1)
options = dict(comm=comm, callbacks=[Fails()], verbose=0, reproducible=6)
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
    """Each of them used to kill itself, for the others to continue, and mpirun returned 0."""
    ran = fail_together([0, 1, 2, 3])
    assert ran.code == 1, ran.err
    assert ran.err.count("ValueError: on purpose") == 1
    assert ran.err.count("parallelcnn: rank 0 of 4 failed\n") == 1


_RANK_0_DIES_IN_THE_LAST_CHECKPOINT = """
import os, signal, sys, warnings
import small
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()
started_as = comm.rank
seen = 0

class Counts:
    def on_batch_end(self, step, logs):
        global seen
        seen = step


class DiesInTheLast(pc.CheckpointFolder):
    def save(self, checkpoint):
        if started_as == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(checkpoint)

sets = small.dataset(211), small.dataset(97, seed=1)
checkpoints = DiesInTheLast(sys.argv[1], every_steps=100)
options = dict(comm=comm, callbacks=[Counts()], verbose=0, reproducible=6, checkpoints=checkpoints)
if sys.argv[2] == "leaves":
    options["stop"] = lambda: seen == 4
warnings.simplefilter("ignore")
history = pc.train(small.network(seed=1), *sets, pc.SGD(0.1, momentum=0.9), 1, 25, **options)
if comm.rank == 0:
    newest = pc.CheckpointFolder(sys.argv[1]).newest().history
    print(started_as, history.steps, newest.steps, history.lost_ranks, history.stopped, flush=True)
comm.barrier()
"""


@pytest.mark.parametrize(("how", "steps"), [("leaves", 5), ("comes to the end", 9)])
def test_where_rank_0_is_lost_while_it_saves_at_the_end_another_one_saves(how, steps, tmp_path):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-c", _RANK_0_DIES_IN_THE_LAST_CHECKPOINT]
    ran = launch.run([*line, str(tmp_path), how], limit=60, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    assert ran.out == f"1 {steps} {steps} 1 {how == 'leaves'}\n"
    newest = pc.CheckpointFolder(tmp_path).newest()
    sets = small.dataset(211), small.dataset(97, seed=1)
    options = {"comm": pc.Serial(), "reproducible": 6, "resume": newest}
    assert pc.train(small.network(seed=2), *sets, pc.SGD(0.1, momentum=0.9), 1, 25, **options).steps == 9


_MPI_DOES_NOT_RECOVER = """
import os, signal, sys, time
import small
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()

class NeverShrinks:
    def __init__(self, mpi_comm):
        self.mpi_comm = mpi_comm

    def __getattr__(self, name):
        return getattr(self.mpi_comm, name)

    def Shrink(self):
        time.sleep(1000)

class Dies:
    def on_batch_end(self, step, logs):
        if step == 5:
            comm.mpi_comm = NeverShrinks(comm.mpi_comm)
        if step == 5 and comm.rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

sets = small.dataset(211), small.dataset(97, seed=1)
optimizer = pc.SGD(0.1, momentum=0.9)
options = dict(comm=comm, callbacks=[Dies()], verbose=0, reproducible=6, timeout=15.0)
pc.train(small.network(seed=1), *sets, optimizer, 4, 25, **options)
"""


@pytest.mark.usefixtures("undisturbed")  # has its kernels compiled: that may take longer than the timeout
@pytest.mark.parametrize("victim", [0, 2])
def test_ranks_do_not_wait_for_ever_for_mpi_to_leave_out_a_lost_one(victim):
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "4", sys.executable, "-c", _MPI_DOES_NOT_RECOVER, str(victim)]
    ran = launch.run(line, limit=90, PYTHONPATH=str(HERE))
    assert ran.code == 1, ran.err
    said = [line for line in ran.err.splitlines() if line.startswith("parallelcnn")]
    assert len(said) == 1, ran.err
    assert "in recover (collective " in said[0]
    assert "Traceback" not in ran.err
    assert ran.seconds < 80
