"""Wait for another thread or process without sleep: in a virtual machine, waking another core takes 50 us."""

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
    """Set flags[mine] = value, then wait until flags[other] is at least `wanted`, for at most `pauses` pauses; if it
    is, wait for `more` further pauses. Returns whether it is. flags: int64, shared by threads or processes, each of
    which writes one element.
    """
    store(flags, mine, value)
    for _ in range(pauses):
        if load(flags, other) >= wanted:
            for _ in range(more):
                pause()
            return True
        pause()
    return False


def _plain_load(flags, i):
    """flags[i], read from memory each time."""
    return flags[i]


@intrinsic
def _compiled_load(_, flags, i):
    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_address(context, builder, signature, arguments), "acquire", 8)

    return types.int64(flags, i), write


def _plain_store(flags, i, value):
    """flags[i] = value, after all earlier writes."""
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
    """Pause for a moment, and leave the core's units to its other hardware thread if it has one.

    On processors other than x86 it does nothing: there, threads sleep earlier, and start at the same time.
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
