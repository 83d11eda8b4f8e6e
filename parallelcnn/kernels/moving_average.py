"""The update of buffers: moving averages over minibatches."""

from ._jit import kernel


@kernel
def moving_average(buffers, statistics, momentum, samples):
    """buffers = (1 - momentum) * buffers + momentum * statistics / samples, all flat but the number of samples."""
    for i in range(buffers.size):
        buffers[i] += momentum[i] * (statistics[i] / samples - buffers[i])
