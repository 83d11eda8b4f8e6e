"""Copies of a user's function in which the functions that it calls are replaced."""

import builtins
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from ._dual import IN_PYTHON, Dual, NotDifferentiable
from ._jit import inlined


def for_numba(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as numba can compile it: plain Python functions that it calls are compiled, too.

    Raises:
        NotDifferentiable: if a function calls itself.
    """
    return _rebound(function, lambda value, copy: inlined(copy(value)) if isinstance(value, FunctionType) else value)


def for_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as Python can call it with dual numbers. A call without a rule raises NotDifferentiable.

    Raises:
        NotDifferentiable: if a function calls itself.
    """
    return _rebound(function, _in_python)


Copy = Callable[[Callable[..., Any]], Callable[..., Any]]


def _in_python(value: Any, copy: Copy) -> Any:
    value = getattr(value, "py_func", value)  # the Python function behind one compiled by numba
    if isinstance(value, FunctionType):
        return copy(value)
    if isinstance(value, ModuleType):
        return _Module(value, copy)
    if not callable(value) or value in _HARMLESS:
        return value
    return IN_PYTHON[value] if value in IN_PYTHON else _refusing_duals(value)


_HARMLESS = (range, len, isinstance)


class _Module:
    """A module with its functions replaced."""

    def __init__(self, module: ModuleType, copy: Copy) -> None:
        self._module, self._copy = module, copy

    def __getattr__(self, name: str) -> Any:
        return _in_python(getattr(self._module, name), self._copy)


def _refusing_duals(function: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(*arguments: Any, **named: Any) -> Any:
        if any(isinstance(one, Dual) for one in (*arguments, *named.values())):
            module = getattr(function, "__module__", None)
            prefix = "" if module in (None, "builtins") else f"{module}."
            raise NotDifferentiable(f"{prefix}{getattr(function, '__name__', repr(function))}(x)")
        return function(*arguments, **named)

    return refusing


def _rebound(
    function: Callable[..., Any],
    replacement: Callable[[Any, Copy], Any],
    callers: tuple[Callable[..., Any], ...] = (),
) -> Callable[..., Any]:
    """A copy of the function whose globals, built-in functions and closed-over values are replaced."""
    function = getattr(function, "py_func", function)
    if not isinstance(function, FunctionType):
        return replacement(function, lambda inner: inner)
    if function in callers:
        raise NotDifferentiable(f"{function.__name__}(x), which calls itself,")

    def replaced(value: Any) -> Any:
        return replacement(value, lambda inner: _rebound(inner, replacement, (*callers, function)))

    known = {**vars(builtins), **function.__globals__}
    names = {name: replaced(known[name]) for name in _names(function.__code__) if name in known}
    closure = function.__closure__ or ()
    # An empty cell is a variable that has no value yet.
    cells = tuple(cell if cell == CellType() else CellType(replaced(cell.cell_contents)) for cell in closure)
    copied = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__, cells
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _names(code: CodeType) -> set[str]:
    """The names in a function's code and in that of the functions inside it. Some are names of attributes."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*inner)
