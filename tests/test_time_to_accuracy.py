"""The script that times training to 99 %: it gets there, on a test set that decides nothing."""

import sys

import numpy as np
import pytest
import time_to_accuracy as script
from conftest import BENCHMARKS
from idx_files import write_idx_folder
from launch import mpiexec, run

pytestmark = pytest.mark.slow


def run_script(*arguments):
    return run([sys.executable, str(BENCHMARKS / "time_to_accuracy.py"), *map(str, arguments)])


@pytest.mark.mpi
@pytest.mark.any_mpi
def test_two_ranks_reach_99_percent_on_mnist(mnist_dir, tmp_path):
    mpiexec()
    page = tmp_path / "page.md"
    done = run_script("--data-dir", mnist_dir, "--seeds", 1, "--out", page)
    assert done.code == 0, done.err + done.out
    assert "1 of 1 runs reached 99 %" in page.read_text()
    assert page.read_text() == done.out


def test_a_run_that_misses_the_target_is_shown_and_is_a_failure(tmp_path):
    folder = write_idx_folder(tmp_path / "data", 300, 50)
    done = run_script("--data-dir", folder, "--seeds", 1, "--ranks", 1, "--target", 100)
    assert done.code == 1, done.err
    assert "0 of 1 runs reached 100 %" in done.out


def test_training_can_stop_at_the_target(tmp_path):
    folder = write_idx_folder(tmp_path / "data", 300, 50)
    done = run_script("--data-dir", folder, "--seeds", 1, "--ranks", 1, "--target", 0, "--stop-at-target")
    assert done.code == 0, done.err
    assert "| 1.00 |" in done.out  # epochs: the first test is enough


def test_bad_input_is_refused_in_a_sentence():
    done = run_script("--data-dir", "nowhere")
    assert done.code == 2
    assert "nowhere" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seeds 0", "--seeds: must be an integer of at least 1, got '0'"),
        ("--target 101", "--target: must be a number from 0 to 100, got '101'"),
        ("--out nowhere/page.md", "--out: must be a file in a folder that exists, got 'nowhere/page.md'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", *words.split()])
    with pytest.raises(SystemExit):
        script.parse_options()
    assert said in capsys.readouterr().err


def test_the_hardest_samples_have_the_largest_errors(rng):
    errors = rng.random(1000)
    chosen = script.hardest(errors)
    assert len(chosen) == 100
    assert errors[chosen].min() > np.delete(errors, chosen).max()
    assert len(script.hardest(np.zeros(1000))) == 100
