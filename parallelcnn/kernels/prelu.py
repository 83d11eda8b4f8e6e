"""Rectifier with a learned slope for each channel."""

from numba import float64

from ._jit import kernel


@kernel
def prelu_forward(x, weight, y):
    """y[c, i] = x[c, i] if it is positive, otherwise weight[c] x[c, i]. x, y: (C, length); weight: (C,)."""
    C, length = x.shape
    for c in range(C):
        slope = weight[c]
        for i in range(length):
            y[c, i] = x[c, i] if x[c, i] > 0 else slope * x[c, i]


@kernel
def prelu_backward(x, weight, dy, dweight):
    """dweight[c] = sum of dy[c, i] x[c, i] where x is not positive; then dy becomes dx. Shapes as above.

    The sum is accumulated in float64: with many samples, float32 would lose the small terms.
    """
    C, length = x.shape
    zero, one = x.dtype.type(0), x.dtype.type(1)  # literals would be float64: 1.6 ns per number instead of 0.3
    for c in range(C):
        slope, total = weight[c], 0.0
        for i in range(length):
            value, gradient = x[c, i], dy[c, i]
            total += float64(gradient * (zero if value > 0 else value))
            dy[c, i] = gradient * (one if value > 0 else slope)
        dweight[c] = total
