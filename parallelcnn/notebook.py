"""HTML that notebooks show of networks, histories and data sets."""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from parallelcnn.png import as_uri

Array = np.ndarray


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


def contact_sheet(images: Array, low: float, high: float, columns: int = 8, side: int = 64) -> Array:
    """Small copies of images side by side, in rows.

    Args:
        images: (n, C, H, W) of any numbers; of other than 1 or 3 channels the first is shown.
        low, high: numbers shown black and white.
        columns: images in a row.
        side: largest height and width of an image [pixels]; of larger ones, pixels are left out.

    Returns:
        (H, W) or (H, W, 3) uint8.
    """
    step = -(-max(images.shape[2:]) // side)
    images = np.nan_to_num(images[:, : 3 if images.shape[1] == 3 else 1, ::step, ::step].astype(np.float64))
    scaled = (images - low) * (255 / (high - low) if high > low else 0)
    n, channels, height, width = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * columns, height + 1, width + 1, channels), 255, np.uint8)  # with a line between images
    sheet[:n, :height, :width] = scaled.clip(0, 255).round().transpose(0, 2, 3, 1)
    placed = sheet.reshape(rows, columns, height + 1, width + 1, channels).transpose(0, 2, 1, 3, 4)
    whole = placed.reshape(rows * (height + 1), columns * (width + 1), channels)
    return whole if channels == 3 else whole[..., 0]
