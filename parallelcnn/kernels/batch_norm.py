"""Batch normalisation. A channel is one row: x is (C, row), with row = H * W * n or, for features, n.

Sums run in float64 over differences from the channel's first number: one pass, and accurate for a large mean, where a
sum of squares would lose all digits and float32 most of them. Chan, Golub & LeVeque 1983, "Algorithms for computing the
sample variance", eq. 1.6: the variance of x - shift is that of x.

The mean is kept in float64, and subtracted from float32 numbers in two steps: first the nearest float32, `near`, then
the rest, which is part of the bias. The mean rounded to float32 would be wrong by up to 5e-4 for a mean of 1e4.

An activation function is applied in the same loops.
"""

import math
from collections.abc import Callable
from functools import cache

from numba import float64

from ._jit import kernel
from ._prefetching import AT_ONCE, numbers_from, prefetch


@cache
def forward_kernel(function: Callable[[float], float]) -> Callable[..., None]:
    """The forward kernel with this activation function f, one of `_activation_functions`."""

    @kernel
    def batch_norm_forward(x, weight, bias, epsilon, n, running_var, mean, scale, mean_sum, var_sum, y):
        """y = f(weight * (x - mean) * scale + bias) with scale = 1 / sqrt(variance + epsilon), for each channel.

        n: samples. Written: mean and scale, (C,) float64, for the backward pass; mean_sum = n * mean and var_sum = n *
        variance * row / (row - 1), (C,), for the running statistics. For one number there is no unbiased variance: then
        var_sum = n * running_var, which leaves the running variance as it is.
        """
        C, row = x.shape
        for c in range(C):
            seen, made = x[c], y[c]
            shift = float64(seen[0]) if row > 0 else 0.0
            total, squares = 0.0, 0.0
            for first in range(0, row, AT_ONCE):
                prefetch(seen, first)
                for i in numbers_from(first, row):
                    difference = float64(seen[i]) - shift
                    total += difference
                    squares += difference * difference
            count = max(row, 1)
            variance = (squares - total * total / count) / count
            if variance < 0:  # by rounding; max(variance, 0) would hide a NaN
                variance = 0.0
            mean[c] = shift + total / count
            scale[c] = 1 / math.sqrt(variance + epsilon)
            mean_sum[c] = n * mean[c]
            var_sum[c] = n * (variance * (row / (row - 1)) if row > 1 else float64(running_var[c]))
            near = x.dtype.type(mean[c])
            factor = x.dtype.type(weight[c] * scale[c])
            rest = x.dtype.type(bias[c] + (near - mean[c]) * (weight[c] * scale[c]))
            for first in range(0, row, AT_ONCE):
                prefetch(seen, first)
                prefetch(made, first)
                for i in numbers_from(first, row):
                    made[i] = function((seen[i] - near) * factor + rest)

    return batch_norm_forward


@kernel
def batch_norm_predict(x, weight, bias, epsilon, running_mean, running_var, y):
    """y = weight * (x - running_mean) / sqrt(running_var + epsilon) + bias."""
    C, row = x.shape
    for c in range(C):
        factor = x.dtype.type(weight[c] / math.sqrt(running_var[c] + epsilon))
        for i in range(row):
            y[c, i] = (x[c, i] - running_mean[c]) * factor + bias[c]


@cache
def backward_kernel(derivative_of_output: Callable[[float], float]) -> Callable[..., None]:
    """The backward kernel with this derivative f', one of `_activation_functions`."""

    @kernel
    def batch_norm_backward(x, y, weight, mean, scale, needs_dx, dy, dweight, dbias):
        """dy = dy * f', dbias = sum of dy, dweight = sum of dy * xhat with xhat = (x - mean) * scale, for each
        channel; and if needs_dx

            dy = weight * scale * (dy - dbias / row - xhat * dweight / row)

        in place: the gradient with respect to x (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3, with the sums of
        its formulas for d mean and d variance written out).
        """
        C, row = x.shape
        for c in range(C):
            near = x.dtype.type(mean[c])
            total, products = 0.0, 0.0
            for i in range(row):
                gradient = x.dtype.type(dy[c, i] * derivative_of_output(y[c, i]))
                dy[c, i] = gradient
                total += float64(gradient)
                products += float64(gradient) * float64(x[c, i] - near)
            products = (products + total * (near - mean[c])) * scale[c]
            dbias[c] = total
            dweight[c] = products
            if needs_dx:
                count = max(row, 1)
                factor = x.dtype.type(weight[c] * scale[c])
                slope = x.dtype.type(scale[c] * products / count)
                rest = x.dtype.type(total / count + (near - mean[c]) * (scale[c] * products / count))
                for i in range(row):
                    dy[c, i] = (dy[c, i] - rest - (x[c, i] - near) * slope) * factor

    return batch_norm_backward


@kernel
def fold(weight, bias, norm_weight, norm_bias, epsilon, running_mean, running_var, folded_weight, folded_bias):
    """The convolution that computes batch_norm_predict(convolution(x)): weight, (K, size), and bias, (K,), of both.

    bias: (K,), or (0,) for a convolution without bias.
    """
    K, size = weight.shape
    for k in range(K):
        factor = norm_weight[k] / math.sqrt(running_var[k] + epsilon)
        for i in range(size):
            folded_weight[k, i] = weight[k, i] * factor
        before = float64(bias[k]) if bias.size > 0 else 0.0
        folded_bias[k] = norm_bias[k] + (before - running_mean[k]) * factor
