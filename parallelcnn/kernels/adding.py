"""Addition, alone or with an activation function, and sums of channels."""

from collections.abc import Callable
from functools import cache

from ._jit import kernel


@kernel
def add(a, b, y):
    """y = a + b, all flat; y may be a or b. A kernel, because kernel calls can be joined and numpy's cannot."""
    for i in range(y.size):
        y[i] = a[i] + b[i]


@kernel
def channel_sums(x, sums):
    """sums[k] = sum over i of x[k, i]. This takes a quarter of the time of numpy's sum (9 us instead of 37)."""
    for k in range(len(x)):
        row = x[k]
        total = sums.dtype.type(0)
        for i in range(row.size):
            total += row[i]
        sums[k] = total


@cache
def activated_kernels(
    function: Callable[[float], float], derivative_of_output: Callable[[float], float]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward kernel of f(a + b), for a function f of `_activation_functions`.

    One pass over the arrays instead of two: a step of ResNet-20 takes 0.97 times as long (AMD Zen 3, n = 100 and 200).
    """

    @kernel
    def activated_sum_forward(a, b, y):
        """y = f(a + b), all flat."""
        for i in range(y.size):
            y[i] = function(a[i] + b[i])

    @kernel
    def activated_sum_backward(y, dy, dx):
        """dy = dx = dy f', all flat, for the output y. Each of the two that were added has its own gradient, which the
        layers before it may overwrite.
        """
        for i in range(y.size):
            gradient = dy[i] * derivative_of_output(y[i])
            dy[i] = gradient
            dx[i] = gradient

    return activated_sum_forward, activated_sum_backward
