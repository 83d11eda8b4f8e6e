"""Fault tolerance between two training steps: the replica check, checkpoints, and recovery from lost ranks."""

from parallelcnn.comm import Transport
from parallelcnn.errors import RankLostError
from parallelcnn.network import NetworkHandler
from parallelcnn.resilience.replica_check import ReplicaCheck
from parallelcnn.training.checkpoint import CheckpointSaver
from parallelcnn.training.history import History


class TrainingSafeguard:
    """The `Safeguard` that `train` passes to the loop; see `training.loop.Safeguard`.

    Args:
        recovers: whether to continue without lost ranks.
    """

    def __init__(
        self,
        comm: Transport,
        network: NetworkHandler,
        history: History,
        repair: str,
        saver: CheckpointSaver,
        *,
        recovers: bool,
    ) -> None:
        self._comm, self._network, self._history = comm, network, history
        self._saver, self._recovers = saver, recovers
        self._replica_check = ReplicaCheck(comm, network, history, repair, saver.folder)

    def asks_to_save(self) -> bool:
        return self._saver.asks()

    def between_steps(self, *, epoch_ended: bool, save: bool) -> bool:
        self._saver.time_is_up = self._saver.time_is_up or save
        due = self._saver.is_due(self._history, must=epoch_ended or self._history.stopped)
        if (epoch_ended or due) and self._replica_check.compare_and_repair():
            self._saver.went_back()
            return True
        if due:
            self._comm.status = "saving a checkpoint"
            self._saver.save(self._network, self._history)
        return False

    def recover(self) -> None:
        if not self._recovers:
            raise RankLostError("a rank was lost, and this training does not continue without it")
        self._replica_check.recover()
        self._saver.went_back()
