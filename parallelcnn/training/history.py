"""What happened in a training."""

from dataclasses import dataclass, field

from parallelcnn.training.evaluation import Evaluation


@dataclass
class History:
    """What happened, the same on every rank; after a resume, from the very beginning.

    Attributes:
        losses: of every minibatch, before its step.
        evaluations: (minibatches done, epoch, result on the test set) of every evaluation.
        samples_seen: samples trained on, counted as often as they came. Says where in its order a training stands.
        train_seconds: the training loop alone, its checkpoints included: no compilation, no evaluation [s].
        compile_seconds: until the kernels were ready [s].
        stopped: whether training was asked to stop before its end, and did.
        lost_ranks: how many ranks were lost on the way.
        exponents: of reproducible sums, one for each parameter; see `FixedPointReducer`.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, int, Evaluation]] = field(default_factory=list)
    samples_seen: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    stopped: bool = False
    lost_ranks: int = 0
    exponents: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Minibatches done."""
        return len(self.losses)
