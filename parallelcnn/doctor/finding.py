"""The result of a check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was checked.
        found: the result, in words.
        remedy: what to do, one command or sentence per line; empty if all is well.
    """

    topic: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else '!!'}  {self.topic:<15}{self.found}"
        return "\n    -> ".join([line, *self.remedy.splitlines()])
