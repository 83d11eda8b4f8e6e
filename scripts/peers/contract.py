"""What every program of this folder takes and prints, so that one comparison can start them all.

Each trains the paper's network (`parallelcnn.paper()`) in its framework, by plain SGD, in float32, on data that lie in
memory as the framework likes them best, from parallelcnn's start values and over parallelcnn's minibatches: so the
losses of two programs can be compared number by number. Each prints one line of JSON, see `print_result`, or, where
its framework is not installed, one that holds the reason.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from parallelcnn import Dataset, NetworkHandler, load_data, paper
from parallelcnn.data.sampler import minibatches, shuffle
from parallelcnn.errors import InputError

Array = np.ndarray

WARM_UP_STEPS = 20


def parse_options(framework: str, variants: Sequence[str]) -> argparse.Namespace:
    """The command line that all programs have in common.

    Args:
        framework: as people call it.
        variants: ways to set it up, the first of which is the default.
    """
    parser = argparse.ArgumentParser(
        description=f"Trains the paper's network with {framework} and prints one line of JSON.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", default="digits", help="digits, mnist or a folder with the four IDX files")
    parser.add_argument("--data-dir", help="where mnist lies")
    parser.add_argument("--samples", type=int, metavar="N", help="train on the first N only; otherwise on all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100, help="samples in a minibatch, over all processes")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of start values and sample order")
    parser.add_argument("--threads", type=int, default=1, help="cores to use, whether by threads or by processes")
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--losses", metavar="FILE", help="write the loss of every minibatch, one a line")
    options = parser.parse_args()
    for name, least in (("epochs", 1), ("batch_size", 1), ("threads", 1), ("seed", 0), ("samples", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    options.framework = framework
    return options


def require(name: str, options: argparse.Namespace) -> ModuleType:
    """The module of that name; where it is not installed, ends the program with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        skip(options, f"{options.framework} is not installed here ({error}); scripts/peers.sh installs the peers")


def skip(options: argparse.Namespace, reason: str) -> NoReturn:
    """End the program without a result, which is not an error."""
    reason = " ".join(reason.split())
    print(json.dumps({"framework": options.framework, "variant": options.variant, "skipped": reason}), flush=True)
    sys.exit(0)


class Data(NamedTuple):
    """Two sets in the frameworks' terms: images (N, 28, 28) float32 in [0, 1], labels (N,) int64."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


def load(options: argparse.Namespace) -> Data:
    """The training and the test set; ends the program with exit code 2 where they cannot be had."""
    arrays: list[Array] = []
    with exit_on_bad_input():
        sets = load_sets(options)
    for dataset in sets:
        arrays += [np.multiply(dataset.images, 1 / 255, dtype=np.float32), dataset.labels]
    return Data(*arrays)


def load_sets(options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """The same as parallelcnn has them: images uint8; InputError where they cannot be had."""
    train_set, test_set = load_data(options.data, options.data_dir)
    if train_set.images.shape[1:] != (28, 28) or train_set.classes != 10:
        raise InputError(
            f"{train_set.name}: images must be 28 x 28 in 10 classes, "
            f"got {train_set.images.shape[1:]} in {train_set.classes}"
        )
    first = slice(options.samples)
    return replace(train_set, images=train_set.images[first], labels=train_set.labels[first]), test_set


@contextlib.contextmanager
def exit_on_bad_input(rank: int = 0) -> Iterator[None]:
    """End the program with exit code 2 on an InputError inside; rank 0 says why."""
    try:
        yield
    except InputError as error:
        if rank == 0:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def start_values(seed: int) -> list[dict[str, Array]]:
    """{"weight", "bias"} of the two convolutions, (K, C, R, S) and (K,), and of the two dense layers, (out, in) and
    (out,); what a dense layer takes was flattened by channel, row, column.
    """
    network = NetworkHandler(paper(), (1, 28, 28), seed)
    return [views for views in network.layout.views(network.params) if views]


def steps_of_epoch(options: argparse.Namespace, samples: int, epoch: int) -> Iterator[Array]:
    """The indices of each minibatch of an epoch, which counts from 1."""
    return minibatches(shuffle(samples, options.seed, epoch), options.batch_size)


class Meter:
    """Measures what happens inside `with`: the time, and the bytes allocated where the counter is preloaded.

    Attributes:
        seconds: wall time [s].
        allocated_bytes: asked of the C library by this process, freed or not (see count_allocations.c), or None.
    """

    seconds: float
    allocated_bytes: int | None

    def __enter__(self) -> "Meter":
        self._before = _bytes_allocated_so_far()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *unused: object) -> None:
        self.seconds = time.perf_counter() - self._started
        now = _bytes_allocated_so_far()
        self.allocated_bytes = None if now is None or self._before is None else now - self._before


def _bytes_allocated_so_far() -> int | None:
    try:
        counter = ctypes.CDLL(None).bytes_allocated_so_far
    except AttributeError:
        return None
    counter.restype = ctypes.c_ulonglong
    return int(counter())


def peak_rss_bytes() -> int:
    """The most memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_result(
    options: argparse.Namespace,
    *,
    loading: Meter,
    training: Meter,
    losses: Sequence[float] | None,
    versions: dict[str, str],
    processes: int = 1,
    peak_rss: int | None = None,
    **results: Any,
) -> None:
    """Print the line of JSON, and write the losses where they were asked for.

    Args:
        loading: around the loading and preparing of the data.
        training: around the training loop alone.
        losses: of every minibatch; None where the framework does not tell without being slowed down.
        processes: how many trained together; `peak_rss` is that of the largest, the rest of the figures those of all.
        results: train_accuracy, test_accuracy, test_loss.
    """
    if options.losses and losses is not None:
        Path(options.losses).write_text("".join(f"{loss:.9g}\n" for loss in losses))
    names = ("framework", "variant", "data", "samples", "epochs", "batch_size", "learning_rate", "seed", "threads")
    line = {
        **{name: getattr(options, name) for name in names},
        "train_seconds": training.seconds,
        "allocated_bytes": training.allocated_bytes,
        "loading_allocated_bytes": loading.allocated_bytes,
        "peak_rss_bytes": peak_rss or peak_rss_bytes(),
        "processes": processes,
        **results,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **versions},
        "cores": sorted(os.sched_getaffinity(0)),
    }
    print(json.dumps(line), flush=True)
