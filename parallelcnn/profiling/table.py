"""A profile as a table to read."""

from collections.abc import Sequence

import numpy as np

from parallelcnn.layers.base import Array
from parallelcnn.wording import plural

from .profile import Profile, by_layer

_COLUMNS = ["order", "load", "forward", "loss", "backward", "join", "wait", "reduce", "update", "report"]


def table(profile: Profile) -> str:
    """The profile in four parts: what was measured, layers, ranks in a step, ranks in the whole training."""
    n = len(profile.layers)
    step = [["rank, us of a step", *_COLUMNS, "step"]]
    whole = [["rank, s of training", *_COLUMNS, "all"]]
    for number, rank in enumerate(profile.ranks):
        step.append([str(number), *(_digits(1e6 * value) for value in [*_by_column(rank.median, n), rank.median_step])])
        whole.append([str(number), *(f"{value:.3f}" for value in [*_by_column(rank.total, n), rank.total.sum()])])
    return "\n\n".join([_overview(profile), _aligned(_layers(profile)), _aligned(step), _aligned(whole)])


def _by_column(phases: Array, layers: int) -> list[float]:
    """Seconds of the phases in the order of _COLUMNS: those of the layers are summed, forwards and backwards."""
    forward, backward = by_layer(phases, layers)
    return [*phases[:2], forward.sum(), phases[2 + layers], backward.sum(), *phases[3 + 2 * layers :]]


def _overview(profile: Profile) -> str:
    ranks = profile.ranks
    rate = np.mean([profile.rate(rank) for rank in ranks])
    share = np.mean([profile.rate(rank) / rank.matrix_rate for rank in ranks])
    own = np.mean([rank.stamps * rank.stamp_seconds / rank.median_step for rank in ranks])
    pauses = max(rank.pauses for rank in ranks)
    low, high = (f"{limit(rank.matrix_rate for rank in ranks):.0f}" for limit in (min, max))
    return "\n".join(
        [
            f"profile    {ranks[0].steps:,} steps, {sum(rank.samples for rank in ranks):,} samples, "
            f"{plural(len(ranks), 'rank')} of {plural((rank.threads for rank in ranks), 'thread')}",
            f"machine    a float32 matrix product (512 x 512) on one thread of each rank at once: "
            f"{low if low == high else f'{low} to {high}'} GFLOP/s",
            f"network    {profile.flops_as_written / 1e6:.3f} MFLOP per sample forwards and backwards "
            f"({profile.flops.sum() / 1e6:.3f} as it runs)",
            f"training   {rate:.1f} GFLOP/s on each thread over all the time of the loop, {100 * share:.0f} % of the "
            f"machine's rate",
            f"clocks     within {1e6 * max(rank.clock_error for rank in ranks):.1f} us of rank 0's",
            f"profiler   {ranks[0].stamps:.0f} time stamps a step, {100 * own:.1f} % of its time"
            + (f", and {pauses:.2f} s between steps" if pauses else ""),
        ]
    )


def _layers(profile: Profile) -> list[list[str]]:
    """A row for each layer as it runs; means over ranks of their medians."""
    n = len(profile.layers)
    median = np.mean([rank.median for rank in profile.ranks], axis=0)
    total = np.mean([rank.total for rank in profile.ranks], axis=0)
    rates = np.mean([rank.rates for rank in profile.ranks], axis=0)
    shares = np.mean([rank.rates / rank.matrix_rate for rank in profile.ranks], axis=0)
    seconds = np.concatenate(by_layer(median, n))
    parts = np.sum(by_layer(total, n), axis=0) / total.sum()
    rows = [
        ["layer, as it runs", "forward us", "GFLOP/s", "of machine", "backward us", "GFLOP/s", "of machine", "of time"]
    ]
    for i, layer in enumerate(profile.layers):
        row = [layer]
        for k in (i, n + i):
            row.append(_digits(1e6 * seconds[k]))
            row += [f"{rates[k]:.1f}", f"{100 * shares[k]:.0f} %"] if profile.flops[k] else ["-", "-"]
        rows.append([*row, f"{100 * parts[i]:.1f} %"])
    rows.append(["outside layers", *[""] * 6, f"{100 * (1 - parts.sum()):.1f} %"])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _digits(value: float) -> str:
    """A few digits: 0.31, 12.3, 1,234."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
