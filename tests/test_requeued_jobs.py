"""Jobs that SLURM has queued again: they continue what they have begun themselves, and nothing else."""

import json
import os
import shutil
import signal

import pytest

from parallelcnn.cli import earlier_start
from parallelcnn.cli.run_directory import RunDirectory, RunReporter
from parallelcnn.files.atomic import lock
from parallelcnn.training.checkpoint import load_checkpoint


@pytest.fixture
def train(folder, tmp_path, monkeypatch, here):
    """Train as a start of a SLURM job, 15 minibatches in three epochs; `ends` raises an error after that minibatch."""
    on_batch_end = RunReporter.on_batch_end

    def run(*more, job=18, start=0, ends=None, out="out"):
        def end(self, step, logs):
            on_batch_end(self, step, logs)
            if step == ends:
                raise RuntimeError("the node has failed")

        with monkeypatch.context() as patch:
            patch.setattr(RunReporter, "on_batch_end", end)
            patch.setenv("SLURM_JOB_ID", str(job))
            patch.setenv("SLURM_RESTART_COUNT", str(start))
            line = ["train", "--data", folder, "--batch-size", 50, "--threads", 1, "--out", tmp_path / out]
            ran = here(*line, *more)
        assert (ran.code == 0) == (ends is None), ran.err
        return ran

    return run


def hash_of(run):
    return json.loads((run / "summary.json").read_text())["parameters_sha256"]


@pytest.fixture
def undisturbed(train, tmp_path):
    train(out="undisturbed", job=1)
    return hash_of(tmp_path / "undisturbed")


def test_a_job_continues_the_run_that_it_has_begun(train, tmp_path, undisturbed):
    train(ends=12)
    ran = train(start=1)
    assert "resumed after minibatch 10\n" in ran.out
    assert hash_of(tmp_path / "out") == undisturbed
    assert not list((tmp_path / "out").glob("before-*"))
    assert "resumed" not in train(start=0).out  # a first start


def test_before_its_own_first_checkpoint_it_starts_from_the_file_again(train, tmp_path, undisturbed):
    train(ends=12, out="earlier", job=2)
    file = tmp_path / "earlier" / "checkpoints" / "step-000000005.npz"
    for start in (0, 1):
        train("--resume", file, ends=7, start=start)
    ran = train("--resume", file, start=2)
    assert "resumed after minibatch 5\n" in ran.out
    assert hash_of(tmp_path / "out") == undisturbed
    assert "resumed after minibatch 15\n" in train("--resume", file, start=3).out  # its own, which is newer


@pytest.mark.parametrize("ends", [None, 12])
def test_it_does_not_continue_the_run_of_another_job(ends, train, tmp_path, undisturbed):
    """The first start was killed while it read the data: the directory is still that of the other job."""
    train("--learning-rate", 0.5, ends=ends, job=17)
    ran = train(start=1)
    assert "moved the files of an earlier run to" in ran.out
    assert "resumed" not in ran.out
    assert hash_of(tmp_path / "out") == undisturbed


def test_it_continues_in_the_directory_to_which_its_run_has_moved(train, tmp_path, undisturbed, monkeypatch):
    stay_ours, removed = RunDirectory.stay_ours, []

    def remove_once(self):
        if not removed:
            shutil.rmtree(self.path)
            removed.append(self.path)
        return stay_ours(self)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "stay_ours", remove_once)
        assert "out-2" in train(ends=12).err
    train(job=19)  # another job takes the old name
    ran = train(start=1)
    assert "resumed after minibatch 10\n" in ran.out
    assert ran.out.endswith(f"written    {tmp_path / 'out-2'}/\n")
    assert hash_of(tmp_path / "out-2") == undisturbed


def test_another_training_of_the_same_job_is_not_continued(train, tmp_path, undisturbed):
    """As of a script that trains into "out" and into "out-2"."""
    train(ends=12)
    train("--learning-rate", 0.5, ends=7, out="out-2")
    ran = train(start=1)
    assert ran.out.endswith(f"written    {tmp_path / 'out'}/\n")
    assert hash_of(tmp_path / "out") == undisturbed


def test_the_lock_of_its_node_that_has_failed_does_not_stop_it(train, tmp_path, undisturbed, monkeypatch):
    train(ends=12)
    monkeypatch.setattr(earlier_start, "LONGEST_WAIT", 0.3)
    held = lock(tmp_path / "out" / ".lock")  # by a file system that does not know of the failure
    ran = train(start=1)
    assert "waiting for the run that still writes to" in ran.out
    assert "resumed after minibatch 10\n" in ran.out
    assert hash_of(tmp_path / "out") == undisturbed
    held.close()
    held = lock(tmp_path / "out" / ".lock")
    assert "another run is writing there" in train(start=1, job=20, ends=0).err  # not its own
    held.close()


def test_checkpoints_none_of_which_can_be_read_are_not_passed_over(train, tmp_path):
    train(ends=12)
    for file in (tmp_path / "out" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    for ran in (train(start=1, ends=0), train("--resume", ends=0)):
        assert ran.code == 2
        assert ran.err.count("there is none before it") == 1
        assert ran.err.endswith("with --resume FILE, their files are moved to another directory\n")
    assert not list((tmp_path / "out").glob("before-*"))


def test_a_stop_whose_checkpoint_cannot_be_saved_is_a_failure(train, tmp_path, monkeypatch):
    """A job must not be queued again for ever."""

    def full(*_):
        raise OSError(28, "No space left on device", "x")

    on_train_begin = RunReporter.on_train_begin

    def signalled(self, logs):
        on_train_begin(self, logs)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(RunReporter, "on_train_begin", signalled)

    with monkeypatch.context() as patch:
        patch.setattr("parallelcnn.training.checkpoint.save_checkpoint", full)
        ran = train(ends=0)
    assert ran.code == 74
    assert "but the checkpoint could not be saved" in ran.err
    ran = train(ends=0)
    assert ran.code == 138
    assert load_checkpoint(tmp_path / "out" / "checkpoints" / "step-000000001.npz").history.steps == 1
