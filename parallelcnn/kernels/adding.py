"""Addition."""

from ._jit import kernel


@kernel
def add(a, b, y):
    """y = a + b, all flat; y may be one of them. Not numpy's, since of kernels many can be made one call."""
    for i in range(y.size):
        y[i] = a[i] + b[i]
