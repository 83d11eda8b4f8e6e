"""Waiting for another thread without sleep: to wake one on another core takes 50 us in a virtual machine."""

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from ._jit import kernel

_ON_X86 = platform.machine() in ("x86_64", "AMD64")


@kernel
def tell_and_wait(flags, mine, value, other, wanted, pauses, more):
    """flags[mine] = value; then pauses until flags[other] is `wanted`, so many at most; if it came, so many more.

    flags: int64, shared by two threads, each of which writes one place.
    """
    store(flags, mine, value)
    for _ in range(pauses):
        if load(flags, other) == wanted:
            for _ in range(more):
                pause()
            return
        pause()


def _plain_load(flags, i):
    """flags[i], read anew each time."""
    return flags[i]


@intrinsic
def _compiled_load(_, flags, i):
    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_address(context, builder, signature, arguments), "acquire", 8)

    return types.int64(flags, i), write


def _plain_store(flags, i, value):
    """flags[i] = value, behind all that was written before."""
    flags[i] = value


@intrinsic
def _compiled_store(_, flags, i, value):
    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _address(context, builder, signature, arguments), "release", 8)
        return context.get_dummy_value()

    return types.void(flags, i, value), write


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, [arguments[1]], wraparound=False)


def _plain_pause():
    """Let a little time pass, and leave the core's units to its other thread if it has one.

    Compiled for other processors than x86 it does nothing: threads there sleep sooner, and begin at the same time.
    """


@intrinsic
def _compiled_pause(_):
    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _ON_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), write


load = _plain_load if config.DISABLE_JIT else _compiled_load
store = _plain_store if config.DISABLE_JIT else _compiled_store
pause = _plain_pause if config.DISABLE_JIT else _compiled_pause
