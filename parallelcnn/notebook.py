"""HTML that notebooks show of networks, histories and data sets."""

import base64
import html
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

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
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    how = f"width:{width}px;max-width:100%;image-rendering:pixelated"
    return f'<img src="{source}" alt="{html.escape(text)}" style="{how}">'


def png(pixels: Array) -> bytes:
    """A PNG file (ISO/IEC 15948) of uint8 pixels, (H, W) grey or (H, W, 3)."""
    height, width, *channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels else 0, 0, 0, 0)
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


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
