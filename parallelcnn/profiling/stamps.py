"""Time stamps: wrappers of replicas, ranks and callbacks that record when they do what.

The training loop does not know of them, so without a profiler they cost nothing. A stamp is one number in a row that
was allocated before; every duration is the difference of two successive stamps.
"""

import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallelcnn.comm import Transport
from parallelcnn.layers import Flatten
from parallelcnn.layers.base import Array, Call
from parallelcnn.parameters import ArrayLayout
from parallelcnn.replica import Replica
from parallelcnn.training.callbacks import Callbacks

clock = time.perf_counter_ns  # the system's monotonic clock: one for all processes of a machine

# The time stamps of a rank in a step.
BEGAN, ARRIVED, SUMMED, UPDATED, ENDED = range(5)
STEP_COLUMNS = 5
# The record of a replica's pass over its samples. After these columns: the end of each layer forwards, the begin of
# the backward pass, the end of each layer backwards, the last layer first.
STEP, THREAD, SAMPLES, LOAD_BEGAN, LOADED = range(5)


def pass_columns(layers: int) -> int:
    """The number of columns of a pass."""
    return LOADED + 1 + layers + 1 + layers


class Log:
    """Rows of integers: column c of the row that is being written is `numbers[begin + c]`; `count` rows are complete.

    Python's array, since writing one number into it takes half as long as into numpy's (0.5 us instead of 1 us after
    a kernel has emptied the caches).

    Args:
        columns: numbers in a row.
        rows: how many fit; the room is doubled when it is full.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self._columns = columns
        self.numbers = array("q", bytes(8 * columns * (rows + 1)))
        self.begin = self.count = 0

    def next_row(self) -> None:
        self.count += 1
        self.begin += self._columns
        if self.begin == len(self.numbers):
            self.numbers.extend(self.numbers)

    def take(self) -> Array:
        """The complete rows, (count, columns), which are removed."""
        rows = np.array(self.numbers[: self.begin], np.int64).reshape(self.count, self._columns)
        self.begin = self.count = 0
        return rows


class WatchedReplica(Replica):
    """A replica that records when it loads and when each layer is done. Its arrays are those of the one it wraps.

    Args:
        log: of its passes.
        steps: the log of steps, which has the number of the step.
    """

    _by_layer = True

    def __init__(self, replica: Replica, log: Log, steps: Log) -> None:
        self.__dict__.update(replica.__dict__)
        self._log, self._steps = log, steps

    def load(self, images: Array, indices: Array | None = None, **how: Any) -> Array:
        began = clock()
        x = super().load(images, indices, **how)
        numbers, begin = self._log.numbers, self._log.begin
        numbers[begin + STEP], numbers[begin + THREAD] = self._steps.count, threading.get_ident()
        numbers[begin + SAMPLES] = x.shape[-1]
        numbers[begin + LOAD_BEGAN] = began
        numbers[begin + LOADED] = clock()
        self._next_column = LOADED + 1
        return x

    def backward(self, dy: Array) -> None:
        self._stamp()
        super().backward(dy)
        self._log.next_row()

    def _run(self, parts: Sequence[list[Call]]) -> None:
        for part in parts:
            for call in part:
                call()
            self._stamp()

    def _stamp(self) -> None:
        log, column = self._log, self._next_column
        log.numbers[log.begin + column] = clock()
        self._next_column = column + 1


class WatchedRanks:
    """A transport that records when this rank enters the allreduce of a step, and when it returns."""

    def __init__(self, comm: Transport, log: Log) -> None:
        self._comm, self._log = comm, log
        self.rank, self.size = comm.rank, comm.size

    def allreduce(self, vector: Array) -> None:
        log = self._log
        log.numbers[log.begin + ARRIVED] = clock()
        self._comm.allreduce(vector)
        log.numbers[log.begin + SUMMED] = clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)


class WatchedCallbacks:
    """Callbacks that record when a step ends: when they are called, and when they return.

    Args:
        log: of steps.
        rows: after so many steps `digest` is called, between two steps.
    """

    def __init__(self, callbacks: Callbacks, log: Log, rows: int, digest: Callable[[], None]) -> None:
        self._callbacks, self._log, self._rows, self._digest = callbacks, log, rows, digest
        self.evaluations: list[tuple[int, int]] = []  # begin and end of each

    def training_begins(self) -> None:
        """Record that the next step begins now."""
        self._log.numbers[self._log.begin + BEGAN] = clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callbacks, name)

    def batch_end(self, step: int, epoch: int, loss: float, samples: int) -> None:
        log = self._log
        log.numbers[log.begin + UPDATED] = clock()
        self._callbacks.batch_end(step, epoch, loss, samples)
        now = clock()
        log.numbers[log.begin + ENDED] = now
        log.next_row()
        log.numbers[log.begin + BEGAN] = now
        if log.count == self._rows:
            self._digest()
            self.training_begins()

    def test_end(self, *arguments: Any, **named: Any) -> None:
        self._callbacks.test_end(*arguments, **named)
        self.evaluations.append((self._log.numbers[self._log.begin + BEGAN], clock()))
        self.training_begins()


def stamp_seconds() -> float:
    """The cost of a stamp: the median pass through a layer that does nothing, with a stamp minus without.

    Called as in training, and after an operation that uses the caches as a kernel does, which triples the cost.
    """
    nothing = ArrayLayout(({},))
    replica = Replica({0: Flatten()}, (1,), (nothing, nothing), ({},), ({},), np.dtype(np.float32))
    watched = WatchedReplica(replica, Log(pass_columns(1), 1), Log(STEP_COLUMNS, 1))
    other = np.empty(2**20, np.float32)
    seconds: list[list[int]] = [[], []]
    for number in range(400):
        watched._next_column = LOADED + 1
        other[...] = number
        began = clock()
        (watched if number % 2 else replica)._run([[]])
        seconds[number % 2].append(clock() - began)
    return max(float(np.median(seconds[1]) - np.median(seconds[0])), 0.0) / 1e9
