"""What the comparing scripts share: the machine in a sentence, medians with their spread, Markdown tables."""

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

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
        """Such as "1.93x (1.90 to 1.97)"."""
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def three_digits(value: float) -> str:
    """A positive number with three significant digits, and all its digits before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def verdict(ratio: Spread) -> str:
    """The ratio as a table shows it: where we are the slower one, in words and in bold."""
    return ratio.text(unit="x") if ratio.median >= 1 else f"**slower: {ratio.text(unit='x')}**"


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


def steps_within(seconds: float, step: Callable[[], object], at_least: int = 3) -> int:
    """How many calls of `step` fit into so many seconds, by the second call: the first may compile."""
    step()
    started = time.perf_counter()
    step()
    return max(at_least, round(seconds / (time.perf_counter() - started)))


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
    words = sys.argv[1:]
    if "--out" in words:  # where the page goes is no part of what it says
        place = words.index("--out")
        words = words[:place] + words[place + 2 :]
    return shlex.join([f"scripts/{Path(sys.argv[0]).name}", *words])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
