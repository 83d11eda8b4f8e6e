"""Read dictionaries of plain values and numpy arrays from pickles, which are not executed.

A pickle is a program for a small machine, and `pickle.load` calls any function that the program names. Here
`pickletools` takes the program apart, and this module carries out the operations that build numbers, text, bytes,
lists, tuples, dictionaries and arrays. It refuses all others. numpy writes an array as calls of its own functions
(`_CALLS`): they are recognised by their names, and not called.
"""

import pickletools
import re
import struct
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_TYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,8}")
_DAMAGED = (IndexError, KeyError, TypeError, OverflowError, struct.error)


class _Named:
    """A function or class that the pickle names."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Type:
    """An array's type, whose byte order follows."""

    def __init__(self, code: Any) -> None:
        code = _text(code)
        if not _TYPE.fullmatch(code):
            raise ValueError(f"arrays must hold numbers or strings, not {code!r}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        _, order, *inner = state[:5]
        if any(part is not None for part in inner):
            raise ValueError("arrays must not have named columns")
        if _text(order) in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(_text(order))


class _Array:
    """An array, whose shape, type and numbers follow."""

    array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, is_fortran, numbers = state
        self.array = _array_of(numbers, kind, shape, "F" if is_fortran else "C")


def read_dictionary(content: bytes) -> dict[str, Any]:
    """The dictionary that a pickle of any protocol describes.

    Returns:
        Its values: numbers, text, bytes, lists, tuples, dictionaries and arrays. Text that Python 2 wrote is str.

    Raises:
        ValueError: if it holds anything else, is damaged or is no pickle.
    """
    try:
        value = _Machine().run(content)
    except _DAMAGED as error:
        raise ValueError(f"it is no pickle, or a damaged one ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise ValueError(f"it must hold a dictionary, not a {type(value).__name__}")
    return {_text(key): one.array if isinstance(one, _Array) else one for key, one in value.items()}


class _Machine:
    """The machine that a pickle is a program for, as far as data need it."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[Any, Any] = {}

    def run(self, program: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(program):
            name = operation.name
            if name in _CONSTANTS:
                self._stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self._memo[argument] = self._stack[-1]
            elif name == "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self._stack.append(self._memo[argument])
            elif name in _FIXED:
                self._stack.append(_FIXED[name])
            elif name == "MARK":
                self._below.append(self._stack)
                self._stack = []
            elif name == "STOP":
                return self._stack.pop()
            elif name not in ("PROTO", "FRAME"):
                self._build(name, argument)
        raise ValueError("it has no end")  # genops raises first

    def _build(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "LIST":
            self._replace_marked(list)
        elif name == "TUPLE":
            self._replace_marked(tuple)
        elif name == "DICT":
            self._replace_marked(_pairs)
        elif name in _TUPLES:
            parts = stack[-_TUPLES[name] :]
            if len(parts) < _TUPLES[name]:
                raise IndexError
            stack[-len(parts) :] = [tuple(parts)]
        elif name == "APPEND":
            one = stack.pop()
            _as(list, stack[-1]).append(one)
        elif name == "APPENDS":
            some = self._pop_marked()
            _as(list, self._stack[-1]).extend(some)
        elif name == "SETITEM":
            pair = [stack.pop(), stack.pop()][::-1]
            _as(dict, stack[-1]).update(_pairs(pair))
        elif name == "SETITEMS":
            some = self._pop_marked()
            _as(dict, self._stack[-1]).update(_pairs(some))
        elif name == "GLOBAL":
            stack.append(_Named(".".join(argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Named(f"{_text(module)}.{_text(attribute)}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Type | _Array):
                raise ValueError(f"it holds an object that is none of {_PLAIN}")
            stack[-1].build(state)
        else:
            raise ValueError(f"it holds an object that is none of {_PLAIN} (operation {name})")

    def _pop_marked(self) -> list[Any]:
        marked, self._stack = self._stack, self._below.pop()
        return marked

    def _replace_marked(self, make: Callable[[list[Any]], Any]) -> None:
        made = make(self._pop_marked())
        self._stack.append(made)


_PLAIN = "numbers, text, lists, dictionaries and arrays"


def _as(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else _as(str, value)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    pairs = dict(zip(items[::2], items[1::2], strict=True))
    if not all(isinstance(key, str | bytes | int | float | tuple) for key in pairs):
        raise TypeError
    return pairs


def _array_of(numbers: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """The array of these bytes; ValueError unless it takes exactly them."""
    content = numbers.encode("latin-1") if isinstance(numbers, str) else numbers
    if not isinstance(content, bytes | bytearray) or not all(type(length) is int and length >= 0 for length in shape):
        raise TypeError
    dtype = _as(_Type, kind).dtype
    if dtype.itemsize * prod(shape) != len(content) or len(shape) > 32 or not content:
        raise ValueError(f"an array of {dtype}, shape {tuple(shape)}, cannot have {len(content):,} bytes")
    array = np.frombuffer(content, dtype).reshape(tuple(shape), order=_text(order))  # type: ignore[call-overload]
    return array


def _reconstruct(*arguments: Any) -> _Array:
    if _as(_Named, arguments[0]).name != "numpy.ndarray":
        raise ValueError(f"it names {arguments[0].name}, which is none of {_PLAIN}")
    return _Array()


def _from_buffer(numbers: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.array = _array_of(numbers, kind, shape, order)
    return made


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it encodes text as {encoding!r}")
    return _as(str, text).encode("latin-1")


# The functions that the pickle of an array names: of numpy 1 and 2, and of Python 3 for protocols before 3.
_CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": lambda code, *_: _Type(code),
    "_codecs.encode": _encode,
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _reconstruct),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _from_buffer),
    **dict.fromkeys(
        ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        lambda kind, number: _array_of(number, kind, (), "C").item(),
    ),
}


def _call(function: Any, arguments: Any) -> Any:
    name = _as(_Named, function).name
    if name not in _CALLS:
        raise ValueError(f"it names {name}, which is none of {_PLAIN}")
    return _CALLS[name](*_as(tuple, arguments))
