"""Checks of folders: files can be written, replaced as a whole and locked, and there is room."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from parallelcnn.doctor.finding import Finding
from parallelcnn.files.atomic import lock, write_atomically
from parallelcnn.wording import in_units

_SAVES = 20
_MIB = 1 << 20
_ROOM_TO_SPARE = 100 * _MIB
_SHARED_DATA = 64 * _MIB
_ON_A_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "gluster", "sshfs", "panfs", "pvfs2")
_MISSING = "there is no such folder"


@dataclass(frozen=True)
class Folder:
    """The result of trying out a folder."""

    path: str  # absolute
    file_system: str = ""  # its type, as the system calls it
    free: int = 0  # bytes that a user may still write
    save_seconds: float = 0.0  # to save a file so that it survives a crash, median
    problem: str = ""  # what would stop a run; empty: nothing

    def __str__(self) -> str:
        network = ", over the network" if any(name in self.file_system for name in _ON_A_NETWORK) else ""
        return f"{self.path} ({self.file_system}{network}, {in_units(self.free)} free)"


def try_folder(path: Path, nbytes: int) -> Folder:
    """Replace a file of that size again and again while a thread reads it, and lock another one twice."""
    place = str(path.absolute())
    if not os.path.exists(path):  # False where it cannot be looked up
        return Folder(place, problem=_MISSING)
    if not os.path.isdir(path):
        return Folder(place, problem="this is not a folder")
    kind = file_system(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".parallelcnn-doctor-", dir=path) as inside:
            save_seconds, problem = _save_while_read(Path(inside) / "state", nbytes)
            problem = problem or _lock_twice(Path(inside) / "lock")
        return Folder(place, kind, shutil.disk_usage(path).free, save_seconds, problem)
    except OSError as error:
        return Folder(place, kind, problem=f"nothing can be written there: {error.strerror}")


def check_out(folder: Folder, nbytes: int) -> Finding:
    """Whether a run can write its results there; its model has that size."""
    topic = "results"
    if folder.problem:
        remedy = f"mkdir -p {folder.path}" if folder.problem == _MISSING else "another folder for --out"
        return Finding(topic, f"{folder.path}: {folder.problem}", remedy)
    if folder.free < 10 * nbytes + _ROOM_TO_SPARE:
        return Finding(topic, f"{folder}: that may be too little", "make room, or another folder for --out")
    saved = f"{in_units(nbytes)} saved in {1e3 * folder.save_seconds:.1f} ms; replaced whole, locks hold"
    return Finding(topic, f"{folder}: {saved}")


def check_shared_data(folders: Sequence[Folder]) -> Finding:
    """Whether the ranks of a node can share their data set; `folders`: TMPDIR of every node."""
    least = min(folders, key=lambda folder: (not folder.problem, folder.free))
    if not least.problem and least.free >= _SHARED_DATA:
        return Finding("shared data", f"in {least}")
    problem = least.problem or f"only {in_units(least.free)} free"
    found = f"{least.path}: {problem}, where the ranks of a node share data of more than an eighth of the memory"
    return Finding("shared data", found, "export TMPDIR=FOLDER, one with more room on each node")


def check_cache(folders: Sequence[Folder | None], asked_for: str) -> Finding:
    """Whether compiled kernels are kept.

    Args:
        folders: that of every node; None: there is none.
        asked_for: NUMBA_CACHE_DIR.
    """
    topic, remedy = "kernel cache", "export NUMBA_CACHE_DIR=FOLDER, one that only you can write to"
    for folder in folders:
        if folder is None:
            tried = f"NUMBA_CACHE_DIR={asked_for}, " if asked_for else ""
            places = f"{tried}the package's folder and ~/.cache"
            return Finding(topic, f"none: {places} cannot be used; every process compiles", remedy)
        if folder.problem:
            return Finding(topic, f"{folder.path}: {folder.problem}", remedy)
        if asked_for and Path(asked_for).absolute() not in Path(folder.path).parents:
            return Finding(topic, f"NUMBA_CACHE_DIR={asked_for} cannot be used; {folder} is used instead", remedy)
        if folder.free < _ROOM_TO_SPARE:
            return Finding(topic, f"{folder}: that may be too little", "make room there")
    first = folders[0]
    return Finding(topic, f"{first}, holds {in_units(kept_kernels(Path(first.path))[1])}" if first else "")


def kept_kernels(folder: Path) -> tuple[int, int]:
    """The number of compiled kernels in a cache, and their bytes."""
    sizes = [file.stat().st_size for file in folder.glob("*.nbc")]
    return len(sizes), sum(sizes)


def temporary_folder() -> Path:
    """The folder through which the ranks of a node share data; TMPDIR itself if no folder can be used."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path(os.environ.get("TMPDIR", "/tmp"))


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that holds a folder."""
    place, kind, depth = path.resolve(), "unknown", -1
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            _, mounted_on, kind_here, *_ = line.split(" ")
            mount = Path(mounted_on.replace("\\040", " "))
            if place.is_relative_to(mount) and len(mount.parts) >= depth:
                kind, depth = kind_here, len(mount.parts)
    return kind


def _save_while_read(file: Path, nbytes: int) -> tuple[float, str]:
    """Replace a file again and again; the median time [s], and what a reader should not have found."""
    contents = [bytes([letter]) * max(nbytes, 1) for letter in b"ab"]
    all_saved = threading.Event()

    def read() -> str:
        while not all_saved.is_set():
            try:
                if file.read_bytes() not in contents:
                    return "a reader finds half a file while it is being replaced"
            except OSError as error:
                return f"a reader finds no file while it is being replaced ({error.strerror})"
        return ""

    write_atomically(file, contents[0])
    seconds = []
    with ThreadPoolExecutor(1) as thread:
        reader = thread.submit(read)
        try:
            for i in range(_SAVES):
                started = time.perf_counter()
                write_atomically(file, contents[i % 2])
                seconds.append(time.perf_counter() - started)
        finally:
            all_saved.set()
    return median(seconds), reader.result()


def _lock_twice(path: Path) -> str:
    """What is wrong with locks there; empty: nothing."""
    held = [file for file in (lock(path), lock(path)) if file is not None]
    for file in held:
        file.close()
    if len(held) == 1:
        return ""
    return "two programs can hold the same lock there: only one program at a time may use it"
