"""The benchmarks: what they compute is true, and each runs through with its smallest settings."""

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import count
from types import SimpleNamespace

import compare
import launch
import layers
import networks
import numpy as np
import predictions
import pytest
import race
from conftest import BENCHMARKS, ROOT
from idx_files import write_idx_folder
from pages import Spread, write_page
from processes import Contestant, ProgramFailed

import parallelcnn as pc


def test_the_papers_network_costs_0_98_megaflop_a_sample():
    products = 54 * 26 * 26 + 864 * 11 * 11 + 400 * 84 + 84 * 10
    assert networks.flop_per_sample(pc.paper(), (1, 28, 28)) == 2 * (3 * products - 54 * 26 * 26)


def test_a_spread_shows_median_lowest_and_highest():
    assert Spread.of([2.0, 1.9, 2.2]).text(unit="x") == "2.00x (1.90 to 2.20)"
    assert Spread.of([2.0]).text(1) == "2.0"


class Fake:
    """Takes so many seconds per sample in each of its turns."""

    def __init__(self, name, rates, log):
        self._name, self._rates, self._log = name, iter(rates), log

    def turn(self, samples, epochs):
        self._log.append(self._name)
        rate = next(self._rates)
        if isinstance(rate, str):
            raise ProgramFailed(rate)
        return rate * samples * epochs


def fake_race(log, **rates):
    """A race of fakes with those seconds per sample; a string is a failure."""
    run = race.Race(race.Workload("paper"), SimpleNamespace(turns=2), None, {})
    run.contestants = {race.System(name, "parallelcnn"): Fake(name, some, log) for name, some in rates.items()}
    return run


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(race, "SETTLE", 0)


def test_in_a_round_turns_alternate_and_the_fastest_counts_without_the_first():
    run = fake_race(log := [], now=[1, 5, 3], before=[9, 6, 7])
    times = run.one_round(1, dict.fromkeys(run.contestants, (10, 2)))
    assert {system.name: seconds for system, seconds in times.items()} == {"now": 3, "before": 6}
    assert log == ["now", "before", "before", "now", "now", "before"]


def test_a_system_that_fails_in_a_turn_loses_its_row_alone():
    run = fake_race([], ours=[1, 5, 3], theirs=[9, "aborted", 7])
    (system,) = run.one_round(0, dict.fromkeys(run.contestants, (10, 2)))
    assert system.name == "ours"


def test_a_turn_is_as_long_as_wished_in_whole_minibatches():
    samples, epochs = race.amount(Fake("", [9, 1e-3], []), race.Workload("paper", 30), 10.0)
    assert samples % 30 == 0
    assert samples <= 4000
    assert 10_000 <= samples * epochs < 10_000 + 30 * epochs


@pytest.fixture
def options(monkeypatch):
    """The options of compare.py, by its command line."""

    def read(*words):
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "compare.py"), *words])
        return compare._options()

    return read


def test_a_framework_that_fails_loses_its_row_and_the_page_says_why(options, monkeypatch):
    """PyTorch aborts in one of its trials, Keras in the race, JAX is not installed."""
    rates = {"pytorch": [2e-6] * 30, "keras": [3e-6] * 8, "parallelcnn": [1e-6] * 30}

    def start(system, *unused):
        if system.program == "jax" or system.variant == "contiguous":
            raise ProgramFailed("JAX is not installed" if system.program == "jax" else "aborted")
        return Fake(system.name, [*rates[system.program], "out of turns"], [])

    for module in (compare, race):
        monkeypatch.setattr(module, "start", start)
    words = options("--networks", "paper", "--rounds", "2", "--turns", "6", "--seconds", "0.001")
    page = compare.section(1, words, None)
    leads, *rows = [line.split(" | ")[2:5] for line in page.splitlines() if line.startswith("| paper")]
    assert leads == ["2.00", "2.00 |"]
    assert rows == [
        ["parallelcnn, 1 rank", "1.0", ""],
        ["parallelcnn, bfloat16, 1 rank", "1.0", "1.00"],
        ["PyTorch, channels_last", "2.0", "2.00"],
        ["PyTorch, bfloat16_channels_last", "2.0", "2.00"],
    ]
    assert "PyTorch, contiguous: aborted" in page
    assert "Keras, function: failed: out of turns" in page
    assert page.count("JAX is not installed") == 1


