"""The frame of a page: head, style, and sections."""

from pathlib import Path
from typing import Any

from parallelcnn._version import __version__
from parallelcnn.report.markup import Markup, element, join

_STYLE = Path(__file__).with_name("style.css")
# Nothing on the page is loaded or run, whatever names of classes and files contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, header: Markup, *sections: Markup | None) -> bytes:
    """A complete HTML page, in UTF-8.

    Args:
        title: of the browser's window.
        header: what is above the sections.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="generator", content=f"parallelcnn {__version__}"),
        element("title", title),
        element("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    )
    footer = element("footer", element("p", f"Written by parallelcnn {__version__}."))
    body = element("body", element("header", header), element("main", *sections), footer)
    return join(Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en")).encode()


def section(title: str, *content: Any) -> Markup | None:
    """A section with a heading; None if it has no content."""
    found = join(*content)
    return element("section", element("h2", title), found) if found else None


def masthead(kind: str, title: str, *below: Any) -> Markup:
    """The title of a page, the kind of page above it, and lines below it."""
    lines = [element("p", line, class_="quiet") for line in below if line]
    return join(element("p", kind, class_="eyebrow"), element("h1", title), lines)


def tiles(pairs: list[tuple[str, str | None]]) -> Markup:
    """The figures that readers look for first: names and values."""
    shown = [element("div", element("dt", name), element("dd", value)) for name, value in pairs if value]
    return element("dl", shown, class_="tiles")


def notes(sentences: list[str]) -> Markup | None:
    """Sentences on what is unusual; None if there are none."""
    return element("ul", [element("li", one) for one in sentences], class_="notes") if sentences else None
