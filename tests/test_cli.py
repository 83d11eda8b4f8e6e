"""The command, on one process: what it prints and writes, and how it refuses.

test_cli_models.py has `evaluate` and models of the user's own, test_mpi.py many ranks.
"""

import fcntl
import hashlib
import json
import os
import pty
import shutil
import struct
import sys
import termios
import time
import warnings
from datetime import datetime
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from idx_files import write_idx
from launch import parallelcnn, refused, run

import parallelcnn as pc
from parallelcnn.cli.command import _parsers
from parallelcnn.cli.options import warn_of_too_many_threads


def test_training_writes_what_it_promises(train, folder, tmp_path):
    out = tmp_path / "out"
    ran = train("--epochs", 2, "--batch-size", 50, "--evaluate-every", 3, "--learning-rate", 0.05, "--momentum", 0.5)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    # The plot is an optional extra: a run without matplotlib writes everything else, without a warning.
    plots = ["loss.png"] if find_spec("matplotlib") else []
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [".lock", "checkpoints", "config.toml", *plots, "metrics.jsonl", "model.npz", "report.html", "summary.json"]
    )
    assert all((out / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    tests = [line for line in lines if "test_loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 11))
    assert [(line["step"], line["epoch"]) for line in tests] == [(3, 1), (5, 1), (6, 2), (9, 2), (10, 2)]

    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == 1
    assert summary["epochs"] == 2
    assert summary["batch_size"] == 50
    assert summary["learning_rate"] == 0.05
    assert summary["momentum"] == 0.5
    assert summary["seed"] == 0
    assert summary["samples_seen"] == 460
    assert summary["test_loss"] == tests[-1]["test_loss"]
    assert 0 < summary["train_seconds"] < summary["wall_seconds"]
    assert 0 < summary["compile_seconds"] < summary["wall_seconds"]
    assert 0 < summary["first_step_seconds"] < summary["wall_seconds"]
    assert 0 <= time.time() - datetime.fromisoformat(summary["started"]).timestamp() - summary["wall_seconds"] < 60
    assert summary["peak_rss_bytes"] > 2**20
    assert f"{summary['peak_rss_bytes'] / 2**20:,.0f} MiB a rank" in ran.out
    network = pc.load_model(out / "model.npz")
    assert summary["parameters_sha256"] == hashlib.sha256(network.params.tobytes()).hexdigest()
    train_set, test_set = pc.load_idx_folder(folder)
    for dataset, part in ((train_set, "train"), (test_set, "test")):
        result = pc.evaluate(network, dataset)
        assert summary[f"{part}_loss"] == pytest.approx(result.loss)
        assert summary[f"{part}_accuracy"] == result.accuracy

    epochs = [line for line in ran.out.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert "\r" not in ran.out
    for line in ("35,474 parameters", "minibatch  50 = ", "ranks      1 on ", "230 to train on, 70 to test on"):
        assert line in ran.out


@pytest.mark.slow
def test_threads_share_a_rank_and_are_told(train, folder, tmp_path):
    found = []
    for threads in (1, 3):
        ran = train("--epochs", 2, "--batch-size", 50, "--threads", threads)
        assert ran.code == 0, ran.err
        found.append(json.loads((tmp_path / "out" / "summary.json").read_text()))
        assert found[-1]["threads"] == [threads]
    assert ", 3 threads each\nminibatch  50 = 16 + 17 + 17\n" in ran.out
    for name in ("train_loss", "test_loss"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4)
    ran = parallelcnn("evaluate", tmp_path / "out", "--data", folder, "--threads", 2)
    assert f"test loss {found[1]['test_loss']:.4f}" in ran.out
    ran = parallelcnn("evaluate", tmp_path / "out", "--data", folder, "--threads", 0)
    assert ran.code == 2
    assert ran.err == "parallelcnn: error: threads must be an integer of at least 1, got 0\n"


def test_the_same_seed_twice_gives_the_same_hash_and_the_earlier_files_are_kept(train, tmp_path):
    hashes = []
    for seed in (7, 7, 8):
        ran = train("--epochs", 1, "--seed", seed)
        assert ran.code == 0, ran.err
        hashes.append(json.loads((tmp_path / "out" / "summary.json").read_text())["parameters_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
    earlier = [path for path in (tmp_path / "out").glob("before-*")]
    assert len(earlier) == 2
    for path in earlier:
        assert json.loads((path / "summary.json").read_text())["parameters_sha256"] == hashes[0]
        assert "moved the files of an earlier run to" in ran.out


@pytest.mark.slow
def test_without_out_a_run_gets_a_folder_of_its_own_named_by_the_time(folder, tmp_path):
    for _ in range(2):
        line = [sys.executable, "-m", "parallelcnn", "train", "--data", str(folder), "--epochs", "1"]
        ran = run(["env", "-C", str(tmp_path), *line])
        assert ran.code == 0, ran.err
    assert len(list((tmp_path / "runs").glob("20??-??-??T??-??-??Z*/summary.json"))) == 2


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_and_afterwards_a_line_an_epoch(folder, tmp_path):
    arguments = ["train", "--data", str(folder), "--epochs", "2", "--batch-size", "1", "--out", str(tmp_path / "out")]
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", "parallelcnn", *arguments])
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the way a terminal's end is told on Linux
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode()
    assert "samples/s" in text
    assert "epoch 1/2:" in text  # the bar
    assert "\r" in text
    assert "loss " in text
    assert "epoch 2/2   loss" in text  # the line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnits"], "no data set and no path is named 'mnits': did you mean 'mnist'?"),
        (["--epochs", "0"], "epochs must be an integer of at least 1, got 0"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--batch-size", "0"], "batch_size must be an integer of at least 1, got 0"),
        (["--batch-size", "231"], "batch_size must be at most 230"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["--threads", "-2"], "threads must be an integer of at least 1, got -2"),
        (["--threads", "many"], "argument --threads: invalid int value: 'many'"),
        (
            ["--threads", "1000000"],
            "threads must be at most 4,096, which is more cores than machines have, got 1000000",
        ),
        (["--learning-rate", "nan"], "learning_rate must be a finite number of at least 0, got nan"),
        (["--learning-rate", "1e39"], "learning_rate must be a finite number of at least 0, got 1e+39"),
        (["--momentum", "1"], "momentum must be less than 1, got 1.0"),
        (["--out", ""], "out must name a directory, got ''"),
        (["--nesterov"], "nesterov=True takes a momentum above 0"),
        (["--seed", "-1"], "seed must be an integer of at least 0, got -1"),
        (["--evaluate-every", "-5"], "evaluate_every must be an integer of at least 1, got -5"),
        (
            ["--lerning-rate", "1"],
            "parallelcnn train: error: no option '--lerning-rate': did you mean '--learning-rate'?",
        ),
        (["--zzz=1"], "parallelcnn train: error: no option '--zzz': see parallelcnn train --help"),
        (["mnist"], "parallelcnn train: error: unexpected argument 'mnist'; see parallelcnn train --help"),
    ],
)
def test_a_wrong_argument_is_named_with_its_rule_and_value(arguments, message, folder, here, tmp_path):
    refused(here("train", "--data", folder, "--out", tmp_path / "out", *arguments), message)
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_is_refused_before_training(folder, here, tmp_path):
    (tmp_path / "file").write_text("precious")
    for out, message in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        ("/proc/out", "No such file or directory"),
    ):
        refused(here("train", "--data", folder, "--out", out), f"--out {out} cannot be written: {message}")
    assert (tmp_path / "file").read_text() == "precious"


def test_swapped_files_of_a_data_set_are_refused_and_named(folder, here, tmp_path):
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for path in folder.iterdir():
        (swapped / path.name).write_bytes(path.read_bytes())
    labels = swapped / "train-labels-idx1-ubyte"
    write_idx(labels, np.zeros((230, 28, 28)))
    refused(here("train", "--data", swapped, "--out", tmp_path / "out"), str(labels))


@pytest.mark.parametrize("arguments", [["--learning-rate", "1e38"], ["--learning-rate", "1e38", "--batch-size", "230"]])
def test_training_that_diverges_ends_with_1_and_a_sentence_and_writes_no_model(arguments, train, tmp_path):
    """The second has one minibatch: only the test loss tells."""
    ran = train("--epochs", 1, *arguments)
    assert ran.code == 1
    assert ran.err.startswith("parallelcnn: error: the ")
    assert "training has diverged" in ran.err
    assert ran.err.count("\n") == 1
    for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert not (tmp_path / "out" / "model.npz").exists()


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(train, tmp_path):
    ran = train("--epochs", 1, "--batch-size", 200)  # and 30
    assert ran.code == 0, ran.err
    losses = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    mean = (200 * losses[0]["loss"] + 30 * losses[1]["loss"]) / 230
    assert f"epoch 1/1   loss {mean:.4f} " in ran.out


@pytest.mark.slow
def test_without_a_stdout_training_goes_on(folder, tmp_path):
    line = f"{sys.executable} -m parallelcnn train --data {folder} --epochs 1 --out {tmp_path / 'out'} >&-"
    ran = run(["bash", "-c", line])
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "summary.json").exists()


def test_an_output_that_knows_only_ascii_is_no_failure(folder, tmp_path):
    ran = parallelcnn("train", "--data", folder, "--epochs", 1, "--out", tmp_path / "ü", PYTHONIOENCODING="ascii")
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_where_nothing_can_be_cached_kernels_are_compiled_every_time(folder, tmp_path):
    """A package in a folder that cannot be written to, and no home: there is no place for compiled kernels."""
    package = tmp_path / "site"
    shutil.copytree(ROOT / "parallelcnn", package / "parallelcnn", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (package / "parallelcnn").rglob("*"):
        if path.is_dir():
            (path / "__pycache__").write_text("a file where numba wants a folder")
    out = tmp_path / "out"
    line = [
        sys.executable,
        "-B",
        "-m",
        "parallelcnn",
        "train",
        "--data",
        str(folder),
        "--epochs",
        "1",
        "--out",
        str(out),
    ]
    home = ["HOME=/proc/none", "XDG_CACHE_HOME=/proc/none"]
    ran = run(["env", "-C", str(package), "-u", "NUMBA_CACHE_DIR", *home, f"PYTHONPATH={package}", *line])
    assert ran.code == 0, ran.err
    assert ran.err.count("warning: compiled kernels are not kept, so every process compiles them again: ") == 1


def test_help_version_and_no_command(here):
    assert parallelcnn("--version").out == f"parallelcnn {pc.__version__}\n"
    for command in ([], ["train"], ["evaluate"], ["runs"], ["info"], ["doctor"]):
        ran = here(*command, "--help")
        assert ran.code == 0
        assert ran.out.startswith("usage: parallelcnn")
        assert "None" not in ran.out
        assert command == ["info"] or "\nexamples:\n" in ran.out
        assert max(map(len, ran.out.splitlines())) <= 100
    ran = here()
    assert ran.code == 2
    assert "usage: parallelcnn" in ran.err
    ran = here("tarin")
    assert ran.code == 2
    assert "train" in ran.err


def test_info_names_version_library_ranks_and_threads():
    ran = parallelcnn("info")
    assert ran.code == 0, ran.err
    for word in (
        pc.__version__,
        "MPI library",
        "ranks          1",
        "core",
        "computes on ",
        "numba threads",
        "BLAS threads",
    ):
        assert word in ran.out


@pytest.mark.slow
def test_a_closed_pipe_and_a_full_disk_behind_the_output_cost_no_training(folder, tmp_path):
    out, code = tmp_path / "out", tmp_path / "code"
    command = f"{sys.executable} -m parallelcnn"
    train = f"{command} train --data {folder} --epochs 1 --batch-size 1 --out {out} 2>/dev/full"
    assert run(["bash", "-c", f"{{ {train}; echo $? >{code}; }} | true"]).code == 0
    assert code.read_text() == "0\n"
    assert (out / "summary.json").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 230 + 1
    # What evaluate prints is all that it is for.
    ran = run(["bash", "-c", f"{command} evaluate {out} >/dev/full"])
    assert ran.code == 1
    assert ran.err == "parallelcnn: error: the output cannot be written: No space left on device\n"
    ran = run(["bash", "-c", f"{{ {command} evaluate {out}; echo $? >{code}; }} | true"])
    assert (ran.err, code.read_text()) == ("", "1\n")


def test_a_non_blocking_output_that_is_read_slowly_is_waited_for(tmp_path):
    script = """
import os, sys
from parallelcnn.cli.output import lost_output, safe_output
os.set_blocking(1, False)
with safe_output():
    for _ in range(200):
        print("x" * 1000)
    assert lost_output() is None
"""
    ran = run(["bash", "-c", f"{sys.executable} -c '{script}' | (sleep 0.3; wc -c)"])
    assert (ran.out.strip(), ran.err) == ("200200", "")


def test_control_characters_in_names_do_not_reach_the_terminal(folder, tmp_path, here):
    """Of files, data sets and models: a name may come from somebody else."""
    bell = "\x1b]0;title\x07"
    data = tmp_path / f"data{bell}"
    shutil.copytree(folder, data)
    ran = [here("train", "--data", data, "--epochs", 1, "--out", tmp_path / f"out{bell}")]
    ran.append(here("evaluate", tmp_path / f"out{bell}"))
    ran.append(here("evaluate", tmp_path / f"none{bell}"))
    ran.append(here(f"trian{bell}"))
    assert [one.code for one in ran] == [0, 0, 2, 2]
    for text in (one.out or one.err for one in ran):
        assert r"\x1b]0;title\x07" in text
        assert not {"\x1b", "\x07"} & set(text)


def test_a_tilde_is_the_home_directory_in_every_option_that_takes_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/somebody")
    home, parse = "/srv/somebody/with blank", _parsers()[0].parse_args
    line = "train --out=T --data=T --data-dir T --model T/net.py:f --resume=T"
    train = parse([word.replace("T", "~/with blank") for word in line.split()])
    assert (train.out, train.data, train.data_dir, train.resume) == (home,) * 4
    assert train.model == f"{home}/net.py:f"
    assert parse(["evaluate", "~/with blank"]).file == home
    assert parse(["doctor", "--folder=~/with blank"]).folder == home
    assert parse(["train", "--out", "~root"]).out == os.path.expanduser("~root") != "~root"
    assert parse(["train", "--out", "$HOME/x~"]).out == "$HOME/x~"
    for data, wanted in (("mnist", "mnist"), ("mnist/", "mnist/"), ("~/a//", "/srv/somebody/a"), ("/", "/")):
        assert parse(["train", "--data", data]).data == wanted


def test_more_threads_than_cores_are_warned_of(monkeypatch):
    def warnings_of(threads, ranks, quota=None):
        class Ranks(pc.Serial):
            def allgather(self, value):
                return [value] * ranks

        monkeypatch.setattr("parallelcnn.resources.usable_cores", lambda: frozenset(range(8)))
        monkeypatch.setattr("parallelcnn.resources.core_quota", lambda: quota)
        monkeypatch.setattr("parallelcnn.comm.this_host", lambda: "node7")
        with warnings.catch_warnings(record=True, action="always") as said:
            warn_of_too_many_threads(SimpleNamespace(threads=threads), Ranks())
        return [str(one.message) for one in said]

    assert warnings_of(99, 1) == [
        "--threads 99: 99 threads of 1 rank share 8 cores on node7 and wait for each other; --threads 8 will be faster"
    ]
    assert "5 threads of 1 rank share 3 cores" in warnings_of(5, 1, quota=3)[0]
    assert "20 threads of 4 ranks share 8 cores on node7 and wait for each other; --threads 2" in warnings_of(5, 4)[0]
    assert warnings_of(8, 1) == warnings_of(None, 99) == warnings_of(1, 99) == warnings_of(2, 4) == []


def test_options_of_what_may_be_lost_are_refused_before_a_folder_is_made(folder, here, tmp_path):
    out = tmp_path / "out"
    for line, message in (
        (["--repair", "pray"], "repair must be one of stop, majority, checkpoint, got 'pray'"),
        (["--reproducible", 0], "reproducible must be an integer of at least 1, got 0"),
        (["--reproducible", 16385], "reproducible must be an integer from 1 to 16,384, got 16385"),
        (["--checkpoint-seconds", "nan"], "checkpoint_seconds must be a finite number of at least 0, got nan"),
        (["--keep-last", 0], "keep_last must be an integer of at least 1, got 0"),
        (["--verify", 0], "verify must be an integer of at least 1, got 0"),
        (["--resume", tmp_path / "none.npz"], f"no checkpoint {tmp_path / 'none.npz'}"),
    ):
        refused(here("train", "--data", folder, "--out", out, *line), message)
        assert not out.exists(), line
