"""SGD updates of the parameters, in one pass over the flat vectors.

The rows of `parts` are (start, stop, decays); see `Optimizer.update`. Each part is sliced, because numba does not
vectorise a loop from `start` to `stop`: it would handle negative indices.
"""

from ._jit import kernel


@kernel
def sgd(params, gradients, parts, learning_rate, weight_decay):
    """params -= learning_rate * (gradients + weight_decay * params)."""
    for part in range(parts.shape[0]):
        start, stop = parts[part, 0], parts[part, 1]
        decay = weight_decay if parts[part, 2] else params.dtype.type(0)
        values, slopes = params[start:stop], gradients[start:stop]
        for i in range(values.size):
            values[i] -= learning_rate * (slopes[i] + decay * values[i])


@kernel
def sgd_momentum(params, gradients, velocity, parts, learning_rate, weight_decay, momentum, nesterov):
    """velocity = momentum * velocity + g;  params -= learning_rate * velocity, or Nesterov's step along
    g + momentum * velocity (Sutskever et al. 2013, eq. 3-4, written for the look-ahead parameters).
    """
    for part in range(parts.shape[0]):
        start, stop = parts[part, 0], parts[part, 1]
        decay = weight_decay if parts[part, 2] else params.dtype.type(0)
        values, slopes, v = params[start:stop], gradients[start:stop], velocity[start:stop]
        for i in range(values.size):
            g = slopes[i] + decay * values[i]
            v[i] = momentum * v[i] + g
            step = g + momentum * v[i] if nesterov else v[i]
            values[i] -= learning_rate * step
