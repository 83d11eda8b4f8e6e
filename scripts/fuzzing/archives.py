"""Archives of arrays that are fuzzed, such as model files: taken apart, changed, and put together again.

Bits flipped at random seldom get past a checksum. So members, headers and descriptions are changed, and get checksums
that are right.
"""

import io
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fuzzing.descriptions import mutated_json
from fuzzing.target import Mutate
from fuzzing.watch import MEBIBYTE


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    content: bytes
    method: int = zipfile.ZIP_STORED


def members_of(content: bytes) -> list[Member]:
    """The files in an archive; none if it is none, or a damaged one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [
                Member(entry.filename, archive.read(entry), entry.compress_type)
                for entry in archive.infolist()
                if entry.file_size < 4 * MEBIBYTE
            ]
    except Exception:  # whatever zipfile may raise: then it is changed blindly
        return []


# Those that arrays are written with.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def archive_of(members: list[Member]) -> bytes:
    """An archive with right checksums."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for member in members:
            archive.writestr(zipfile.ZipInfo(member.name or "?"), member.content, member.method)
    return content.getvalue()


def npy(header: str, numbers: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array's file, whatever its header says."""
    text = header.encode("utf-8", "replace") + b"\n"
    length = struct.pack("<H", len(text) % 2**16) if version == (1, 0) else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + numbers


def npy_of(text: str) -> bytes:
    """A string as numpy writes it."""
    content = io.BytesIO()
    np.save(content, np.array(text))
    return content.getvalue()


def string_in(content: bytes) -> str | None:
    """The string that an array's file holds; None if it holds something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.load(io.BytesIO(content), allow_pickle=False)
        return str(array[()]) if array.dtype.kind == "U" and array.shape == () else None
    except Exception:  # whatever numpy may raise: then it is no string
        return None


_DESCRS = [
    "'<f4'", "'<f8'", "'>f4'", "'|u1'", "'<U9'", "'<i8'", "'<f2'", "'|O'", "'<c16'", "'|V0'", "'<U0'", "'|S4'",
    "'<M8[s]'", "()", "[]", "[('a', '<f4')]", "('<f4', (2,))", "'(1,,2)f4,i4'", "'a4'", "'f4,f4'", "None", "5",
    "'<f4' 'x",
]  # fmt: skip
_SHAPES = [
    "()", "(0,)", "(1,)", "(3,)", "(-1,)", "(-1, -4)", "(3, 1, 3, 3)", "(1000000000, 1000000000)",
    "(99999999999999999999,)", "(True,)", "(3L,)", "3", "None", "[3]", "(1.5,)", "('3',)",
    "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "(" + "1, " * 70 + ")",
]  # fmt: skip
_HEADERS = [
    "{[]: 1}",
    "{1: 2, 'a': 3}",
    "{}",
    "(((",
    "5",
    "-" * 900 + "1",
    "{'descr': '<f4'",
    "{'descr': '<f4', " * 9,
    "",
]


def mutated_npy(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """An array's file with another header, other numbers, or others in number."""
    text = string_in(content)
    if text is not None and rng.random() < 0.85:
        return npy_of(mutated_json(text, rng, mutate))
    choice = rng.random()
    if choice < 0.2:
        return mutate(content)
    place = content.find(b"\n") + 1
    header, numbers = content[10 : place - 1].decode("latin1"), content[place:]
    if choice < 0.5:
        fortran = rng.choice(["False", "False", "True", "1", "None"])
        shape = rng.choice([*_SHAPES, f"({len(numbers) // 4},)", f"({len(numbers) // 8},)"])
        header = f"{{'descr': {rng.choice(_DESCRS)}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    elif choice < 0.6:
        header = rng.choice(_HEADERS)
    elif choice < 0.75:
        header = mutate(header.encode("latin1", "replace")).decode("latin1")
    elif choice < 0.9:
        numbers = mutate(numbers)
    else:
        numbers = numbers * rng.choice([0, 2, 50]) if len(numbers) < 9999 else numbers[: rng.randrange(len(numbers))]
    version = rng.choice([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)])
    return npy(header, numbers, version)


def mutated_archive(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """An archive whose members are others, or whose own bytes are."""
    members = members_of(content)
    if not members or rng.random() < 0.15:
        return mutate(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        i = rng.randrange(len(members))
        # The description decides about everything else.
        if rng.random() < 0.5:
            i = next((k for k, member in enumerate(members) if string_in(member.content)), i)
        member, choice = members[i], rng.random()
        if choice < 0.75:
            members[i] = member._replace(content=mutated_npy(member.content, rng, mutate))
        elif choice < 0.85:
            methods = [
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
                zipfile.ZIP_DEFLATED,
                zipfile.ZIP_BZIP2,
                zipfile.ZIP_LZMA,
            ]
            members[i] = member._replace(method=rng.choice(methods))
        elif choice < 0.9:
            members[i] = member._replace(
                name=rng.choice(["0.weight.npy", "../up.npy", "/up", "a\\b", "\n", member.name + "x"])
            )
        elif choice < 0.95:
            members.insert(rng.randrange(len(members) + 1), member)
        elif len(members) > 1:
            del members[i]
    archive = archive_of(members)
    if rng.random() < 0.15:
        archive = _lying_directory(archive, rng)
    return archive


_DIRECTORY_ENTRY = b"PK\x01\x02"


def _lying_directory(archive: bytes, rng: random.Random) -> bytes:
    """The archive with another number in one field of its directory: a method, a size, a place."""
    places = [i for i in range(len(archive)) if archive.startswith(_DIRECTORY_ENTRY, i)]
    offset, width = rng.choice([(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)])
    place = rng.choice(places) + offset
    number = rng.choice([0, 1, 8, 12, 14, 93, 2**16 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)]) % 2 ** (8 * width)
    return archive[:place] + number.to_bytes(width, "little") + archive[place + width :]


def files_of(save: Callable[[Path, Any], object], name: str, values: Iterable[Any]) -> list[bytes]:
    """What `save` writes of each value into a file of that name."""
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        for value in values:
            save(path, value)
            contents.append(path.read_bytes())
    return contents


def bytes_for_archive(content: bytes) -> int:
    """How much memory it may take to read an archive: by what it holds, not by what it claims."""
    held = sum(len(member.content) for member in members_of(content) if member.method in _METHODS)
    return 16 * MEBIBYTE + 10 * max(held, len(content))
