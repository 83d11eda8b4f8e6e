"""Losses from a function of one output and one target."""

from collections.abc import Callable
from functools import cache

from numba import config

from ._dual_type import slope, value, variable
from ._jit import inlined, kernel_uncached
from ._rebinding import for_numba, for_python


@cache
def pointwise_loss_kernels(function: Callable[[float, float], float]) -> tuple[Callable[..., float], ...]:
    """Two loops over outputs (K, n): for targets (n, K), and for labels (n,), whose targets are one-hot.

    Both return the sum over samples of the mean over outputs, accumulated in float64, and set doutputs, (K, n), to the
    gradient divided by `batch_size`. weights: (n,) float64, by which the losses of the samples are multiplied, or None.
    """
    loss = for_python(function) if config.DISABLE_JIT else inlined(for_numba(function))

    @kernel_uncached
    def of_targets(outputs, targets, batch_size, doutputs, weights):
        K, N = outputs.shape
        total = 0.0
        for k in range(K):
            for i in range(N):
                one = loss(variable(outputs[k, i]), targets[i, k])
                weight = 1.0 if weights is None else weights[i]
                total += weight * value(one)
                doutputs[k, i] = weight * (slope(one) / (K * batch_size))
        return total / K

    @kernel_uncached
    def of_labels(outputs, labels, batch_size, doutputs, weights):
        K, N = outputs.shape
        total = 0.0
        for k in range(K):
            for i in range(N):
                one = loss(variable(outputs[k, i]), 1.0 if labels[i] == k else 0.0)
                weight = 1.0 if weights is None else weights[i]
                total += weight * value(one)
                doutputs[k, i] = weight * (slope(one) / (K * batch_size))
        return total / K

    return of_targets, of_labels
