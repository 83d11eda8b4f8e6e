"""Compile the kernels of a network on several cores, since in one process numba compiles on one core.

The first process of a node runs samples through the network, which compiles kernels in the order in which they run.
Others compile a share each, last kernel first. A compiled kernel goes into the cache, and each process skips kernels
that are there. The others are the ranks of the node; a rank that is alone on its node, or a single process, starts
processes for this.

The kernels of layers are known before they run, since a tape is a list of calls. On two cores the paper's network is
compiled in 7.9 instead of 12.1 s, ResNet-20 in 31 instead of 52.

All this only saves time. What fails here is ignored: the first process then compiles the kernels, or has the error too.
"""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from threading import Thread
from typing import Any, BinaryIO, NamedTuple

import numba
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target

from parallelcnn.kernels._cache import KernelCache
from parallelcnn.network import NetworkHandler
from parallelcnn.resources import core_quota, memory_limit, number_in, usable_cores

_MOST_PROCESSES = 4
_FEWEST_KERNELS = 4  # for each process, which takes some 0.8 s to start
_MEMORY = 1 << 30  # for each process [bytes]; it takes a third of it
_LONGEST_TASK = 1 << 16  # bytes that fit into a pipe, so that no process waits until another one reads them
_IMPORTED = ("parallelcnn", "numpy", "builtins", "math")  # packages whose names other processes import
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Kernel(NamedTuple):
    """A kernel and the types of its arguments."""

    function: Any
    argument_types: tuple[Any, ...]

    @property
    def is_compiled(self) -> bool:
        """True if it is in the cache or in this process, or if no cache can be used."""
        held = self.argument_types in self.function.overloads
        return held or self.function._cache.holds(self.argument_types, cpu_target.target_context)


def kernels_of(network: NetworkHandler, *, training: bool = True) -> list[Kernel]:
    """The cached kernels of a network's tapes for one sample and for a full block, each once.

    Args:
        training: whether to include the tapes of training.
    """
    found: dict[Kernel, None] = {}
    for n in (1, network.replica.block_size):
        for in_training in (False, True) if training else (False,):
            for call in network.replica.calls(n, training=in_training):
                if isinstance(call, partial) and not call.keywords and _is_cached(call.func):
                    kernel: Any = call.func
                    if len(call.args) == kernel.py_func.__code__.co_argcount:
                        found[Kernel(kernel, tuple(map(kernel.typeof_pyval, call.args)))] = None
    return list(found)


def _is_cached(function: Any) -> bool:
    return isinstance(function, Dispatcher) and isinstance(getattr(function, "_cache", None), KernelCache)


def compile_share(kernels: Sequence[Kernel], share: int, shares: int) -> None:
    """Compile every kernel of this share that is not in the cache, last to first."""
    for kernel in kernels[::-1][share::shares]:
        if not kernel.is_compiled:
            kernel.function.compile(kernel.argument_types)


def share_with_ranks(network: NetworkHandler, rank: int, ranks: int, *, training: bool = True) -> None:
    """Compile the share of a rank that is not the first of its node.

    At most one rank for each core compiles. So eight ranks on two cores take 8 s. It is 13 if all compile, because
    ranks that compile at the same time each compile the functions that their kernels share.

    Args:
        rank: its number among the ranks of the node, from 1.
        ranks: the number of ranks of the node.
        training: as in `kernels_of`.
    """
    with contextlib.suppress(Exception):
        kernels = kernels_of(network, training=training)
        shares = min(ranks, os.cpu_count() or 1, core_quota() or ranks, len(kernels) // _FEWEST_KERNELS) - 1
        if rank <= shares:
            compile_share(kernels, rank - 1, shares)


@contextlib.contextmanager
def other_processes(
    network: NetworkHandler | None, threads: int | None = None, *, training: bool = True
) -> Iterator[None]:
    """Context in which other processes compile kernels of the network, if many are not in the cache.

    A process that cannot start, or does not know a layer, compiles nothing.

    Args:
        network: None: no process is started.
        threads: the number of cores that may be used; None: all that this process may use.
        training: as in `kernels_of`.
    """
    running: list[subprocess.Popen] = []
    try:
        with contextlib.suppress(Exception):
            if network is not None:
                _start_processes(network, threads, training, running)
        yield
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _start_processes(
    network: NetworkHandler, threads: int | None, training: bool, running: list[subprocess.Popen]
) -> None:
    count = _useful_processes(kernels_of(network, training=training), 2 * network.params.nbytes, threads)
    how = network.dtype, network.precision
    task = pickle.dumps((network.layers, network.input_shape, *how, training, count)) if count else b""
    if len(task) > _LONGEST_TASK:
        return
    for share in range(count):
        # -P, and the same path: it must import the modules that this process has imported.
        command = [sys.executable, "-P", "-m", "parallelcnn.training.compilation_shares", str(share)]
        process = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append(process)
        assert process.stdin is not None
        process.stdin.write(task)
        process.stdin.flush()


def _useful_processes(kernels: Sequence[Kernel], network_bytes: int, threads: int | None) -> int:
    """The number of other processes that should compile these kernels; each has a copy of the network."""
    if getattr(sys, "frozen", False) or not sys.executable:  # there is no Python to start
        return 0
    missing = sum(not kernel.is_compiled for kernel in kernels)
    free = memory_limit()[0] - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cores = min(len(usable_cores()), threads or core_quota() or _MOST_PROCESSES)
    cores = min(cores, number_in("OMP_NUM_THREADS") or cores)  # joblib sets it for its processes
    return max(min(_MOST_PROCESSES, cores, free // (_MEMORY + network_bytes), missing // _FEWEST_KERNELS) - 1, 0)


def _environment() -> dict[str, str]:
    path = [os.path.abspath(folder) for folder in sys.path]
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    environment["PYTHONPATH"] = os.pathsep.join(folder for folder in path if os.pathsep not in folder)
    if numba.config.CACHE_DIR:
        environment["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR
    return environment


class _TaskUnpickler(pickle.Unpickler):
    """Refuses a user's classes and functions: importing a user's module may run a whole program."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in _IMPORTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not imported here")
        return super().find_class(module, name)


def main(share: int, stream: BinaryIO) -> None:
    """Compile a share of the kernels of the network that is described on the stream, until the stream ends."""
    layers, input_shape, dtype, precision, training, shares = _TaskUnpickler(stream).load()
    Thread(target=_end_with, args=[stream], daemon=True).start()
    network = NetworkHandler(layers, input_shape, dtype=dtype, precision=precision)
    kernels = kernels_of(network, training=training)
    compile_share(kernels, share, shares)


def _end_with(stream: BinaryIO) -> None:
    """End this process when the stream ends: the process that started it has ended."""
    stream.read()
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception inside LLVM may crash the process
    main(int(sys.argv[1]), sys.stdin.buffer)
    os._exit(0)  # Python would wait for the thread that reads, and then abort
