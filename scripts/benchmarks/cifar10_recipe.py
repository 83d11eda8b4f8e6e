"""What the recipes of `cifar10.py` share: the images, and training in parallelcnn and in PyTorch.

Both systems start from the same weights and see the same samples in the same order, with the same learning rates. They
differ in the random numbers of the augmentation, and in batch normalisation: parallelcnn's statistics are those of a
shard of the minibatch, PyTorch's those of the whole minibatch.
"""

import argparse
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import parallelcnn as pc
from parallelcnn.data.sampler import SampleOrder
from parallelcnn.layers.normalize import mean_and_deviation

sys.path.append(str(Path(__file__).with_name("systems")))
import contract

Array = np.ndarray
Sets = list[tuple[Array, Array]]

SIZE = 32  # pixels of an image, in each direction
NAMES = {
    "parallelcnn": "parallelcnn",
    "parallelcnn-bfloat16": "parallelcnn, bfloat16",
    "pytorch": "PyTorch, channels_last",
    "pytorch-compiled": "PyTorch, compiled",
    "pytorch-bfloat16": "PyTorch, channels_last, bfloat16",
}


# ---- data


def load(folder: Path, cache: Path) -> Sets:
    """The training set and the test set: (images (n, 3, 32, 32) uint8, labels (n,) int64).

    Args:
        folder: has files `train/CLASS/*.jpg` and `test/CLASS/*.jpg`.
        cache: file of the decoded images. It is written if it does not exist.

    Raises:
        DataError: if the folder has no such files, or an image has another size.
    """
    if not cache.exists():
        arrays: dict[str, Array] = {}
        for part in ("train", "test"):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = _decode(folder / part)
        unfinished = cache.with_name(f".{cache.stem}.{os.getpid()}.npz")
        np.savez(unfinished, **arrays)
        unfinished.replace(cache)
    with np.load(cache) as file:
        return [(file[f"{part}_images"], file[f"{part}_labels"]) for part in ("train", "test")]


def _decode(folder: Path) -> tuple[Array, Array]:
    from PIL import Image

    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).glob("*.jpg"))]
    if not files:
        raise pc.DataError(f"--images must be a folder with files train/CLASS/*.jpg and test/CLASS/*.jpg, see {folder}")
    images = np.empty((len(files), 3, SIZE, SIZE), np.uint8)
    for image, (file, _) in zip(images, files, strict=True):
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape != (SIZE, SIZE, 3):
            raise pc.DataError(f"{file}: an image must have {SIZE} x {SIZE} pixels, got {pixels.shape[:2]}")
        image[...] = pixels.transpose(2, 0, 1)
    return images, np.array([label for _, label in files])


# ---- training


