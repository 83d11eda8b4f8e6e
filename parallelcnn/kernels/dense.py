"""The matrix products of a fully connected layer.

For the paper's 84 units, 400 features and 50 samples, on one core, the forward pass, the parameter gradients and the
input gradient take 30, 25 and 28 us in one call each; numpy's products and sums take 37, 40 and 34 us. With these
kernels a training step of the paper's network takes 522 us instead of 559 (50 samples), or 105 instead of 152 (one
sample: numpy takes 44 us for the weight gradient, an outer product).
"""

from ._jit import kernel
from ._tiles import product, transpose

PANEL = 64  # features at a time, so that x^T, or dx^T, fits into the nearest cache


@kernel
def dense_forward(weight, x, bias, multiplied, y):
    """y = weight x + bias. weight: (units, features), x: (features, n), bias: (units,) or None, y: (units, n).

    multiplied: whether y already holds weight x; numpy's addition of the bias would allocate 32 KiB.
    """
    features, n = x.shape
    units = weight.shape[0]
    if n != 1 and not multiplied:
        product(weight, x, bias, y)
        return
    if not multiplied:  # A product with one column would use one lane of each vector: 10 us, not 3.
        column = x.reshape(features)
        for k in range(units):
            total = y.dtype.type(0)
            for f in range(features):
                total += weight[k, f] * column[f]
            y[k, 0] = total
    if bias is not None:
        for k in range(units):
            for i in range(n):
                y[k, i] += bias[k]


@kernel
def dense_backward_params(dy, x, panel, dweight, dbias):
    """dweight = dy x^T and dbias = the sum of dy over samples. panel: (n, PANEL), overwritten; dbias may be None."""
    units, features = dweight.shape
    for first in range(0, features, PANEL):
        last = min(first + PANEL, features)
        some = panel[:, : last - first]
        transpose(x[first:last], some)
        product(dy, some, None, dweight[:, first:last])
    if dbias is not None:
        for k in range(units):
            total = dbias.dtype.type(0)
            for i in range(dy.shape[1]):
                total += dy[k, i]
            dbias[k] = total


@kernel
def dense_backward_input(weight, dy, panel, dx):
    """dx = weight^T dy, as dx^T = dy^T weight: this reads weights in place, and fills vectors even for few samples.

    panel: (n, PANEL), overwritten.
    """
    features = dx.shape[0]
    for first in range(0, features, PANEL):
        last = min(first + PANEL, features)
        some = panel[:, : last - first]
        product(dy.T, weight[:, first:last], None, some)
        transpose(some, dx[first:last])
