"""Write PNG images (ISO/IEC 15948): only what reports and notebooks need, so that they need no image library."""

import base64
import struct
import zlib

import numpy as np

Array = np.ndarray

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels: grey, grey + alpha, RGB, RGBA
_NO_FILTER = 0


def png(pixels: Array) -> bytes:
    """The PNG file of an image.

    Args:
        pixels: uint8, (H, W) grey or (H, W, channels): 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    rows = np.full((height, 1 + width * channels), _NO_FILTER, np.uint8)  # each row begins with its filter
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


def data_uri(pixels: Array) -> str:
    """The image as a URI that contains it, for the `src` of an HTML image."""
    return as_uri(png(pixels))


def as_uri(content: bytes) -> str:
    """A PNG file as a URI that contains it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
