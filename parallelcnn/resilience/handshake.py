"""The handshake at the start of the watchdog. During it, rank 0 knows which ranks have arrived."""

import functools
from collections.abc import Callable
from typing import Any

from parallelcnn.comm import MPITransport, wait_patiently

_TAG = 1990  # there are no other point-to-point messages


def handshake(comm: MPITransport, value: Any, came: Callable[[int, Any], None]) -> Any:
    """Exchange values with rank 0; returns rank 0's value.

    Rank 0 returns when all ranks have arrived. Until then it calls `came` with each arriving rank and its value. So it
    knows which ranks are missing, unlike in MPI's collectives. Collective: every rank of `comm` must call it.
    """
    with comm.collective("the handshake", prepare=False):
        answer = _ask(comm, value) if comm.rank != 0 else _answer(comm, value, came)
        if comm.fault_tolerant:  # while it waits, MPI's Agree takes a whole core
            wait_patiently(comm.mpi_comm.Ibarrier().Test)
    return answer


def _ask(comm: MPITransport, value: Any) -> Any:
    question = comm.mpi_comm.isend((comm.rank, value), 0, _TAG)
    answer = comm.unpickle(wait_patiently(lambda: comm.mpi_comm.improbe(0, _TAG)).recv)
    question.wait()
    return answer


def _answer(comm: MPITransport, value: Any, came: Callable[[int, Any], None]) -> Any:
    answers = []
    for _ in range(1, comm.size):
        question = wait_patiently(functools.partial(comm.mpi_comm.improbe, tag=_TAG))
        rank, theirs = comm.unpickle(question.recv)
        came(rank, theirs)
        answers.append(comm.mpi_comm.isend(value, rank, _TAG))
    for sent in answers:
        sent.wait()
    return value
