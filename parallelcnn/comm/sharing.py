"""Arrays that the ranks of a node hold once, together."""

import contextlib
import mmap
import pickle
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from parallelcnn.comm.communicator import Communicator
from parallelcnn.comm.together import run_together
from parallelcnn.errors import DataError

T = TypeVar("T")


def share_on_node(comm: Communicator, load: Callable[[], T]) -> T:
    """What `load` returns, with the arrays in it held once per node: one rank of each node calls it, rank 0 first, so
    that what it downloads is there for the others.

    The arrays travel through a file that the ranks of a node map into their memory, read-only, and that is unlinked
    at once. Unlike one of MPI's shared windows it needs no room in /dev/shm, of which containers have 64 MiB, and a
    lack of room is an error instead of a crash. Collective: every rank of `comm` must call it.

    Raises:
        whatever `load` raises, on every rank.
    """
    node = comm.ranks_on_node()
    leads = comm.rank == node[0]
    with contextlib.ExitStack() as files:

        def load_and_write() -> Any:
            value = load()
            return value if len(node) == 1 else _write_arrays(value, files)

        mine: Any = None
        for turn in range(1 if len(node) == comm.size else 2):
            my_turn = leads and (comm.rank == 0) == (turn == 0)
            loaded = run_together(comm, load_and_write if my_turn else lambda: None)
            mine = loaded if my_turn else mine
        written: Any = comm.gather(None if len(node) == 1 else mine)[node[0]]
        # Nobody leaves, and unlinks, before all have mapped.
        return run_together(comm, lambda: mine if len(node) == 1 else _map_arrays(*written))


def _write_arrays(value: Any, files: contextlib.ExitStack) -> tuple[str, list[tuple[int, int]], bytes]:
    """Put the numbers of all arrays in `value` into a file that lives as long as `files`.

    Returns:
        the file's name; (start, length) of each array's numbers in it; the pickle of what is around them.
    """
    pieces: list[tuple[int, int]] = []
    try:
        file = files.enter_context(tempfile.NamedTemporaryFile(prefix="parallelcnn-"))  # noqa: SIM115

        def write(buffer: pickle.PickleBuffer) -> None:
            file.write(bytes(-file.tell() % 64))  # aligned to cache lines
            pieces.append((file.tell(), file.write(buffer.raw())))

        pickled = pickle.dumps(value, protocol=5, buffer_callback=write)
        file.flush()
    except OSError as error:
        raise DataError(
            f"the data set cannot be put into {tempfile.gettempdir()} for all ranks of this node: {error.strerror}; "
            f"TMPDIR names another folder"
        ) from None
    return file.name, pieces, pickled


def _map_arrays(name: str, pieces: list[tuple[int, int]], pickled: bytes) -> Any:
    """The value that `_write_arrays` was given; its arrays are the file, mapped into memory, read-only."""
    with open(name, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pickle.loads(pickled, buffers=[memory[start : start + length] for start, length in pieces])


def shared_file(array: np.ndarray) -> tuple[str, str, int] | None:
    """The file that an array lies in, if its memory is one that other processes may map, too: device, inode, and the
    place of the array in it. None: its memory is this process's own, or that is not known.
    """
    address = array.__array_interface__["data"][0]
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            addresses, permissions, offset, device, inode = line.split()[:5]
            start, end = (int(number, 16) for number in addresses.split("-"))
            if start <= address < end:
                is_shared = permissions.endswith("s") and "w" not in permissions and inode != "0"
                return (device, inode, int(offset, 16) + address - start) if is_shared else None
    return None
