"""Threads that share a rank's work as ranks share a minibatch: each takes a grain of the samples.

Kernels and matrix products run without the interpreter lock, so the threads of one process compute side by side.
"""

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar

import numpy as np

from parallelcnn.data.sampler import grain
from parallelcnn.errors import InputError
from parallelcnn.worker import Worker

Array = np.ndarray
T = TypeVar("T")


class Team:
    """Workers, each on a thread of its own; the first of them on the thread that calls `run`.

    The threads live inside a `with` statement. Leaving it waits for what they are at, also after an error.

    Args:
        workers: one for each thread; see `NetworkHandler.workers`.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._others: list[_OtherThread] = []

    def __enter__(self) -> Self:
        errstate = np.geterr()  # numpy holds it for each thread apart
        try:
            for worker in self.workers[1:]:
                self._others.append(_OtherThread(worker, errstate))
        except RuntimeError:
            started = 1 + len(self._others)
            self.__exit__()
            raise InputError(
                f"threads must be at most {started}, more do not start on this machine, got {len(self.workers)}"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        for other in self._others:
            other.leave()
        self._others.clear()

    def run(self, work: Callable[[Worker, Array], T], samples: Array) -> list[T]:
        """Have every worker do `work` on its grain of the samples, all at the same time.

        Returns:
            What `work` returned, by worker.

        Raises:
            What `work` raised; of several errors that of the first worker among them.
        """
        for i, other in enumerate(self._others, start=1):
            other.begin(work, grain(samples, i, len(self.workers)))
        try:
            own = work(self.workers[0], grain(samples, 0, len(self.workers)))
        finally:  # also after an error: an outcome that is left behind would be taken for that of the next run
            outcomes = [other.outcome() for other in self._others]
        for _, error in outcomes:
            if error is not None:
                raise error
        return [own, *(value for value, _ in outcomes)]

    def sum_messages(self) -> None:
        """Add the messages of all workers into the first one's, in order."""
        message = self.workers[0].message
        for worker in self.workers[1:]:
            np.add(message, worker.message, out=message)


class _OtherThread:
    """A thread that does a worker's work when told to.

    Between steps it sleeps. Looking out for the next one without sleep, in a kernel, brought 1 to 5 % of a step of the
    paper's network on two threads.
    """

    def __init__(self, worker: Worker, errstate: Any) -> None:
        self._worker, self._errstate = worker, errstate
        self._tasks: SimpleQueue = SimpleQueue()
        self._outcomes: SimpleQueue = SimpleQueue()
        self._thread = Thread(target=self._live, name="parallelcnn worker", daemon=True)
        self._thread.start()

    def begin(self, work: Callable[[Worker, Array], Any], samples: Array) -> None:
        self._tasks.put((work, samples))

    def outcome(self) -> tuple[Any, BaseException | None]:
        """What the work begun last returned, and what it raised, once it is done."""
        return self._outcomes.get()

    def leave(self) -> None:
        """End the thread, after the work it is at."""
        self._tasks.put(None)
        self._thread.join()

    def _live(self) -> None:
        with np.errstate(**self._errstate):
            while (task := self._tasks.get()) is not None:
                work, samples = task
                value, error = None, None
                try:
                    value = work(self._worker, samples)
                except BaseException as caught:  # raised in `run`
                    error = caught
                self._outcomes.put((value, error))
