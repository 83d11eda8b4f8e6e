"""Ranks that should hold the same network, down to the bit: checked, and brought back together."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from parallelcnn.comm import Communicator
from parallelcnn.errors import InputError, RankLostError, ReplicaMismatchError, TrainingWarning
from parallelcnn.network import NetworkHandler
from parallelcnn.training.checkpoint import CheckpointFolder
from parallelcnn.training.history import History

REPAIRS = ("stop", "majority", "checkpoint")


def check_repair(repair: str, checkpoints: CheckpointFolder | None) -> None:
    """Raise InputError unless that says what to do about ranks that differ, and can be done."""
    if repair not in REPAIRS:
        raise InputError(f"repair must be one of {', '.join(REPAIRS)}, got {repair!r}")
    if repair == "checkpoint" and checkpoints is None:
        raise InputError("repair='checkpoint' takes checkpoints, got checkpoints=None")


class ReplicaGuard:
    """Keeps the replicas of a training equal: after each epoch, before each checkpoint, and when a rank is lost.

    Args:
        history: of the training, which goes back with the parameters.
        repair: one of `REPAIRS`.
    """

    def __init__(
        self,
        comm: Communicator,
        network: NetworkHandler,
        history: History,
        repair: str,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        self._comm, self._network, self._history = comm, network, history
        self._repair, self._checkpoints = repair, checkpoints
        self._equal_at = history.steps  # they have just begun alike
        self._went_back_to = -1
        self._ranks_at_first = comm.size + history.lost_ranks

    def brings_back_an_earlier_state(self) -> bool:
        """Compare what the ranks hold, once after a minibatch, and repair it where that was asked for.

        Collective: every rank must call it.

        Returns:
            whether the training now stands where it stood before.

        Raises:
            ReplicaMismatchError: on every rank, if they differ and cannot be repaired.
        """
        if self._history.steps == self._equal_at:
            return False
        mismatch = find_mismatch(self._comm, self._network)
        if mismatch is not None and self._repair == "majority" and take_majority(self._comm, self._network):
            self._warn(f"{mismatch}. All ranks go on with what most of them hold")
        elif mismatch is not None and self._repair == "checkpoint" and self._go_back():
            self._warn(f"{mismatch}. All ranks go on from the checkpoint after minibatch {self._history.steps}")
            return True
        elif mismatch is not None:
            raise mismatch
        self._equal_at = self._history.steps
        return False

    def go_on_without_the_lost(self) -> None:
        """Have the ranks that are left agree on where they stand. Collective over them."""
        while True:
            try:
                self._comm.recover()
                rejoin(self._comm, self._network, self._history)
                break
            except RankLostError:  # another one
                continue
        self._equal_at = -1  # to be compared again
        self._history.lost_ranks = self._ranks_at_first - self._comm.size
        gone = f"{self._history.lost_ranks} of {self._ranks_at_first} ranks"
        self._warn(f"{gone} lost by minibatch {self._history.steps}: {self._comm.size} go on")

    def _go_back(self) -> bool:
        """Go back to the newest checkpoint; False if there is none, or if the replicas have differed again since they
        went back to it. Collective.
        """
        assert self._checkpoints is not None
        found = self._checkpoints.newest(self._equal_at) if self._comm.rank == 0 else None
        found = self._comm.gather(found)[0]
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


def find_mismatch(comm: Communicator, network: NetworkHandler) -> ReplicaMismatchError | None:
    """What to say of ranks whose parameters, or what the optimiser remembers, differ from those of most; None if all
    are equal, bit for bit.

    Collective: every rank of `comm` must call it.
    """
    if comm.size == 1:
        return None
    fingerprints = comm.gather(network.state_sha256())
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
    """Numbers of ranks as people write them."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def odd_ones(fingerprints: Sequence[str]) -> list[int]:
    """The ranks whose fingerprint is not that of more than half of them; none where there is no such half."""
    ((most, count),) = Counter(fingerprints).most_common(1)
    return [rank for rank, one in enumerate(fingerprints) if one != most] if 2 * count > len(fingerprints) else []


def take_majority(comm: Communicator, network: NetworkHandler) -> bool:
    """Give every rank what more than half of them hold; False if there is no such half.

    Collective: every rank of `comm` must call it.
    """
    fingerprints = comm.gather(network.state_sha256())
    odd = odd_ones(fingerprints)
    if not odd:
        return len(set(fingerprints)) == 1
    source = next(rank for rank in range(comm.size) if rank not in odd)
    network.set_state(comm.gather(network.state if comm.rank == source else {})[source])
    return True


def rejoin(comm: Communicator, network: NetworkHandler, history: History) -> None:
    """After a rank was lost: should they not all stand alike, everyone takes over what the rank that is furthest has.

    Collective: every rank of `comm` must call it.
    """
    standing = comm.gather((history.steps, len(history.evaluations)))
    ahead = standing.index(max(standing))
    steps, evaluations = map(min, zip(*standing, strict=True))
    mine: Any = None
    if comm.rank == ahead:
        lists = history.losses[steps:], history.evaluations[evaluations:]
        mine = network.state, *lists, history.exponents, history.samples_seen, history.left
    state, losses, results, exponents, history.samples_seen, history.left = comm.gather(mine)[ahead]
    network.set_state(state)
    history.exponents[:] = exponents
    history.losses[steps:], history.evaluations[evaluations:] = losses, results
