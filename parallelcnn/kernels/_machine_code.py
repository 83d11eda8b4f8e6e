"""Compiled kernels as bytes: how they are written to the cache, and loaded.

Here loading takes 2 ms a kernel. numba's own way takes 7 ms for each, and 0.25 s before the first, because it also
prepares for compiling. It loads the tables of all functions that numba can compile. It imports the modules that the
kernel was compiled from, among them numba's of array functions. And it parses the kernel's LLVM code, which only the
compilation of another kernel that calls this one needs.
"""

import functools
import pickle
import sys
from io import BytesIO
from typing import Any

from llvmlite import binding
from numba.core.compiler import CompileResult
from numba.core.environment import Environment, lookup_environment
from numba.core.runtime import rtsys
from numba.core.serialize import dumps


def to_bytes(compiled: CompileResult) -> bytes:
    """The bytes of a compiled kernel."""
    (name, kind, (machine_code, llvm_code)), *others = compiled._reduce()
    symbols = _external_symbols(compiled.library)
    return dumps((symbols, (name, kind, (machine_code, _without_code(compiled))), llvm_code, others))


def from_bytes(content: bytes, target_context: Any) -> CompileResult:
    """Load a compiled kernel. Another version of numba or llvmlite may raise anything.

    Raises:
        LookupError: if this process lacks something that the machine code calls. Without it, it would crash.
    """
    symbols, library, llvm_code, others = _Unpickler(BytesIO(content)).load()
    rtsys.initialize(target_context)  # numba's run time: reference counts, and memory for new arrays
    if _missing(symbols):
        target_context.refresh()  # imports the modules that define them
    if missing := _missing(symbols):
        raise LookupError(missing)
    compiled = CompileResult._rebuild(target_context, library, *others)
    compiled.library._get_module_for_linking = functools.cache(functools.partial(binding.parse_bitcode, llvm_code))
    return compiled


def _external_symbols(library: Any) -> list[str]:
    """The names of functions and variables that the machine code takes from the process."""
    module = library._final_module
    named = (*module.functions, *module.global_variables)
    return [value.name for value in named if value.is_declaration and not value.name.startswith("llvm.")]


def _missing(symbols: list[str]) -> list[str]:
    return [symbol for symbol in symbols if not binding.address_of_symbol(symbol)]


def _without_code(compiled: CompileResult) -> bytes:
    """LLVM code with the names of the functions by which the kernel is called, and with empty bodies. numba only reads
    the names here, and finds the functions in the machine code.
    """
    described = compiled.fndesc
    names = {described.llvm_func_name, described.llvm_cpython_wrapper_name}
    defined = [one.name for one in compiled.library._final_module.functions if one.name in names]
    return binding.parse_assembly("\n".join(f'define void @"{name}"() {{ ret void }}' for name in defined)).as_bitcode()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numba.core.environment", "_rebuild_env"):
            return _environment
        return super().find_class(module, name)


def _environment(module: str, constants: list[Any], name: str) -> Environment:
    """The Python constants of a kernel, such as the arguments of its exceptions. The module that it was compiled from
    is not imported here: only code in numba's object mode, which kernels never use, needs the module's variables.
    """
    environment = lookup_environment(name)
    if environment is None:
        environment = Environment(vars(sys.modules[module]) if module in sys.modules else {"__name__": module})
        environment.consts[:] = constants
        environment.env_name = name
        Environment._memo[name] = environment
    return environment
