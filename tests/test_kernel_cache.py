"""Kernels that are kept on disk: by many processes at once, in a damaged cache, and where nothing can be kept."""

import json
import resource
import subprocess
import sys

import pytest

# Runs one kernel for the types of numbers and dimensions that it is told, and prints how often it was compiled.
_PROGRAM = """
import json, sys
import numpy as np
from numba.core import event
sys.path.insert(0, sys.argv[1])
from one_kernel import fill

compiled = event.RecordingListener()
event.register("numba:compile", compiled)
sys.stdin.readline()
for name, ndim in json.loads(sys.argv[2]):
    array = np.zeros((1,) * ndim, name)
    fill(array)
    assert array.all()
print(sum(record.is_start for _, record in compiled.buffer))
"""

_KERNEL = """
from parallelcnn.kernels._jit import kernel

@kernel
def fill(array):
    array.flat[0] = 1
"""

_TYPES = [(name, ndim) for ndim in (1, 2, 3) for name in ("i1", "i2", "i4", "i8", "u1", "u2", "f4", "f8")]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process that runs the kernel for these types once it is sent a line."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "one_kernel.py").write_text(_KERNEL)

    def start(types, **options):
        command = [sys.executable, "-c", _PROGRAM, str(tmp_path), json.dumps(types)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    return start


def finish(process):
    """How often the process compiled."""
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return int(out)


def test_processes_that_keep_kernels_at_the_same_time_lose_none(start):
    processes = [start(_TYPES[i::4]) for i in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [finish(process) for process in processes] == [len(_TYPES) / 4] * 4
    assert finish(start(_TYPES)) == 0


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"no pickle"])
def test_a_damaged_cache_is_compiled_anew_and_then_whole_again(start, tmp_path, ending, damage):
    assert finish(start(_TYPES[:2])) == 2
    damaged = list((tmp_path / "cache").rglob(f"one_kernel*.{ending}"))
    assert damaged
    for file in damaged:
        file.write_bytes(damage)
    assert finish(start(_TYPES[:2])) == 2
    assert finish(start(_TYPES[:2])) == 0


def test_a_full_disk_keeps_nothing_and_stops_nothing(start):
    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    assert finish(start(_TYPES[:2], preexec_fn=fill_the_disk)) == 2
    assert finish(start(_TYPES[:2])) == 2
