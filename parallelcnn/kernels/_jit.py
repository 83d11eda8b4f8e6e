"""The one place that chooses numba's options.

`reassoc` lets the compiler vectorise sums and `contract` use fused multiply-add. `nnan` and `ninf` stay off: with
them `isnan` is compiled away, and a diverging run would go unnoticed.

The cache of compiled kernels notices a change of the file that holds a kernel, and of the files of this folder that
begin with an underscore. So kernel files import nothing else of the package.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

from ._cache import KernelCache

_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel when it is first called, and keep what was compiled on disk.

    Without the interpreter lock, so that threads can share a rank's work; error_model "numpy" divides as numpy does.
    """
    return _cached(function, fastmath=_FASTMATH)


def kernel_uncached(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for functions that come from the user: cached code would not notice that theirs has changed."""
    return njit(nogil=True, error_model="numpy", fastmath=_FASTMATH)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a user's function within each kernel that calls it. As a function of its own it would take numba another
    0.9 MiB, which is never freed.
    """
    return njit(inline="always", nogil=True, error_model="numpy", fastmath=_FASTMATH)(function)


def exact_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel with the same bits on every machine: no reordered sums, no fused multiply-add."""
    return _cached(function)


def _cached(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    compiled = njit(nogil=True, error_model="numpy", **options)(function)
    compiled._cache = KernelCache(function)  # as njit(cache=True) does, with a safer cache
    return compiled
