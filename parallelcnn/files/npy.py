"""The header of an array file (.npy): type, shape and order of the array that follows.

numpy's own reader compiles any Python literal in the header, and passes on the errors and warnings of that.
"""

import math
import re
import struct
from typing import NamedTuple

import numpy as np

_MAGIC = b"\x93NUMPY"
_LONGEST = 1 << 16  # bytes of a header; numpy writes 128 unless the array has named columns
_MOST_DIMENSIONS = 32  # of numpy 1
_ENTRY = rb"'(?:descr|fortran_order|shape)' *: *(?:'[^']{0,20}'|True|False|\([\d, ]*\)) *,? *"
_HEADER = re.compile(rb"\{ *(?:" + _ENTRY + rb"){3}\}[ \n]*")
_TYPE = re.compile(rb"'descr' *: *'([=<>|]?(?:b1|[iu][1248]|f[248]|[US]\d{1,8}))'")
_ORDER = re.compile(rb"'fortran_order' *: *(True|False)")
_SHAPE = re.compile(rb"'shape' *: *\(((?:\d{1,18}, *)*(?:\d{1,18},?)?) *\)")


class Header(NamedTuple):
    """What a header says.

    Attributes:
        dtype: type of the array.
        shape: its shape.
        order: "C" or "F".
        size: length of the header; the array begins behind it [bytes].
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    order: str
    size: int

    @property
    def nbytes(self) -> int:
        """The size of the array [bytes]."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(start: bytes) -> Header:
    """The header of an array file that starts with these bytes.

    Raises:
        ValueError: if they do not start with a header of an array of numbers or strings.
    """
    if start[:6] != _MAGIC or len(start) < 12:
        raise ValueError("it starts with no header of an array of numbers")
    long = start[6] in (2, 3)  # the length has four bytes
    length = struct.unpack_from("<I" if long else "<H", start, 8)[0]
    size = (12 if long else 10) + length
    text = start[12 if long else 10 : size]
    found = [pattern.search(text) for pattern in (_TYPE, _ORDER, _SHAPE)]
    if length > _LONGEST or len(text) < length or not _HEADER.fullmatch(text) or not all(found):
        raise ValueError("it starts with no header of an array of numbers" + _hint(text))
    kind, order, lengths = (match[1].decode() for match in found if match)
    shape = tuple(int(number) for number in lengths.replace(",", " ").split())
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"it has {len(shape)} dimensions, more than {_MOST_DIMENSIONS}")
    return Header(np.dtype(kind), shape, "F" if order == "True" else "C", size)


def check_characters(array: np.ndarray) -> None:
    """Raise ValueError if strings hold characters that do not exist: numpy accepts them, and they crash Python."""
    if array.dtype.kind == "U":
        array.tobytes().decode("utf-32-be" if array.dtype.str.startswith(">") else "utf-32-le")


def _hint(text: bytes) -> str:
    if re.search(rb"'descr' *: *'\|?O'", text):
        return ", but with one of Python objects, which only a pickle can store, and a pickle may run any program"
    return ", but with one of an array with named columns" if re.search(rb"'descr' *: *\[", text) else ""
