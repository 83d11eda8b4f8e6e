"""The one place that chooses numba's options.

`reassoc` lets the compiler vectorise sums and `contract` use fused multiply-add. `nnan` and `ninf` stay off: with
them `isnan` is compiled away, and a diverging run would go unnoticed.

After changing this file delete the `__pycache__` folders: numba's cache notices a change of the file that holds a
kernel, not of the files it imports. For the same reason kernel files import nothing of the package but this.
"""

from numba import njit

_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

# Without the interpreter lock, so that threads can share a rank's work; error_model "numpy" divides as numpy does.
kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH)

# For functions that come from the user: cached code would not notice that theirs has changed.
kernel_uncached = njit(nogil=True, error_model="numpy", fastmath=_FASTMATH)

# The same bits on every machine: no reordered sums, no fused multiply-add.
exact_kernel = njit(cache=True, nogil=True, error_model="numpy")
