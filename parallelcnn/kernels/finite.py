"""Check that all numbers of a vector are finite."""

from ._jit import kernel


@kernel
def all_finite(numbers):
    """Whether no number is infinite or NaN. Such a number times zero is NaN, and so is every sum that contains it.

    It takes 2 us for the paper's network; numpy's isfinite and all take 4 us and allocate memory.
    """
    zero = numbers.dtype.type(0)
    total = zero
    for i in range(numbers.size):
        total += numbers[i] * zero
    return total == zero
