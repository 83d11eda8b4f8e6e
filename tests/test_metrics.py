"""metrics.jsonl and the run directory, without a subprocess: rows, full disks, directories that are removed."""

import errno
import json
import os
import shutil
import sys
from types import SimpleNamespace

import launch
import pytest
import small

import parallelcnn as pc
from parallelcnn import cli
from parallelcnn.cli import run_directory
from parallelcnn.cli.metrics import MetricsFile, evaluation_row, loss_row, rows_of
from parallelcnn.cli.run_directory import RunDirectory, RunReporter
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.training.checkpoint import CheckpointSaver
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History

SAMPLES = 211  # nine minibatches of 25, the last of which has 11


def opened(path, resume=False):
    directory = RunDirectory(path)
    try:
        directory.open(resume=resume)
    except InputError:
        directory.close()
        raise
    return directory


def train(path, batch_size=25, epochs=3, resume=None, stop_after=None, network=None):
    """Train with the command's reporter into the directory; the history."""
    directory = opened(path, resume=resume is not None)
    reporter = RunReporter(pc.Serial(), directory, path, directory.token, SAMPLES)
    steps = iter(range(10**6))
    history = pc.train(
        network or small.network(),
        small.dataset(SAMPLES),
        small.dataset(97),
        pc.SGD(0.1),
        epochs,
        batch_size,
        evaluate_every=4,
        callbacks=[reporter],
        checkpoints=pc.CheckpointFolder(path / "checkpoints", locate=lambda: reporter.directory_to_write().checkpoints),
        resume=resume,
        stop=lambda: next(steps) + 1 == stop_after,
        comm=pc.Serial(),
    )
    reporter.history = history
    reporter.close()
    return history


