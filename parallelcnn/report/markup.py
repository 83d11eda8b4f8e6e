"""Build HTML and SVG from nested calls. Everything that is not markup already is escaped."""

import html
from collections.abc import Iterable
from typing import Any

from parallelcnn.errors import printable

_VOID = {"meta", "img", "br", "rect", "line", "path", "circle"}  # elements without content


class Markup(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element: `element("a", "text", href="#top")`.

    Args:
        children: markup, other values, which are escaped, or iterables of these; None is left out.
        attributes: `class_` is "class" and `aria_label` "aria-label"; None and False are left out.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    content = join(*children)
    if not content and name in _VOID:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{content}</{name}>")


def join(*children: Any) -> Markup:
    """The children one after the other; see `element`."""
    return Markup("".join(map(_child, children)))


def escaped(value: Any) -> Markup:
    """The value as text. Control characters, which HTML cannot contain, are shown as in Python."""
    return Markup(html.escape("\n".join(map(printable, str(value).split("\n")))))


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return join(*child)
    return escaped(child)


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = name.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(value)}"'
