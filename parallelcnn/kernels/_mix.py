"""The function behind all random numbers of kernels; see `random`."""

import numpy as np
from numba import config, int64, uint64
from numba.extending import register_jitable

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-24


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


@register_jitable
def unit(key, place):
    """A random number in [0, 1), of 24 bits: a function of the key and the place."""
    return (mix(key, place) >> uint64(40)) * _TO_UNIT


@register_jitable
def below(key, place, limit):
    """A random integer in [0, limit), for a limit below 2^31: a function of the key and the place.

    The probabilities differ by a part of limit / 2^32 at most.
    """
    return int64(((mix(key, place) >> uint64(32)) * uint64(limit)) >> uint64(32))


if config.DISABLE_JIT:  # numpy warns if a scalar overflows, which is intended here
    mix = np.errstate(over="ignore")(mix)
