"""The systems that stand beside the library in the benchmarks: they train the same network to the same losses."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BENCHMARKS, ROOT
from idx_files import write_idx_folder

import parallelcnn as pc

pytestmark = pytest.mark.slow

SYSTEMS, PAPER = BENCHMARKS / "systems", ROOT / "scripts" / "paper"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_idx_folder(tmp_path_factory.mktemp("data") / "stripes", 23, 10)


def run_system(name, *arguments):
    ran = subprocess.run(
        [sys.executable, SYSTEMS / f"train_{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("module", "name"),
    [("parallelcnn", "parallelcnn"), ("torch", "pytorch"), ("tensorflow", "keras"), ("jax", "jax")],
)
def test_a_system_takes_the_librarys_steps(module, name, folder, tmp_path):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    options = ("--data", folder, "--epochs", 2, "--batch-size", 10, "--losses", tmp_path / "losses")
    result = run_system(name, *options)
    train_set, test_set = pc.load_data(folder)
    network = pc.NetworkHandler(pc.paper(), train_set.input_shape, seed=0)
    history = pc.train(network, train_set, test_set, pc.SGD(0.1), 2, 10, seed=0)
    losses = [float(line) for line in (tmp_path / "losses").read_text().split()]
    np.testing.assert_allclose(losses, history.losses, rtol=1e-3)
    _, _, evaluation = history.evaluations[-1]
    assert result["test_loss"] == pytest.approx(evaluation.loss, rel=1e-3)
    assert result["test_accuracy"] == evaluation.accuracy
    assert result["train_seconds"] > 0
    assert result["peak_rss_bytes"] > 2**20


@pytest.mark.parametrize(
    ("module", "name", "trainer"),
    [("torch", "pytorch", "PyTorch"), ("tensorflow", "keras", "Keras"), ("jax", "jax", "Jax")],
)
def test_a_framework_that_is_not_installed_is_skipped_with_a_sentence(module, name, trainer, monkeypatch):
    monkeypatch.syspath_prepend(SYSTEMS)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *unused: None)
    make = getattr(importlib.import_module(f"train_{name}"), trainer)
    task = SimpleNamespace(options=SimpleNamespace(threads=1, variant="step"))
    with pytest.raises(importlib.import_module("contract").NotInstalled, match=r"is not installed \("):
        make(task)


def test_a_system_refuses_bad_input_in_a_sentence():
    line = [sys.executable, SYSTEMS / "train_parallelcnn.py", "--data", "nowhere"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    assert "no data set and no path is named 'nowhere'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_report_beside_the_papers_is_written_without_a_system_that_fails(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.syspath_prepend(PAPER)
    import reproduce_paper

    def run_json(command, variables):
        if "train_pytorch" in command[1]:
            raise reproduce_paper.ProgramFailed("aborted")
        (tmp_path / "losses").write_text("2.0\n1.0\n")
        names = ("train_seconds", "train_accuracy", "test_accuracy", "test_loss")
        return {**dict.fromkeys(names, 0.5), "allocated_bytes": 2**30, "loading_allocated_bytes": 2**29}

    options = ["--rounds", "1", "--cores", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["scripts/paper/reproduce_paper.py", *options])
    monkeypatch.setattr(reproduce_paper, "run_json", run_json)
    monkeypatch.setattr(reproduce_paper, "build_counter", lambda folder: None)
    monkeypatch.setattr(reproduce_paper.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(reproduce_paper, "Path", lambda path: tmp_path if "out" not in str(path) else tmp_path / "out")
    assert reproduce_paper.main() == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| time [s] | 0.50 | 263.4 |" in page
    assert "| time [s] | - | 11.73 | 0.50 |" in page
    assert "PyTorch, channels_last: failed: aborted." in page
    assert (tmp_path / "out" / "loss-0.5.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_counter_counts_what_is_allocated(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(PAPER)
    from allocations import build_counter

    counter = build_counter(tmp_path)
    if counter is None:
        pytest.skip("the C library is not glibc")
    script = """
import numpy as np
from contract import Meter
with Meter() as meter:
    for _ in range(3):
        np.ones(1_000_000, np.float32)
print(meter.allocated_bytes)
"""
    environment = {**os.environ, **counter, "PYTHONPATH": f"{SYSTEMS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert 12_000_000 <= int(ran.stdout) < 12_100_000


def test_single_layers_are_timed_beside_pytorch(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    words = ["--cores", "1", "--rounds", "1", "--seconds", "0.001", "--samples", "3", "--out", tmp_path / "page.md"]
    ran = subprocess.run(
        [sys.executable, BENCHMARKS / "layers.py", *words], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    rows = [line.split(" | ") for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert [row[0].split(",")[0] for row in rows[-2:]] == ["| Adam", "| Adam"]
    assert all(0 < float(cell.split()[0]) < 1e7 for row in rows for cell in row[1:])