def test_leads_are_those_of_the_fastest_within_a_round():
    """A lead below its target is bold; bfloat16 counts only in the second column."""
    times = {
        race.System("our ranks", "parallelcnn"): [2.0, 2.0],
        race.System("our threads", "parallelcnn"): [3.0, 1.0],
        race.System("our bfloat16", "parallelcnn", "bfloat16"): [1.0, 4.0],
        race.System("Keras", "keras"): [0.1, 0.1],
        race.System("PyTorch", "pytorch", "ddp"): [4.0, 2.4],
    }
    workload = race.Workload("strided", 32)
    assert compare.lead_over_pytorch(workload, times) == []
    times[race.System("PyTorch, bfloat16", "pytorch", "bfloat16_ddp")] = [1.0, 1.1]
    ((_, _, in_float32, in_either),) = compare.lead_over_pytorch(workload, times)
    assert in_float32 == "2.20 (2.00 to 2.40)"
    assert in_either == "**1.05 (1.00 to 1.10)**"


def test_a_version_that_is_not_that_of_the_checkout_is_not_timed(options, tmp_path, monkeypatch):
    about = SimpleNamespace(about={"parallelcnn": "/elsewhere/parallelcnn"}, close=lambda: None)
    monkeypatch.setattr(race, "Contestant", lambda *unused: about)
    system = race.System("before", "parallelcnn", checkout=tmp_path)
    with ExitStack() as stack, pytest.raises(ProgramFailed, match="before loaded /elsewhere/parallelcnn, not the"):
        race.start(system, race.Workload("paper"), options(), tmp_path, stack)


def test_a_contestant_that_ends_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(ProgramFailed, match="exit code 3\nthe reason"):
        Contestant([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], tmp_path)


def test_a_page_that_cannot_be_written_is_told_in_a_sentence_and_the_earlier_one_stays(tmp_path):
    (tmp_path / "page.md").write_text("earlier\n")
    line = "from pages import write_page as write; from pathlib import Path; write(Path('page.md'), 'x' * 9000)"
    command = f"ulimit -f 4; trap '' XFSZ; {sys.executable} -c \"{line}\""
    variables = {"PYTHONPATH": str(BENCHMARKS), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "-c: page.md could not be written: File too large\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.md", "earlier\n")]


def test_a_page_replaces_the_earlier_one(tmp_path):
    write_page(tmp_path / "page.md", "earlier\n")
    write_page(tmp_path / "page.md", "new\n")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.md", "new\n")]


def test_the_page_of_augmentation_compares_what_is_done_while_loading_with_loading_alone():
    module = importlib.import_module("augmentation")
    times = module.measure(images=70, samples=8, rounds=3)
    assert {len(some) for some in times.values()} == {3}
    rows = module.text(times, argparse.Namespace(samples=8)).splitlines()[5:]
    assert [("behind" in row, row.count(" us")) for row in rows] == [*[(False, 3)] * 4, *[(True, 2)] * 9]


