"""Shared by the benchmarks: medians with their spread, Markdown pages, types of command-line arguments."""

import argparse
import contextlib
import json
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
        """Such as "1.93x (1.90 to 1.97)"; "1.93x" if lowest and highest have the same digits, as for one value."""
        median, low, high = (f"{value:.{digits}f}" for value in self)
        return f"{median}{unit}" if low == high else f"{median}{unit} ({low} to {high})"


def three_digits(value: float) -> str:
    """A positive number with three significant digits, and all digits before the decimal point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def matrix_product_rate(size: int = 512, seconds: float = 0.3) -> float:
    """Rate of numpy's float32 matrix product on one thread [GFLOP/s], the median of many."""
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


def processor() -> str:
    """Name of the processor and number of cores of this machine."""
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
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def check_cores(parser: argparse.ArgumentParser, cores: Sequence[int]) -> None:
    """End the program with a message if this process may not use so many cores."""
    usable = len(os.sched_getaffinity(0))
    if max(cores) > usable:
        parser.error(f"--cores must be at most {usable}, the cores that this process may use, got {max(cores)}")


def command_line() -> str:
    """The command that was called, without this machine's folders, so that it can be repeated from any clone."""
    words = []
    for word in sys.argv[1:]:
        words += word.split("=", 1) if word.startswith("--") else [word]
    for option in ("--out", "--findings", "--folder"):  # the folder of the results does not change them
        if option in words:
            place = words.index(option)
            words = words[:place] + words[place + 2 :]
    for option in ("--data-dir", "--against"):
        if option in words[:-1]:
            words[words.index(option) + 1] = "FOLDER"
    words = [str(Path(*Path(word).parts[1:][-3:])) if Path(word).is_absolute() else word for word in words]
    script = Path(sys.argv[0])
    return shlex.join([f"scripts/{script.parent.name}/{script.name}", *words])


def page_head(title: str, *packages: str) -> str:
    """The beginning of a page: title, command, machine, versions of Python and of these packages."""
    return f"# {title}\n\n    {command_line()}\n\n{processor()}. {versions(*packages)}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def print_page(page: str, file: Path | None) -> None:
    """Print the page and, if a file is given, write it there."""
    print(page)
    if file:
        write_page(file, page)


def write_page(file: Path, page: str) -> None:
    """Write the whole page; if that fails, leave the earlier page as it was and exit with a message."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.unfinished")
    try:
        try:
            unfinished.write_text(page)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {file} could not be written: {error.strerror}")


def add_result(file: Path, kind: str, found: dict[str, Any], *packages: str) -> None:
    """Print a result as a line of JSON, with the machine and the versions of these packages, and add it to a file."""
    line = json.dumps({"kind": kind, "machine": processor(), "versions": versions(*packages), **found})
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    print(line, flush=True)


def results_of(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The results of a kind in a file, in the order in which they were added; none if there is no such file."""
    if file.exists():
        for line in map(json.loads, file.read_text().splitlines()):
            if line["kind"] == kind:
                yield line


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
    """For argparse: a file that can be written, checked before hours of measuring."""
    if not Path(text).parent.is_dir() or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text!r}")
    try:
        with tempfile.TemporaryFile(dir=Path(text).parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    return Path(text)


def existing_folder(text: str) -> Path:
    """For argparse: a folder that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder that exists, got {text!r}")
    return Path(text).resolve()


def run_to_the_end(main: Callable[[], int]) -> NoReturn:
    """Exit with the code that `main` returns; Ctrl-C prints a message instead of a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)
