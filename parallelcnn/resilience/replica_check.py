"""Replica check: compare the parameters of all ranks, and repair them if a rank differs."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from parallelcnn.comm import Transport
from parallelcnn.errors import InputError, RankLostError, ReplicaMismatchError, TrainingWarning
from parallelcnn.network import NetworkHandler
from parallelcnn.resilience.fault_tolerance import recover
from parallelcnn.training.checkpoint import CheckpointFolder
from parallelcnn.training.history import History

REPAIRS = ("stop", "majority", "checkpoint")


def check_repair(repair: str, checkpoints: CheckpointFolder | None) -> None:
    """Raise InputError unless `repair` is one of `REPAIRS` and possible with these checkpoints."""
    if repair not in REPAIRS:
        raise InputError(f"repair must be one of {', '.join(REPAIRS)}, got {repair!r}")
    if repair == "checkpoint" and checkpoints is None:
        raise InputError("repair='checkpoint' takes checkpoints, got checkpoints=None")


class ReplicaCheck:
    """Compares the replicas, repairs them, and synchronises them after a loss.

    Args:
        history: the history of the training. It goes back together with the parameters.
        repair: one of `REPAIRS`.
    """

    def __init__(
        self,
        comm: Transport,
        network: NetworkHandler,
        history: History,
        repair: str,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        self._comm, self._network, self._history = comm, network, history
        self._repair, self._checkpoints = repair, checkpoints
        self._equal_at = history.steps  # training starts with equal replicas
        self._went_back_to = -1
        self._ranks_at_first = comm.size + history.lost_ranks

    def compare_and_repair(self) -> bool:
        """Compare the replicas, at most once per minibatch, and repair them if `repair` allows it.

        Collective: every rank must call it.

        Returns:
            whether training went back to an earlier step.

        Raises:
            ReplicaMismatchError: on every rank, if they differ and cannot be repaired.
        """
        if self._history.steps == self._equal_at:
            return False
        mismatch = find_mismatch(self._comm, self._network)
        if mismatch is not None and self._repair == "majority" and take_majority(self._comm, self._network):
            self._warn(f"{mismatch}. All ranks continue with what most of them hold")
        elif mismatch is not None and self._repair == "checkpoint" and self._go_back():
            self._warn(f"{mismatch}. All ranks continue from the checkpoint after minibatch {self._history.steps}")
            return True
        elif mismatch is not None:
            raise mismatch
        self._equal_at = self._history.steps
        return False

    def recover(self) -> None:
        """Recover from a loss, and continue from the latest step. Collective: every remaining rank must call it."""
        while True:
            try:
                recover(self._comm)
                rejoin(self._comm, self._network, self._history)
                break
            except RankLostError:  # another rank
                continue
        self._equal_at = -1  # compare again
        self._history.lost_ranks = self._ranks_at_first - self._comm.size
        gone = f"{self._history.lost_ranks} of {self._ranks_at_first} ranks"
        self._warn(f"{gone} lost by minibatch {self._history.steps}: {self._comm.size} continue")

    def _go_back(self) -> bool:
        """Go back to the newest checkpoint; False if there is none, or if training has gone back to it before.
        Collective: every rank must call it.
        """
        assert self._checkpoints is not None
        found = self._checkpoints.newest(self._equal_at) if self._comm.rank == 0 else None
        found = self._comm.allgather(found)[0]
        if found is None or found.history.steps == self._went_back_to:
            return False
        self._network.set_state(found.state)
        before = found.history
        self._history.losses[:], self._history.evaluations[:] = before.losses, before.evaluations
        self._history.samples_seen, self._history.exponents[:] = before.samples_seen, before.exponents
        self._equal_at = self._went_back_to = before.steps
        return True

    def _warn(self, message: str) -> None:
        if self._comm.rank == 0:
            warnings.warn(message, TrainingWarning, stacklevel=3)


def find_mismatch(comm: Transport, network: NetworkHandler) -> ReplicaMismatchError | None:
    """Compare all replicas. Returns an error that names the ranks whose parameters or optimiser state differ from those
    of the majority; None if all replicas are equal, bit for bit.

    Collective: every rank of `comm` must call it.
    """
    if comm.size == 1:
        return None
    fingerprints = comm.allgather(network.state_sha256())
    if len(set(fingerprints)) == 1:
        return None
    odd = odd_ones(fingerprints)
    whose = f"{in_words(odd)} of {comm.size} no longer has" if len(odd) == 1 else f"{in_words(odd)} no longer have"
    if not odd:
        whose = f"no more than half of the {comm.size} ranks have"
    return ReplicaMismatchError(
        f"{whose} the parameters of the others: a bit has flipped in memory, or a layer computes differently there"
    ).together()


def in_words(ranks: Sequence[int]) -> str:
    """List ranks for a message."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def odd_ones(fingerprints: Sequence[str]) -> list[int]:
    """The ranks whose fingerprint differs from that of the majority (more than half); none without a majority."""
    ((most, count),) = Counter(fingerprints).most_common(1)
    return [rank for rank, one in enumerate(fingerprints) if one != most] if 2 * count > len(fingerprints) else []


def take_majority(comm: Transport, network: NetworkHandler) -> bool:
    """Copy the parameters and optimiser state of the majority to every rank; False if there is no majority.

    Collective: every rank of `comm` must call it.
    """
    fingerprints = comm.allgather(network.state_sha256())
    odd = odd_ones(fingerprints)
    if not odd:
        return len(set(fingerprints)) == 1
    source = next(rank for rank in range(comm.size) if rank not in odd)
    network.set_state(comm.allgather(network.state if comm.rank == source else {})[source])
    return True


def rejoin(comm: Transport, network: NetworkHandler, history: History) -> None:
    """Synchronise all ranks after a loss: every rank copies the state of the rank with the latest step.

    Collective: every rank of `comm` must call it.
    """
    standing = comm.allgather((history.steps, len(history.evaluations)))
    ahead = standing.index(max(standing))
    steps, evaluations = map(min, zip(*standing, strict=True))
    mine: Any = None
    if comm.rank == ahead:
        lists = history.losses[steps:], history.evaluations[evaluations:]
        mine = network.state, *lists, history.exponents, history.samples_seen, history.stopped
    state, losses, results, exponents, history.samples_seen, history.stopped = comm.allgather(mine)[ahead]
    network.set_state(state)
    history.exponents[:] = exponents
    history.losses[steps:], history.evaluations[evaluations:] = losses, results
