"""Archives of arrays, taken apart and put together again with right checksums: bits flipped at random get nowhere."""

import contextlib
import io
import json
import struct
import tempfile
import warnings
import zipfile
from typing import NamedTuple

import numpy as np

from parallelcnn.files.archive import read_npy, seal


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    content: bytes
    method: int = zipfile.ZIP_STORED


def members_of(content):
    """The files in an archive; none if it is none, or a damaged one."""
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(content)) as archive:  # whatever zipfile may raise
        return [Member(entry.filename, archive.read(entry), entry.compress_type) for entry in archive.infolist()]
    return []


def archive_of(members):
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for member in members:
            archive.writestr(zipfile.ZipInfo(member.name or "?"), member.content, member.method)
    return content.getvalue()


def npy(header, numbers):
    """An array's file, whatever its header says."""
    text = header.encode("utf-8", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) % 2**16) + text + numbers


def npy_of(text):
    """A string as numpy writes it."""
    content = io.BytesIO()
    np.save(content, np.array(text))
    return content.getvalue()


def described(content, change):
    """The archive with another description: what `change` makes of the one that it has."""
    members = []
    for member in members_of(content):
        if member.name == "description.npy":
            text = str(np.load(io.BytesIO(member.content), allow_pickle=False)[()])
            member = member._replace(content=npy_of(json.dumps(change(json.loads(text)))))
        members.append(member)
    return archive_of(members)


def sealed(content):
    """An archive with the SHA-256 that its arrays and description have; as it is if it cannot be told."""
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(Exception):  # whatever a reader may raise
        file.write(content)
        file.flush()
        with zipfile.ZipFile(file.name) as archive:
            description = json.loads(str(read_npy(archive, "description", 2**20)[()]))
            arrays = {name: read_npy(archive, name, 2**20) for name in description["arrays"]}
        description.pop("sha256", None)
        return described(content, lambda _: {**description, "sha256": seal(description, arrays)})
    return content
