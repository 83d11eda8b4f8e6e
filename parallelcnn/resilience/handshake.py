"""The handshake with which the watchdog starts: rank 0 knows at any time which ranks have come to it."""

import functools
from collections.abc import Callable
from typing import Any

from parallelcnn.comm import MPITransport, wait_patiently

_TAG = 1990  # no other messages go from one rank to one other


def handshake(comm: MPITransport, value: Any, came: Callable[[int, Any], None]) -> Any:
    """Rank 0's value.

    Rank 0 returns when all ranks have come. Before that `came` tells it of each other rank that has, and of its value.
    So rank 0 knows whom it waits for, as in no collective of MPI. Collective: every rank of `comm` must call it.
    """
    with comm.collective("the handshake", prepare=False):
        answer = _ask(comm, value) if comm.rank != 0 else _answer(comm, value, came)
        if comm.fault_tolerant:  # its Agree takes a whole core while others have not come
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
