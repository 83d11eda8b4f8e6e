"""Argument checks. Each message names the argument, the rule, the value and an alternative in one sentence."""

import contextlib
import functools
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from parallelcnn.errors import InputError, shown

P = ParamSpec("P")
T = TypeVar("T")

PRECISIONS = ("float32", "bfloat16")  # see `NetworkHandler`
_LONGEST = 100  # characters of a value that are shown


def accepts_former_names(
    convert: Mapping[str, Callable[[Any], Any]], **new_names: str
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that also accepts these former names of its arguments, with a DeprecationWarning.

    Args:
        convert: by former name, a function that makes the new argument of a former one.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def renaming(*args: P.args, **kwargs: P.kwargs) -> T:
            for former, name in new_names.items():
                if former in kwargs and name not in kwargs:
                    message = f"{function.__name__}({former}=) is now called {function.__name__}({name}=)"
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    value = kwargs.pop(former)
                    kwargs[name] = convert[former](value) if former in convert else value
            return function(*args, **kwargs)

        return renaming

    return decorate


def check_type(name: str, value: object, kind: type, example: str, *, optional: bool = False) -> None:
    """Raise InputError unless `value` is an instance of `kind`, or None if `optional`.

    Args:
        example: an expression that creates one, for the message.
    """
    if isinstance(value, kind) or (optional and value is None):
        return
    _raise(name, f"of type {kind.__name__}{' or None' if optional else ''}, such as {example}", value, kind)


def check_methods(name: str, value: object, methods: Iterable[str], example: str) -> None:
    """Raise InputError unless `value` is an object, not a class, with these methods."""
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing or isinstance(value, type):
        _raise(name, f"an object with the methods {', '.join(methods)}, such as {example}", value, object)


def check_integer(name: str, value: object, at_least: int, error: type[InputError] = InputError) -> None:
    """Raise `error` unless `value` is a Python or numpy integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise error(f"{name} must be an integer of at least {at_least}, got {value!r}")


def check_callable(name: str, value: object) -> None:
    """Raise InputError unless `value` can be called, or is None."""
    if value is not None and not callable(value):
        _raise(name, "a function or None", value, object)


def as_path(name: str, value: Any) -> Path:
    """Convert to a path, with `~` expanded as in a shell.

    Raises:
        InputError: unless `value` is a string or a path.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        _raise(name, "a string or a pathlib.Path", value, object)
    path = os.fspath(value)
    if "\0" in path:
        raise InputError(f"{name} must be a path, and no path holds a null character, got {described(value)}")
    return Path(os.path.expanduser(path))


def as_array(name: str, value: Any, rule: str) -> Any:
    """Convert to an array of numbers.

    Raises:
        InputError: if that is not possible, such as for a list of images of different sizes.
    """
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        shapes = []
        with contextlib.suppress(ValueError, TypeError):  # of parts that are no arrays themselves
            shapes = [np.shape(one) for one in value] if isinstance(value, list | tuple) else []
        differing = next((place for place, shape in enumerate(shapes) if shape != shapes[0]), None)
        if differing is None:
            raise InputError(f"{name} must be {rule}, got {described(value)}: {error}") from None
        raise InputError(
            f"{name} must all have the same shape, got {shapes[0]} at place 0 and {shapes[differing]} at {differing}"
        ) from None
    if array.dtype.kind not in "biuf":
        _raise(name, rule, value, object)
    return array


def described(value: object) -> str:
    """Describe a value for a message: arrays by type and shape, long values abridged."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"an array of {value.dtype}, shape {tuple(value.shape)}"
    if isinstance(value, tuple | list) and any(hasattr(one, "shape") for one in value):
        items = "; ".join(map(described, value[:3]))
        return f"a {type(value).__name__} of {len(value)}: {items}{'; ...' if len(value) > 3 else ''}"
    try:
        text = shown(repr(value))
    except Exception as error:  # a user's __repr__ failed
        text = f"a {type(value).__name__}, whose repr raises {type(error).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _raise(name: str, rule: str, value: object, kind: type) -> None:
    hint = ""
    if isinstance(value, type) and issubclass(value, kind):
        hint = f": that is the class, write {value.__name__}(...)"
    raise InputError(f"{name} must be {rule}, got {described(value)}{hint}")
