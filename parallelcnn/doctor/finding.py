"""What a check has found."""

from collections.abc import Iterable
from dataclasses import dataclass

_TOPIC = 15  # width of the column


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at.
        found: what there is, in words.
        remedy: what to do, one command or sentence a line; empty: nothing, all is well.
    """

    topic: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy

    def __str__(self) -> str:
        lines = [f"{'ok' if self.ok else '!!'}  {self.topic:<{_TOPIC}}{self.found}"]
        lines += [f"    -> {line}" for line in self.remedy.splitlines()]
        return "\n".join(lines)


def span(values: Iterable[int], noun: str) -> str:
    """Some numbers of things in words: "1 core", "2 to 4 cores"."""
    fewest, most = min(values := list(values)), max(values)
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f"{number} {noun}" if most == 1 else f"{number} {noun}s"


def some(ranks: list[int]) -> str:
    """A few of many ranks, by name."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def in_units(nbytes: float) -> str:
    """A number of bytes as people read it."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while nbytes >= 1024 and len(units) > 1:
        nbytes /= 1024
        units.pop(0)
    return f"{nbytes:.0f} {units[0]}"
