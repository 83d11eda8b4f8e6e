"""A model of the time of a training step over ranks.

A step on P ranks takes

    t(P) = compute(ceil(batch / P)) + allreduce(bytes of the message, P)

where compute(n) was measured on one rank for n = 1, 2, 4, ... (interpolated), and the Allreduce is the cheaper of two
algorithms that MPI libraries choose from, recursive doubling and Rabenseifner's reduce-scatter with allgather
(R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", International
Journal of High Performance Computing Applications 19(1), 2005, section 4.5):

    ceil(log2 P) * (latency + bytes / bandwidth + bytes * addition)
    2 ceil(log2 P) * latency + 2 (P - 1) / P * bytes / bandwidth + (P - 1) / P * bytes * addition

Latency and bandwidth are those of an MPI ping-pong within a node and between two nodes, `addition` is numpy's time to
add a byte's worth of float32. On several nodes the ranks of a node sum among themselves, then the nodes.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np


class Link(NamedTuple):
    """What a message costs between two ranks: latency [s] and seconds per byte."""

    latency: float
    per_byte: float

    def allreduce(self, message_bytes: int, ranks: int, addition: float) -> float:
        """The cheaper of recursive doubling and Rabenseifner's algorithm [s]; `addition` in seconds per byte."""
        rounds = math.ceil(math.log2(ranks))
        part = (ranks - 1) / ranks * message_bytes
        doubling = rounds * (self.latency + message_bytes * (self.per_byte + addition))
        rabenseifner = 2 * rounds * self.latency + 2 * part * self.per_byte + part * addition
        return min(doubling, rabenseifner)


def fit_link(half_round_trips: dict[str, list[float]]) -> Link:
    """Least squares of relative errors over message sizes."""
    sizes = np.array([float(size) for size in half_round_trips])
    seconds = np.array([statistics.median(values) for values in half_round_trips.values()])
    per_byte, latency = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    return Link(max(float(latency), 0.0), max(float(per_byte), 0.0))


class Model:
    """The predicted time of a step for one number of threads per rank.

    Args:
        compute: seconds of a step on one rank by samples.
        node, network: links between ranks of a node, and of different nodes.
        ranks_per_node: how many ranks a node takes before the next one is begun.
    """

    def __init__(
        self,
        compute: dict[int, float],
        message_bytes: int,
        addition: float,
        node: Link,
        network: Link,
        ranks_per_node: int,
    ) -> None:
        self.compute_sizes, self.compute_seconds = zip(*sorted(compute.items()), strict=True)
        self.message_bytes, self.addition = message_bytes, addition
        self.node, self.network, self.ranks_per_node = node, network, ranks_per_node
        per_sample, self.fixed = np.polyfit(
            self.compute_sizes, self.compute_seconds, 1, w=1 / np.array(self.compute_seconds)
        )
        self.per_sample = float(per_sample)

    def compute(self, batch_size: int, ranks: int) -> float:
        """Of the rank with the largest share [s]."""
        return float(np.interp(math.ceil(batch_size / ranks), self.compute_sizes, self.compute_seconds))

    def allreduce(self, ranks: int, message_bytes: int | None = None) -> float:
        message_bytes = message_bytes or self.message_bytes
        on_node = min(ranks, self.ranks_per_node)
        nodes = math.ceil(ranks / self.ranks_per_node)
        within = self.node.allreduce(message_bytes, on_node, self.addition)
        return within + self.network.allreduce(message_bytes, nodes, self.addition)

    def step(self, batch_size: int, ranks: int) -> float:
        return self.compute(batch_size, ranks) + self.allreduce(ranks)
