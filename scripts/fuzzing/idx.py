"""IDX files that are fuzzed, plain and gzipped, alone and in a folder of four."""

import contextlib
import gzip
import random
import struct
import zlib
from pathlib import Path

from fuzzing.target import Mutate
from fuzzing.watch import MEBIBYTE, examine
from parallelcnn.data import mnist
from parallelcnn.data.readers.idx import load_idx_folder, read_idx
from parallelcnn.errors import InputError


def idx(shape: tuple[int, ...], values: bytes, kind: int = 8) -> bytes:
    """An IDX file, whatever its header says."""
    return bytes([0, 0, kind % 256, len(shape) % 256]) + struct.pack(f">{len(shape)}I", *shape) + values


def idx_seeds() -> list[bytes]:
    plain = [
        idx((9,), bytes(range(9))),
        idx((3, 4), bytes(12)),
        idx((2, 5, 4), bytes(range(40))),
        idx((1, 2, 3, 1), b"abcdef"),
    ]
    packed = [gzip.compress(content, mtime=0) for content in plain]
    return [*plain, *packed, packed[0] + gzip.compress(b"", mtime=0) + bytes(9)]


def mutated_idx(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    packed = content[:2] == b"\x1f\x8b"
    if rng.random() < (0.15 if packed else 0.4):
        return mutate(content)
    with contextlib.suppress(zlib.error):
        content = zlib.decompressobj(31).decompress(content, MEBIBYTE) if packed else content
    choice = rng.random()
    if choice < 0.4 and len(content) >= 8:
        place = 4 + 4 * rng.randrange(min(content[3], 4) or 1)
        length = rng.choice([0, 1, 2, 2**16, 2**31, 2**32 - 1, len(content), rng.randrange(2**32)])
        content = content[:place] + length.to_bytes(4, "big") + content[place + 4 :]
    elif choice < 0.6:
        shape = tuple(rng.choice([1, 2, 3, 5, 300, 2**31]) for _ in range(rng.randrange(6)))
        content = idx(shape, content[8:], rng.choice([8, 8, 8, 9, 11, 12, 13, 14, 0]))
    elif choice < 0.7:
        content = content + bytes(rng.choice([1, 999, 50_000]))
    else:
        content = mutate(content)
    if rng.random() < 0.6:
        content = gzip.compress(content, mtime=0)
        choice = rng.random()
        if choice < 0.15:
            content = content[: rng.randrange(len(content) + 1)]
        elif choice < 0.3:
            content = content + rng.choice([bytes(20_000), content, b"rest", b"\x1f\x8b"])
    return content


GOOD_FOLDER = {
    "train-images-idx3-ubyte": idx((4, 3, 2), bytes(24)),
    "train-labels-idx1-ubyte": idx((4,), bytes(range(4))),
    "t10k-images-idx3-ubyte": idx((2, 3, 2), bytes(12)),
    "t10k-labels-idx1-ubyte": idx((2,), bytes(range(2))),
}


def examine_idx(content: bytes, folder: Path) -> InputError | None:
    """The content as a file of its own, as one of a folder of four, and as a download that is to be checked."""
    place = zlib.crc32(content) % 4
    for i, (name, good) in enumerate(GOOD_FOLDER.items()):
        (folder / name).write_bytes(content if i == place else good)
    path = folder / list(GOOD_FOLDER)[place]
    # An IDX file that is gzipped may hold so much more than it takes.
    most_bytes = MEBIBYTE + 12 * max(len(content), _inflated_size(content)) + 1032 * len(content)
    refused = examine(lambda: read_idx(path), most_bytes)
    examine(lambda: load_idx_folder(folder), most_bytes)
    examine(lambda: mnist._damage(path, "0" * 32), most_bytes)
    return refused


def _inflated_size(content: bytes, most: int = 64 * MEBIBYTE) -> int:
    with contextlib.suppress(zlib.error):
        return len(zlib.decompressobj(31).decompress(content, most))
    return 0
