"""Counts and lists in messages."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest


def plural(counts: int | Iterable[int], noun: str, nouns: str = "") -> str:
    """A count, or the range of several counts, with its noun: "1 core", "2 to 4 cores".

    Args:
        nouns: the plural; empty: the noun and an s.
    """
    numbers = [counts] if isinstance(counts, int) else list(counts)
    fewest, most = min(numbers), max(numbers)
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f"{number} {noun if most == 1 else nouns or f'{noun}s'}"


def listed(things: Iterable[object]) -> str:
    """The first eight of them, separated by commas."""
    names = [str(thing) for thing in things]
    return ", ".join([*names[:8], "..."] if len(names) > 8 else names)


def first_difference(there: Sequence[object], here: Sequence[object]) -> str:
    """Where the layers of two networks, which are not equal, differ first: "layer 2 is Dense(5), not Dense(6)"."""
    pairs = enumerate(zip_longest(there, here, fillvalue="missing"), start=1)
    number, (before, now) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    counts = "" if len(there) == len(here) else f" ({plural(len(there), 'layer')}, not {len(here)})"
    return f"layer {number} is {before}, not {now}{counts}"


def in_units(nbytes: float) -> str:
    """A number of bytes as people read it: "139 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.0f} TiB"


def function_name(function: object) -> str:
    """A function as layers and losses print it: without its address, which differs between ranks."""
    name = getattr(function, "__name__", repr(function))
    return name if name.startswith("<") else f"<{name}>"


def duration(seconds: float) -> str:
    """A time as people read it: "0.45 s", "12.3 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"
