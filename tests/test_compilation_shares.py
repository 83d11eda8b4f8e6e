"""Kernels are compiled by several processes at once: ranks of a node, or processes that do nothing else."""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import time

import launch
import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.cli import main
from parallelcnn.kernels import _cache
from parallelcnn.kernels.adding import add_to
from parallelcnn.resources import core_quota
from parallelcnn.training import compilation
from parallelcnn.training import compilation_shares as shares

# Prints how many kernels of the network were not compiled before and after a program, and how often it compiled.
_BEGIN = """
import sys, time
import parallelcnn as pc
from numba.core import event
from parallelcnn.training.compilation_shares import compile_share, kernels_of, other_processes, main

compiled = event.RecordingListener()
event.register("numba:compile", compiled)
network = pc.NetworkHandler((pc.Flatten(), pc.Dense(3, activation="relu"), pc.Dense(2)), (1, 3, 3))
kernels = kernels_of(network)

def missing():
    return sum(not kernel.is_compiled for kernel in kernels)

def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)

before = missing()
"""
_PRINT = """
print(before, missing(), sum(record.is_start for _, record in compiled.buffer))
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program that begins as above; returns the numbers that it prints."""

    def run(program, cache="cache"):
        ran = launch.run([sys.executable, "-c", _BEGIN + program + _PRINT], NUMBA_CACHE_DIR=str(tmp_path / cache))
        assert ran.code == 0, ran.err
        return tuple(map(int, ran.out.split()))

    return run


def test_shares_are_together_all_kernels_of_the_tapes_and_are_compiled_once(run):
    before, left, compiled = run("compile_share(kernels, 0, 3); compile_share(kernels, 2, 3)")
    assert 0 < left < before
    assert compiled >= before - left
    again, after, compiled = run("compile_share(kernels, 1, 3)")
    assert (again, after) == (left, 0)
    assert compiled >= left
    assert run("compile_share(kernels, 0, 1)") == (0, 0, 0)


def test_after_the_shares_training_compiles_only_what_no_layer_uses(run):
    run("compile_share(kernels, 0, 1)")
    train = """
import numpy as np
data = pc.Dataset(np.zeros((9, 3, 3), np.uint8), np.zeros(9, int), 2)
pc.train(network, data, data, pc.SGD(0.1), 1, 5, verbose=0, threads=1)
assert not {kernel.function for kernel in kernels} & {record.data["dispatcher"] for _, record in compiled.buffer}
"""
    _, after, compiled = run(train)
    assert after == 0
    assert compiled > 0, "kernels of the loss and the optimiser"


def test_another_process_compiles_and_ends_well(run):
    alone = """
from parallelcnn.training import compilation_shares
compilation_shares._useful_processes = lambda *_: 1
running = []
compilation_shares._start_processes(network, None, True, running)
wait_for(lambda: missing() == 0)
wait_for(lambda: running[0].poll() is not None)
assert running[0].returncode == 0
"""
    before, after, compiled = run(alone)
    assert before > 0
    assert after == compiled == 0


