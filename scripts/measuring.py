"""What the comparing scripts share: the machine in a sentence, medians with their spread, Markdown tables."""

import argparse
import contextlib
import importlib.util
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from threadpoolctl import threadpool_limits

from parallelcnn.comm import Communicator
from parallelcnn.errors import ParallelCNNError
from parallelcnn.files.atomic import write_atomically

FORMATS = ("contiguous", "channels_last")  # PyTorch's ways to lay out images, see pytorch_twin


class Spread(NamedTuple):
    """Median, lowest and highest of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2, unit: str = "") -> str:
        """Such as "1.93x (1.90 to 1.97)"."""
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def three_digits(value: float) -> str:
    """A positive number with three significant digits, and all its digits before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def verdict(ratio: Spread) -> str:
    """The ratio as a table shows it: where we are the slower one, in words and in bold."""
    return ratio.text(unit="x") if round(ratio.median, 2) >= 1 else f"**slower: {ratio.text(unit='x')}**"


def matrix_product_rate(size: int = 512, seconds: float = 0.3) -> float:
    """Rate of numpy's float32 matrix product of size x size on one thread [GFLOP/s]: the median of many."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, size, size), np.float32)
    product = np.empty_like(a)
    times = []
    with threadpool_limits(1, user_api="blas"):
        np.matmul(a, b, out=product)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            np.matmul(a, b, out=product)
            times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times) / 1e9


def require_agreement(what: str, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float) -> None:
    """Raise ParallelCNNError unless each pair of arrays differs by at most `tolerance` of its norm."""
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        difference = float(np.linalg.norm(our - their) / max(np.linalg.norm(their), 1e-30))
        if not difference <= tolerance:
            raise ParallelCNNError(
                f"{what} {number} differs from PyTorch's by {difference:.2g} of its norm, "
                f"more than the {tolerance:g} allowed: there is nothing to compare"
            )


def seconds_of(call: Callable[[], object], times: int) -> list[float]:
    """How long each of so many calls took [s]."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def steps_within(seconds: float, step: Callable[[], object], at_least: int = 3) -> int:
    """How many calls of `step` fit into so many seconds, by the second call: the first may compile."""
    step()
    started = time.perf_counter()
    step()
    return max(at_least, round(seconds / (time.perf_counter() - started)))


@contextlib.contextmanager
def rank_0_alone(comm: Communicator) -> Iterator[bool]:
    """True on rank 0, which has all cores of the ranks inside; the others wait, asleep, until it leaves."""
    if comm.size == 1:
        yield True
        return
    from mpi4py import MPI

    own = os.sched_getaffinity(0)
    everyones = set().union(*comm.gather(own))
    if comm.rank == 0:
        os.sched_setaffinity(0, everyones)
    yield comm.rank == 0
    if comm.rank == 0:
        os.sched_setaffinity(0, own)
    left = MPI.COMM_WORLD.Ibarrier()
    while not left.Test():
        time.sleep(0.001)  # a rank that waits in MPI would use up its core


def processor() -> str:
    """Name of the processor and the number of cores of the machine."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1)) for line in info.read_text().splitlines() if ":" in line
        )
        name = fields.get("model name", name)
        if {"model", "cpu family"} <= set(fields):
            name += f", family {fields['cpu family']}, model {fields['model']}"
    return f"{name}; {os.cpu_count()} cores"


def versions(*packages: str) -> str:
    """Such as "Python 3.11.2, numpy 2.4.6"; packages that are not installed are left out."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def command_line() -> str:
    """How this script was called, as one can repeat it from the clone."""
    words = []
    for word in sys.argv[1:]:
        words += word.split("=", 1) if word.startswith("--") else [word]
    for option in (
        "--out",
        "--figure",
        "--page",
        "--findings",
        "--folder",
    ):  # where things go is no part of what a page says
        if option in words:
            place = words.index(option)
            words = words[:place] + words[place + 2 :]
    if "--data-dir" in words[:-1]:  # nor is where the data lie
        words[words.index("--data-dir") + 1] = "FOLDER"
    # Nor where this machine keeps the rest: of an absolute path its end, .venv/bin/python, is what one can have, too.
    words = [str(Path(*Path(word).parts[1:][-3:])) if Path(word).is_absolute() else word for word in words]
    return shlex.join([f"scripts/{Path(sys.argv[0]).name}", *words])


def plain_axes(panel: Any, numbers: Sequence[int]) -> None:
    """Write those numbers at matplotlib's horizontal axis, and 1, 2, 5, 10, ... at a logarithmic vertical one."""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set_xticks(numbers, map(str, numbers), rotation=45)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_locator(NullLocator())
    if panel.get_yscale() == "log":
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:,.10g}")
    panel.grid(alpha=0.3)


def positive_integer(text: str) -> int:
    """For argparse: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """For argparse: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def file_to_write(text: str) -> Path:
    """For argparse: a file that can be written, or all the measuring would be for nothing."""
    if not Path(text).parent.is_dir() or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text!r}")
    try:
        with tempfile.TemporaryFile(dir=Path(text).parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    return Path(text)


def page_head(title: str, *packages: str) -> str:
    """How a page begins: its title, the command that makes it, the machine, the versions of Python and the packages."""
    return f"# {title}\n\n    {command_line()}\n\n{processor()}. {versions(*packages)}"


def print_page(page: str, file: Path | None) -> None:
    """Print the page, and write it where it was asked for, see `write_page`."""
    print(page)
    if file:
        write_page(file, page)


def write_page(file: Path, page: str) -> None:
    """Write the whole page or, with a sentence as the end of the program, leave what was there."""
    try:
        write_atomically(file, page.encode())
    except OSError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: the page could not be written: {error}")


def require_packages(parser: argparse.ArgumentParser, *packages: str) -> None:
    """End the program with a sentence unless these packages, which parallelcnn itself does not need, are installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        parser.error(f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def run_to_the_end(main: Callable[[], int]) -> NoReturn:
    """Leave the program with what `main` returns; Ctrl-C is no reason for a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
