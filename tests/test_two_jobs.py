"""Two jobs at once, that share a home, a cache and a folder of results."""

import contextlib
import gc
import json
import signal
import subprocess
import sys

import launch
import pytest

import parallelcnn as pc
from parallelcnn import cli
from parallelcnn.cli.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.any_mpi]


def start(line, ranks=1, **extra):
    launcher = [launch.mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "parallelcnn", *map(str, line)]
    environment = launch.environment(**extra)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def refusal(out):
    return f"parallelcnn: error: --out {out} must belong to one run at a time, but another run is writing there\n"


def waiting(out):
    return f"waiting for the run that still writes to {out}\n"


_HOLDS_THE_FOLDER = """
import pathlib, sys, time
from parallelcnn.files.atomic import lock
out, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
(out / "checkpoints").mkdir(parents=True, exist_ok=True)
held = lock(out / ".lock")
assert held is not None
print("has it", flush=True)
time.sleep(seconds)
for kept in out.glob("kept-*.npz"):
    kept.rename(out / "checkpoints" / kept.name.removeprefix("kept-"))
"""

_IMPATIENT = """
import sys
import parallelcnn.cli.earlier_start as earlier_start
from parallelcnn.cli import main
earlier_start.LONGEST_WAIT = 5.0
sys.exit(main())
"""


@contextlib.contextmanager
def held(out, seconds):
    """Another process has the folder for so long; before it leaves, it puts the files kept-*.npz among checkpoints."""
    command = [sys.executable, "-c", _HOLDS_THE_FOLDER, str(out), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=launch.environment()) as holder:
        try:
            assert holder.stdout.readline() == "has it\n"
            yield
        finally:
            holder.kill()


FEW_AND_MANY = [1, pytest.param(3, marks=pytest.mark.mpi)]


@pytest.mark.parametrize("ranks", FEW_AND_MANY)
def test_a_resumed_run_waits_for_one_that_is_just_leaving_and_takes_up_what_it_left(folder, tmp_path, ranks):
    """As long as an earlier start of the same job, which was killed; longer than --timeout."""
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100, "--threads", 1, "--out", out]
    assert launch.parallelcnn(*line, "--epochs", 1).code == 0
    saved = out / "checkpoints" / "step-000000003.npz"
    saved.rename(out / f"kept-{saved.name}")
    with held(out, 10):
        resumed = launch.parallelcnn(*line, "--epochs", 2, "--resume", "--timeout", 3, ranks=ranks)
    assert resumed.code == 0, resumed.err
    assert resumed.out.count(waiting(out)) == 1
    assert "resumed after minibatch 3\n" in resumed.out
    assert not list(out.glob("before-*"))


def test_a_job_that_slurm_has_queued_again_waits_too(folder, tmp_path):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100, "--epochs", 1, "--out", out]
    with held(out, 4):
        ran = launch.parallelcnn(*line, SLURM_RESTART_COUNT="1")
    assert ran.code == 0, ran.err
    assert ran.out.count(waiting(out)) == 1


@pytest.mark.parametrize("ranks", FEW_AND_MANY)
def test_a_resumed_run_does_not_wait_for_ever(folder, tmp_path, ranks):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100, "--threads", 1, "--out", out, "--resume", "--timeout", 3]
    command = [sys.executable, "-c", _IMPATIENT, *map(str, line)]
    if ranks > 1:
        command = [launch.mpiexec(), "-n", str(ranks), *command]
    with held(out, 100):
        refused = launch.run(command)
    assert refused.code == 2
    assert refused.err.count(refusal(out)) == 1
    assert "waited" not in refused.err
    assert refused.out == waiting(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_who_waits_for_a_folder_can_be_interrupted(folder, tmp_path, number, code):
    out = tmp_path / "out"
    with held(out, 100):
        ran = start(["train", "--data", folder, "--batch-size", 100, "--out", out, "--resume"])
        assert ran.stdout.readline() == waiting(out)
        ran.send_signal(number)
        _, err = ran.communicate(timeout=20)
    assert ran.returncode == code
    assert err == ("parallelcnn: interrupted\n" if code == 130 else "")


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 10, "--threads", 1, "--out", out]
    first = start([*line, "--epochs", 400])
    for shown in first.stdout:
        if shown.startswith("epoch 2/"):
            break
    second = launch.parallelcnn(*line, "--epochs", 1)
    assert second.code == 2
    assert second.err == refusal(out)
    assert "waiting" not in second.out
    _, err = first.communicate(timeout=100)
    assert first.returncode == 0, err
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 400 * 24
    assert not list(out.glob("before-*"))
    again = launch.parallelcnn(*line, "--epochs", 1)  # it is free again
    assert again.code == 0, again.err


def test_a_refused_run_gives_the_folder_back_at_once(folder, tmp_path, capsys):
    line = ["train", "--data", str(folder), "--epochs", "1", "--threads", "1", "--out", str(tmp_path / "out")]
    assert cli.main(line) == 0
    gc.disable()  # which would give it back, too, sooner or later
    try:
        assert cli.main([*line, "--resume", "--seed", "1"]) == 2
        RunDirectory(tmp_path / "out").close()
    finally:
        gc.enable()
    assert "seed" in capsys.readouterr().err


@pytest.mark.mpi
def test_two_jobs_of_four_ranks_that_start_with_one_empty_cache_both_train(folder, tmp_path):
    shared = {"HOME": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "TMPDIR": str(tmp_path)}
    line = ["train", "--data", folder, "--batch-size", 50, "--threads", 1, "--epochs", 3, "--reproducible", 4]
    outs = [tmp_path / "one", tmp_path / "other"]
    jobs = [start([*line, "--out", out], 4, **shared) for out in outs]
    for job in jobs:
        _, err = job.communicate(timeout=200)
        assert job.returncode == 0, err
        assert err == ""
    summaries = [json.loads((out / "summary.json").read_text()) for out in outs]
    assert len({summary["parameters_sha256"] for summary in summaries}) == 1
    for out, summary in zip(outs, summaries, strict=True):
        assert pc.load_model(out / "model.npz").parameters_sha256() == summary["parameters_sha256"]
