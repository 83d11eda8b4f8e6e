"""Thread pool: the threads of a rank. Each thread computes a shard of the samples, as each rank does.

Kernels and matrix products release the interpreter lock (GIL), so the threads of a process compute in parallel.
"""

import contextlib
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar

import numpy as np

from parallelcnn.data.sampler import shard
from parallelcnn.errors import InputError
from parallelcnn.kernels.waiting import tell_and_wait
from parallelcnn.replica import Replica

Array = np.ndarray
T = TypeVar("T")

_BEGUN, _DONE = 0, 8  # indices of flags, on different cache lines
_PAUSES = 10_000  # before a thread sleeps: 130 us if a pause takes 13 ns, as on the machine of the README's tables
_STAGGER = 500  # pauses
_MOST_STAGGERED = 8  # threads; further threads would lose more time than they gain


class ThreadPool:
    """The threads of one rank, each with its own replica. The thread that calls `run` is the first one.

    The threads run inside a `with` statement. At its end, also after an error, it waits for their work.

    Args:
        replicas: one replica for each thread; see `NetworkHandler.replicas`.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        self._others: list[_OtherThread] = []

    def __enter__(self) -> Self:
        _free_compiler()
        errstate = np.geterr()  # numpy's error state is per thread
        tell_and_wait(_flags(), _BEGUN, 0, _DONE, 0, 0, 0)  # compile the kernel on one thread
        try:
            for replica in self.replicas[1:]:
                # Add to the list before the start: Ctrl-C may come during the start.
                self._others.append(_OtherThread(replica, errstate, len(self._others) + 1))
                self._others[-1].start()
        except BaseException as error:
            started = len(self._others)
            self.__exit__()
            if not isinstance(error, RuntimeError):
                raise
            raise InputError(
                f"threads must be at most {started}, more do not start on this machine, got {len(self.replicas)}"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._tell_to_stop()
        for other in self._others:
            other.join()
        self._others.clear()

    def __del__(self) -> None:
        self._tell_to_stop()  # if Ctrl-C came before `__exit__`

    def _tell_to_stop(self) -> None:
        for other in self._others:
            other.tell_to_stop()

    def run(self, work: Callable[[Replica, Array], T], samples: Array) -> list[T]:
        """Call `work` for every replica and its shard of the samples, in parallel.

        Returns:
            The results of `work`, one for each replica.

        Raises:
            The error that `work` raised; of several errors, the error of the first replica.
        """
        begun = []
        try:
            for i, other in enumerate(self._others, start=1):
                other.begin(work, shard(samples, i, len(self.replicas)))
                begun.append(other)
            own = work(self.replicas[0], shard(samples, 0, len(self.replicas)))
        except KeyboardInterrupt:
            _free_compiler()
            raise
        finally:  # also after an error: the next run would take an old outcome for its own
            outcomes = [other.outcome() for other in begun]
        for _, error in outcomes:
            if error is not None:
                raise error
        return [own, *(value for value, _ in outcomes)]

    def share(self, work: Callable[[Array], object], rows: Array) -> None:
        """Call `work` with each thread's share of the rows of an array, in parallel; raises as `run`."""
        self.run(lambda _, own: work(own), rows)

    def sum_reduction_buffers(self) -> None:
        """Add the reduction buffers of all replicas into the first one's, in order."""
        total = self.replicas[0].reduction_buffer
        for replica in self.replicas[1:]:
            np.add(total, replica.reduction_buffer, out=total)


def _free_compiler() -> None:
    """Release numba's compiler lock if this thread still holds it after a Ctrl-C during compilation. Otherwise other
    threads that compile would wait for ever.
    """
    from numba.core.compiler_lock import global_compiler_lock

    while global_compiler_lock.is_locked():
        global_compiler_lock.release()


def _flags() -> Array:
    return np.zeros(_DONE + 1, np.int64)


class _OtherThread:
    """Another thread of the pool, which waits for work of its replica.

    Both sides poll a flag for a while before they sleep, since a sleeping core takes 50 us to wake up. The threads
    start their work staggered, so that they do not all wait for the interpreter lock at every kernel. With both, a step
    of the paper's network on two threads takes 785 us instead of 850.
    """

    def __init__(self, replica: Replica, errstate: Any, number: int) -> None:
        self._replica, self._errstate = replica, errstate
        self._flags = _flags()
        self._begun = 0
        self._later = min(number, _MOST_STAGGERED) * _STAGGER
        self._tasks: SimpleQueue = SimpleQueue()
        self._outcomes: SimpleQueue = SimpleQueue()
        self._thread = Thread(target=self._live, name="parallelcnn worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def begin(self, work: Callable[[Replica, Array], Any], samples: Array) -> None:
        self._give((work, samples))

    def outcome(self) -> tuple[Any, BaseException | None]:
        """Wait for the last work; returns its result, and the error that it raised."""
        tell_and_wait(self._flags, _BEGUN, self._begun, _DONE, self._begun, _PAUSES, 0)
        return self._outcomes.get()

    def tell_to_stop(self) -> None:
        """End the thread after its current work."""
        self._give(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        with contextlib.suppress(RuntimeError):  # not started because of an interrupt
            self._thread.join()

    def _give(self, task: Any) -> None:
        self._tasks.put(task)
        self._begun += 1
        self._flags[_BEGUN] = self._begun

    def _live(self) -> None:
        done = 0
        with np.errstate(**self._errstate):
            while True:
                tell_and_wait(self._flags, _DONE, done, _BEGUN, done + 1, _PAUSES, self._later)
                task = self._tasks.get()
                if task is None:
                    return
                work, samples = task
                value, error = None, None
                try:
                    value = work(self._replica, samples)
                except BaseException as caught:  # `run` raises it
                    error = caught
                self._outcomes.put((value, error))
                done += 1
