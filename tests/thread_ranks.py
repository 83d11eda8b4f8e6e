"""Ranks that are threads of this process: what several ranks do together, in milliseconds and without MPI.

    results = on_ranks(3, lambda comm: comm.allgather(comm.rank))

A rank that calls `die` is lost, as under Open MPI's fault tolerance: the others get RankLostError and recover.
"""

import threading

import numpy as np

from parallelcnn.comm import Serial
from parallelcnn.errors import RankLostError

WAIT = 30  # that a rank waits for the others in a collective, on a busy machine [s]


class Died(BaseException):
    """Ends the thread of a lost rank."""


class _Job:
    """What the ranks share."""

    def __init__(self, size):
        self.changed = threading.Condition()
        self.members = list(range(size))
        self.dead = set()
        self.recovering = set()
        self.values = {}
        self.errors = []

    def wait(self, met):
        assert self.changed.wait_for(met, WAIT), "a rank does not come"


class ThreadRank(Serial):
    """The communicator of one of the threads."""

    fault_tolerant = True

    def __init__(self, job, number):
        self.job, self.number = job, number
        self._renumber()

    def _renumber(self):
        self.rank, self.size = self.job.members.index(self.number), len(self.job.members)

    def allgather(self, value):
        job = self.job
        self.arrivals += 1
        with job.changed:
            values, members = job.values, job.members
            values[self.number] = value
            if len(values) == len(members):
                job.values = {}
            job.changed.notify_all()
            job.wait(lambda: job.values is not values or job.dead & set(members))
            if job.values is values:
                raise RankLostError("a rank is lost")
            return [values[member] for member in members]

    def allreduce(self, array):
        array[...] = sum(self.allgather(array.copy()))

    def allreduce_max(self, array):
        array[...] = np.max(self.allgather(array.copy()), axis=0)

    def broadcast(self, array):
        array[...] = self.allgather(array.copy())[0]

    def barrier(self):
        self.allgather(None)

    def ranks_on_node(self):
        return list(range(self.size))

    def recover(self):
        job = self.job

        def all_are_here():
            left = [member for member in job.members if member not in job.dead]
            if job.recovering == set(left):
                job.members, job.values, job.recovering = left, {}, set()
            return self.number not in job.recovering

        with job.changed:
            job.recovering.add(self.number)
            job.changed.notify_all()
            job.wait(all_are_here)
            job.changed.notify_all()
            self._renumber()

    def die(self):
        """Be lost, without a word."""
        with self.job.changed:
            self.job.dead.add(self.number)
            self.job.changed.notify_all()
        raise Died

    def give_up(self, message):
        if self.number not in self.job.dead:
            self.job.errors.append(AssertionError(message))
        self.die()

    def end_all(self, code, message):
        self.abort(code, message)

    def abort(self, code, message=""):
        raise AssertionError(f"ended with exit code {code}: {message}")


def on_ranks(size, work):
    """What `work(comm)` returned on each rank, None for a lost one. Raises the first rank's error, if there is one."""
    job = _Job(size)
    results = [None] * size

    def live(number):
        try:
            results[number] = work(ThreadRank(job, number))
        except Died:
            pass
        except BaseException as error:
            job.errors.append(error)
            with job.changed:
                job.dead.add(number)
                job.changed.notify_all()

    threads = [threading.Thread(target=live, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if job.errors:
        raise job.errors[0]
    return results
