"""Copying."""

from ._jit import kernel


@kernel
def copy(x, y):
    """y = x, both flat. Not numpy's, since of kernels many can be made one call."""
    for i in range(y.size):
        y[i] = x[i]
