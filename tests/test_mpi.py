"""Many ranks: the tests in mpi/, each on 1, 2, 3 and 4 of them; ranks that fail and that are killed."""

import json
import re
import sys
import time
from pathlib import Path

import launch
import pytest

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent


@pytest.mark.parametrize("n_ranks", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4)), 3])
def test_what_ranks_do_together(n_ranks):
    arguments = [
        "-m",
        "mpi4py",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:tmpdir",
        str(HERE / "mpi"),
    ]
    ran = launch.run_ranks(n_ranks, arguments, limit=480, PARALLELCNN_MPI_TESTS=str(n_ranks))
    assert ran.code == 0, ran.out + ran.err
    assert " passed" in ran.out
    assert " failed" not in ran.out


_DIES = """
import os, signal, sys, time
import small
import parallelcnn as pc
from parallelcnn.resilience.world import world

how, comm = sys.argv[1], world()
ERRORS = {
    "raises": ZeroDivisionError,
    "raises our own error": pc.ParallelCNNError,
    "leaves": SystemExit,
    "is interrupted": KeyboardInterrupt,
}

class Bomb:
    def on_batch_end(self, step, logs):
        if step == 12:  # in the middle of the second epoch
            print("now", time.time(), flush=True)
            if how in ERRORS:
                raise ERRORS[how]("on purpose")
            os.kill(os.getpid(), signal.SIGKILL)


callbacks = [Bomb()] if comm.rank == int(sys.argv[2]) else []
options = dict(comm=comm, callbacks=callbacks, verbose=0)
pc.train(small.network(), small.dataset(211), small.dataset(97), pc.SGD(0.1), 1000, 25, **options)
"""


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("how", ["raises", "raises our own error", "leaves", "is interrupted", "is killed"])
def test_a_rank_that_dies_in_the_middle_of_an_epoch_ends_the_job_within_ten_seconds(how, victim):
    ran = launch.run_ranks(3, ["-c", _DIES, how, str(victim)], limit=60, PYTHONPATH=str(HERE))
    died = float(re.search(r"now (\S+)", ran.out)[1])
    assert ran.code != 0
    assert time.time() - died < 10, ran.err
    if how == "is interrupted":
        assert f"parallelcnn: rank {victim} of 3: interrupted\n" in ran.err
        assert "Traceback" not in ran.err
    elif how != "is killed":
        assert f"rank {victim} of 3 failed" in ran.err
        assert "on purpose" in ran.err


_FAILS_IN_A_THREAD = """
import threading
from dataclasses import dataclass
import small
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()

@dataclass(frozen=True, repr=False)
class Fails(pc.Activation):
    def backward(self, step, dy):
        step.call(self._fail)
        return super().backward(step, dy)

    def _fail(self):
        if comm.rank == 1 and threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError("on purpose")

network = pc.NetworkHandler((*small.LAYERS, Fails("relu")), (1, 11, 9))
pc.train(network, small.dataset(211), small.dataset(97), pc.SGD(0.1), 1000, 25, comm=comm, threads=2)
"""


def test_a_thread_of_a_rank_that_fails_ends_the_job():
    ran = launch.run_ranks(3, ["-c", _FAILS_IN_A_THREAD], limit=60, PYTHONPATH=str(HERE))
    assert ran.code != 0
    assert ran.seconds < 30, ran.err
    assert "rank 1 of 3 failed" in ran.err
    assert "ZeroDivisionError: on purpose" in ran.err


_FAILS_OUTSIDE = """
import small
import parallelcnn as pc
from parallelcnn.resilience.world import world

for run in range(2):
    pc.train(small.network(), small.dataset(50), small.dataset(9), pc.SGD(0.1), 1, 25)
    if world().rank == 1:
        raise pc.ParallelCNNError("between two trainings")
"""


def test_a_script_whose_one_rank_fails_between_two_trainings_ends():
    ran = launch.run_ranks(2, ["-c", _FAILS_OUTSIDE], limit=30, PYTHONPATH=str(HERE))
    assert ran.code != 0
    assert "rank 1 of 2 failed" in ran.err
    assert "between two trainings" in ran.err


@pytest.fixture
def folder(tmp_path):
    """A data set of IDX files, small enough to train on in a moment."""
    from idx_files import write_idx_folder

    return write_idx_folder(tmp_path / "data", n_train=230, n_test=70)


