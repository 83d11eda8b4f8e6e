"""Checks of folders: can files be put there, whole, by one program at a time, and how many."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallelcnn.doctor.finding import Finding, in_units
from parallelcnn.files.atomic import write_atomically

_SAVES = 20
_MIB = 1 << 20
_ROOM_TO_SPARE = 100 * _MIB
_SHARED_DATA = 64 * _MIB  # MNIST and the built-in digits take 53 MiB
_ON_A_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "gluster", "sshfs", "panfs", "pvfs2")


@dataclass(frozen=True)
class Folder:
    """What came of trying a folder out.

    Attributes:
        path: absolute.
        file_system: its kind, as the system calls it.
        free: bytes that a user may still write.
        save_seconds: to put a file there so that it survives a crash, median.
        problem: what a run would stumble over; empty: nothing.
    """

    path: str
    file_system: str = ""
    free: int = 0
    save_seconds: float = 0.0
    problem: str = ""

    @property
    def on_network(self) -> bool:
        return any(name in self.file_system for name in _ON_A_NETWORK)

    def __str__(self) -> str:
        network = ", over the network" if self.on_network else ""
        return f"{self.path} ({self.file_system}{network}, {in_units(self.free)} free)"


def try_folder(path: Path, nbytes: int) -> Folder:
    """Put files of that size into a folder, over one another, while somebody reads them, and lock one of them."""
    place = str(path.absolute())
    if not path.exists():
        return Folder(place, problem="there is no such folder")
    if not path.is_dir():
        return Folder(place, problem="this is no folder")
    kind = file_system(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".parallelcnn-doctor-", dir=path) as inside:
            save_seconds, problem = _save_while_read(Path(inside) / "state", nbytes)
            problem = problem or _lock(Path(inside) / "lock")
        return Folder(place, kind, shutil.disk_usage(path).free, save_seconds, problem)
    except OSError as error:
        return Folder(place, kind, problem=f"nothing can be written there: {error.strerror}")


def check_out(folder: Folder, nbytes: int) -> Finding:
    """Whether a run can leave its files there, of which the model has that size."""
    topic = "results"
    if folder.problem:
        missing = folder.problem == "there is no such folder"
        remedy = f"mkdir -p {folder.path}" if missing else "another folder for --out"
        return Finding(topic, f"{folder.path}: {folder.problem}", remedy)
    if folder.free < 10 * nbytes + _ROOM_TO_SPARE:
        return Finding(topic, f"{folder}: that may be too little", "make room, or another folder for --out")
    saved = f"{in_units(nbytes)} saved in {1e3 * folder.save_seconds:.1f} ms; replaced whole, locks hold"
    return Finding(topic, f"{folder}: {saved}")


def check_shared_data(folders: Sequence[Folder]) -> Finding:
    """Whether the ranks of a node can hold their data set in common; `folders`: TMPDIR of every node."""
    least = min(folders, key=lambda folder: (not folder.problem, folder.free))
    if least.problem or least.free < _SHARED_DATA:
        return Finding(
            "shared data",
            f"{least.path}: {least.problem or f'only {in_units(least.free)} free'}, where the ranks of a node "
            f"share the data set; MNIST takes 53 MiB",
            "export TMPDIR=FOLDER, one with more room on each node",
        )
    return Finding("shared data", f"in {least}")


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
            return Finding(
                topic,
                f"none: {tried}the package's folder and ~/.cache cannot be used; every process compiles",
                remedy,
            )
        if folder.problem:
            return Finding(topic, f"{folder.path}: {folder.problem}", remedy)
        if asked_for and Path(asked_for).absolute() not in Path(folder.path).parents:
            return Finding(topic, f"NUMBA_CACHE_DIR={asked_for} cannot be used; {folder} is used instead", remedy)
        if folder.free < _ROOM_TO_SPARE:
            return Finding(topic, f"{folder}: that may be too little", "make room there")
    first = folders[0]
    return Finding(topic, f"{first}, holds {in_units(kept_kernels(Path(first.path))[1])}" if first else "")


def kept_kernels(folder: Path) -> tuple[int, int]:
    """How many compiled kernels lie in a cache, and their bytes."""
    sizes = [file.stat().st_size for file in folder.glob("*.nbc")]
    return len(sizes), sum(sizes)


def temporary_folder() -> Path:
    """Where the ranks of a node share data; TMPDIR as it is if there is none."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path(os.environ.get("TMPDIR", "/tmp"))


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system on which a folder lies."""
    place, kind, depth = path.resolve(), "unknown", -1
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            _, mounted_on, kind_here, *_ = line.split(" ")
            mount = Path(mounted_on.replace("\\040", " "))
            if (mount == place or mount in place.parents) and len(mount.parts) >= depth:
                kind, depth = kind_here, len(mount.parts)
    return kind


def _save_while_read(file: Path, nbytes: int) -> tuple[float, str]:
    """Replace a file again and again; the median time [s], and what a reader met that it must not meet."""
    contents = [bytes([letter]) * max(nbytes, 1) for letter in b"ab"]
    write_atomically(file, contents[0])
    seconds = []
    with _reading(file, contents) as met:
        for i in range(_SAVES):
            started = time.perf_counter()
            write_atomically(file, contents[i % 2])
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[_SAVES // 2], met[0] if met else ""


@contextlib.contextmanager
def _reading(file: Path, contents: list[bytes]) -> Iterator[list[str]]:
    """Inside, a thread reads the file all the time; what is yielded then holds what was wrong with it."""
    met: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                if file.read_bytes() not in contents:
                    met.append("a reader finds half a file while another is put in its place")
            except OSError as error:
                met.append(f"a reader finds no file while another is put in its place ({error.strerror})")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield met
    finally:
        done.set()
        reader.join()


def _lock(path: Path) -> str:
    """What is wrong with locks there."""
    with open(path, "wb") as one, open(path, "wb") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"files cannot be locked there ({error.strerror}): only one program at a time may use it"
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ""
        return "two programs can hold the same lock there: only one program at a time may use it"
