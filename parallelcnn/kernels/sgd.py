"""SGD updates of the parameters, in one pass over the flat vectors."""

from ._jit import kernel


@kernel
def sgd(params, gradients, learning_rate, weight_decay):
    """params -= learning_rate * (gradients + weight_decay * params)."""
    for i in range(params.size):
        params[i] -= learning_rate * (gradients[i] + weight_decay * params[i])


@kernel
def sgd_momentum(params, gradients, learning_rate, weight_decay, momentum, nesterov, velocity):
    """velocity = momentum * velocity + g;  params -= learning_rate * velocity, or Nesterov's step along
    g + momentum * velocity (Sutskever et al. 2013, eq. 3-4, written for the look-ahead parameters).
    """
    for i in range(params.size):
        g = gradients[i] + weight_decay * params[i]
        velocity[i] = momentum * velocity[i] + g
        step = g + momentum * velocity[i] if nesterov else velocity[i]
        params[i] -= learning_rate * step
