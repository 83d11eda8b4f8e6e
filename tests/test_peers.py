"""The programs that stand beside the library: older forms of it, and other frameworks, train the same network."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import ROOT
from idx_files import write_idx_folder

import parallelcnn as pc
from parallelcnn.data.sampler import minibatches, shuffle

SCRIPTS = ROOT / "scripts"
PROGRAMS = SCRIPTS / "peers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_idx_folder(tmp_path_factory.mktemp("data") / "stripes", 23, 10)


@pytest.fixture
def ladder(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    monkeypatch.syspath_prepend(SCRIPTS)
    import ladder

    return ladder


def train_with_library(layers, folder):
    """(losses, parameters) after two epochs of minibatches of 10, 10 and 3."""
    train_set, test_set = pc.load_data(folder)
    network = pc.NetworkHandler(layers, train_set.input_shape, seed=0)
    history = pc.train(network, train_set, test_set, pc.SGD(0.1), 2, 10, seed=0)
    return history.losses, network.params


@pytest.mark.parametrize("name", ["naive", "loops", "rows", "passes", "pool first", "tiles"])
def test_every_rung_of_the_ladder_takes_the_librarys_steps(name, ladder, folder):
    rung = ladder.RUNGS[name]
    losses, params = train_with_library(pc.paper(), folder)
    if rung.kernels is None:
        older_losses, older_params = train_with_library(rung.layers, folder)
    else:
        train_set, _ = pc.load_data(folder)
        images = np.multiply(train_set.images, 1 / 255, dtype=np.float32)
        start = ladder.start_values(0)
        steps = [chosen for epoch in (1, 2) for chosen in minibatches(shuffle(len(images), 0, epoch), 10)]
        older_losses = ladder.naive.train(rung.kernels, start, images, train_set.labels, steps, 0.1)
        older_params = np.concatenate([layer[key].ravel() for layer in start for key in ("weight", "bias")])
    np.testing.assert_allclose(older_losses, losses, rtol=1e-4)
    np.testing.assert_allclose(older_params, params, rtol=1e-3, atol=1e-5)


def run_program(name, *arguments, **variables):
    ran = subprocess.run(
        [sys.executable, PROGRAMS / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **variables},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("module", "program", "variant"),
    [
        ("torch", "train_pytorch.py", "channels_last"),
        ("tensorflow", "train_keras.py", "function"),
        ("jax", "train_jax.py", "step"),
    ],
)
def test_a_peer_takes_the_librarys_steps(module, program, variant, folder, tmp_path):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    file = tmp_path / "losses"
    options = ("--data", folder, "--epochs", 2, "--batch-size", 10, "--losses", file, "--variant", variant)
    result = run_program(program, *options)
    losses, _ = train_with_library(pc.paper(), folder)
    np.testing.assert_allclose([float(line) for line in file.read_text().split()], losses, rtol=1e-3)
    assert result["train_seconds"] > 0
    assert result["peak_rss_bytes"] > 2**20
    assert 0 <= result["test_accuracy"] <= 1


@pytest.mark.parametrize(
    ("module", "program"), [("torch", "train_pytorch.py"), ("tensorflow", "train_keras.py"), ("jax", "train_jax.py")]
)
def test_a_framework_that_is_not_installed_is_skipped_with_a_sentence(module, program, tmp_path):
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('{module} is hidden')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert "is not installed here" in run_program(program, PYTHONPATH=paths)["skipped"]


def test_flux_is_skipped_where_there_is_no_julia(tmp_path):
    assert "no julia on the PATH" in run_program("train_flux.py", PATH=str(tmp_path))["skipped"]


def test_the_comparison_writes_a_page_without_the_peers_that_are_not_there(folder, tmp_path):
    page = tmp_path / "page.md"
    options = f"--data {folder} --epochs 1 --batch-size 10 --cores 1 --rounds 2 --peers Flux --out {page}".split()
    ran = subprocess.run(
        [sys.executable, SCRIPTS / "compare_with_peers.py", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr
    written = page.read_text()
    assert written in ran.stdout
    assert "Flux is not installed here" in written
    (row,) = (line for line in written.splitlines() if line.startswith("| parallelcnn"))
    assert row.startswith("| parallelcnn, 1 rank | 0.0")
    assert str(folder.parent) not in written


def test_the_comparison_refuses_bad_input_in_a_sentence(tmp_path):
    ran = subprocess.run(
        [sys.executable, SCRIPTS / "compare_with_peers.py", "--data", "nowhere", "--cores", "1", "--peers"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2
    assert "no data set and no folder is named 'nowhere'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_counter_counts_what_is_allocated(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(PROGRAMS)
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
    environment = {**os.environ, **counter, "PYTHONPATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert 12_000_000 <= int(ran.stdout) < 12_100_000
