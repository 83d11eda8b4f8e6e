"""Join consecutive kernel calls into one call, which takes the interpreter lock (GIL) once instead of once per kernel.

Threads lose time on this lock: a thread that finds it taken goes to sleep and wakes up late. 100 samples of the paper's
network on two threads take 640 us a step with joined calls and 770 without; on two ranks, which share no lock, 580 and
610.
"""

import ctypes
import warnings
from collections.abc import Iterable
from functools import cache, partial
from itertools import groupby
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.callconv import RETCODE_OK
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target

from parallelcnn.errors import TrainingWarning
from parallelcnn.layers.base import Call

_NUMBERS = (bool, int, float, np.bool_, np.integer, np.float32)
_WORD = ir.IntType(64)
_TAPE = _WORD.as_pointer()
_END = 0  # marks the end of a tape, in place of an entry's address
_engines: list[Any] = []  # LLVM engines, which own the machine code


def join(calls: Iterable[Call]) -> list[Call]:
    """Join neighbouring kernel calls; the order stays the same.

    The numbers in array arguments may change between runs, but not the addresses of the arrays.
    """
    joined: list[Call] = []
    for joinable, some in groupby(calls, _is_joinable):
        neighbours = list(some)
        joined += _joined(neighbours) if joinable and len(neighbours) > 1 else neighbours
    return joined


def _joined(calls: list[Any]) -> list[Call]:
    """The calls as one, or as they are if this numba hands over arguments in another way than this module knows."""
    try:
        return [_JoinedCalls(calls)]
    except _UnknownLayout:
        warnings.warn(
            f"numba {numba.__version__} is not known to this version of parallelcnn: training on several threads is "
            f"slower",
            TrainingWarning,
            stacklevel=2,
        )
        return calls


class _UnknownLayout(Exception):
    pass


def _is_joinable(call: Call) -> bool:
    """Whether this calls a kernel: compiled by numba, runs without the interpreter lock, and returns nothing."""
    if not isinstance(call, partial) or not isinstance(call.func, Dispatcher):
        return False  # a Python function, a numpy function, or anything if numba's compilation is off
    if not call.func.targetoptions.get("nogil") or call.keywords:
        return False
    has_all = len(call.args) == call.func.py_func.__code__.co_argcount
    if not has_all or not all(map(_can_be_words, call.args)):
        return False
    return _compiled(call.func, _types(call)).signature.return_type == types.none


def _types(call: Any) -> tuple[Any, ...]:
    return tuple(map(call.func.typeof_pyval, call.args))


def _compiled(kernel: Any, argument_types: tuple[Any, ...]) -> Any:
    """The compiled kernel for these argument types. Compiles it, or reads it from the cache, if necessary."""
    kernel.compile(argument_types)
    return kernel.overloads[argument_types]


class _JoinedCalls:
    """Several kernel calls as one: a loop in machine code over a tape of 64-bit words. For each call the tape holds
    the address of the kernel's entry function, the number of argument words, and the argument words.

    The loop and the entries are compiled once in a process; another number of samples only needs another tape.
    Compiling a function for each pass took 8 ms, while other threads waited: two epochs of MNIST in minibatches of
    1,600 on two threads took 0.72 s instead of 0.61 s.
    """

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls  # keeps kernels and arrays alive
        words: list[int] = []
        for call, (entry, length) in zip(calls, _entries(calls), strict=True):
            arguments = [word for value in call.args for word in _words(value)]
            if len(arguments) != length:
                raise _UnknownLayout
            words += [entry, length, *arguments]
        self._tape = np.array([*words, _END], np.int64)
        self._run = partial(_loop(), self._tape.ctypes.data)

    def __call__(self) -> None:
        done = self._run()
        for call in self._calls[done:]:  # none, unless a kernel raised: called from Python, it raises the exception
            call()