@pytest.mark.parametrize(
    ("script", "words", "complaint"),
    [
        ("compare", "--cores 0", "--cores: must be an integer of at least 1, got '0'"),
        ("compare", "--cores 999", "--cores must be at most"),
        ("compare", "--networks resnet", "invalid choice: 'resnet'"),
        ("compare", "--seconds nan", "--seconds: must be a number above 0, got 'nan'"),
        ("compare", "--out no/such/folder.md", "must be a file in a folder that exists, got 'no/such/folder.md'"),
        ("compare", "--out /proc/page.md", "'/proc/page.md' cannot be written: "),
        ("compare", "--against no/such", "must be a folder that exists, got 'no/such'"),
        ("compare", "--against /", "--against must be a checkout of parallelcnn, got '/'"),
        ("same_bits", "--folder no/such", "--folder: must be a folder that exists, got 'no/such'"),
        ("predictions", "--threads 0", "--threads: must be an integer of at least 1, got '0'"),
        ("augmentation", "--rounds none", "--rounds: must be an integer of at least 1, got 'none'"),
        ("recompute", "--samples 0", "--samples: must be an integer of at least 1, got '0'"),
        ("start_up", "--rounds 0", "--rounds: must be an integer of at least 1, got '0'"),
        ("soak", "--kills 0", "--kills: must be an integer of at least 1, got '0'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(script, words, complaint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script)._options()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_interrupted_script_says_so():
    """As Ctrl-C does it: the script and the command that it has started get the signal."""
    line = [sys.executable, str(BENCHMARKS / "start_up.py"), "--ranks", "1"]
    environment = launch.environment()
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    time.sleep(2)  # it has started commands
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "start_up.py: interrupted\n"


def test_this_checkout_is_timed_beside_another_in_one_run(tmp_path):
    """The other is this one, too; the start-up that is timed is that of --help."""
    page = tmp_path / "page.md"
    line = f"--against {ROOT} --only help --rounds 1 --out {page}".split()
    done = subprocess.run([sys.executable, BENCHMARKS / "compare.py", *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in page.read_text().splitlines() if line.startswith("| --help"))
    assert re.search(r"\| \d\.\d+ s \| \d\.\d+ s \| ", row)
    assert "--against FOLDER --only help" in page.read_text()
    assert str(tmp_path) not in page.read_text()


def test_eight_threads_predict_on_one_network_without_a_wrong_prediction(monkeypatch):
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    predicted, wrong, _ = predictions.predict_on_threads(network, images, 8, 4000)
    assert predicted >= 4000
    assert wrong == 0
    right = network.predict
    calls = count()
    monkeypatch.setattr(network, "predict", lambda images: right(images) + (next(calls) == 5))
    assert predictions.predict_on_threads(network, images, 1, 200)[1] > 0


def test_predictions_are_timed(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    words = f"--threads 2 --total 50 --predictions 5 --rounds 1 --out {page}"
    monkeypatch.setattr(sys, "argv", ["scripts/benchmarks/predictions.py", *words.split()])
    assert predictions.main() == 0
    assert len(re.findall(r"^\| one image in \w+ \| [\d.]+ \| [\d.]+ \|$", page.read_text(), re.M)) == 3
    assert "2 threads predicted " in page.read_text()
    assert "Wrong: 0." in page.read_text()


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("network", ["paper", "everything"])
def test_hashes_are_compared_over_ranks_threads_and_a_resume(network, tmp_path):
    launch.mpiexec()
    page, data = tmp_path / "same-bits.md", write_idx_folder(tmp_path / "data", 60, 10)
    options = ["--data", data, "--batch-size", 10, "--reproducible", 4, "--folder", tmp_path, "--out", page]
    options += ["--everything"] if network == "everything" else []
    done = launch.run([sys.executable, str(BENCHMARKS / "same_bits.py"), "--quick", *map(str, options)], limit=300)
    assert done.code == 0, done.err
    text = page.read_text()
    fixed, floats = (
        [[cell.strip() for cell in row.strip("|").split("|")] for row in part.splitlines() if row.startswith("| ")][2:]
        for part in text.split("For comparison")
    )
    assert [row[1:3] for row in fixed[:3]] == [["1", "2"], ["2", "1"], ["2, then 3", "1"]]
    assert fixed[2][3].startswith("stopped at minibatch ")
    assert all("killed in allreduce 5 " in row[3] and row[1] == "3, then 2" for row in fixed[3:])
    assert len({row[4] for row in fixed}) == 1
    assert f"**{len(fixed)} runs, 1 different hash.**" in text
    assert all(row[3] == "undisturbed" and row[4] != fixed[0][4] for row in floats)
    assert str(tmp_path) not in text
    assert [path.name for path in tmp_path.iterdir() if path != data] == [page.name]


def test_the_backward_pass_that_is_timed_is_that_of_the_layer():
    network = pc.NetworkHandler((pc.PReLU(), pc.AvgPool2D(2)), (1, 4, 4))
    tape = network.replicas(1)[0].tape(2, training=True)
    names = [call.func.__name__ for call in layers.backward_of_the_last(tape)]
    assert names == ["spread_windows"]
