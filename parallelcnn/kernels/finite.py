"""Whether all is well with a vector."""

from ._jit import kernel


@kernel
def all_finite(numbers):
    """Whether no number is infinite or NaN: either, times zero, is NaN, and so is a sum that it is in.

    2 us for the paper's network; numpy's isfinite and all take 4, and allocate.
    """
    zero = numbers.dtype.type(0)
    total = zero
    for i in range(numbers.size):
        total += numbers[i] * zero
    return total == zero
