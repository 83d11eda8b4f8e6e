"""The command when something happens to it in the middle: a full disk, Ctrl-C. test_metrics.py has more."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from launch import environment, mpiexec, run


def with_files_of_at_most(kib, line):
    """A limit on the size of files stands for a full disk."""
    return run(["bash", "-c", f"ulimit -f {kib}; trap '' XFSZ; {sys.executable} -m parallelcnn {line}"])


def test_a_full_disk_at_the_end_is_a_sentence_and_1(folder, tmp_path):
    """metrics.jsonl fits, model.npz does not."""
    ran = with_files_of_at_most(64, f"train --data {folder} --epochs 1 --out {tmp_path / 'out'}")
    assert ran.code == 1
    out = tmp_path / "out"
    assert ran.err == (
        f"parallelcnn: warning: no checkpoint after minibatch 3 "
        f"(File too large: {out}/checkpoints/step-000000003.npz); training continues without it\n"
        f"parallelcnn: error: {out / 'model.npz'}: File too large\n"
    )


def test_a_full_disk_in_the_middle_of_training_is_said_once_and_training_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    ran = with_files_of_at_most(8, f"train --data {folder} --epochs 100 --batch-size 10 --out {out}")
    assert "epoch 100/100 " in ran.out
    assert ran.code == 1
    checkpoint, metrics, lacking, model = ran.err.splitlines()
    assert checkpoint.startswith("parallelcnn: warning: no checkpoint after minibatch 23 (File too large: ")
    assert metrics == (
        f"parallelcnn: warning: {out}/metrics.jsonl cannot be written now: File too large; "
        f"its rows will be written later"
    )
    assert lacking == f"parallelcnn: warning: {out}/metrics.jsonl lacks rows, since it could not be written"
    assert model == f"parallelcnn: error: {out / 'model.npz'}: File too large"
    assert not list((out / "checkpoints").iterdir())


@pytest.mark.slow
def test_where_there_is_no_room_for_the_timeline_all_else_is_there(folder, tmp_path):
    out = tmp_path / "out"
    line = f"train --data {folder} --epochs 70 --threads 1 --profile --out {out}"
    ran = with_files_of_at_most(168, line)  # a checkpoint has 160 KiB, trace.json 177
    assert ran.code == 0
    assert ran.err == "parallelcnn: warning: no trace.json: File too large\n"
    assert (out / "profile.txt").read_text() in ran.out
    json.loads((out / "summary.json").read_text())
    plots = ["loss.png"] if find_spec("matplotlib") else []
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            ".lock",
            "checkpoints",
            "config.toml",
            *plots,
            "metrics.jsonl",
            "model.npz",
            "profile.txt",
            "report.html",
            "summary.json",
        ]
    )


def start_training(folder, out, ranks=1, epochs=100_000):
    """A training that has come to its third epoch; its output is no longer read."""
    line = [sys.executable, "-m", "parallelcnn", "train", "--data", str(folder), "--threads", "1", "--profile"]
    launcher = [mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    line = [*launcher, *line, "--epochs", str(epochs), "--out", str(out)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    for shown in process.stdout:
        if shown.startswith("epoch 3/"):
            return process
    pytest.fail(process.communicate()[1])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=[pytest.mark.mpi, pytest.mark.slow])])
def test_an_interrupt_is_said_once_and_no_line_is_left_half_written(ranks, folder, tmp_path):
    """As Ctrl-C does it: every process of the terminal gets the signal."""
    process = start_training(folder, tmp_path / "out", ranks)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    if ranks == 1:
        assert process.returncode == 130
    assert process.returncode != 0
    # Open MPI's mpiexec may end the ranks, with an exit code of its own, before one of them has said it.
    assert err.count("interrupted") == 1 or (ranks == 2 and err == "")
    assert "Traceback" not in err
    assert "failed" not in err
    lines = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert lines.endswith("}\n")
    steps = [line["step"] for line in map(json.loads, lines.splitlines()) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_an_interrupt_is_never_lost_or_a_traceback_also_while_the_command_starts(folder, tmp_path):
    line = [sys.executable, "-m", "parallelcnn", "train", "--data", str(folder), "--epochs", "100000"]
    milliseconds, begun = 60, 0
    while begun < 16:
        milliseconds += 20
        process = subprocess.Popen(
            [*line, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(milliseconds / 1e3)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
            assert err.startswith("Exception ignored in"), err  # Python lost it before the command had begun
            assert "command.py" not in err
            continue
        left = err.startswith("parallelcnn: interrupted: stopped after minibatch ") and err.count("\n") == 1
        if "command.py" not in err and "Traceback" in err:
            continue  # Python was still reading the program: on a busy machine this takes a second
        begun += 1
        assert process.returncode in (130, -signal.SIGINT), err
        assert left or err in ("", "parallelcnn: interrupted\n"), milliseconds
