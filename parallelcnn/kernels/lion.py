"""Lion updates of the parameters, in one pass over the flat vectors; see kernels/sgd.py about `parts`."""

from ._jit import kernel


@kernel
def lion(params, gradients, mean, parts, learning_rate, shrinkage, new_in_step, new_in_mean):
    """One step of Lion (Chen et al. 2023, arXiv:2302.06675, alg. 2):

        params -= shrinkage * params + learning_rate * sign(mean + new_in_step * (gradients - mean))
        mean   += new_in_mean * (gradients - mean)

    new_in_step = 1 - beta1, new_in_mean = 1 - beta2, shrinkage = learning_rate * weight_decay. sign(0) = 0.
    """
    zero = params.dtype.type(0)
    for part in range(parts.shape[0]):
        start, stop = parts[part, 0], parts[part, 1]
        shrink = shrinkage if parts[part, 2] else zero
        values, slopes, m = params[start:stop], gradients[start:stop], mean[start:stop]
        for i in range(values.size):
            change = slopes[i] - m[i]
            direction = m[i] + new_in_step * change
            step = learning_rate if direction > zero else -learning_rate if direction < zero else zero
            m[i] += new_in_mean * change
            values[i] -= shrink * values[i] + step
