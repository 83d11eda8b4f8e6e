"""Counter-based random numbers: each is a pure function of a key and a position.

They do not depend on the rank or thread that computes them, nor on earlier random numbers.
"""

from numba import uint64

from ._jit import exact_kernel
from ._mix import mix as mix
from ._mix import unit


@exact_kernel
def sample_keys(key, indices, keys):
    """keys[i] = the key of sample indices[i] in the pass with key `key`."""
    for i in range(indices.size):
        keys[i] = mix(uint64(key), indices[i])


@exact_kernel
def keys_of_samples(key, indices, keys):
    """As `sample_keys`, with the key in an array of one number, so that the call can be recorded."""
    for i in range(indices.size):
        keys[i] = mix(key[0], indices[i])


@exact_kernel
def uniform(keys, number, y):
    """y[f, i] = a random number in [0, 1), a function of (keys[i], number, f).

    keys: (n,) uint64, see `Step.keys`; number: see `Step.number`; y: (features, n) floats.
    """
    features, n = y.shape
    for i in range(n):
        key = mix(keys[i], number)
        for f in range(features):
            y[f, i] = unit(key, f)