@cache
def _loop() -> Any:
    """Compile the loop: it makes the calls on a tape until one raises, and returns the number of calls made."""
    function = _new_function(_new_module(), "loop")
    start, look, call, end = map(function.append_basic_block, ("start", "look", "call", "end"))
    builder = ir.IRBuilder(start)
    builder.branch(look)
    builder.position_at_end(look)
    place, done = builder.phi(_TAPE), builder.phi(_WORD)
    entry = builder.load(place)
    builder.cbranch(builder.icmp_signed("!=", entry, _WORD(_END)), call, end)
    builder.position_at_end(call)
    words = builder.gep(place, [_WORD(2)])
    next_place = builder.gep(words, [builder.load(builder.gep(place, [_WORD(1)]))])
    next_done = builder.add(done, _WORD(1))
    raised = builder.call(builder.inttoptr(entry, function.type), [words])
    builder.cbranch(builder.trunc(raised, ir.IntType(1)), end, look)
    builder.position_at_end(end)
    builder.ret(done)
    for value, first, next_one in ((place, function.args[0], next_place), (done, _WORD(0), next_done)):
        value.add_incoming(first, start)
        value.add_incoming(next_one, call)
    (address,) = _translate(function.module)
    # CFUNCTYPE releases the interpreter lock; PYFUNCTYPE would not.
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)


def _entries(calls: list[Any]) -> list[tuple[int, int]]:
    """The address of each call's entry, and the number of its argument words.

    Missing entries are compiled together: 13 take 13 ms so, and 38 ms one by one.
    """
    wanted = [(call.func, _types(call)) for call in calls]
    missing = list(dict.fromkeys(kernel for kernel in wanted if kernel not in _known_entries))
    if missing:
        module = _new_module()
        lengths = [_write_entry(_new_function(module, f"entry{i}"), *kernel) for i, kernel in enumerate(missing)]
        _known_entries.update(zip(missing, zip(_translate(module), lengths, strict=True), strict=True))
    return [_known_entries[kernel] for kernel in wanted]


_known_entries: dict[tuple[Any, tuple[Any, ...]], tuple[int, int]] = {}  # by kernel and argument types


def _write_entry(function: ir.Function, kernel: Any, argument_types: tuple[Any, ...]) -> int:
    """Write a kernel's entry: it reads arguments from a tape, calls the kernel, and returns whether it raised.

    Returns:
        the number of argument words.
    """
    compiled = _compiled(kernel, argument_types)
    kind = cpu_target.target_context.call_conv.get_function_type(types.none, argument_types)
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    builder = ir.IRBuilder(function.append_basic_block())
    result, error, *parameters = kind.args
    arguments = [builder.alloca(result.pointee), builder.alloca(error.pointee)]  # where kernels write pointers
    for number, parameter in enumerate(parameters):
        word = builder.gep(function.args[0], [_WORD(number)])
        arguments.append(builder.load(builder.bitcast(word, parameter.as_pointer())))
    status = builder.call(builder.inttoptr(_WORD(address), kind.as_pointer()), arguments)
    builder.ret(builder.zext(builder.icmp_signed("!=", status, RETCODE_OK), _WORD))
    return len(parameters)


def _new_module() -> ir.Module:
    module = ir.Module()
    module.triple = binding.get_process_triple()
    return module


def _new_function(module: ir.Module, name: str) -> ir.Function:
    """A function that takes a pointer into a tape and returns a word."""
    return ir.Function(module, ir.FunctionType(_WORD, [_TAPE]), name)


def _translate(module: ir.Module) -> list[int]:
    """Compile to machine code that stays until the process ends; returns the addresses of the functions."""
    with global_compiler_lock:
        machine = binding.Target.from_default_triple().create_target_machine(opt=0, jit=True)
        engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
        engine.finalize_object()
    _engines.append(engine)
    return [engine.get_function_address(function.name) for function in module.functions]


def _can_be_words(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_can_be_words, value))
    return value is None or isinstance(value, _NUMBERS) or type(value) is np.ndarray


def _words(value: Any) -> list[int]:
    """The words in which numba passes a value: numbers and addresses of 64 bits; see `numba.core.datamodel`."""
    if isinstance(value, tuple):
        return [word for item in value for word in _words(item)]
    if isinstance(value, np.ndarray):
        counter = owner = 0  # no reference counting: `_JoinedCalls` keeps the array alive
        return [counter, owner, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides]
    if isinstance(value, float | np.float32):
        return [int.from_bytes(np.asarray(value).tobytes(), "little", signed=True)]
    return [0 if value is None else int(value)]
