"""RMSprop."""

from dataclasses import dataclass

from parallelcnn.kernels import rmsprop as kernels
from parallelcnn.schedules import Schedule

from .base import Array, KernelOptimizer


@dataclass(frozen=True)
class RMSprop(KernelOptimizer):
    """RMSprop (Hinton 2012, "Neural networks for machine learning", lecture 6e), as in PyTorch, without `centered`:

        g = gradient + weight_decay * parameter
        square = alpha * square + (1 - alpha) * g^2
        velocity = momentum * velocity + g / (sqrt(square) + eps)
        parameter -= learning_rate * velocity

    Args:
        learning_rate: a number, or a schedule.
        alpha: weight of the earlier mean square.
        eps: added to the root of the mean square.
        momentum: weight of the earlier velocity. With 0 there is no velocity to store.
        weight_decay: factor of the parameters in the gradient (L2 penalty); not of biases and normalisation parameters.
        clip_norm, clip_value: the largest norm of all gradients, the largest gradient; see `KernelOptimizer`.

    Raises:
        InputError: for a number outside its range.

    Example:
        >>> RMSprop(0.001, momentum=0.9)
    """

    learning_rate: float | Schedule = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("alpha", "momentum", below_one=True)
        self._check_numbers("eps")

    def state_names(self) -> tuple[str, ...]:
        return ("square", "velocity") if self.momentum else ("square",)

    def take_step(
        self, params: Array, gradients: Array, state: dict[str, Array], rate: float, step: int, parts: Array
    ) -> None:
        number = params.dtype.type
        factors = number(rate), number(self.weight_decay), number(1 - self.alpha), number(self.eps)
        if self.momentum:
            vectors = state["square"], state["velocity"]
            kernels.rmsprop_momentum(params, gradients, *vectors, parts, *factors, number(self.momentum))
        else:
            kernels.rmsprop(params, gradients, state["square"], parts, *factors)
