"""Optimisers: values of hyperparameters; their vectors are kept by whoever keeps the parameters."""

from dataclasses import dataclass

import numpy as np

from parallelcnn.errors import InputError
from parallelcnn.kernels import sgd as kernels

Array = np.ndarray
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as in PyTorch:

        g = gradient + weight_decay * parameter
        velocity = momentum * velocity + g
        parameter -= learning_rate * velocity        (with nesterov: learning_rate * (g + momentum * velocity))

    Nesterov's step is that of Sutskever et al. 2013 ("On the importance of initialization and momentum in deep
    learning", eq. 3-4), in terms of the parameters looked ahead to.

    Raises:
        InputError: for a negative or non-finite number, momentum of 1 or more, or Nesterov without momentum.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay"):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not (number and 0 <= value <= _LARGEST):
                raise InputError(f"SGD: {name} must be a finite number of at least 0, got {value!r}")
        if self.momentum >= 1:
            raise InputError(f"SGD: momentum must be less than 1, got {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise InputError("SGD: nesterov=True takes a momentum above 0, got momentum=0")

    def update(self, params: Array, gradients: Array, state: dict[str, Array]) -> None:
        """Take one step.

        Args:
            params: flat vector, changed.
            gradients: flat vector of the same length.
            state: the vectors that the optimiser remembers between steps, by name, changed; empty at first.
        """
        number = params.dtype.type  # a float64 factor would make the whole loop float64
        rate, decay = number(self.learning_rate), number(self.weight_decay)
        if self.momentum:
            if "velocity" not in state:
                state["velocity"] = np.zeros_like(params)
            momentum, velocity = number(self.momentum), state["velocity"]
            kernels.sgd_momentum(params, gradients, rate, decay, momentum, self.nesterov, velocity)
        else:
            kernels.sgd(params, gradients, rate, decay)
