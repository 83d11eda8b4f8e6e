"""Exponential moving average of a vector."""

from ._jit import kernel


@kernel
def move_average(average, params, weight):
    """average += weight * (params - average)."""
    for i in range(average.size):
        average[i] += weight * (params[i] - average[i])