def test_the_command_on_three_ranks_trains_one_network_and_only_rank_0_speaks(folder, tmp_path):
    out = tmp_path / "out"
    ran = launch.parallelcnn("train", "--data", folder, "--epochs", 2, "--batch-size", 50, "--out", out, ranks=3)
    assert ran.code == 0, ran.err
    assert (
        ran.out.count("epoch 1/2") == ran.out.count("epoch 2/2") == ran.out.count("minibatch  50 = 16 + 17 + 17") == 1
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == 3
    assert summary["samples_seen"] == 460
    alone = launch.parallelcnn("train", "--data", folder, "--epochs", 2, "--batch-size", 50, "--out", tmp_path / "one")
    assert alone.code == 0, alone.err
    wanted = json.loads((tmp_path / "one" / "summary.json").read_text())
    for key in ("train_loss", "test_loss"):
        assert summary[key] == pytest.approx(wanted[key], rel=1e-4)
    evaluated = launch.parallelcnn("evaluate", out, "--data", folder, ranks=2)
    assert evaluated.code == 0, evaluated.err
    assert evaluated.out.count(f"test loss {summary['test_loss']:.4f}") == 1


@pytest.mark.slow
def test_two_ranks_train_the_papers_network_on_the_real_mnist(mnist_dir, tmp_path):
    line = ["train", "--data", "mnist", "--data-dir", mnist_dir, "--epochs", 3, "--batch-size", 100]
    ran = launch.parallelcnn(*line, "--learning-rate", 0.1, "--out", tmp_path / "out", ranks=2)
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert summary["samples_seen"] == 180_000
    assert summary["test_accuracy"] >= 0.975
    assert summary["train_accuracy"] >= 0.975


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "nowhere"],
        ["train", "--batch-size", "0"],
        ["train", "--threads", "0"],
        ["train", "--model", "papr"],
        ["train", "--learning-rate", "-1"],
        ["train", "--speed", "high"],
        ["train", "--out", "/dev/null/out"],
        ["evaluate", "none.npz"],
        [],
    ],
)
def test_bad_input_is_said_once_and_all_ranks_end_with_2_within_seconds(arguments, folder):
    data = ["--data", str(folder)] if arguments and "--data" not in arguments else []
    ran = launch.parallelcnn(*arguments, *data, ranks=4)
    assert ran.code == 2, ran.out + ran.err
    wanted = "error: " if arguments else "usage: parallelcnn "
    assert (ran.out + ran.err).count(wanted) == 1, ran.out + ran.err
    assert "Traceback" not in ran.err
    assert ran.seconds < 20


_USERS_MODEL = """
import os
from parallelcnn import Dense, Flatten

def leaves_one_rank():
    if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))) == 1:
        raise SystemExit(0)
    return Flatten(), Dense(10)

def unchained():
    return Dense(10),
"""


@pytest.mark.parametrize("function", ["leaves_one_rank", "unchained"])
def test_a_model_that_is_wrong_on_one_rank_or_all_is_refused_once(function, folder, tmp_path):
    (tmp_path / "own.py").write_text(_USERS_MODEL)
    line = ["train", "--data", folder, "--model", f"{tmp_path / 'own.py'}:{function}", "--out", tmp_path / "out"]
    ran = launch.parallelcnn(*line, ranks=3)
    assert ran.code == 2, ran.err
    assert ran.err.count("parallelcnn: error: ") == 1, ran.err
    assert not (tmp_path / "out").exists()


def test_a_closed_pipe_of_rank_0_ends_all_ranks(folder, tmp_path):
    line = f"{sys.executable} -m parallelcnn train --data {folder} --epochs 2 --out {tmp_path / 'out'} | true"
    ran = launch.run([launch.mpiexec(), "-n", "2", "bash", "-c", line], limit=30)
    assert "Traceback" not in ran.err


def test_the_version_is_printed_once():
    ran = launch.parallelcnn("--version", ranks=3)
    assert ran.code == 0
    assert ran.out.count("parallelcnn ") == 1


def test_info_tells_of_every_rank():
    ran = launch.parallelcnn("info", ranks=3)
    assert ran.code == 0, ran.err
    assert ran.out.count("MPI library") == 1
    for rank in range(3):
        assert f"rank {rank} " in ran.out


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_launch_that_would_be_separate_trainings_is_refused_with_the_right_command(variable, tmp_path):
    line = [sys.executable, "-m", "parallelcnn", "train", "--out", str(tmp_path / "out")]
    ran = launch.run(["env", f"{variable}=4", *line])
    assert ran.code == 2, ran.err
    assert f"{variable}=4 says that" in ran.err
    assert f"mpirun -n 4 {sys.executable} -m parallelcnn train --out {tmp_path / 'out'}\n" in ran.err
    assert not (tmp_path / "out").exists()
