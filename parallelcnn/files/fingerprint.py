"""Fingerprints: short texts that are equal if two values are equal, on other ranks and in other programs.

A `repr` is not enough: for an array it is abridged, for a function it is an address in memory, and it lacks attributes
that are not dataclass fields.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import MISSING, fields, is_dataclass
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from parallelcnn.errors import InputError

_LENGTH = 32  # hexadecimal digits of a fingerprint
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Packages whose functions and classes are identified by name and version.
_LIBRARIES = {*sys.stdlib_module_names, "parallelcnn", "numpy", "numba"}


def fingerprint(value: Any, *, functions: bool = True, classes: bool = True) -> str:
    """The fingerprint of a value with its contents: numbers, arrays, containers, functions, objects.

    Args:
        functions: include the bytecode of functions, which depends on the version of Python. Otherwise a function is
            identified by its name, its defaults and the values in its closure.
        classes: include the bytecode of the methods of the objects' classes.

    Raises:
        InputError: if the value is nested too deeply.
    """
    try:
        return _Description(functions, classes).digest(value).hex()[:_LENGTH]
    except RecursionError:
        raise InputError(f"{type(value).__name__} is nested too deeply to be compared with that of others") from None


def stored_fingerprint(value: Any) -> dict[str, str]:
    """The fingerprints of a value that a file stores to recognise it; see `matches`."""
    return {
        "values": fingerprint(value, functions=False, classes=False),
        "functions": fingerprint(value, classes=False),
        "python": _PYTHON,
    }


def matches(stored: Any, now: Mapping[str, str]) -> bool:
    """Whether two stored fingerprints belong to the same value. The code of functions is compared only if the version
    of Python is the same. The methods of the value's class may have changed: bugs get fixed.
    """
    if not isinstance(stored, Mapping):
        return False
    names = ("values", "functions") if stored.get("python") == _PYTHON else ("values",)
    return all(stored.get(name) == now[name] for name in names)


class _Description:
    """Computes digests. The digest of a value is a hash of its kind and of the digests of its contents."""

    def __init__(self, functions: bool, classes: bool) -> None:
        self._functions, self._classes = functions, classes
        self._depths: dict[int, int] = {}  # by id; depth of each value being described, from the outermost in
        self._done: dict[int, tuple[bytes, Any]] = {}  # by id; the values are kept so that ids are not reused
        self._cycle_to = sys.maxsize  # the smallest depth to which an inner value refers back

    def digest(self, value: Any) -> bytes:
        if isinstance(value, np.generic) and type(value.item()) in _PLAIN:
            value = value.item()
        if type(value) in _PLAIN:
            text = value.hex() if isinstance(value, float) else hex(value) if type(value) is int else repr(value)
            return _hash((type(value).__name__, text))
        key = id(value)
        if key in self._done:
            return self._done[key][0]
        if key in self._depths:  # the value contains itself
            self._cycle_to = min(self._cycle_to, self._depths[key])
            return _hash(("cycle", str(len(self._depths) - self._depths[key])))
        outer, self._cycle_to = self._cycle_to, sys.maxsize
        self._depths[key] = len(self._depths)
        digest = _hash(self._parts(value))
        del self._depths[key]
        if self._cycle_to >= len(self._depths):  # otherwise the digest depends on the outer values
            self._done[key] = digest, value
        self._cycle_to = min(outer, self._cycle_to)
        return digest

    def _parts(self, value: Any) -> Iterator[Any]:
        """The parts to hash: kind, texts, and the digests of the contents."""
        function = getattr(value, "py_func", value)  # the Python function behind one compiled by numba
        if isinstance(value, np.ndarray):
            yield from ("array", value.dtype.str, str(value.shape))
            yield self.digest(value.tolist()) if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        elif isinstance(value, Mapping):
            pairs = sorted((self.digest(key), self.digest(one)) for key, one in value.items())
            yield from ("mapping", *(digest for pair in pairs for digest in pair))
        elif isinstance(value, Set):
            yield from ("set", *sorted(map(self.digest, value)))
        elif type(value) in (tuple, list):
            yield from (type(value).__name__, *map(self.digest, value))
        elif isinstance(value, os.PathLike):
            yield from ("path", str(os.fspath(value)))
        elif isinstance(value, ModuleType):
            yield from ("module", value.__name__)
        elif isinstance(value, type):
            yield from self._parts_of_class(value)
        elif isinstance(value, CodeType):
            yield from self._parts_of_code(value, doc=None)
        elif isinstance(value, MethodType):
            yield from ("method", self.digest(value.__func__), self.digest(value.__self__))
        elif isinstance(value, BuiltinFunctionType | np.ufunc):
            yield from ("builtin", str(getattr(value, "__module__", "")), value.__name__)
        elif isinstance(value, functools.partial):
            yield from ("partial", self.digest(value.func), self.digest(value.args), self.digest(value.keywords))
        elif isinstance(function, FunctionType):
            yield from self._parts_of_function(function, with_globals=True)
        else:
            yield from self._parts_of_object(value)

    def _parts_of_object(self, value: Any) -> Iterator[Any]:
        kind = type(value)
        yield from ("object", self.digest(kind))
        state = _state_of(value)
        yield self.digest(state)
        if isinstance(value, tuple | list):
            yield self.digest(list(value))
        elif not state and _is_of_a_library(kind):
            # A date, a random generator: use the state that it would pickle.
            try:
                reduced = value.__reduce_ex__(4)
            except (TypeError, ValueError, AttributeError):  # a lock, a communicator
                return
            parts = reduced if isinstance(reduced, tuple) else (reduced,)
            yield from (self.digest(list(part) if isinstance(part, Iterator) else part) for part in parts)

    def _parts_of_class(self, kind: type) -> Iterator[Any]:
        if _is_of_a_library(kind):
            yield from ("class", kind.__module__, kind.__qualname__)
            return
        # Without its module: a model's file may be run as a program or imported.
        yield from ("class", kind.__qualname__)
        for base in kind.__mro__:
            for name, value in sorted(vars(base).items()) if not _is_of_a_library(base) else ():
                content = _function_in(value)
                if isinstance(content, FunctionType):
                    if self._classes:
                        yield from (name, *self._parts_of_function(content, with_globals=False))
                elif not (name.startswith(("__", "_abc_")) or hasattr(content, "__get__")):
                    yield from (name, self.digest(content))

    def _parts_of_function(self, function: FunctionType, *, with_globals: bool) -> Iterator[Any]:
        yield "function"
        if _is_of_a_library(function):
            yield from (function.__module__, function.__qualname__)
            return
        yield from map(self.digest, (function.__defaults__, function.__kwdefaults__))
        # An empty cell is a variable that has no value yet.
        yield from (self.digest(cell.cell_contents) for cell in function.__closure__ or () if cell != CellType())
        if self._functions:
            yield from self._parts_of_code(function.__code__, function.__doc__)
        else:
            yield function.__name__
        if with_globals:  # numba compiles their values, and the functions called, into the function
            used = {name: function.__globals__.get(name) for name in function.__code__.co_names}
            yield self.digest({name: value for name, value in used.items() if _is_data(value) or _is_own(value)})

    def _parts_of_code(self, code: CodeType, doc: str | None) -> Iterator[Any]:
        yield from ("code", code.co_code, code.co_exceptiontable, *code.co_names)
        yield str((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount))
        yield from (self.digest(None if constant is doc else constant) for constant in code.co_consts)


def _hash(parts: Iterable[str | bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


def _state_of(value: Any) -> dict[str, Any]:
    """All attributes of an object, including those that are not dataclass fields."""
    kind = type(value)
    state = dict(getattr(value, "__dict__", {}))
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                state[name] = getattr(value, name)
    for name in list(state):  # without cached values, which are computed from the others
        if isinstance(vars(kind).get(name), functools.cached_property):
            del state[name]
    if is_dataclass(kind) and kind.__module__.partition(".")[0] == "parallelcnn":
        for f in fields(kind):  # without default values, since a later version may have more fields
            if type(f.default) in _PLAIN and type(state.get(f.name, MISSING)) in _PLAIN and state[f.name] == f.default:
                del state[f.name]
    return state


def _is_of_a_library(thing: type | FunctionType) -> bool:
    return str(thing.__module__).partition(".")[0] in _LIBRARIES


def _is_own(value: Any) -> bool:
    """Whether it is a function of the user's own."""
    function = getattr(value, "py_func", value)
    return isinstance(function, FunctionType) and not _is_of_a_library(function)


def _is_data(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_data, value))
    return type(value) in _PLAIN or isinstance(value, np.ndarray | np.generic)


def _function_in(attribute: Any) -> Any:
    """The function in or behind an attribute of a class; otherwise the attribute itself."""
    if isinstance(attribute, staticmethod | classmethod):
        attribute = attribute.__func__
    elif isinstance(attribute, property):
        attribute = attribute.fget
    elif isinstance(attribute, functools.cached_property):
        attribute = attribute.func
    return getattr(attribute, "py_func", attribute)
