"""Lion."""

from dataclasses import dataclass

from parallelcnn.kernels.lion import lion
from parallelcnn.schedules import Schedule

from .base import Array, KernelOptimizer


@dataclass(frozen=True)
class Lion(KernelOptimizer):
    """Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms", arXiv:2302.06675, alg. 2):

        direction = sign(beta1 * mean + (1 - beta1) * gradient)
        parameter -= learning_rate * (direction + weight_decay * parameter)
        mean = beta2 * mean + (1 - beta2) * gradient

    Every parameter moves by the learning rate. The paper recommends a learning rate 3 to 10 times smaller than AdamW's,
    and a weight decay 3 to 10 times larger (section 5). The default learning rate is that of the authors' code.

    Args:
        learning_rate: a number, or a schedule.
        betas: beta1 and beta2.
        weight_decay: factor of the parameters, times the learning rate; not of biases and normalisation parameters.
        clip_norm, clip_value: the largest norm of all gradients, the largest gradient; see `KernelOptimizer`.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> Lion(0.0002, weight_decay=0.1)
    """

    learning_rate: float | Schedule = 0.0001
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_betas(self.betas)

    def state_names(self) -> tuple[str, ...]:
        return ("mean",)

    def take_step(
        self, params: Array, gradients: Array, state: dict[str, Array], rate: float, step: int, parts: Array
    ) -> None:
        beta1, beta2 = self.betas
        factors = rate, rate * self.weight_decay, 1 - beta1, 1 - beta2
        lion(params, gradients, state["mean"], parts, *map(params.dtype.type, factors))
