"""HTML that notebooks show of networks, histories and data sets."""

import html
from collections.abc import Iterable, Sequence

from parallelcnn.png import as_uri


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of cells with any text."""
    body = "".join(_row("td", row) for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{_row('th', head)}{body}</table>"


def _row(kind: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{kind}>{html.escape(str(cell))}</{kind}>' for cell in cells)}</tr>"


def picture(content: bytes, text: str, width: int) -> str:
    """A picture inside the page.

    Args:
        content: a PNG file.
        text: what it shows, for those who do not see it.
        width: on the page [CSS pixels].
    """
    how = f"width:{width}px;max-width:100%;image-rendering:pixelated"
    return f'<img src="{as_uri(content)}" alt="{html.escape(text)}" style="{how}">'
