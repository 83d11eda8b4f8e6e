"""Kernels are compiled by several processes at once: ranks of a node, or processes that do nothing else."""

import os
import pickle
import signal
import subprocess
import sys
import time

import launch
import pytest

import parallelcnn as pc
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
    before, after, _ = run("compile_share(kernels, 0, 3); compile_share(kernels, 2, 3)")
    assert 0 < after < before
    again, after, _ = run("compile_share(kernels, 1, 3)")
    assert (again, after) == (after + again, 0)
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


def test_another_process_compiles_and_ends_with_the_block(run):
    alone = """
from parallelcnn.training import compilation_shares
compilation_shares._useful_processes = lambda *_: 1
with other_processes(network):
    wait_for(lambda: missing() == 0)
"""
    before, after, compiled = run(alone)
    assert before > 0
    assert after == compiled == 0


def test_a_process_that_compiles_ends_when_the_one_that_started_it_is_killed(tmp_path):
    program = """
import os, sys, time
import parallelcnn as pc
from parallelcnn.training import compilation_shares
start = compilation_shares._start
def started(*arguments):
    process = start(*arguments)
    print(process.pid, flush=True)
    return process
compilation_shares._start, compilation_shares._useful_processes = started, lambda *_: 1
with compilation_shares.other_processes(pc.NetworkHandler(pc.resnet20(), (3, 32, 32))):
    time.sleep(60)
"""
    environment = launch.environment(NUMBA_CACHE_DIR=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as first:
        compiling = int(first.stdout.readline())
        until = time.monotonic() + 60
        while not list(tmp_path.rglob("*.nbc")):  # it has read its task
            assert time.monotonic() < until
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    while time.monotonic() < until and _runs(compiling):
        time.sleep(0.1)
    assert not _runs(compiling)


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
        with pytest.raises(pickle.UnpicklingError, match=r"Own is not part of the package"):
            shares.main(0, file)


@pytest.mark.parametrize("layer", [Own("relu"), pc.Activation(lambda x: x), pc.Activation("relu")])
def test_a_network_that_cannot_be_sent_and_a_program_that_cannot_start_do_no_harm(layer, monkeypatch):
    monkeypatch.setattr(shares, "_useful_processes", lambda *_: 2)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with shares.other_processes(pc.NetworkHandler((layer,), (3,))):
        pass


def test_processes_are_started_only_where_there_are_cores_memory_and_kernels_for_them(monkeypatch):
    class Missing:
        is_compiled = False

    kernels = [Missing()] * 16
    monkeypatch.setattr(shares, "usable_cores", lambda: range(8))
    monkeypatch.setattr(shares, "core_quota", lambda: None)
    monkeypatch.setattr(shares, "memory_limit", lambda: (64 << 30, ""))
    assert shares._useful_processes(kernels, 0) == 3
    assert shares._useful_processes(kernels[:9], 0) == 1
    assert shares._useful_processes(kernels[:3], 0) == shares._useful_processes([], 0) == 0
    monkeypatch.setattr(shares, "memory_limit", lambda: (3 << 30, ""))
    assert shares._useful_processes(kernels, 0) == 2
    assert shares._useful_processes(kernels, 1 << 30) == 0
    monkeypatch.setattr(shares, "core_quota", lambda: 2)
    assert shares._useful_processes(kernels, 0) == 1
    monkeypatch.setattr(shares, "usable_cores", lambda: range(1))
    assert shares._useful_processes(kernels, 0) == 0


def test_no_more_ranks_compile_than_there_are_cores(monkeypatch):
    taken = []
    monkeypatch.setattr(shares, "compile_share", lambda kernels, share, count: taken.append((share, count)))
    monkeypatch.setattr(shares.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(shares, "core_quota", lambda: None)
    network = pc.NetworkHandler((pc.Dense(2),), (3,))
    for rank in range(1, 8):
        shares.share_with_ranks(network, rank, 8)
    assert taken == [(0, 3), (1, 3), (2, 3)]
    taken.clear()
    monkeypatch.setattr(shares, "core_quota", lambda: 1)
    shares.share_with_ranks(network, 1, 8)
    assert taken == []


@pytest.mark.mpi
@pytest.mark.any_mpi
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_the_ranks_of_a_node_compile_shares_of_an_empty_cache(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        _BEGIN
        + """
from mpi4py import MPI
import numpy as np
data = pc.Dataset(np.zeros((9, 3, 3), np.uint8), np.zeros(9, int), 2)
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
