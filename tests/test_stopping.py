"""Graceful shutdown: being asked to stop, at any time."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import environment

from parallelcnn.resilience.signals import StopOnSignal
from parallelcnn.training.checkpoint import CheckpointFolder


def holds_requests_to_stop(process: subprocess.Popen) -> bool:
    """Whether the process has come so far that SIGUSR1 no longer ends it."""
    blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return blocked is not None and bool(int(blocked[1], 16) >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5])
def test_a_request_that_comes_while_the_command_starts_is_met_after_the_first_minibatch(delay, folder, tmp_path):
    line = [sys.executable, "-m", "parallelcnn", "train", "--data", str(folder), "--threads", "1"]
    process = subprocess.Popen(
        [*line, "--epochs", "100000", "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 20
    while not holds_requests_to_stop(process) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, err
    left = re.fullmatch(
        r"parallelcnn: SIGUSR1: stopped after minibatch (\d+); to continue, give the same command with .* --resume\n",
        err,
    )
    assert left is not None, err
    assert int(left[1]) >= 1
    newest = CheckpointFolder(tmp_path / "out" / "checkpoints").newest()
    assert newest is not None
    assert newest.history.steps == int(left[1])


def test_what_was_held_is_taken_and_what_comes_afterwards_does_no_harm():
    script = """
import os, signal
from parallelcnn.resilience.signals import StopOnSignal, hold_stop_signals
hold_stop_signals()
os.kill(os.getpid(), signal.SIGUSR1)
with StopOnSignal() as stop:
    pass
assert stop.received == signal.SIGUSR1
os.kill(os.getpid(), signal.SIGUSR1)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
print("alive")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_was_not_held_is_remembered_inside_and_means_afterwards_what_it_meant_before(number):
    before = signal.getsignal(number)
    with StopOnSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert stop.received == number
    assert signal.getsignal(number) is before
