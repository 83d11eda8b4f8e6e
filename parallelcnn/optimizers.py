"""Optimisers. They hold only hyperparameters: the network keeps their state vectors, and checkpoints include these."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from parallelcnn.errors import InputError
from parallelcnn.kernels import sgd as kernels
from parallelcnn.kernels.clipping import scale, sum_of_squares
from parallelcnn.schedules import Schedule, check_number, rate_at

Array = np.ndarray


class Optimizer(ABC):
    """Base class of optimisers. Subclass it, best as a frozen dataclass, to add your own."""

    @abstractmethod
    def update(self, params: Array, gradients: Array, state: dict[str, Array], step: int = 0, steps: int = 1) -> None:
        """Update the parameters by one step.

        Args:
            params: flat vector, updated in place.
            gradients: flat vector of the same length, summed over all ranks; may be overwritten.
            state: the state vectors by name, each as long as the parameters, updated in place; empty at first.
            step: number of steps done before, for schedules and bias correction.
            steps: number of steps of the whole training.
        """

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        return rate_at(getattr(self, "learning_rate", math.nan), step, steps)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as in PyTorch:

        g = gradient + weight_decay * parameter
        velocity = momentum * velocity + g
        parameter -= learning_rate * velocity        (with nesterov: learning_rate * (g + momentum * velocity))

    Nesterov's step is that of Sutskever et al. 2013 ("On the importance of initialization and momentum in deep
    learning", eq. 3-4), written for the look-ahead parameters.

    Args:
        learning_rate: a number, or a schedule.
        clip_norm: the largest L2 norm of all gradients together; None: no limit. After the sum over ranks, larger
            gradients are scaled to it, as by PyTorch's clip_grad_norm_ (Pascanu et al. 2013, arXiv:1211.5063, alg. 1).

    Raises:
        InputError: for a negative or non-finite number, momentum of 1 or more, or Nesterov without momentum.
    """

    learning_rate: float | Schedule = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.learning_rate, Schedule):
            check_number("SGD", "learning_rate", self.learning_rate)
        for name in ("momentum", "weight_decay"):
            check_number("SGD", name, getattr(self, name))
        if self.clip_norm is not None:
            check_number("SGD", "clip_norm", self.clip_norm)
        if self.momentum >= 1:
            raise InputError(f"SGD: momentum must be less than 1, got {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise InputError("SGD: nesterov=True takes a momentum above 0, got momentum=0")

    def update(self, params: Array, gradients: Array, state: dict[str, Array], step: int = 0, steps: int = 1) -> None:
        if self.clip_norm is not None:
            clip_by_norm(gradients, self.clip_norm)
        number = params.dtype.type  # with a float64 factor the whole loop would compute in float64
        rate, decay = number(self.rate(step, steps)), number(self.weight_decay)
        if self.momentum:
            if "velocity" not in state:
                state["velocity"] = np.zeros_like(params)
            momentum, velocity = number(self.momentum), state["velocity"]
            kernels.sgd_momentum(params, gradients, rate, decay, momentum, self.nesterov, velocity)
        else:
            kernels.sgd(params, gradients, rate, decay)


def clip_by_norm(gradients: Array, largest: float) -> None:
    """Scale the vector down to the L2 norm `largest` if its norm is larger."""
    norm = math.sqrt(sum_of_squares(gradients))
    if norm > largest:
        scale(gradients, gradients.dtype.type(largest / norm))
