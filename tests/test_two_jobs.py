"""Two jobs at once, that share a home, a cache and a folder of results."""

import json
import subprocess
import sys

import launch
import pytest

import parallelcnn as pc


def start(line, ranks=1, **extra):
    launcher = [launch.mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "parallelcnn", *map(str, line)]
    environment = launch.environment(**extra)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 10, "--threads", 1, "--out", out]
    first = start([*line, "--epochs", 400])
    for shown in first.stdout:
        if shown.startswith("epoch 2/"):
            break
    for more in ([], ["--resume"]):
        second = launch.parallelcnn(*line, "--epochs", 1, *more)
        assert second.code == 2
        assert second.err == (
            f"parallelcnn: error: --out {out} must be one run's at a time, but another run writes there now\n"
        )
    _, err = first.communicate(timeout=100)
    assert first.returncode == 0, err
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 400 * 24
    assert not list(out.glob("before-*"))
    again = launch.parallelcnn(*line, "--epochs", 1)  # it is free again
    assert again.code == 0, again.err


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
