"""Adam and AdamW."""

from dataclasses import dataclass
from typing import Any

from parallelcnn.errors import InputError
from parallelcnn.kernels.adam import adam
from parallelcnn.schedules import Schedule

from .base import Array, KernelOptimizer


@dataclass(frozen=True)
class Adam(KernelOptimizer):
    """Adam (Kingma & Ba 2015, "Adam: a method for stochastic optimization", arXiv:1412.6980, alg. 1), as in PyTorch:

        g = gradient + weight_decay * parameter
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g^2
        parameter -= learning_rate * mean / (1 - beta1^t) / (sqrt(square / (1 - beta2^t)) + eps)

    t is the number of the step, counted from 1.

    Args:
        learning_rate: a number, or a schedule.
        betas: beta1 and beta2.
        eps: added to the root of the mean square.
        weight_decay: factor of the parameters in the gradient (L2 penalty); not of biases and normalisation parameters.
        clip_norm, clip_value: the largest norm of all gradients, the largest gradient; see `KernelOptimizer`.

    Raises:
        InputError: for a number outside its range; in `update`, for step 0 after the first step.

    Example:
        >>> Adam(0.001, clip_norm=1.0)
    """

    learning_rate: float | Schedule = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_betas(self.betas)
        self._check_numbers("eps")

    def update(
        self, params: Array, gradients: Array, state: dict[str, Array], step: int = 0, *others: Any, **options: Any
    ) -> None:
        if step == 0 and "mean" in state:
            raise InputError(f"{type(self).__name__}: step must be the number of steps done before, got 0 again")
        super().update(params, gradients, state, step, *others, **options)

    def state_names(self) -> tuple[str, ...]:
        return "mean", "square"

    def take_step(
        self, params: Array, gradients: Array, state: dict[str, Array], rate: float, step: int, parts: Array
    ) -> None:
        beta1, beta2 = self.betas
        corrected = rate / (1 - beta1 ** (step + 1)), (1 - beta2 ** (step + 1)) ** -0.5
        factors = corrected[0], 1 - beta1, 1 - beta2, corrected[1], self.eps, *self._decays(rate)
        adam(params, gradients, state["mean"], state["square"], parts, *map(params.dtype.type, factors))

    def _decays(self, rate: float) -> tuple[float, float]:
        """The factor of the parameters that is added to the gradient, and that which is subtracted from them."""
        return self.weight_decay, 0.0


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, alg. 2), as in PyTorch:

        parameter -= learning_rate * weight_decay * parameter

    and then Adam's step without weight decay.

    Args:
        learning_rate, betas, eps, clip_norm, clip_value: as for `Adam`.
        weight_decay: factor of the parameters, times the learning rate; not of biases and normalisation parameters.

    Raises:
        InputError: as `Adam`.

    Example:
        >>> AdamW(Cosine(0.001, warmup=200), weight_decay=0.05)
    """

    weight_decay: float = 0.01

    def _decays(self, rate: float) -> tuple[float, float]:
        return 0.0, rate * self.weight_decay
