"""From a data set to the first layer: gather, scale, transpose, in one pass."""

from ._jit import kernel


@kernel
def load(images, indices, scale, x):
    """x[f, i] = images[indices[i], f] * scale; images: (N, features), x: (features, n)."""
    features, N = x.shape
    # Sixteen features at a time: their rows of x stay in the first-level cache while the samples go by, and each
    # sample is still read along its line.
    for f0 in range(0, features, 16):
        f1 = min(f0 + 16, features)
        for i in range(N):
            for f in range(f0, f1):
                x[f, i] = images[indices[i], f] * scale