def rows(path):
    return (path / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its directory and its history."""
    path = tmp_path_factory.mktemp("whole")
    return path, train(path)


def test_rows_written_while_training_are_those_made_from_the_history(whole):
    path, history = whole
    assert rows(path) == "".join(rows_of(history, SAMPLES))
    losses = [row for row in map(json.loads, rows(path).splitlines()) if "loss" in row]
    assert [row["epoch"] for row in losses] == [1] * 9 + [2] * 9 + [3] * 9


@pytest.mark.parametrize("stop_after", [7, 9, 13])
def test_a_resumed_run_leaves_the_same_bytes_as_an_undisturbed_one(stop_after, whole, tmp_path):
    train(tmp_path, stop_after=stop_after)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "epoch": 5, "lo')  # a row that a killed run has left
    train(tmp_path, resume=pc.CheckpointFolder(tmp_path / "checkpoints").newest(), network=small.network(5))
    assert rows(tmp_path) == rows(whole[0])


def test_epochs_are_right_after_a_resume_with_another_batch_size(tmp_path):
    train(tmp_path, stop_after=12)
    resume = pc.CheckpointFolder(tmp_path / "checkpoints").newest()
    with pytest.warns(TrainingWarning, match="batch_size 50 instead of 25"):
        history = train(tmp_path, batch_size=50, resume=resume)
    assert rows(tmp_path) == "".join(rows_of(history, SAMPLES))
    losses = [json.loads(row) for row in rows_of(history, SAMPLES) if '"loss"' in row]
    assert [row["epoch"] for row in losses] == [1] * 9 + [2] * (3 + 3) + [3] * 5


def test_rows_hold_nine_digits_and_no_nan():
    assert loss_row(3, 2, 2.302585092994046) == '{"step": 3, "epoch": 2, "loss": 2.30258509}\n'
    assert json.loads(loss_row(3, 2, float("nan")))["loss"] is None
    row = json.loads(evaluation_row(4, 2, Evaluation(float("inf"), None, 10)))
    assert row == {"step": 4, "epoch": 2, "test_loss": None, "test_accuracy": None}


class FullDisk:
    """A file on a disk that is full."""

    def __init__(self, file):
        self._file = file

    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = write

    def __getattr__(self, name):
        return getattr(self._file, name)


def two_steps(losses):
    result = Evaluation(0.5, 0.75, 10)
    return History(losses, [(len(losses), 1, result)], samples_seen=10), result


def test_rows_lost_while_the_disk_is_full_are_written_once_there_is_room(tmp_path, monkeypatch):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    history, result = two_steps([2.0, 1.0])
    metrics.append_loss(1, 1, 2.0)
    metrics._file = FullDisk(metrics._file)
    with pytest.warns(TrainingWarning, match="cannot be written now: No space left on device; its rows will be"):
        metrics.append_loss(2, 1, 1.0)
    metrics.append(evaluation_row(2, 1, result), flush=True)  # warns no more
    with monkeypatch.context() as patched:
        patched.setattr("parallelcnn.cli.metrics.write_atomically", lambda *_: FullDisk(None).write(0))
        metrics.complete(history, 10)
    metrics.complete(history, 10, last_chance=True)
    assert rows(tmp_path) == "".join(rows_of(history, 10))
    metrics.append_loss(3, 2, 0.5)
    metrics.close()
    assert rows(tmp_path).endswith(loss_row(3, 2, 0.5))


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path, monkeypatch):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    monkeypatch.setattr("parallelcnn.cli.metrics.write_atomically", lambda *_: FullDisk(None).write(0))
    metrics._file = FullDisk(metrics._file)
    with pytest.warns(TrainingWarning, match="metrics.jsonl cannot be written now"):
        metrics.append_loss(1, 1, 2.0)
    with pytest.warns(TrainingWarning, match="metrics.jsonl lacks rows, since it could not be written"):
        metrics.complete(two_steps([2.0])[0], 10, last_chance=True)


@pytest.mark.parametrize("what", ["removed", "emptied"])
def test_a_file_that_is_removed_or_emptied_is_written_again(what, tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    history, _ = two_steps([2.0])
    metrics.append_loss(1, 1, 2.0)
    if what == "removed":
        (tmp_path / "metrics.jsonl").unlink()
    else:
        (tmp_path / "metrics.jsonl").rename(tmp_path / "other")
        (tmp_path / "metrics.jsonl").touch()
    metrics.complete(history, 10)
    assert rows(tmp_path) == "".join(rows_of(history, 10))
    metrics.close()


def command(folder, out, *more):
    return cli.main(["train", "--data", str(folder), "--threads", "1", "--out", str(out), *more])


def at_step(monkeypatch, wanted, do):
    """Have the reporter do something when a minibatch is done."""
    on_batch_end = RunReporter.on_batch_end

    def and_do(self, step, *arguments):
        if step == wanted:
            do()
        on_batch_end(self, step, *arguments)

    monkeypatch.setattr(RunReporter, "on_batch_end", and_do)


def content(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert command(folder, out, "--batch-size", "50") == 0
    return out


@pytest.mark.parametrize("how", ["removed", "renamed", "removed and taken by another run"])
def test_a_run_whose_directory_is_gone_continues_in_a_new_one(how, undisturbed, folder, tmp_path, monkeypatch, capsys):
    """Neither writes nor deletes in a directory that another run may have taken, and loses nothing."""
    out = tmp_path / "out"
    other = {}

    def replace():
        out.rename(tmp_path / "gone")
        if how != "renamed":
            shutil.rmtree(tmp_path / "gone")
        if how.endswith("run"):
            directory = opened(out)
            for name in ("model.npz", "summary.json", "metrics.jsonl", "checkpoints/step-000000001.npz"):
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_text("of another run")
            directory.close()
            other.update(content(out))

    at_step(monkeypatch, 7, replace)
    capsys.readouterr()
    assert command(folder, out, "--batch-size", "50") == 0
    shown = capsys.readouterr()
    new = tmp_path / "out-2"
    assert shown.err == (
        f"parallelcnn: warning: {out} was removed or replaced during the run; from here on the run writes to {new}\n"
    )
    assert shown.out.endswith(f"written    {new}/\n")
    assert (content(out) if out.exists() else {}) == other
    assert rows(new) == rows(undisturbed)
    hashes = [json.loads((path / "summary.json").read_text())["parameters_sha256"] for path in (new, undisturbed)]
    assert hashes[0] == hashes[1] == pc.load_model(new / "model.npz").parameters_sha256()
    assert sorted(path.name for path in (new / "checkpoints").iterdir()) == ["step-000000010.npz", "step-000000015.npz"]


def test_files_removed_from_the_directory_are_written_again(folder, tmp_path, monkeypatch, capsys):
    """As rm -rf out/* does it, which leaves the lock."""
    out = tmp_path / "out"

    def empty():
        shutil.rmtree(out / "checkpoints")
        (out / "metrics.jsonl").unlink()

    at_step(monkeypatch, 7, empty)
    assert command(folder, out, "--batch-size", "50") == 0
    assert capsys.readouterr().err == ""
    assert len(rows(out).splitlines()) == 15 + 3
    assert not (tmp_path / "out-2").exists()


def test_the_successor_of_a_lost_rank_0_takes_its_directory_over_unless_another_run_has_it(tmp_path):
    history = History([2.0, 1.0], [(2, 1, Evaluation(0.5, 0.75, 10))], samples_seen=10)
    directory = opened(tmp_path / "out")
    directory.close()  # as the end of a process does

    def successor():
        reporter = RunReporter(pc.Serial(), None, tmp_path / "out", directory.token, 10)
        reporter.history = history
        path = reporter.directory_to_write().path
        reporter.close()
        assert rows(path) == "".join(rows_of(history, 10))
        return path

    assert successor() == tmp_path / "out"
    opened(tmp_path / "out").close()
    before = content(tmp_path / "out")
    with pytest.warns(TrainingWarning, match=r"removed or replaced during the run; .* writes to .*out-2"):
        assert successor() == tmp_path / "out-2"
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["lock", "remove_unfinished", "MetricsFile"])
def test_a_full_disk_does_not_end_the_successor_of_a_lost_rank_0(what, tmp_path, monkeypatch):
    """It tries again, and finds the directory still its own."""
    history = History([2.0, 1.0], [(2, 1, Evaluation(0.5, 0.75, 10))], samples_seen=10)
    directory = opened(tmp_path / "out")
    directory.close()
    reporter = RunReporter(pc.Serial(), None, tmp_path / "out", directory.token, 10)
    reporter.training = SimpleNamespace(history=history)
    folder = pc.CheckpointFolder(tmp_path / "c", locate=lambda: reporter.directory_to_write().checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, what, lambda *_: FullDisk(None).write(0))
        reporter.on_resume({})
        reporter.on_test_end({})
        with pytest.warns(TrainingWarning, match=r"no checkpoint after minibatch 2 \(No space left on device: "):
            CheckpointSaver(pc.Serial(), folder, {}).save(small.network(), history)
    reporter.on_resume({})
    assert reporter.directory.path == tmp_path / "out"
    assert rows(tmp_path / "out") == "".join(rows_of(history, 10))
    reporter.close()


def test_the_file_of_epochs_follows_the_run_into_a_new_directory(folder, tmp_path, monkeypatch, capsys):
    out, new = tmp_path / "out", tmp_path / "out-2"

    def replace():
        shutil.rmtree(out)
        opened(out).close()
        (out / "epochs.csv").write_text("of another run")

    at_step(monkeypatch, 7, replace)
    assert command(folder, out, "--batch-size", "50", "--log", "csv") == 0
    assert capsys.readouterr().err.count("warning") == 1
    assert {path.name for path in out.iterdir()} == {".lock", "metrics.jsonl", "epochs.csv"}
    assert (out / "epochs.csv").read_text() == "of another run"
    assert len((new / "epochs.csv").read_text().splitlines()) == 1 + 3


def test_a_successor_does_not_wait_for_a_lock_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("parallelcnn.cli.run_directory._LONGEST_END", 0.2)
    directory = opened(tmp_path / "out")
    with pytest.warns(TrainingWarning, match=r"is still locked by the lost rank; .* writes to .*out-2"):
        new = RunDirectory.take_over(tmp_path / "out", directory.token)
    new.close()
    directory.close()


def test_a_new_directory_that_cannot_be_created_costs_checkpoints_but_no_step(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    at_step(monkeypatch, 1, lambda: (shutil.rmtree(out), out.write_text("a file")))
    monkeypatch.setattr("parallelcnn.cli.run_directory.make_new", lambda *_: FullDisk(None).write(0))
    assert command(folder, out) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("parallelcnn: warning: no checkpoint after minibatch 3 (No space left on device")
    assert err[-1] == "parallelcnn: error: No space left on device"
    assert out.read_text() == "a file"


def test_a_new_directory_that_another_run_locks_first_is_not_touched(tmp_path, monkeypatch):
    directory, others = opened(tmp_path / "out"), []
    make_new = run_directory.make_new

    def make_new_and_be_late(*arguments):
        new = make_new(*arguments)
        if new.name == "out-2":
            others.append(opened(new))
        return new

    monkeypatch.setattr(run_directory, "make_new", make_new_and_be_late)
    shutil.rmtree(tmp_path / "out")
    with pytest.warns(TrainingWarning, match="out-3"):
        directory.stay_ours()
    (other,) = others
    assert (tmp_path / "out-2" / ".lock").read_text() == other.token
    for one in (directory, other):
        one.close()


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "link to a device"])
def test_what_is_no_regular_file_is_refused_and_nobody_waits_for_it(name, kind, tmp_path):
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/full")
    with pytest.raises(InputError) as refused:
        opened(tmp_path, resume=True)
    assert str(refused.value) == f"--out {tmp_path} cannot be written: {name}: not a regular file"


def test_a_run_without_out_gets_a_directory_of_its_own_also_in_the_same_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directories = [RunDirectory(None) for _ in range(3)]
    assert len({directory.path for directory in directories}) == 3
    for directory in directories:
        directory.close()
    monkeypatch.chdir(tmp_path / "runs")
    directory = opened(".")
    shutil.rmtree(tmp_path / "runs")
    with pytest.warns(TrainingWarning, match="runs-2"):
        directory.stay_ours()
    directory.close()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API not found"),
        (
            "raise ImportError('libfreetype.so.6: cannot open \x1b]0;title')",
            "ImportError: libfreetype.so.6: cannot open \\x1b]0;title",
        ),
        (
            "raise ModuleNotFoundError(\"No module named 'kiwisolver'\")",
            "ModuleNotFoundError: No module named 'kiwisolver'",
        ),
        ("", "ModuleNotFoundError: No module named 'matplotlib.figure'"),
    ],
)
def test_a_matplotlib_that_is_broken_costs_the_picture_and_nothing_else(broken, reason, tmp_path, monkeypatch):
    package = tmp_path / "packages" / "matplotlib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(broken)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    directory = opened(tmp_path / "out")
    with pytest.warns(TrainingWarning) as said:
        directory.write_extras(two_steps([2.0])[0], None)
    assert [str(one.message) for one in said] == [f"no loss.png: {reason}"]
    directory.close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]


def test_a_profile_or_picture_that_cannot_be_written_costs_nothing_else(tmp_path):
    class Profiler:
        def table(self):
            raise ZeroDivisionError("no steps")

        def save_trace(self, path):
            path.write_text("trace")

    pytest.importorskip("matplotlib")
    directory = opened(tmp_path / "out")
    (tmp_path / "out" / "loss.png").mkdir()
    with pytest.warns(TrainingWarning) as said:
        directory.write_extras(two_steps([2.0])[0], Profiler())
    assert [str(one.message) for one in said] == [
        "no loss.png: Is a directory",
        "no profile.txt: ZeroDivisionError: no steps",
    ]
    assert (tmp_path / "out" / "trace.json").read_text() == "trace"
    directory.close()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline_that_is_not_installed.backend_inline", "unknown"])
def test_a_plotting_backend_that_is_not_installed_does_not_matter(backend, tmp_path):
    """Jupyter sets it for all that it starts."""
    pytest.importorskip("matplotlib")
    script = """
import pathlib, sys
from parallelcnn.cli.run_directory import plot_losses
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History
plot_losses(pathlib.Path(sys.argv[1]), History([2.0], [(1, 1, Evaluation(0.5, 0.75, 10))], 10))
"""
    ran = launch.run([sys.executable, "-c", script, str(tmp_path / "loss.png")], MPLBACKEND=backend)
    assert ran.code == 0, ran.err
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
