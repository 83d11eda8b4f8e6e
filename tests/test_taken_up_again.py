"""The command when ranks are killed, and what is left is taken up again."""

import json
import signal
import sys

import launch
import pytest


def test_a_run_that_was_done_is_resumed_and_done_again(folder, tmp_path):
    """As one is that was killed between its last checkpoint and its results."""
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--epochs", 1, "--reproducible", 2, "--out", out, "--resume"]
    assert launch.parallelcnn(*line).code == 0
    first = json.loads((out / "summary.json").read_text())
    (out / "summary.json").unlink()
    again = launch.parallelcnn(*line)
    assert again.code == 0, again.err
    second = json.loads((out / "summary.json").read_text())
    assert second["parameters_sha256"] == first["parameters_sha256"]
    assert second["first_step_seconds"] is None


def test_files_that_a_kill_left_half_written_are_removed_by_the_next_start(folder, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    script = """
import os, pathlib, signal, sys
from parallelcnn.files import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(pathlib.Path(sys.argv[1]), b"half")
"""
    for name in ("model.npz", "checkpoints/step-000000003.npz"):
        assert launch.run([sys.executable, "-c", script, str(out / name)]).code == -signal.SIGKILL
    assert len(list(out.rglob(".*.unfinished"))) == 2
    line = ["train", "--data", folder, "--epochs", 1, "--out", out, "--resume"]
    assert launch.parallelcnn(*line).code == 0
    assert not list(out.rglob(".*.unfinished"))


def content(path):
    """Every file below a folder, its bytes and when it was written."""
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def test_what_cannot_be_resumed_is_refused_before_a_file_of_an_earlier_run_is_touched(folder, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100]
    assert launch.parallelcnn(*line, "--epochs", 2, "--out", other).code == 0
    assert launch.parallelcnn(*line, "--epochs", 2, "--out", out).code == 0
    (out / ".model.npz.1.unfinished").touch()
    checkpoint = other / "checkpoints" / "step-000000006.npz"
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(checkpoint.read_bytes()[:-1000])
    before = content(tmp_path)
    for more, message in (
        (["--resume", checkpoint, "--seed", 1], "the checkpoint is of another training: its seed is 0, not 1"),
        (["--resume", checkpoint, "--model", "lenet5"], "the checkpoint is of another training: its layers is"),
        (["--resume", checkpoint, "--epochs", 1], "the checkpoint has seen 460 samples already"),
        (["--resume", damaged], f"{damaged} "),
        (["--resume", tmp_path / "none.npz"], "none.npz"),
        (["--resume", "--seed", 1], "the checkpoint is of another training: its seed is 0, not 1"),
        (["--resume", "--epochs", 1], "the checkpoint has seen 460 samples already"),
        (["--data", tmp_path / "no data"], "no data"),
    ):
        refused = launch.parallelcnn(*line, "--out", out, *more)
        assert refused.code == 2, refused.err
        assert message in refused.err
        assert content(tmp_path) == before
    refused = launch.parallelcnn(*line, "--out", tmp_path / "new", "--resume", checkpoint, "--seed", 1)
    assert refused.code == 2
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_the_folder_itself_is_resumed_although_it_is_moved_aside(folder, tmp_path):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100, "--out", out]
    assert launch.parallelcnn(*line, "--epochs", 1).code == 0
    ran = launch.parallelcnn(*line, "--epochs", 2, "--resume", out / "checkpoints" / "step-000000003.npz")
    assert ran.code == 0, ran.err
    assert "moved the files of an earlier run" in ran.out
    assert "resumed after minibatch 3" in ran.out
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6 + 2


_DIES_BEFORE_MPI = """
import os, signal, sys, time
import parallelcnn.comm as comm
time.sleep(float(sys.argv[2]) if os.environ["OMPI_COMM_WORLD_RANK"] in sys.argv[1] else 0)
if os.environ["OMPI_COMM_WORLD_RANK"] in sys.argv[1]:
    os.kill(os.getpid(), signal.SIGKILL)
comm.world()
"""


def with_ulfm(n_ranks, arguments, limit):
    """Run this Python on ranks that may lose some; skips the test where MPI knows no such thing."""
    mpiexec = launch.mpiexec()
    if "Open MPI" not in launch.run([mpiexec, "--version"]).out:
        pytest.skip("only Open MPI goes on without a lost rank")
    return launch.run([mpiexec, "--with-ft", "ulfm", "-n", str(n_ranks), sys.executable, *arguments], limit)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "victims", "after", "who"),
    [(3, "1", 0, "rank 1"), (4, "0", 2, "rank 0"), (2, "1", 2, "rank 1"), (4, "12", 0, "rank 1, 2")],
)
def test_ranks_do_not_wait_for_one_that_died_before_mpi_began(ranks, victims, after, who):
    """Under ULFM MPI's start would wait for it for ever; one of the others says so and ends the job."""
    ran = with_ulfm(ranks, ["-c", _DIES_BEFORE_MPI, victims, str(after)], limit=30)
    assert ran.code == 1, ran.err
    said = [line for line in ran.err.splitlines() if line.startswith("parallelcnn")]
    assert said == [f"parallelcnn: error: {who} died before MPI had begun, and MPI would wait for ever; the job ends"]
    assert "Traceback" not in ran.err
    assert ran.seconds < 10 + after


_ONE_DOES_NOT_COME = """
import os, time
from parallelcnn.comm import initialising, world
initialising.START_TIMEOUT = 2.0
if "1" in (os.environ.get("OMPI_COMM_WORLD_RANK"), os.environ.get("PMI_RANK")):
    time.sleep(1000)
world()
"""


@pytest.mark.mpi
def test_ranks_do_not_wait_for_ever_for_one_that_never_comes_to_mpi():
    ran = launch.run_ranks(2, ["-c", _ONE_DOES_NOT_COME], limit=30)
    assert ran.code == 1, ran.err
    assert "parallelcnn: error: MPI has not begun after 2 s: it waits for ranks that do not come" in ran.err


_DIE_AT_THE_END = """
import atexit, os, signal
import parallelcnn.comm as comm
ranks = comm.world()
ranks.barrier()
ranks.confirm()
if ranks.rank in (1, 3):
    atexit.register(os.kill, os.getpid(), signal.SIGKILL)
"""


@pytest.mark.mpi
def test_ranks_end_although_others_die_between_all_work_and_the_end_of_mpi():
    """MPI's own end waited for ever in every third attempt."""
    for _ in range(4):
        ran = with_ulfm(4, ["-c", _DIE_AT_THE_END], limit=30)
        assert ran.code == 0, ran.err


_ONE_DIES_IN_THE_START = """
import os, signal, sys
from parallelcnn.cli import _fail
from parallelcnn.comm import run_together, world

comm = world()
comm.barrier()
if comm.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    for _ in range(100):
        run_together(comm, lambda: None)
except BaseException as error:
    sys.exit(_fail(error, comm))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("victim", [0, 1])
def test_eight_ranks_of_which_one_dies_in_the_start_end_soon_and_not_with_0(victim):
    """All of them end the job, and Open MPI's launcher waited for ever for their aborts."""
    ran = with_ulfm(8, ["-c", _ONE_DIES_IN_THE_START, str(victim)], limit=30)
    assert ran.code == 1, ran.err
    assert "is missing another one" in ran.err
