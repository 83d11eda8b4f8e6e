"""Addition."""

from ._jit import kernel


@kernel
def add(a, b, y):
    """y = a + b, all flat; y may be a or b. A kernel, because kernel calls can be joined and numpy's cannot."""
    for i in range(y.size):
        y[i] = a[i] + b[i]
