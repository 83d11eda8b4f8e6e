"""What all tests share: strict floating point, numba caches of their own, data sets, and ways to run the command."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from idx_files import write_idx_folder
from launch import parallelcnn
from numba.core.event import Event, Listener, register

# A shell that runs the tests in the background has Ctrl-C ignored, by all that they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "scripts" / "benchmarks"
sys.path.append(str(BENCHMARKS))

# numba's cache does not notice that a file has changed which a kernel's file imports, and holds one version of numba: a
# folder for each state of them.
_sources = sorted((ROOT / "parallelcnn" / "kernels").glob("*.py"))
_state = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:12] + "-" + version("numba")
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / f"numba-{_state}"))

# Tests for several ranks are started by test_mpi.py, under mpiexec.
if "PARALLELCNN_MPI_TESTS" not in os.environ:
    collect_ignore = ["mpi"]


@pytest.fixture(autouse=True)
def _strict_floating_point() -> Iterator[None]:
    with np.errstate(all="raise", under="ignore"):
        yield


class _SlowParts(Listener):
    """Kernels for which numba also compiles its text functions, which takes seconds: `a[...] = b` with two arrays needs
    them for its error message, and `transpose` with arguments for a set.
    """

    def __init__(self) -> None:
        self.compiling: list[str] = []
        self.found: set[str] = set()

    def on_start(self, event: Event) -> None:
        module = event.data["dispatcher"].py_func.__module__
        self.compiling.append(module)
        if module in ("numba.cpython.unicode", "numba.cpython.hashing"):
            self.found.update(name for name in self.compiling if name.startswith("parallelcnn.kernels."))

    def on_end(self, event: Event) -> None:
        self.compiling.pop()


_slow_parts = _SlowParts()
register("numba:compile", _slow_parts)


@pytest.fixture(autouse=True)
def _kernels_are_compiled_without_text() -> Iterator[None]:
    _slow_parts.found.clear()
    yield
    assert not _slow_parts.found, "see what makes compiling slow in kernels/_jit.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of four IDX files."""
    return write_idx_folder(tmp_path_factory.mktemp("data") / "stripes", n_train=230, n_test=70)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A folder with the real MNIST."""
    from parallelcnn.data.cache import cache_folder

    for folder in (ROOT.parent / "shared" / "mnist", cache_folder("mnist", "")):
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return folder
    pytest.skip("the real MNIST is neither in ../shared/mnist nor in the cache")


@pytest.fixture
def train(folder: Path, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Runs `parallelcnn train` on the small data set, into tmp_path / "out"."""

    def run_train(*arguments: object, **options: Any) -> SimpleNamespace:
        return parallelcnn("train", "--data", folder, "--out", tmp_path / "out", *arguments, **options)

    return run_train


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Runs the command in this process: quicker, for what does not need a process of its own."""
    from parallelcnn import cli

    def run_here(*arguments: object) -> SimpleNamespace:
        code = cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return SimpleNamespace(code=code, out=shown.out, err=shown.err)

    return run_here


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples of the tests of one module."""
    return tmp_path_factory.mktemp("fuzzing")
