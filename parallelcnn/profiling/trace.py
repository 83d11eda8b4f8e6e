"""A profile as a timeline: JSON in Chrome's Trace Event Format, which chrome://tracing and ui.perfetto.dev open."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from parallelcnn.layers.base import Array

from .profile import Profile, RankProfile
from .stamps import ARRIVED, BEGAN, ENDED, LOAD_BEGAN, LOADED, SAMPLES, STEP, SUMMED, THREAD, UPDATED

Event = dict[str, Any]


def trace(profile: Profile) -> dict[str, Any]:
    """The steps of the timeline, ready for JSON: a process for each rank, all on rank 0's clock, in microseconds.

    The threads of all ranks are numbered from 1, and a process has the number of its first thread, as on Linux.
    Perfetto identifies a thread by its number alone, and takes thread 0 for the process: with threads 0, 1, ... in
    every rank it mixed the rows of different threads.
    """
    zero = min(int(rank.trace_steps[0, BEGAN]) for rank in profile.ranks)
    latest = np.max([rank.trace_steps[:, ARRIVED] for rank in profile.ranks], axis=0)
    names: list[Event] = []
    events: list[Event] = []
    process = 1
    for number, rank in enumerate(profile.ranks):
        threads = sorted({0, *rank.trace_passes[:, THREAD].tolist()})
        names.append(_name("process", process, process, f"rank {number} on {rank.host}"))
        names += [_name("thread", process, process + thread, f"thread {thread}") for thread in threads]
        for name, thread, began, ended, about in _spans(rank, profile.layers, latest):
            if ended > began or name.startswith("step "):
                event = {"name": name, "ph": "X", "ts": (began - zero) / 1e3, "dur": (ended - began) / 1e3}
                event |= {"pid": process, "tid": process + thread}
                events.append(event | {"args": about} if about else event)
        process += threads[-1] + 1
    # Of two that begin together, the one that holds the other comes first.
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    return {
        "traceEvents": names + events,
        "displayTimeUnit": "ms",
        "otherData": {"clocks_within_us": 1e6 * max(rank.clock_error for rank in profile.ranks)},
    }


def _name(what: str, process: int, thread: int, name: str) -> Event:
    return {"name": f"{what}_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


Span = tuple[str, int, int, int, dict[str, int]]  # name, thread, begin, end, arguments


def _spans(rank: RankProfile, layers: list[str], latest: Array) -> Iterator[Span]:
    """The steps and evaluations of a rank, and their parts."""
    for began, ended in rank.trace_evaluations.tolist():
        yield "evaluate", 0, began, ended, {}
    by_step: dict[int, list[list[int]]] = {}
    for row in rank.trace_passes.tolist():
        by_step.setdefault(row[STEP] + 1, []).append(row)
    steps = zip(rank.trace_steps.tolist(), latest.tolist(), strict=True)
    for number, (step, last_arrival) in enumerate(steps, rank.first_step):
        yield f"step {number}", 0, step[BEGAN], step[ENDED], {}
        in_step = by_step.get(number, [])
        for row in in_step:
            yield from _pass(row, layers)
        begin = min((row[LOAD_BEGAN] for row in in_step), default=step[ARRIVED])
        done = max((row[-1] for row in in_step if row[THREAD] == 0), default=begin)
        waited = min(max(last_arrival, step[ARRIVED]), step[SUMMED])
        times = [done, step[ARRIVED], waited, step[SUMMED], step[UPDATED], step[ENDED]]
        yield "order", 0, step[BEGAN], begin, {}
        for name, (began, ended) in zip(("join", "wait", "reduce", "update", "report"), pairwise(times), strict=True):
            yield name, 0, began, ended, {}


def _pass(row: list[int], layers: list[str]) -> Iterator[Span]:
    thread, about = row[THREAD], {"samples": row[SAMPLES]}
    n = len(layers)
    forward = row[LOADED : LOADED + n + 1]
    backward = row[LOADED + n + 1 :]
    yield "load", thread, row[LOAD_BEGAN], row[LOADED], about
    yield "forward", thread, forward[0], forward[-1], about
    yield "loss", thread, forward[-1], backward[0], about
    yield "backward", thread, backward[0], backward[-1], about
    for times, names in ((forward, layers), (backward, layers[::-1])):
        for name, (began, ended) in zip(names, pairwise(times), strict=True):
            yield name, thread, began, ended, {}
