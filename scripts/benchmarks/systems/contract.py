"""The options and output of every program in this folder, so that one benchmark can start all of them.

Each trains a network of `../networks.py` in its framework, by plain SGD in float32, on data in memory in the layout
that suits the framework best, from parallelcnn's initial weights and over parallelcnn's minibatches. So the losses of
two programs can be compared number by number. A program runs in one of two ways:

* alone: it trains `--epochs` epochs and prints a line of JSON; {"skipped": reason} if its framework is not installed;
* with `--turns FOLDER`: it waits, asleep, for files `go-1`, `go-2`, ... in the folder (JSON: samples, epochs), trains,
  and answers with `done-1`, `done-2`, ...; it ends when there is a file `stop`, or when the folder is gone.
"""

import argparse
import ctypes
import functools
import json
import os
import platform
import resource
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from networks import NETWORKS

import parallelcnn as pc

Array = np.ndarray
_RANDOM_BYTES = 2**24  # of random images
_LONGEST_WAIT = 3600.0  # how often to look for the next turn [s]


class Trainer(ABC):
    """A network that can be trained many times.

    Attributes:
        task: what to train.
        rank, ranks: number of this process, and how many there are.
        versions: those of the framework.
    """

    task: "Task"
    versions: dict[str, str]
    rank, ranks = 0, 1

    @abstractmethod
    def reset(self) -> None:
        """Go back to the initial weights."""

    @abstractmethod
    def train(self, samples: int, epochs: int) -> tuple[float, Sequence[float] | None]:
        """Train on the first samples of the training set; returns the seconds of the loop, and all losses if known."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """train_accuracy, test_accuracy and test_loss."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        return [value]

    def close(self) -> None:  # noqa: B027  most have no other ranks
        """Disconnect from the other ranks."""


class Framework(Trainer):
    """A network in a framework other than parallelcnn, evaluated by its logits."""

    @abstractmethod
    def logits(self, images: Array) -> Array:
        """(n, 10) for images as `Task.float_sets` has them."""

    def evaluate(self) -> dict[str, float]:
        found = []
        for images, labels in self.task.float_sets:
            pieces = [np.asarray(self.logits(images[i : i + 1000])) for i in range(0, len(labels), 1000)]
            outputs = np.concatenate(pieces).astype(np.float64)
            outputs -= outputs.max(1, keepdims=True)
            losses = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(len(labels)), labels]
            found.append((float(losses.mean()), float((outputs.argmax(1) == labels).mean())))
        return {"train_accuracy": found[0][1], "test_accuracy": found[1][1], "test_loss": found[1][0]}


class NotInstalled(Exception):
    """The framework or a part of it cannot be used here; the message says why."""


class Task:
    """What to train: options, layers, data, initial weights.

    Attributes:
        layers, input_shape: those of the network.
        train_set, test_set: (images (n, C, H, W) uint8, labels (n,) int64).
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.layers, self.input_shape = NETWORKS[options.network]
        sets = (
            [_random_set(self.input_shape, seed) for seed in (0, 1)]
            if options.data == "random"
            else pc.load_data(options.data, options.data_dir)
        )
        pairs = [(one.images.reshape(len(one), *_with_channels(one.images.shape[1:])), one.labels) for one in sets]
        (images, labels), self.test_set = pairs
        if images.shape[1:] != self.input_shape or sets[0].classes != 10:
            raise pc.ParallelCNNError(
                f"--network {options.network} takes images of shape {self.input_shape} in 10 classes, "
                f"got {images.shape[1:]} in {sets[0].classes}"
            )
        self.train_set = images[: options.samples], labels[: options.samples]

    @functools.cached_property
    def float_sets(self) -> list[tuple[Array, Array]]:
        """The data sets with images as float32 in [0, 1]."""
        return [
            (np.multiply(images, 1 / 255, dtype=np.float32), labels)
            for images, labels in (self.train_set, self.test_set)
        ]

    def start_arrays(self) -> list[Array]:
        """The initial parameters, in the order of the layers."""
        network = pc.NetworkHandler(self.layers, self.input_shape, seed=self.options.seed)
        return [network.named_arrays[slot.key] for slot in network.layout.slots]

    def start_values(self, channels_last: bool = False) -> list[dict[str, Array]]:
        """{"weight", "bias"} of every layer with parameters, from a model file of parallelcnn.

        Weights are (K, C, R, S) or (out, in) with inputs flattened by channel, row, column; with `channels_last`, as
        Keras and JAX have them: (R, S, C, K), or (in, out) with inputs flattened by row, column, channel.
        """
        network = pc.NetworkHandler(self.layers, self.input_shape, seed=self.options.seed)
        with tempfile.TemporaryDirectory() as folder:
            pc.save_model(Path(folder, "start.npz"), network)
            with np.load(Path(folder, "start.npz")) as file:
                held = {name: file[name] for name in file.files}
        values, shape, flattened = [], tuple(self.input_shape), None
        for i, layer in enumerate(self.layers):
            own = {name: held[f"{i}.{name}"] for name in ("weight", "bias") if f"{i}.{name}" in held}
            if own and channels_last and own["weight"].ndim == 4:
                own["weight"] = own["weight"].transpose(2, 3, 1, 0)
            elif own and channels_last:
                weight = own["weight"]
                if flattened is not None:
                    weight = weight.reshape(-1, *flattened).transpose(0, 2, 3, 1).reshape(weight.shape)
                own["weight"], flattened = weight.T, None
            values += [own] if own else []
            flattened = shape if isinstance(layer, pc.Flatten) else flattened
            shape = tuple(layer.output_shape(shape))
        return values

    def minibatches(self, samples: int, epoch: int) -> Iterator[Array]:
        """The samples of each minibatch of an epoch (counted from 1), in parallelcnn's order."""
        order = np.random.default_rng((self.options.seed, epoch)).permutation(samples)
        for start in range(0, samples, self.options.batch_size):
            yield order[start : start + self.options.batch_size]


