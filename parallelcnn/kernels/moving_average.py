"""Update of the moving averages over minibatches."""

from ._jit import kernel


@kernel
def moving_average(buffers, statistics, momentum, samples):
    """buffers = (1 - momentum) * buffers + momentum * statistics / samples, all flat; samples is a number."""
    for i in range(buffers.size):
        buffers[i] += momentum[i] * (statistics[i] / samples - buffers[i])