class Recipe(contract.Trainer):
    """A training by a recipe.

    Args:
        options: seed, threads.
        sets: as `load` returns them.
        precision: that of parallelcnn's network.
    """

    BATCH_SIZE: int

    def __init__(self, options: argparse.Namespace, sets: Sets, precision: str = "float32") -> None:
        self.options, (self.train_set, self.test_set), self.precision = options, sets, precision
        self.mean, self.deviation = mean_and_deviation(self.train_set[0])

    @abstractmethod
    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        """Train from the initial weights on the first samples; returns seconds and the mean loss of each epoch."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """`test_accuracy` on the test set, and other results."""


class PyTorch(Recipe):
    """A recipe in PyTorch, in its memory format channels_last, eager or compiled, with autocast to bfloat16 or without.

    The images are in memory as bytes, channels last and with their border: one indexing operation crops and flips a
    minibatch.
    """

    BORDER: int  # pixels around an image, before it is cropped
    PADDING: Any  # what they are; see numpy.pad
    LABEL_SMOOTHING = 0.0

    def __init__(
        self, options: argparse.Namespace, sets: Sets, *, compiled: bool = False, bfloat16: bool = False
    ) -> None:
        super().__init__(options, sets)
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        try:
            import torch
        except ImportError as error:
            raise contract.NotInstalled(f"PyTorch is not installed ({error})") from None
        self._torch, self._is_autocast, self.versions = torch, bfloat16, {"torch": torch.__version__}
        torch.set_num_threads(options.threads)
        border = ((0, 0), (self.BORDER,) * 2, (self.BORDER,) * 2, (0, 0))
        self._images, self._test_images = (
            torch.from_numpy(np.pad(images.transpose(0, 2, 3, 1), border, self.PADDING)) for images, _ in sets
        )
        self._labels, self._test_labels = (torch.from_numpy(labels) for _, labels in sets)
        self._numbers = [255 * torch.tensor(numbers, dtype=torch.float32) for numbers in (self.mean, self.deviation)]
        self._network = self.module().to(memory_format=torch.channels_last)
        self._loss = torch.compile(self._loss_of) if compiled else self._loss_of
        self.reset()

    @abstractmethod
    def module(self) -> Any:
        """The network, whose parameters are in parallelcnn's order."""

    @abstractmethod
    def initial_network(self) -> pc.NetworkHandler:
        """The network of parallelcnn that has the initial weights."""

    @abstractmethod
    def optimizer(self) -> Any:
        """A new optimizer, whose groups have a `factor` of the learning rate."""

    @abstractmethod
    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""

    @abstractmethod
    def minibatches(self, samples: int, epochs: int) -> Iterator[tuple[int, Array, Any]]:
        """The epoch (counted from 1), the samples and which of them are flipped, of every minibatch."""

    def after_step(self, step: int, steps: int) -> None:
        """Called after every step, counted from 1."""

    def reset(self) -> None:
        network = self.initial_network()
        slots = [network.named_arrays[slot.key] for slot in network.layout.slots]
        with self._torch.no_grad():
            for parameter, value in zip(self._network.parameters(), slots, strict=True):
                parameter.copy_(self._torch.from_numpy(value))
        for module in self._network.modules():
            if hasattr(module, "reset_running_stats"):
                module.reset_running_stats()

    def _output_of(self, x: Any) -> Any:
        with self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._is_autocast):
            return self._network(x).float()

    def _loss_of(self, x: Any, y: Any) -> Any:
        entropy = self._torch.nn.functional.cross_entropy
        return entropy(self._output_of(x), y, label_smoothing=self.LABEL_SMOOTHING)

    def _cut(self, images: Any, rows: Any, columns: Any, flips: Any) -> Any:
        """Windows of images with a border: (n, 3, 32, 32) floats, channels last in memory."""
        torch = self._torch
        place = torch.arange(SIZE)
        across = torch.where(flips[:, None], SIZE - 1 - place, place)
        sample = torch.arange(len(images))[:, None, None]
        cut = images[sample, (rows[:, None] + place)[:, :, None], (columns[:, None] + across)[:, None, :]]
        return ((cut - self._numbers[0]) / self._numbers[1]).permute(0, 3, 1, 2)

    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        torch = self._torch
        optimizer = self.optimizer()
        torch.manual_seed(self.options.seed)
        self._network.train()
        minibatches = list(self.minibatches(samples, epochs))
        losses: list[list[Any]] = [[] for _ in range(epochs)]
        started = time.perf_counter()
        for step, (epoch, minibatch, flips) in enumerate(minibatches):
            chosen, n = torch.from_numpy(minibatch), len(minibatch)
            rows, columns = torch.randint(2 * self.BORDER + 1, (2, n))
            x = self._cut(self._images[chosen], rows, columns, flips)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step, len(minibatches)) * group["factor"]
            optimizer.zero_grad()
            loss = self._loss(x, self._labels[chosen])
            loss.backward()
            optimizer.step()
            self.after_step(step + 1, len(minibatches))
            losses[epoch - 1].append(loss.detach())
            if step + 1 == len(minibatches) or minibatches[step + 1][0] > epoch:
                say_loss(epoch, float(torch.stack(losses[epoch - 1]).mean()))
        seconds = time.perf_counter() - started
        return seconds, [float(torch.stack(some).mean()) for some in losses]

    def test_logits(self, row: int, column: int, flipped: bool = False) -> Array:
        """(n, 10), of windows of the test images that begin at this row and column of the image with its border."""
        torch, outputs = self._torch, []
        self._network.eval()
        with torch.no_grad():
            for some in self._test_images.split(1000):
                rows, columns = (torch.full((len(some),), place) for place in (row, column))
                flips = torch.full((len(some),), flipped)
                outputs.append(self._output_of(self._cut(some, rows, columns, flips)))
        return torch.cat(outputs).numpy()


def epochs_of(order: SampleOrder, samples: int, epochs: int) -> Iterator[tuple[int, Array]]:
    """The epoch and the samples of every minibatch, as parallelcnn trains on them."""
    seen = 0
    while seen < epochs * samples:
        epoch, minibatch = order.after(seen)
        yield epoch, minibatch
        seen += len(minibatch)


def seconds_of_process() -> float:
    """How long ago this process was started [s]."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # in clock ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def say_loss(epoch: int, loss: float) -> None:
    print(f"epoch {epoch}: mean training loss {loss:.4f}", file=sys.stderr, flush=True)


def systems_of(ours: type[Recipe], pytorch: type[PyTorch]) -> dict[str, Any]:
    """The systems of NAMES by a recipe: functions (options, sets) -> Recipe."""
    return {
        "parallelcnn": ours,
        "parallelcnn-bfloat16": lambda options, sets: ours(options, sets, "bfloat16"),
        "pytorch": pytorch,
        "pytorch-compiled": lambda options, sets: pytorch(options, sets, compiled=True),
        "pytorch-bfloat16": lambda options, sets: pytorch(options, sets, bfloat16=True),
    }
