"""Compile the kernels of a network on several cores, since in one process numba compiles on one core.

The first process of a node runs samples through the network, which compiles kernels in the order in which they run. The
others compile a share each, last kernel first, until they meet it. A compiled kernel goes into the cache, where all
find it. The others are the node's ranks; the only rank of a node, or a single process, starts processes for this.

The kernels are known before they run, since a tape is a list of calls. On two cores the paper's network is compiled in
7.9 instead of 12.1 s, ResNet-20 in 31 instead of 52.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from threading import Thread
from typing import Any, BinaryIO, NamedTuple

from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target

from parallelcnn.kernels._cache import KernelCache
from parallelcnn.network import NetworkHandler
from parallelcnn.resources import core_quota, memory_limit, usable_cores

_MOST_PROCESSES = 4
_FEWEST_KERNELS = 4  # for each process, which takes some 0.8 s to start
_MEMORY = 1 << 30  # for each process [bytes]; it takes a third of it
_LONGEST_TASK = 1 << 16  # bytes that fit into a pipe, so that no process waits until another one reads them
_IMPORTED = ("parallelcnn", "numpy", "builtins")  # packages whose classes and functions other processes import


class Kernel(NamedTuple):
    """A kernel and the types of its arguments."""

    function: Any
    argument_types: tuple[Any, ...]

    @property
    def is_compiled(self) -> bool:
        """Whether it is in the cache, or in this process; also if no cache can be used."""
        held = self.argument_types in self.function.overloads
        return held or self.function._cache.holds(self.argument_types, cpu_target.target_context)


def kernels_of(network: NetworkHandler) -> list[Kernel]:
    """The cached kernels of a network's tapes for one sample and for a full block, each once."""
    found: dict[Kernel, None] = {}
    for n in (1, network.replica.block_size):
        for training in (False, True):
            for call in network.replica.calls(n, training=training):
                if isinstance(call, partial) and _is_cached(call.func):
                    kernel: Any = call.func
                    found[Kernel(kernel, tuple(map(kernel.typeof_pyval, call.args)))] = None
    return list(found)


def _is_cached(function: Any) -> bool:
    return isinstance(function, Dispatcher) and isinstance(getattr(function, "_cache", None), KernelCache)


def compile_share(kernels: Sequence[Kernel], share: int, shares: int) -> None:
    """Compile every kernel of this share that is not in the cache, last to first."""
    for kernel in kernels[::-1][share::shares]:
        if not kernel.is_compiled:
            kernel.function.compile(kernel.argument_types)


def share_with_ranks(network: NetworkHandler, rank: int, ranks: int) -> None:
    """Compile the share of a rank that is not the first of its node; nothing if all cores have a rank that compiles.

    With one rank for each core eight ranks compile on two cores in 8 s. If all share the work, it takes 13, since
    kernels that are compiled at the same time each take their own time for the functions that they have in common.

    Args:
        rank: its number among the ranks of the node, from 1.
        ranks: the number of ranks of the node.
    """
    shares = min(ranks, os.cpu_count() or 1, core_quota() or ranks) - 1
    if rank <= shares:
        compile_share(kernels_of(network), rank - 1, shares)


@contextlib.contextmanager
def other_processes(network: NetworkHandler) -> Iterator[None]:
    """Context in which other processes compile kernels of the network, if many are not in the cache.

    A process that cannot start, or does not know a layer, compiles nothing.
    """
    running: list[subprocess.Popen] = []
    count = _useful_processes(kernels_of(network), 2 * network.params.nbytes)
    try:
        with contextlib.suppress(OSError, pickle.PicklingError, AttributeError, TypeError):
            task = pickle.dumps((network.layers, network.input_shape, network.dtype, count))
            for share in range(count if len(task) <= _LONGEST_TASK else 0):
                running.append(_start(task, share))
        yield
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _useful_processes(kernels: Sequence[Kernel], network_bytes: int) -> int:
    """The number of other processes that should compile these kernels; each has a copy of the network."""
    missing = sum(not kernel.is_compiled for kernel in kernels)
    memory, _ = memory_limit()
    cores = min(len(usable_cores()), core_quota() or _MOST_PROCESSES)
    return max(min(_MOST_PROCESSES, cores, memory // (_MEMORY + network_bytes), missing // _FEWEST_KERNELS) - 1, 0)


def _start(task: bytes, share: int) -> subprocess.Popen:
    # -P, and the same path: it must import the modules that this process has imported.
    command = [sys.executable, "-P", "-m", "parallelcnn.training.compilation_shares", str(share)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(task)
        process.stdin.flush()
    return process


class _TaskUnpickler(pickle.Unpickler):
    """Refuses what is not of this package: importing a user's module may run a whole program."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in _IMPORTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of the package")
        return super().find_class(module, name)


def main(share: int, stream: BinaryIO) -> None:
    """Compile a share of the kernels of the network that is described on the stream, until the stream ends."""
    layers, input_shape, dtype, shares = _TaskUnpickler(stream).load()
    Thread(target=_end_with, args=[stream], daemon=True).start()
    compile_share(kernels_of(NetworkHandler(layers, input_shape, dtype=dtype)), share, shares)


def _end_with(stream: BinaryIO) -> None:
    """End this process when the stream ends: the process that started it has ended."""
    stream.read()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.stdin.buffer)
