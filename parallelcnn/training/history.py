"""The history of a training run."""

import warnings
from dataclasses import dataclass, field

from parallelcnn.training.evaluation import Evaluation


@dataclass
class History:
    """The history of a training run, the same on every rank. After a resume it includes all earlier steps.

    Attributes:
        losses: loss of every minibatch, before its step.
        evaluations: (minibatches done, epoch, result on the test set) of every evaluation.
        samples_seen: number of samples trained on, counted in every epoch. It is the position in the sample order.
        train_seconds: time of the training loop with checkpoints, without compilation and evaluation [s].
        compile_seconds: time until all kernels were compiled or loaded [s].
        stopped: whether training stopped early because it was asked to.
        lost_ranks: number of ranks lost during training.
        exponents: exponents of reproducible sums, one for each parameter; see `FixedPointReducer`.
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
    def left(self) -> bool:
        """The former name of `stopped`."""
        warnings.warn("history.left is now called history.stopped", DeprecationWarning, stacklevel=2)
        return self.stopped

    @property
    def steps(self) -> int:
        """Minibatches done."""
        return len(self.losses)
