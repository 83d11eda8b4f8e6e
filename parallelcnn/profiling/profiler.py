"""The profiler: wraps the parts of a training that record time stamps, and computes the profile from them."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn.arguments import as_path
from parallelcnn.comm import Transport, this_host
from parallelcnn.errors import InputError
from parallelcnn.files.atomic import write_atomically
from parallelcnn.layers.base import Array
from parallelcnn.network import NetworkHandler
from parallelcnn.profiling.clocks import clock_offset
from parallelcnn.replica import Replica
from parallelcnn.training.threads import blas_limit

from .profile import Profile, RankProfile, durations_of, flops_of, rates_of
from .stamps import (
    ARRIVED,
    BEGAN,
    LOAD_BEGAN,
    SAMPLES,
    STEP,
    STEP_COLUMNS,
    THREAD,
    Log,
    WatchedCallbacks,
    WatchedRanks,
    WatchedReplica,
    clock,
    pass_columns,
    stamp_seconds,
)
from .table import table
from .trace import trace

_STEPS_AT_ONCE = 4096  # whose time stamps are kept; of earlier ones only sums
_TRACE_EVENTS = 200_000  # 25 MB; a viewer takes seconds to open them


@dataclass
class Profiler:
    """Profiles a training: `train(..., profiler=profiler)`, and then `print(profiler.table())`.

    Args:
        trace_steps: how many of the last steps the timeline shows; fewer if many ranks would make it large.

    Attributes:
        profile: after the training, the measurements of all ranks; the same on every rank.

    Raises:
        InputError: unless trace_steps is an integer of at least 1.
    """

    trace_steps: int = 100
    profile: Profile | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.trace_steps, bool) or not isinstance(self.trace_steps, int) or self.trace_steps < 1:
            raise InputError(f"Profiler: trace_steps must be an integer of at least 1, got {self.trace_steps!r}")

    def watch(
        self, network: NetworkHandler, replicas: Sequence[Replica], comm: Transport, callbacks: Any
    ) -> tuple[list[Replica], WatchedRanks, Any]:
        """Wrap replicas, ranks and callbacks; train with the returned ones. Discards an earlier profile.

        Collective: every rank of `comm` must call it, and `finish` after the last step.
        """
        self.profile = None
        self._network, self._comm = network, comm
        self._flops = flops_of(network)
        columns = pass_columns(len(network.fused_layers))
        self._steps = Log(STEP_COLUMNS, _STEPS_AT_ONCE)
        self._passes = [Log(columns, _STEPS_AT_ONCE) for _ in replicas]
        self._thread_numbers = {threading.get_ident(): 0}
        self._working: set[int] = set()
        self._steps_done = self._samples_done = self._passes_done = 0
        self._total: Any = 0
        self._last = self._last_rates = np.zeros((0, 0))
        self._trace_steps = np.zeros((0, STEP_COLUMNS), np.int64)
        self._trace_passes = np.zeros((0, columns), np.int64)
        self._trace_evaluations = np.zeros((0, 2), np.int64)
        self._pauses = 0

        self._clock_error = 0
        self._synchronized = self._synchronize()
        watched: list[Replica] = [
            WatchedReplica(replica, log, self._steps) for replica, log in zip(replicas, self._passes, strict=True)
        ]
        self._callbacks = WatchedCallbacks(callbacks, self._steps, _STEPS_AT_ONCE, self._digest_between_steps)
        self._callbacks.training_begins()
        return watched, WatchedRanks(comm, self._steps), self._callbacks

    def finish(self) -> None:
        """Gather the profile from all ranks. Collective."""
        self._digest()
        if self._steps_done == 0:  # training has resumed at its end
            return
        layers = self._network.fused_layers
        passes_a_step = self._passes_done / self._steps_done
        events_a_step = sum(self._comm.allgather(8 + passes_a_step * (4 + 2 * len(layers))))
        shown = min(len(self._trace_steps), max(1, int(_TRACE_EVENTS / events_a_step)))
        self._trim_trace(shown)
        # After the training: freeing large arrays before it changes where its own lie. All ranks at once, since they
        # share memory and clock rate in training too.
        self._comm.barrier()
        mine = RankProfile(
            host=this_host(),
            threads=max(len(self._working), 1),
            steps=self._steps_done,
            samples=self._samples_done,
            matrix_rate=matrix_rate(),
            clock_error=self._clock_error / 1e9,
            stamp_seconds=stamp_seconds(),
            stamps=5 + passes_a_step * (3 + 2 * len(layers)),
            pauses=self._pauses / 1e9,
            total=self._total / 1e9,
            median=np.median(self._last, axis=0) / 1e9,
            median_step=float(np.median(self._last.sum(1))) / 1e9,
            rates=np.median(self._last_rates, axis=0),
            first_step=self._steps_done - shown + 1,
            trace_steps=self._trace_steps,
            trace_passes=self._trace_passes,
            trace_evaluations=self._trace_evaluations,
        )
        names, flops_as_written = [repr(layer) for layer, _ in layers], int(flops_of(self._network, fused=False).sum())
        self.profile = Profile(names, self._flops, flops_as_written, self._comm.allgather(mine))

    def table(self) -> str:
        """Times, rates and shares of the layers that run, and of the ranks."""
        return table(self._finished())

    def save_trace(self, path: str | Path) -> None:
        """Write the timeline of the last steps, for chrome://tracing or ui.perfetto.dev; a process is a rank."""
        write_atomically(as_path("path", path), json.dumps(trace(self._finished()), separators=(",", ":")).encode())

    def _finished(self) -> Profile:
        if self.profile is None:
            raise InputError("the profiler has recorded no complete training: first call train(..., profiler=profiler)")
        return self.profile

    def _synchronize(self) -> tuple[int, int]:
        """(time here, what to add to it for rank 0's), now. Collective."""
        offset, error = clock_offset(self._comm, clock)
        self._clock_error = max(self._clock_error, error)
        return clock(), offset

    def _digest_between_steps(self) -> None:
        began = clock()
        self._digest()
        self._pauses += clock() - began

    def _digest(self) -> None:
        """Turn time stamps into durations, and make room for more. Collective: all ranks are at the same step."""
        steps, passes = self._steps.take(), np.concatenate([log.take() for log in self._passes])
        numbers = self._thread_numbers
        passes[:, THREAD] = [numbers.setdefault(thread, len(numbers)) for thread in passes[:, THREAD].tolist()]
        self._working.update(passes[:, THREAD].tolist())
        threads = max(len(self._working), 1)

        before, self._synchronized = self._synchronized, self._synchronize()
        steps = on_clock_of_rank_0(steps, before, self._synchronized)
        passes[:, LOAD_BEGAN:] = on_clock_of_rank_0(passes[:, LOAD_BEGAN:], before, self._synchronized)
        evaluations = np.array(self._callbacks.evaluations, np.int64).reshape(-1, 2)
        evaluations = on_clock_of_rank_0(evaluations, before, self._synchronized)
        self._callbacks.evaluations.clear()

        latest = steps[:, ARRIVED].copy()
        self._comm.allreduce_max(latest)
        durations = durations_of(steps, passes, latest, threads)
        self._total = self._total + durations.sum(0)
        rates = rates_of(durations, self._flops, passes, threads)
        self._last, self._last_rates = (
            np.concatenate([before, now])[-_STEPS_AT_ONCE:] if len(before) else now
            for before, now in ((self._last, durations), (self._last_rates, rates))
        )

        passes[:, STEP] += self._steps_done
        self._steps_done += len(steps)
        self._passes_done += len(passes)
        self._samples_done += int(passes[:, SAMPLES].sum())
        self._trace_steps = np.concatenate([self._trace_steps, steps])
        self._trace_passes = np.concatenate([self._trace_passes, passes])
        self._trace_evaluations = np.concatenate([self._trace_evaluations, evaluations])
        self._trim_trace(self.trace_steps)

    def _trim_trace(self, steps: int) -> None:
        """Keep the last steps of the timeline."""
        self._trace_steps = self._trace_steps[-steps:]
        self._trace_passes = self._trace_passes[self._trace_passes[:, STEP] >= self._steps_done - steps]
        if len(self._trace_steps):
            begins = self._trace_evaluations[:, 0]
            self._trace_evaluations = self._trace_evaluations[begins >= self._trace_steps[0, BEGAN]]


def on_clock_of_rank_0(times: Array, before: tuple[int, int], after: tuple[int, int]) -> Array:
    """Times of this rank's clock in rank 0's, from two comparisons of clocks: (time here, what to add to it).

    Two, because crystals differ by some parts in a million: a millisecond after some minutes.
    """
    drift = (after[1] - before[1]) / max(after[0] - before[0], 1)
    return times + before[1] + np.rint((times - before[0]) * drift).astype(np.int64)


def matrix_rate() -> float:
    """GFLOP/s of this machine's float32 product of two 512 x 512 matrices on one thread, the median of 15.

    Large enough to be the best that a core can do; in and out fit into its second-level cache, or nearly so.
    """
    n = 512
    a, b = np.random.default_rng(0).random((2, n, n), np.float32)
    product = np.empty_like(a)
    seconds = []
    np.matmul(a, b, out=product)  # loads the library, whose threads are then there to be limited
    with blas_limit:
        for _ in range(15):
            began = time.perf_counter()
            np.matmul(a, b, out=product)
            seconds.append(time.perf_counter() - began)
    return 2 * n**3 / float(np.median(seconds)) / 1e9