_RESNET = """
import os, sys, time
import parallelcnn as pc
from parallelcnn.training import compilation_shares
start = compilation_shares._start_processes
def started(*arguments):
    start(*arguments)
    print(*[process.pid for process in arguments[-1]], flush=True)
compilation_shares._start_processes, compilation_shares._useful_processes = started, lambda *_: 1
with compilation_shares.other_processes(pc.NetworkHandler(pc.resnet20(), (3, 32, 32))):
    sys.stdin.readline()
print("left", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def compiling(tmp_path):
    """A program in whose block another process compiles the first kernels of many, and the number of that process."""
    command = [sys.executable, "-c", _RESNET]
    environment = launch.environment(NUMBA_CACHE_DIR=str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as program:
        pid = int(program.stdout.readline())
        until = time.monotonic() + 60
        while not list(tmp_path.rglob("*.nbc")):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert _runs(pid)
        yield program, pid
        program.kill()


def test_at_the_end_of_the_block_the_other_process_has_ended(compiling):
    program, pid = compiling
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "left\n"
    assert not os.path.exists(f"/proc/{pid}")


def test_a_process_that_compiles_ends_when_the_one_that_started_it_is_killed(compiling):
    program, pid = compiling
    program.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5
    while time.monotonic() < until and _runs(pid):
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Own(pc.Activation):
    pass


def test_other_processes_import_no_module_of_the_user(tmp_path):
    task = pickle.dumps(((Own("relu"),), (3,), "float32", 1))
    with open(tmp_path / "task", "w+b") as file:
        file.write(task)
        file.seek(0)
        with pytest.raises(pickle.UnpicklingError, match=r"Own is not imported here"):
            shares.main(0, file)


class Unpicklable(Own):
    def __reduce__(self):
        raise RuntimeError


@pytest.mark.parametrize("layer", [Unpicklable("relu"), pc.Activation(lambda x: x), Own("relu")])
def test_a_layer_that_cannot_be_sent_does_no_harm(layer, monkeypatch):
    monkeypatch.setattr(shares, "_useful_processes", lambda *_: 1)
    with shares.other_processes(pc.NetworkHandler((layer,), (3,))):
        pass


def test_a_program_that_cannot_start_does_no_harm(monkeypatch):
    monkeypatch.setattr(shares, "_useful_processes", lambda *_: 2)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with shares.other_processes(pc.NetworkHandler((pc.Dense(2),), (3,))):
        pass


def test_calls_with_names_of_arguments_are_not_shared():
    class Named(pc.Activation):
        def forward(self, step, x):
            y = step.array(x.shape[:-1])
            step.call(add_to, y, x=x)
            return y

    found = shares.kernels_of(pc.NetworkHandler((Named("relu"), pc.Dense(2)), (3,)))
    assert found
    assert add_to not in [kernel.function for kernel in found]


def test_a_source_that_cannot_be_read_counts_as_compiled(monkeypatch):
    def unreadable(file):
        raise OSError

    monkeypatch.setattr(_cache, "_source_hash", unreadable)
    assert all(kernel.is_compiled for kernel in shares.kernels_of(pc.NetworkHandler((pc.Dense(2),), (3,))))


def test_processes_are_started_only_where_there_are_cores_memory_and_kernels_for_them(monkeypatch):
    class Missing:
        is_compiled = False

    kernels = [Missing()] * 16
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(shares, "usable_cores", lambda: range(8))
    monkeypatch.setattr(shares, "core_quota", lambda: None)
    monkeypatch.setattr(shares, "memory_limit", lambda: (64 << 30, ""))
    assert shares._useful_processes(kernels, 0, None) == 3
    assert shares._useful_processes(kernels[:9], 0, None) == 1
    assert shares._useful_processes(kernels[:3], 0, None) == shares._useful_processes([], 0, None) == 0
    assert shares._useful_processes(kernels, 0, 2) == 1
    assert shares._useful_processes(kernels, 0, 1) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert shares._useful_processes(kernels, 0, None) == 0
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert shares._useful_processes(kernels, 0, None) == 0
    monkeypatch.delattr(sys, "frozen")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    monkeypatch.setattr(shares, "memory_limit", lambda: (used + (7 << 29), ""))
    assert shares._useful_processes(kernels, 0, None) == 2
    assert shares._useful_processes(kernels, 1 << 30, None) == 0
    monkeypatch.setattr(shares, "core_quota", lambda: 2)
    assert shares._useful_processes(kernels, 0, None) == 1
    monkeypatch.setattr(shares, "usable_cores", lambda: range(1))
    assert shares._useful_processes(kernels, 0, None) == 0


def test_no_more_ranks_compile_than_there_are_cores(monkeypatch):
    taken = []
    monkeypatch.setattr(shares, "compile_share", lambda kernels, share, count: taken.append((share, count)))
    monkeypatch.setattr(shares.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(shares, "core_quota", lambda: None)
    network = pc.NetworkHandler(pc.resnet20(), (3, 32, 32))
    assert len(shares.kernels_of(network)) >= 16
    for rank in range(1, 8):
        shares.share_with_ranks(network, rank, 8)
    assert taken == [(0, 3), (1, 3), (2, 3)]
    taken.clear()
    monkeypatch.setattr(shares, "core_quota", lambda: 1)
    shares.share_with_ranks(network, 1, 8)
    assert taken == []


def test_predictions_take_some_of_the_kernels_of_training():
    network = pc.NetworkHandler(pc.lenet5(), (1, 28, 28))
    predicting, all_of_them = (set(shares.kernels_of(network, training=training)) for training in (False, True))
    assert predicting < all_of_them
    assert len(predicting) >= 4
    assert not any("gradient" in kernel.function.__name__ for kernel in predicting)


@pytest.mark.parametrize("arguments", [["predict", "MODEL", "IMAGES"], ["evaluate", "MODEL", "--data", "digits"]])
def test_commands_that_predict_share_their_compilation(arguments, tmp_path, monkeypatch, capsys):
    network = pc.NetworkHandler((pc.Flatten(), pc.Dense(10)), (1, 28, 28))
    pc.save_model(tmp_path / "model.npz", network)
    np.save(tmp_path / "images.npy", np.zeros((2, 28, 28), np.uint8))
    asked = []

    @contextlib.contextmanager
    def noted(network, threads=None, *, training=True):
        asked.append((network.input_shape, training))
        yield

    monkeypatch.setattr(compilation, "other_processes", noted)
    monkeypatch.setattr(compilation, "_runs_without_compiling", lambda work: False)
    paths = {"MODEL": str(tmp_path / "model.npz"), "IMAGES": str(tmp_path / "images.npy")}
    assert main([paths.get(word, word) for word in arguments]) == 0
    assert asked == [(network.input_shape, False)]


@pytest.mark.mpi
@pytest.mark.any_mpi
@pytest.mark.skipif(min(os.cpu_count() or 1, core_quota() or 2) < 2, reason="one core")
def test_the_ranks_of_a_node_compile_shares_of_an_empty_cache(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        _BEGIN
        + """
from mpi4py import MPI
import numpy as np
network = pc.NetworkHandler(pc.lenet5(), (1, 28, 28))
kernels = kernels_of(network)
before = missing()
data = pc.Dataset(np.zeros((9, 28, 28), np.uint8), np.zeros(9, int), 10)
pc.train(network, data, data, pc.SGD(0.1), 1, 6, verbose=0, threads=1)
mine = {record.data["dispatcher"] for _, record in compiled.buffer if record.is_start}
counts = MPI.COMM_WORLD.gather(sum(kernel.function in mine and kernel.argument_types in kernel.function.overloads
    and not kernel.function.stats.cache_hits[kernel.argument_types] for kernel in kernels))
if counts:
    print(before, *counts)
"""
    )
    ran = launch.run_ranks(2, [str(program)], NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert ran.code == 0, ran.err
    missing, *counts = map(int, ran.out.split())
    assert missing <= sum(counts) < 2 * missing
    assert min(counts) > 0


def test_without_compilation_there_is_nothing_to_share():
    program = "import parallelcnn as pc; from parallelcnn.training.compilation_shares import kernels_of; " + (
        "print(len(kernels_of(pc.NetworkHandler((pc.Dense(2),), (3,)))))"
    )
    assert launch.run([sys.executable, "-c", program], NUMBA_DISABLE_JIT="1").out.strip() == "0"
