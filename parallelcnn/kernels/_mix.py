"""The function behind all random numbers of kernels; see `random`."""

import numpy as np
from numba import config, uint64
from numba.extending import register_jitable

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@register_jitable
def mix(key, number):
    """64 random bits, as a function of two 64-bit numbers.

    This is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators",
    fig. 14).
    """
    bits = key + (uint64(number) + uint64(1)) * _GOLDEN
    bits = (bits ^ (bits >> uint64(30))) * _FIRST
    bits = (bits ^ (bits >> uint64(27))) * _SECOND
    return bits ^ (bits >> uint64(31))


if config.DISABLE_JIT:  # numpy warns if a scalar overflows, which is intended here
    mix = np.errstate(over="ignore")(mix)
