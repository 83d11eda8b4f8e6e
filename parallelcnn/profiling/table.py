"""A profile as a table to read."""

from collections.abc import Sequence

import numpy as np

from parallelcnn.layers.base import Array

from .profile import Profile


def table(profile: Profile) -> str:
    """The profile in four parts: what was measured, layers, ranks in a step, ranks in the whole training."""
    ranks = profile.ranks
    medians, totals = np.array([rank.median for rank in ranks]), np.array([rank.total for rank in ranks])
    steps = [[_digits(1e6 * value) for value in row] for row in _by_rank(profile, medians)]
    for row, rank in zip(steps, ranks, strict=True):
        row.append(_digits(1e6 * rank.median_step))
    whole = [[f"{value:.3f}" for value in [*row, sum(row)]] for row in _by_rank(profile, totals)]
    parts = [
        _overview(profile),
        _layers(profile),
        _aligned([["rank, us of a step", *_COLUMNS, "step"], *_numbered(steps)]),
        _aligned([["rank, s of training", *_COLUMNS, "all"], *_numbered(whole)]),
    ]
    return "\n\n".join(parts)


_COLUMNS = ["order", "load", "forward", "loss", "backward", "join", "wait", "reduce", "update", "report"]


def _overview(profile: Profile) -> str:
    ranks = profile.ranks
    first = ranks[0]
    rates = [rank.matrix_rate for rank in ranks]
    samples = sum(rank.samples for rank in ranks)
    rate = np.mean([profile.rate(rank) for rank in ranks])
    share = np.mean([profile.rate(rank) / rank.matrix_rate for rank in ranks])
    own = np.mean([rank.stamps * rank.stamp_seconds / rank.median_step for rank in ranks])
    threads = max(rank.threads for rank in ranks)
    pauses = max(rank.pauses for rank in ranks)
    return "\n".join(
        [
            f"profile    {first.steps:,} steps, {samples:,} samples, {_count(len(ranks), 'rank')} "
            f"of {_range([rank.threads for rank in ranks])} {'thread' if threads == 1 else 'threads'}",
            f"machine    a float32 matrix product (512 x 512) on one thread of each rank at once: "
            f"{_range(rates)} GFLOP/s",
            f"network    {profile.flops_as_written / 1e6:.3f} MFLOP per sample forwards and backwards "
            f"({profile.flops.sum() / 1e6:.3f} as it runs)",
            f"training   {rate:.1f} GFLOP/s on each thread over all the time of the loop, {100 * share:.0f} % of the "
            f"machine's rate",
            f"clocks     within {1e6 * max(rank.clock_error for rank in ranks):.1f} us of rank 0's",
            f"profiler   {first.stamps:.0f} time stamps a step, {100 * own:.1f} % of its time"
            + (f", and {pauses:.2f} s between steps" if pauses else ""),
        ]
    )


def _layers(profile: Profile) -> str:
    """A row for each layer as it runs; means over ranks of their medians."""
    n = len(profile.layers)
    median = np.mean([rank.median for rank in profile.ranks], axis=0)
    total = np.mean([rank.total for rank in profile.ranks], axis=0)
    rates = np.mean([rank.rates for rank in profile.ranks], axis=0)
    shares = np.mean([rank.rates / rank.matrix_rate for rank in profile.ranks], axis=0)
    rows = [
        ["layer, as it runs", "forward us", "GFLOP/s", "of machine", "backward us", "GFLOP/s", "of machine", "of time"]
    ]
    for i, layer in enumerate(profile.layers):
        forward, backward = 2 + i, 2 + 2 * n - i
        row = [layer]
        for phase, rate in ((forward, i), (backward, n + i)):
            row.append(_digits(1e6 * median[phase]))
            row += [f"{rates[rate]:.1f}", f"{100 * shares[rate]:.0f} %"] if profile.flops[rate] else ["-", "-"]
        rows.append([*row, f"{100 * (total[forward] + total[backward]) / total.sum():.1f} %"])
    others = total.sum() - total[2 : 2 + n].sum() - total[3 + n : 3 + 2 * n].sum()
    rows.append(["outside layers", *[""] * 6, f"{100 * others / total.sum():.1f} %"])
    return _aligned(rows)


def _by_rank(profile: Profile, values: Array) -> list[list[float]]:
    """Values by rank and phase, those of the layers summed forwards and backwards: one row a rank, as in _COLUMNS."""
    n = len(profile.layers)
    rows = []
    for row in values:
        forward, backward = row[2 : 2 + n].sum(), row[3 + n : 3 + 2 * n].sum()
        rows.append([row[0], row[1], forward, row[2 + n], backward, *row[3 + 2 * n :]])
    return rows


def _numbered(rows: list[list[str]]) -> list[list[str]]:
    return [[str(number), *row] for number, row in enumerate(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(lines)


def _digits(value: float) -> str:
    """A few digits: 0.31, 12.3, 1,234."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
