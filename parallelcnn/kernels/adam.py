"""Adam and AdamW updates of the parameters, in one pass over the flat vectors; see kernels/sgd.py about `parts`."""

import math

from ._jit import kernel


@kernel
def adam(params, gradients, mean, square, parts, rate, new_mean, new_square, correction, eps, penalty, shrinkage):
    """One step of Adam (Kingma & Ba 2015, arXiv:1412.6980, alg. 1), with g = gradients + penalty * params:

        mean   += new_mean * (g - mean)                 new_mean = 1 - beta1
        square += new_square * (g * g - square)         new_square = 1 - beta2
        params -= shrinkage * params + rate * mean / (correction * sqrt(square) + eps)

    rate and correction include the bias corrections. Only parts that decay have a penalty and a shrinkage.
    """
    zero = params.dtype.type(0)
    for part in range(parts.shape[0]):
        start, stop = parts[part, 0], parts[part, 1]
        l2 = penalty if parts[part, 2] else zero
        shrink = shrinkage if parts[part, 2] else zero
        values, slopes, m, v = params[start:stop], gradients[start:stop], mean[start:stop], square[start:stop]
        for i in range(values.size):
            g = slopes[i] + l2 * values[i]
            m[i] += new_mean * (g - m[i])
            v[i] += new_square * (g * g - v[i])
            values[i] -= shrink * values[i] + rate * m[i] / (correction * math.sqrt(v[i]) + eps)
