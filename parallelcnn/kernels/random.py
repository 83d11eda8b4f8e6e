"""Counter-based random numbers: each is a pure function of a key and a position.

They do not depend on the rank or thread that computes them, nor on earlier random numbers. The function is the
finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", fig. 14).
"""

import numpy as np
from numba import config, uint64
from numba.extending import register_jitable

from ._jit import exact_kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-24


@register_jitable
def mix(key, number):
    """64 random bits, as a function of two 64-bit numbers."""
    bits = key + (uint64(number) + uint64(1)) * _GOLDEN
    bits = (bits ^ (bits >> uint64(30))) * _FIRST
    bits = (bits ^ (bits >> uint64(27))) * _SECOND
    return bits ^ (bits >> uint64(31))


if config.DISABLE_JIT:  # numpy warns if a scalar overflows, which is intended here
    mix = np.errstate(over="ignore")(mix)


@exact_kernel
def sample_keys(key, indices, keys):
    """keys[i] = the key of sample indices[i] in the pass with key `key`."""
    for i in range(indices.size):
        keys[i] = mix(uint64(key), indices[i])


@exact_kernel
def uniform(keys, number, y):
    """y[f, i] = a random number in [0, 1), a function of (keys[i], number, f).

    keys: (n,) uint64, see `Step.keys`; number: see `Step.number`; y: (features, n) floats.
    """
    features, n = y.shape
    for i in range(n):
        key = mix(keys[i], number)
        for f in range(features):
            y[f, i] = (mix(key, f) >> uint64(40)) * _TO_UNIT
