"""What a profile is: for each rank, seconds by phase of a step; and how it comes out of time stamps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallelcnn.layers.base import Array, Layer, Shape

from .stamps import ARRIVED, BEGAN, ENDED, LOAD_BEGAN, LOADED, SAMPLES, STEP, SUMMED, UPDATED


@dataclass(frozen=True)
class RankProfile:
    """What one rank found out about itself. Times are means over its threads.

    Attributes:
        host: where it ran.
        threads: that ran the network.
        steps: how many it took.
        samples: that it saw in all of them.
        matrix_rate: of a float32 matrix product on one thread [GFLOP/s].
        clock_error: how far its times may be off those of rank 0 [s].
        stamp_seconds: what noting one time takes [s].
        stamps: notes in a step.
        pauses: seconds that the profiler took between steps [s].
        total: seconds in each of `Profile.phases`, over all steps.
        median: the same of one step, the median of the last steps.
        median_step: seconds from one step to the next, the median of the last steps.
        rates: of each layer forwards, then of each backwards, by thread, the median of the last steps [GFLOP/s].
        first_step: number of the first step in the time line, counted from 1.
        trace_steps: stamps of the steps in the time line, see `stamps` [ns, rank 0's clock].
        trace_passes: stamps of the passes in them; threads are numbered, 0 is the one that called `train`.
        trace_evaluations: begins and ends of the evaluations among them, shape (evaluations, 2).
    """

    host: str
    threads: int
    steps: int
    samples: int
    matrix_rate: float
    clock_error: float
    stamp_seconds: float
    stamps: float
    pauses: float
    total: Array
    median: Array
    median_step: float
    rates: Array
    first_step: int
    trace_steps: Array
    trace_passes: Array
    trace_evaluations: Array


@dataclass(frozen=True)
class Profile:
    """Where the time of a training went.

    Attributes:
        layers: their names, as they run: a convolution and the pooling behind it may be one.
        flops: floating-point operations per sample of each layer forwards, then of each backwards, as they run.
        flops_as_written: of all layers, forwards and backwards, of the network as it was written.
        ranks: what each found out.
    """

    layers: list[str]
    flops: Array
    flops_as_written: int
    ranks: list[RankProfile]

    @property
    def phases(self) -> list[str]:
        """Names of the numbers in `RankProfile.total` and `.median`, in the order of time.

        order: choosing samples; load: gathering them; then every layer forwards, the loss, every layer backwards;
        join: adding the gradients of blocks and threads, and waiting for the other threads; wait: for the last rank to
        come to the sum; reduce: the sum over ranks; update: the optimiser's step; report: telling of it.
        """
        forward = [f"forward {i}" for i in range(len(self.layers))]
        backward = [f"backward {i}" for i in reversed(range(len(self.layers)))]
        return ["order", "load", *forward, "loss", *backward, "join", "wait", "reduce", "update", "report"]

    def rate(self, rank: RankProfile) -> float:
        """Operations of the network as written over all the time of the training loop, by thread [GFLOP/s]."""
        return self.flops_as_written * rank.samples / rank.threads / float(rank.total.sum()) / 1e9


def flops_of(layers: Sequence[tuple[Layer, Shape]]) -> Array:
    """Operations per sample of each layer forwards, then of each backwards, given with the shape of its input.

    Forwards two per multiplication with addition; backwards as many for the gradient by the parameters and for that
    by the input, which nobody asks the first layer for.
    """
    forward = np.array([2 * layer.multiply_adds(shape) for layer, shape in layers], np.int64)
    gradients = np.array([1] + [2] * (len(layers) - 1))
    return np.concatenate([forward, forward * gradients])


def durations_of(steps: Array, passes: Array, latest: Array, threads: int) -> Array:
    """Nanoseconds by step and phase, (steps, phases), from time stamps; a step's add up to all of its time.

    Args:
        steps: (steps, STEP_COLUMNS).
        passes: of all replicas, in any order; STEP counts from 0, the first row of `steps`.
        latest: of each step, when the last rank came to the sum.
        threads: that share the passes.
    """
    in_passes = np.zeros((len(steps), passes.shape[1] - LOADED))
    np.add.at(in_passes, passes[:, STEP], np.diff(passes[:, LOAD_BEGAN:], axis=1) / threads)
    load_began = steps[:, ARRIVED].copy()
    np.minimum.at(load_began, passes[:, STEP], passes[:, LOAD_BEGAN])
    in_sum = steps[:, SUMMED] - steps[:, ARRIVED]
    wait = np.clip(latest - steps[:, ARRIVED], 0, in_sum)
    return np.column_stack(
        [
            load_began - steps[:, BEGAN],
            in_passes,
            steps[:, ARRIVED] - load_began - in_passes.sum(1),
            wait,
            in_sum - wait,
            steps[:, UPDATED] - steps[:, SUMMED],
            steps[:, ENDED] - steps[:, UPDATED],
        ]
    )


def rates_of(durations: Array, flops: Array, samples: Array, threads: int) -> Array:
    """GFLOP/s of one thread by step and layer, (steps, 2 * layers): forwards, then backwards.

    Args:
        durations: see `durations_of`.
        flops: see `flops_of`.
        samples: of each step, in all of its passes.
    """
    layers = len(flops) // 2
    forward, backward = durations[:, 2 : 2 + layers], durations[:, 3 + layers : 3 + 2 * layers]
    seconds = np.concatenate([forward, backward[:, ::-1]], axis=1)
    return flops * samples[:, np.newaxis] / np.maximum(seconds * threads, 1)


def samples_of(passes: Array, steps: int) -> Array:
    """Samples of each step, in all of its passes."""
    return np.bincount(passes[:, STEP], passes[:, SAMPLES], minlength=steps)
