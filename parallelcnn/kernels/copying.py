"""Copying."""

from ._jit import kernel


@kernel
def copy(x, y):
    """y = x, both flat. A kernel, because kernel calls can be joined and numpy's cannot."""
    for i in range(y.size):
        y[i] = x[i]
