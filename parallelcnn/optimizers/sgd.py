"""Stochastic gradient descent."""

from dataclasses import dataclass

from parallelcnn.errors import InputError
from parallelcnn.kernels import sgd as kernels
from parallelcnn.schedules import Schedule

from .base import Array, KernelOptimizer


@dataclass(frozen=True)
class SGD(KernelOptimizer):
    """Stochastic gradient descent, as in PyTorch:

        g = gradient + weight_decay * parameter
        velocity = momentum * velocity + g
        parameter -= learning_rate * velocity        (with nesterov: learning_rate * (g + momentum * velocity))

    Nesterov's step is that of Sutskever et al. 2013 ("On the importance of initialization and momentum in deep
    learning", eq. 3-4), written for the look-ahead parameters.

    Args:
        learning_rate: a number, or a schedule.
        momentum: weight of the earlier velocity, at least 0 and below 1. With 0 there is no velocity to store.
        nesterov: use Nesterov momentum.
        weight_decay: factor of the parameters in the gradient (L2 penalty); not of biases and normalisation parameters.
        clip_norm, clip_value: the largest norm of all gradients, the largest gradient; see `KernelOptimizer`.

    Raises:
        InputError: for a negative or non-finite number, momentum of 1 or more, or Nesterov without momentum.

    Example:
        >>> SGD(Cosine(0.1, warmup=500), momentum=0.9, nesterov=True, weight_decay=5e-4)
    """

    learning_rate: float | Schedule = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("momentum", below_one=True)
        if self.nesterov and self.momentum == 0:
            raise InputError("SGD: nesterov=True takes a momentum above 0, got momentum=0")

    def state_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def take_step(
        self, params: Array, gradients: Array, state: dict[str, Array], rate: float, step: int, parts: Array
    ) -> None:
        number = params.dtype.type
        factors = number(rate), number(self.weight_decay)
        if self.momentum:
            momentum = number(self.momentum)
            kernels.sgd_momentum(params, gradients, state["velocity"], parts, *factors, momentum, self.nesterov)
        else:
            kernels.sgd(params, gradients, parts, *factors)
