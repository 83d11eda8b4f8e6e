"""The command when ranks are killed, and what is left is taken up again."""

import json
import signal
import sys

import launch
import pytest

from parallelcnn.cli.summary import describe_other_ranks


@pytest.mark.slow
def test_a_run_that_was_done_is_resumed_and_done_again(folder, tmp_path):
    """As one is that was killed between its last checkpoint and its results."""
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--epochs", 1, "--reproducible", 2, "--out", out, "--resume"]
    assert launch.parallelcnn(*line).code == 0
    first = json.loads((out / "summary.json").read_text())
    (out / "summary.json").unlink()
    again = launch.parallelcnn(*line, "--profile")  # which has no step to measure
    assert again.code == 0, again.err
    second = json.loads((out / "summary.json").read_text())
    assert second["parameters_sha256"] == first["parameters_sha256"]
    assert second["first_step_seconds"] is None


def test_files_that_a_kill_left_half_written_are_removed_by_the_next_start(folder, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    script = """
import os, pathlib, signal, sys
from parallelcnn.files.atomic import write_atomically
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


@pytest.mark.slow
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
        (
            ["--resume", checkpoint, "--model", "lenet5"],
            "the checkpoint is of another training: its layer 1 is Conv2D(6, 3",
        ),
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


@pytest.mark.slow
def test_a_checkpoint_of_the_folder_itself_is_resumed_although_it_is_moved_aside(folder, tmp_path):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100, "--out", out]
    assert launch.parallelcnn(*line, "--epochs", 1).code == 0
    ran = launch.parallelcnn(*line, "--epochs", 2, "--resume", out / "checkpoints" / "step-000000003.npz")
    assert ran.code == 0, ran.err
    assert "moved the files of an earlier run" in ran.out
    assert "resumed after minibatch 3" in ran.out
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6 + 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["resumed on 2 ranks (1 thread each) instead of 1 rank (1 thread each): sums are rounded differently"]),
        (["--reproducible", 4], []),
    ],
)
@pytest.mark.mpi
def test_a_resume_on_other_ranks_says_that_the_bits_change_unless_they_are_reproducible(
    folder, tmp_path, options, said
):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--batch-size", 100, "--threads", 1, "--out", out, *options]
    assert launch.parallelcnn(*line, "--epochs", 1).code == 0
    for ranks, epochs, expected in ((2, 2, said), (2, 3, [])):  # then on the same ranks again
        ran = launch.parallelcnn(*line, "--epochs", epochs, "--resume", ranks=ranks)
        assert ran.code == 0, ran.err
        found = [text for text in ran.out.splitlines() if text.startswith("resumed on ")]
        assert [text.partition(",")[0] for text in found] == expected


@pytest.mark.parametrize(
    ("before", "threads", "said"),
    [
        ([1, 1], (1, 1), ""),
        ([2], (1, 1), "on 2 ranks (1 thread each) instead of 1 rank (2 threads each)"),
        ([1, 1], (1, 2), "on 2 ranks (1 to 2 threads each) instead of 2 ranks (1 thread each)"),
        (None, (1,), ""),  # of an earlier version
        ([], (1,), ""),
        (["2"], (1,), ""),
    ],
)
def test_other_ranks_are_described_and_what_is_no_list_of_threads_is_not(before, threads, said):
    assert describe_other_ranks(before, threads).partition(":")[0] == said
