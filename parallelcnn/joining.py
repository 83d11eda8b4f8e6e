"""Joining calls of kernels: one call makes many, and so meets the interpreter lock once and not at each of them.

Threads lose time where they meet at it: who finds it taken goes to sleep, and is late. 100 samples of the paper's
network on two threads take 640 us a step with joined calls and 770 without; on two ranks, which share no lock, 580 and
610.
"""

import ctypes
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.callconv import RETCODE_OK
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target

from parallelcnn.layers.base import Call

_NUMBERS = (bool, int, float, np.bool_, np.integer, np.float32)
_WORD = ir.IntType(64)


def join(calls: Iterable[Call]) -> list[Call]:
    """The same calls in the same order, fewer of them: neighbours are one where they call kernels.

    An array among their arguments may hold other numbers at every call, but lies where it lies now.
    """
    joined: list[Call] = []
    for joinable, some in groupby(calls, _is_joinable):
        neighbours = list(some)
        joined += [_JoinedCalls(neighbours)] if joinable and len(neighbours) > 1 else neighbours
    return joined


def _is_joinable(call: Call) -> bool:
    """Whether it calls a kernel: compiled by numba to run without the interpreter lock, and to return nothing."""
    if not isinstance(call, partial) or not isinstance(call.func, Dispatcher):
        return False  # a layer's own Python, a product of numpy's, or anything while numba is told not to compile
    if not call.func.targetoptions.get("nogil") or call.keywords:
        return False
    has_all = len(call.args) == call.func.py_func.__code__.co_argcount
    return has_all and all(map(_can_be_words, call.args)) and _compiled(call).signature.return_type == types.none


def _compiled(call: Any) -> Any:
    """The kernel as numba keeps it for arguments of these types; compiled, or read from the cache, if it is not yet."""
    argument_types = tuple(map(call.func.typeof_pyval, call.args))
    call.func.compile(argument_types)
    return call.func.overloads[argument_types]


class _JoinedCalls:
    """Calls of kernels as one call: of a function that holds the addresses of kernels and arrays, and all numbers.

    It is written in the language of LLVM and translated in 6 to 10 ms a pass. One that numba compiles would not be
    known to its cache in the next process, where addresses differ.
    """

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls  # keeps kernels and arrays where they are
        module = ir.Module()
        module.triple = binding.get_process_triple()
        _write(calls, ir.Function(module, ir.FunctionType(_WORD, []), "all"))
        with global_compiler_lock:
            machine = binding.Target.from_default_triple().create_target_machine(opt=0, jit=True)
            self._engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
            self._engine.finalize_object()
        # Of ctypes' two kinds of functions the one that lets go of the interpreter lock.
        self._run = ctypes.CFUNCTYPE(ctypes.c_int64)(self._engine.get_function_address("all"))

    def __call__(self) -> None:
        done = self._run()
        for call in self._calls[done:]:  # none, unless a kernel raised: called from Python it says what
            call()


def _write(calls: list[Any], function: ir.Function) -> None:
    """Have the function make the calls until one raises, and return how many did not."""
    builder = ir.IRBuilder(function.append_basic_block())
    result, error = builder.alloca(_WORD), builder.alloca(_WORD)  # where kernels put addresses of theirs
    for done, call in enumerate(calls):
        kernel = _compiled(call)
        kind = cpu_target.target_context.call_conv.get_function_type(types.none, kernel.signature.args)
        address = kernel.library.get_pointer_to_function(kernel.fndesc.llvm_func_name)
        to_result, to_error, *parameters = kind.args
        words = [word for value in call.args for word in _words(value)]
        status = builder.call(
            builder.inttoptr(ir.Constant(_WORD, address), kind.as_pointer()),
            [
                builder.bitcast(result, to_result),
                builder.bitcast(error, to_error),
                *(_constant(parameter, word) for parameter, word in zip(parameters, words, strict=True)),
            ],
        )
        with builder.if_then(builder.icmp_signed("!=", status, RETCODE_OK), likely=False):
            builder.ret(ir.Constant(_WORD, done))
    builder.ret(ir.Constant(_WORD, len(calls)))


def _can_be_words(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_can_be_words, value))
    return value is None or isinstance(value, _NUMBERS) or type(value) is np.ndarray


def _words(value: Any) -> list[Any]:
    """The numbers and addresses as which numba hands over a value; see `numba.core.datamodel`."""
    if isinstance(value, tuple):
        return [word for item in value for word in _words(item)]
    if isinstance(value, np.ndarray):
        counter = owner = 0  # of references: none, as `_JoinedCalls` keeps the array
        return [counter, owner, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides]
    return [0 if value is None else value]


def _constant(parameter: ir.Type, word: Any) -> ir.Value:
    if isinstance(parameter, ir.PointerType):
        return ir.Constant(_WORD, word).inttoptr(parameter)
    is_float = isinstance(parameter, ir.FloatType | ir.DoubleType)
    return ir.Constant(parameter, float(word) if is_float else int(word))
