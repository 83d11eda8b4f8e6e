"""Normalisation of each sample: `GroupNorm`, and `LayerNorm`, which is one group with a channel for every feature.

Arrays are (groups, channels of a group, positions, n). The inner loops run over the samples. Each writes one or two
arrays: with more, the compiler would need too many checks for overlaps, and would not use vector instructions.

Sums are in float64 over differences from the sample's first number; the mean is `near`, a number of x's type, less a
rest; see `batch_norm`.
"""

import math

from numba import float64

from ._jit import kernel


@kernel
def group_norm_forward(x, weight, bias, epsilon, sums, squares, near, scale, rest, y):
    """y = weight * xhat + bias with xhat = (x - mean) / sqrt(variance + epsilon), over a group of channels of a sample.

    weight, bias: (groups, channels of a group). Written: sums and squares, (n,) float64, of no further use; near,
    scale and rest, (groups, n), such that xhat = (x - near) * scale + rest.
    """
    G, K, P, n = x.shape
    count = K * P
    for g in range(G):
        for i in range(n):
            sums[i] = 0
            squares[i] = 0
        for k in range(K):
            for p in range(P):
                for i in range(n):
                    difference = float64(x[g, k, p, i]) - float64(x[g, 0, 0, i])
                    sums[i] += difference
                    squares[i] += difference * difference
        for i in range(n):
            variance = (squares[i] - sums[i] * sums[i] / count) / count
            if variance < 0:  # by rounding; max(variance, 0) would hide a NaN
                variance = 0.0
            mean = float64(x[g, 0, 0, i]) + sums[i] / count
            near[g, i] = mean
            scale[g, i] = 1 / math.sqrt(variance + epsilon)
            rest[g, i] = (near[g, i] - mean) / math.sqrt(variance + epsilon)
        for k in range(K):
            for p in range(P):
                for i in range(n):
                    xhat = (x[g, k, p, i] - near[g, i]) * scale[g, i] + rest[g, i]
                    y[g, k, p, i] = xhat * weight[g, k] + bias[g, k]


@kernel
def group_norm_backward(x, weight, near, scale, rest, needs_dx, sums, products, dy, dweight, dbias):
    """dbias = sum of dy and dweight = sum of dy * xhat, for each channel, over positions and samples; and if needs_dx,
    with the means over a group of a sample

        dy = scale * (weight * dy - mean(weight * dy) - xhat * mean(weight * dy * xhat))

    in place: the gradient with respect to x (Ba et al. 2016, arXiv:1607.06450; Wu & He 2018, arXiv:1803.08494).

    sums, products: (n,) float64, overwritten.
    """
    G, K, P, n = x.shape
    count = K * P
    for g in range(G):
        for k in range(K):
            total, total_products = 0.0, 0.0
            for p in range(P):
                for i in range(n):
                    xhat = (x[g, k, p, i] - near[g, i]) * scale[g, i] + rest[g, i]
                    total += float64(dy[g, k, p, i])
                    total_products += float64(dy[g, k, p, i]) * float64(xhat)
            dbias[g, k] = total
            dweight[g, k] = total_products
        if not needs_dx:
            continue
        for i in range(n):
            sums[i] = 0
            products[i] = 0
        for k in range(K):
            for p in range(P):
                for i in range(n):
                    term = float64(weight[g, k] * dy[g, k, p, i])
                    sums[i] += term
                    products[i] += term * float64(x[g, k, p, i] - near[g, i])
        for i in range(n):
            products[i] = (products[i] * scale[g, i] + sums[i] * rest[g, i]) / count
            sums[i] /= count
        for k in range(K):
            for p in range(P):
                for i in range(n):
                    xhat = (x[g, k, p, i] - near[g, i]) * scale[g, i] + rest[g, i]
                    mean, slope = x.dtype.type(sums[i]), x.dtype.type(products[i])
                    dy[g, k, p, i] = (weight[g, k] * dy[g, k, p, i] - mean - xhat * slope) * scale[g, i]
