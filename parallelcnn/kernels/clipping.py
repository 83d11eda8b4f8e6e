"""Gradient clipping."""

from numba import float64

from ._jit import kernel


@kernel
def sum_of_squares(vector):
    """The squared L2 norm, in float64."""
    total = 0.0
    for i in range(vector.size):
        value = float64(vector[i])
        total += value * value
    return total


@kernel
def scale(vector, factor):
    """vector *= factor."""
    for i in range(vector.size):
        vector[i] *= factor


@kernel
def clamp(vector, largest):
    """Limit every number to [-largest, largest]."""
    for i in range(vector.size):
        vector[i] = min(max(vector[i], -largest), largest)
