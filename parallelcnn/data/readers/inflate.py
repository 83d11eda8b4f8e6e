"""Read gzip files with few copies: `gzip.GzipFile` copies inflated data twice."""

import os
import zlib
from typing import Self

# Compressed bytes read at a time, and bytes to ask for at a time. Both are large, because after each piece the thread
# may wait for the interpreter lock: while another thread ran Python code, MNIST was read in 0.51 s, with pieces an
# eighth as large in 0.61 s. Half a MiB of MNIST inflates to 2.4 MiB. If 4 MiB are asked for, Python's zlib allocates
# more than it fills: 224 instead of 192 MB for all of MNIST.
_COMPRESSED_BYTES = 1 << 19
PIECE_BYTES = 5 << 19
MOST_INFLATED = 1032
"""The largest compression factor of deflate, in gzip and zip files (zlib technical details, "maximum compression
factor")."""
_GZIP_FORMAT = 16 + zlib.MAX_WBITS


class Inflated:
    """The contents of a gzip file. As by the program gzip, concatenated files are read as one, and zeros at the end are
    ignored.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._inflating = zlib.decompressobj(_GZIP_FORMAT)
        self._compressed = b""  # read but not inflated yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int) -> bytes:
        """Read the next `size` bytes; fewer at the end. Raises the errors of `read1`."""
        content = self.read1(size)
        while len(content) < size and (more := self.read1(size - len(content))):
            content += more
        return content

    def read1(self, size: int) -> bytes:
        """Read at least one and at most `size` bytes (`size` must be at least 1); none at the end.

        Raises:
            zlib.error: if the compressed data are damaged.
            EOFError: if the compressed data are truncated.
        """
        while True:
            if self._inflating.eof:
                if not self._find_another():
                    return b""
                self._inflating = zlib.decompressobj(_GZIP_FORMAT)
            compressed = self._compressed or self._file.read(_COMPRESSED_BYTES)
            content = self._inflating.decompress(compressed, size)
            self._compressed = self._inflating.unconsumed_tail
            if content:
                return content
            if not compressed:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    def _find_another(self) -> bool:
        """Whether anything but zeros follows the inflated data; stores it in `_compressed`."""
        following = self._inflating.unused_data
        while not (rest := following.lstrip(b"\0")):
            following = self._file.read(_COMPRESSED_BYTES)
            if not following:
                break
        self._compressed = rest
        return bool(rest)
