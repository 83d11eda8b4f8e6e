"""A setting of a training run: a field of a dataclass, from which an option of the command is derived."""

import sys
from dataclasses import Field, field
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

from parallelcnn.errors import InputError

_METAVARS: dict[type, str] = {int: "N", float: "X"}


class Setting(NamedTuple):
    """The properties of a setting besides its name and default.

    Attributes:
        kind: int, float, str or bool; of each value, if there are several.
        length: number of values; None: one or more.
        group: the heading of the setting in the help.
        help: one sentence without a full stop.
        metavar: name of the value in the help.
        at_least: the smallest allowed value.
        choices: all allowed values; empty: any value.
        known: values that a shell completes; others are allowed.
        is_path: whether `~` is expanded to the home directory.
        alone: the value if the option is given without one.
        repeatable: whether `config.toml` contains the setting.
    """

    kind: type
    group: str
    help: str
    metavar: str
    at_least: float | None = None
    choices: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    is_path: bool = False
    alone: Any = None
    repeatable: bool = True
    length: int | None = 1


def declare(default: Any, group: str, text: str, **more: Any) -> Any:
    """A field of a dataclass that is a setting; `more` are further attributes of `Setting`."""
    return field(default=default, metadata={"group": group, "help": text, **more})


def declare_path(default: Any, group: str, metavar: str, text: str, **more: Any) -> Any:
    """As `declare`, for a path."""
    return declare(default, group, text, metavar=metavar, is_path=True, **more)


def setting_of(one: Field[Any]) -> Setting:
    """The setting that a field declares."""
    kind, length = _kind_and_length(one.type)
    return Setting(kind, **{"metavar": _METAVARS.get(kind, ""), **one.metadata}, length=length)


def _kind_and_length(of: Any) -> tuple[type, int | None]:
    """(int, 1) for int and int | None, (int, 2) for tuple[int, int], (int, None) for tuple[int, ...]."""
    if get_origin(of) is UnionType:
        of = get_args(of)[0]
    if get_origin(of) is not tuple:
        return of, 1
    kind, *others = get_args(of)
    return kind, None if others == [...] else 1 + len(others)


def checked_value(name: str, value: Any, setting: Setting) -> Any:
    """The value, converted to the setting's kind; InputError if it has another type or is outside its range."""
    one, several, is_kind = {
        int: ("an integer", "integers", lambda one: _is_finite(one) and isinstance(one, int)),
        float: ("a finite number", "finite numbers", _is_finite),
        bool: ("true or false", "", lambda one: isinstance(one, bool)),
        str: ("a string", "names", lambda one: isinstance(one, str)),
    }[setting.kind]
    rule, values = one, (value,)
    if setting.length != 1:
        rule = f"two {several}" if setting.length == 2 else f"a list of {several}"
        is_list = isinstance(value, tuple | list) and setting.length in (None, len(value))
        values = tuple(value) if is_list else (None,)
    if setting.at_least is not None:
        rule = f"{rule} of at least {setting.at_least:g}"
    if setting.choices:
        rule = f"{'one' if setting.length == 1 else 'a list'} of {', '.join(setting.choices)}"
    for one_value in values:
        too_small = setting.at_least is not None and is_kind(one_value) and one_value < setting.at_least
        if not is_kind(one_value) or too_small or (setting.choices and one_value not in setting.choices):
            raise InputError(f"{name} must be {rule}, got {value!r}")
    converted = tuple(map(setting.kind, values))
    return converted[0] if setting.length == 1 else converted


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
