"""RMSprop updates of the parameters, in one pass over the flat vectors; see kernels/sgd.py about `parts`."""

import math

from ._jit import kernel


@kernel
def rmsprop(params, gradients, square, parts, learning_rate, weight_decay, new_square, eps):
    """With g = gradients + weight_decay * params, and new_square = 1 - alpha:

    square += new_square * (g * g - square)
    params -= learning_rate * g / (sqrt(square) + eps)
    """
    for part in range(parts.shape[0]):
        start, stop = parts[part, 0], parts[part, 1]
        decay = weight_decay if parts[part, 2] else params.dtype.type(0)
        values, slopes, v = params[start:stop], gradients[start:stop], square[start:stop]
        for i in range(values.size):
            g = slopes[i] + decay * values[i]
            v[i] += new_square * (g * g - v[i])
            values[i] -= learning_rate * g / (math.sqrt(v[i]) + eps)


@kernel
def rmsprop_momentum(
    params, gradients, square, velocity, parts, learning_rate, weight_decay, new_square, eps, momentum
):
    """As `rmsprop`, but params -= learning_rate * velocity, with
    velocity = momentum * velocity + g / (sqrt(square) + eps).
    """
    for part in range(parts.shape[0]):
        start, stop = parts[part, 0], parts[part, 1]
        decay = weight_decay if parts[part, 2] else params.dtype.type(0)
        values, slopes, v = params[start:stop], gradients[start:stop], square[start:stop]
        directions = velocity[start:stop]
        for i in range(values.size):
            g = slopes[i] + decay * values[i]
            v[i] += new_square * (g * g - v[i])
            directions[i] = momentum * directions[i] + g / (math.sqrt(v[i]) + eps)
            values[i] -= learning_rate * directions[i]