def _random_set(input_shape: tuple[int, ...], seed: int) -> pc.Dataset:
    rng = np.random.default_rng(seed)
    n = 1000 if seed else _RANDOM_BYTES // int(np.prod(input_shape))
    return pc.Dataset(rng.integers(0, 256, (n, *input_shape), np.uint8), rng.integers(0, 10, n), 10)


def _with_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 3 else (1, *shape)


class Meter:
    """Measure the time inside `with`, and the bytes allocated if the counter is preloaded.

    Attributes:
        seconds: wall time [s].
        allocated_bytes: requested from the C library, freed or not (see scripts/paper/count_allocations.c), or None.
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


def main(framework: str, variants: Sequence[str], make: Any) -> None:
    """Run a program of this folder.

    Args:
        variants: ways to set the framework up, the first of which is the default.
        make: a function (task) -> Trainer; may raise NotInstalled.
    """
    options = _options(framework, variants)
    try:
        with Meter() as loading:
            task = Task(options)
            trainer = make(task)
    except NotInstalled as error:
        _skip(options, str(error))
    except pc.ParallelCNNError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    if options.turns:
        take_turns(options.turns, trainer)
    else:
        _train_once(options, task, trainer, loading)
    trainer.close()


def take_turns(folder: Path, trainer: Trainer) -> None:
    """Train when files in the folder say so (see above), until the folder has a file `stop` or is gone."""
    about = {"versions": trainer.versions, "parallelcnn": str(Path(pc.__file__).parent)}
    number = 0
    answer, content = folder / "ready", about
    while True:
        if trainer.rank == 0 and folder.exists():
            unfinished = answer.with_name(f"{answer.name}.unfinished")
            unfinished.write_text(json.dumps(content))
            unfinished.rename(answer)
        number += 1
        asked = folder / f"go-{number}"
        until = time.monotonic() + _LONGEST_WAIT
        while not asked.exists():
            if (folder / "stop").exists() or not folder.exists() or time.monotonic() > until:
                return
            time.sleep(0.002)
        wanted = json.loads(asked.read_text())
        seconds, _ = trainer.train(wanted["samples"], wanted["epochs"])
        answer, content = folder / f"done-{number}", {"train_seconds": seconds}


def _train_once(options: argparse.Namespace, task: Task, trainer: Trainer, loading: Meter) -> None:
    samples = len(task.train_set[1])
    trainer.train(samples, 1)  # compiles
    trainer.reset()
    with Meter() as training:
        seconds, losses = trainer.train(samples, options.epochs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = trainer.gather((peak, loading.allocated_bytes, training.allocated_bytes))
    results = trainer.evaluate()
    if trainer.rank != 0:
        return
    if options.losses and losses is not None:
        options.losses.write_text("".join(f"{loss:.9g}\n" for loss in losses))
    names = ("network", "variant", "data", "epochs", "batch_size", "learning_rate", "seed", "threads")
    counted = training.allocated_bytes is not None
    line = {
        "framework": options.framework,
        **{name: getattr(options, name) for name in names},
        "samples_seen": samples * options.epochs,
        "train_seconds": seconds,
        "loading_allocated_bytes": sum(loaded for _, loaded, _ in figures) if counted else None,
        "allocated_bytes": sum(trained for _, _, trained in figures) if counted else None,
        "peak_rss_bytes": max(peak for peak, _, _ in figures),
        "processes": trainer.ranks,
        **results,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **trainer.versions},
        "cores": sorted(os.sched_getaffinity(0)),
    }
    print(json.dumps(line), flush=True)


def _skip(options: argparse.Namespace, reason: str) -> NoReturn:
    """Exit without a result, which is not an error."""
    skipped = {"framework": options.framework, "variant": options.variant, "skipped": " ".join(reason.split())[:300]}
    if options.turns:
        (options.turns / "ready").write_text(json.dumps(skipped))
    print(json.dumps(skipped), flush=True)
    sys.exit(0)


def _options(framework: str, variants: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"Train a network with {framework} and print one line of JSON.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--network", choices=NETWORKS, default="paper")
    parser.add_argument("--data", default="digits", help="random, digits, mnist or a folder with the four IDX files")
    parser.add_argument("--data-dir", help="folder with the files of mnist")
    parser.add_argument("--samples", type=int, metavar="N", help="train on the first N only")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100, help="samples in a minibatch, over all processes")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and sample order")
    parser.add_argument("--threads", type=int, default=1, help="threads of this process")
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--losses", type=Path, metavar="FILE", help="write the loss of every minibatch, one per line")
    parser.add_argument("--turns", type=Path, metavar="FOLDER", help="train in turns, when files in the folder say so")
    options = parser.parse_args()
    for name, least in (("epochs", 1), ("batch_size", 1), ("threads", 1), ("seed", 0), ("samples", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    options.framework = framework
    return options
