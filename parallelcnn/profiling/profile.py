"""The profile of a training: for each rank, seconds by phase of a step; computed from time stamps."""

from dataclasses import dataclass

import numpy as np

from parallelcnn.layers.base import Array
from parallelcnn.network import NetworkHandler

from .stamps import ARRIVED, BEGAN, ENDED, LOAD_BEGAN, LOADED, SAMPLES, STEP, SUMMED, UPDATED


@dataclass(frozen=True)
class RankProfile:
    """The measurements of one rank. Times are means over its threads."""

    host: str
    threads: int  # that ran the network
    steps: int
    samples: int  # in all steps
    matrix_rate: float  # of a float32 matrix product on one thread [GFLOP/s]
    clock_error: float  # how far its times may be off those of rank 0 [s]
    stamp_seconds: float  # what one time stamp costs [s]
    stamps: float  # time stamps in a step
    pauses: float  # of the profiler between steps [s]
    total: Array  # seconds in each of `Profile.phases`, over all steps
    median: Array  # the same of one step, the median of the last steps
    median_step: float  # from one step to the next, the median of the last steps [s]
    rates: Array  # of each layer forwards, then of each backwards, by thread, the median of the last steps [GFLOP/s]
    first_step: int  # number of the first step in the timeline, counted from 1
    trace_steps: Array  # stamps of the steps in the timeline, see `stamps` [ns, rank 0's clock]
    trace_passes: Array  # stamps of the passes in them; thread 0 is the one that called `train`
    trace_evaluations: Array  # begins and ends of the evaluations among them, shape (evaluations, 2)


@dataclass(frozen=True)
class Profile:
    """Where the time of a training went.

    Attributes:
        layers: their names, as they run: a convolution and the pooling after it may be one.
        flops: floating-point operations per sample of each layer forwards, then of each backwards, as they run.
        flops_as_written: of all layers, forwards and backwards, of the network as it was written.
        ranks: the measurements of each.
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
        come to the sum; reduce: the sum over ranks; update: the optimiser's step; report: the callbacks.
        """
        forward = [f"forward {i}" for i in range(len(self.layers))]
        backward = [f"backward {i}" for i in reversed(range(len(self.layers)))]
        return ["order", "load", *forward, "loss", *backward, "join", "wait", "reduce", "update", "report"]

    def rate(self, rank: RankProfile) -> float:
        """Operations of the network as written over all the time of the training loop, by thread [GFLOP/s]."""
        return self.flops_as_written * rank.samples / rank.threads / float(rank.total.sum()) / 1e9


def flops_of(network: NetworkHandler, *, fused: bool = True) -> Array:
    """Operations per sample of each layer forwards, then of each backwards: two per multiply-add.

    Args:
        fused: of the layers as they run; otherwise as they were written.
    """
    return 2 * np.array(network.multiply_adds_by_layer(fused=fused), np.int64).T.ravel()


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


def by_layer(phases: Array, layers: int) -> tuple[Array, Array]:
    """The numbers of each layer forwards, and of each backwards, from those of all phases (the last axis)."""
    return phases[..., 2 : 2 + layers], phases[..., 2 + 2 * layers : 2 + layers : -1]


def rates_of(durations: Array, flops: Array, passes: Array, threads: int) -> Array:
    """GFLOP/s of one thread by step and layer, (steps, 2 * layers): forwards, then backwards.

    Args:
        durations, passes: see `durations_of`.
        flops: see `flops_of`.
    """
    nanoseconds = np.concatenate(by_layer(durations, len(flops) // 2), axis=1)
    samples = np.bincount(passes[:, STEP], passes[:, SAMPLES], minlength=len(durations))
    return flops * samples[:, np.newaxis] / np.maximum(nanoseconds * threads, 1)
