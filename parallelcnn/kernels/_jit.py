"""Decorators that compile kernels, with numba's options for the whole package.

`reassoc` lets the compiler vectorise sums and `contract` lets it use fused multiply-add. `nnan` and `ninf` stay off:
with them `isnan` is compiled away, and a diverging run would not be noticed.

Two things make compiling slow. For `a[...] = b` with two arrays numba also compiles the text of its error message, and
for `transpose` with arguments a set: 11 of 75 s for ResNet-20. The tests refuse both. A constant has a type of its own:
a part that is called with `True` in one place and `False` in another is compiled twice. With `boolean(True)` and
`boolean(False)`, or `int64(KB)` for a number, it is compiled once.

The cache of compiled kernels detects changes of a kernel's file, and of the files in this folder whose names begin with
an underscore. So kernel files import nothing else of the package.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from numba import njit

from ._cache import KernelCache, contents

_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel when it is first called, and cache it on disk.

    Kernels release the interpreter lock, so that threads run in parallel. error_model "numpy": division as in numpy.
    """
    return _cached(function, fastmath=_FASTMATH)


def kernel_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `kernel`, for a function that only kernels call: Python cannot. Without the code for Python, the kernels of
    ResNet-20 are compiled in 0.93 of the time.
    """
    return _cached(function, fastmath=_FASTMATH, no_cpython_wrapper=True)


def kernel_uncached(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `kernel`, without the cache, for user-defined functions: the cache would not detect their changes."""
    function.__qualname__ += ".uncached"  # no kernel of the cache has this name
    return njit(nogil=True, error_model="numpy", fastmath=_FASTMATH)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Inline a user-defined function into each kernel that calls it. Compiled separately, it would take another 0.9
    MiB in numba, which is never freed.
    """
    return njit(inline="always", nogil=True, error_model="numpy", fastmath=_FASTMATH)(function)


def exact_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel with the same bits on every machine: no reordered sums, no fused multiply-add."""
    return _cached(function)


def _cached(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    cache = KernelCache(function)
    if function.__closure__:
        # Machine code is found by the kernel's name and a number that numba counts in each process. Kernels of one
        # function with different closures, compiled in different processes, would replace each other.
        function.__qualname__ += f".{hashlib.sha256(contents(function)).hexdigest()[:16]}"
    # Kernels are not called from C. Without the code for this, those of ResNet-20 take 0.95 of the time.
    compiled = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
    compiled._cache = cache  # as njit(cache=True) does, with a safer cache
    return compiled
