"""What `cifar10.py` trains: ResNet-20 on CIFAR-10 by one recipe, in parallelcnn and in PyTorch.

Both start from the same weights and see the same samples in the same order, with the same learning rates. They differ
in the random numbers of the augmentation, and in batch normalisation: parallelcnn's statistics are those of a shard of
the minibatch, by default about 32 samples, PyTorch's those of all 128.

The parts of the recipe are published ones:
* SGD with Nesterov momentum 0.9, minibatches of 128, images that are cropped at random after padding with 4 zeros on
  each side, and flipped at random; weights drawn by He initialisation: He et al. 2016, arXiv:1512.03385, section 4.2.
* Weight decay 5e-4 (Zagoruyko & Komodakis 2016, arXiv:1605.07146, section 3), here not of biases and normalisation.
* One cycle of the learning rate over few epochs (Smith & Topin 2018, arXiv:1708.07120).
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
from parallelcnn.layers.normalize import mean_and_deviation

sys.path.append(str(Path(__file__).with_name("systems")))
import contract
from train_pytorch import build

Array = np.ndarray

SIZE, BORDER = 32, 4  # pixels of an image, and of the zeros around it before it is cropped
BATCH_SIZE = 128
RATES = pc.OneCycle(0.2, rise=0.25)
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


# ---- data


def load(folder: Path, cache: Path) -> list[tuple[Array, Array]]:
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
    """A training by the recipe.

    Args:
        options: epochs, seed, threads.
        sets: as `load` returns them.
    """

    def __init__(self, options: argparse.Namespace, sets: list[tuple[Array, Array]]) -> None:
        self.options, (self.train_set, self.test_set) = options, sets
        self.mean, self.deviation = mean_and_deviation(self.train_set[0])

    @abstractmethod
    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        """Train from the initial weights on the first samples; returns seconds and the mean loss of each epoch."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the test set."""

    def initial_network(self) -> pc.NetworkHandler:
        """ResNet-20 with its initial weights, after the layers that prepare the images."""
        prepare = pc.RandomFlip(), pc.RandomCrop(BORDER), pc.Normalize(self.mean, self.deviation)
        layers = (*prepare, *pc.resnet20())
        network = pc.NetworkHandler(layers, (3, SIZE, SIZE), self.options.seed)
        rng = np.random.default_rng(self.options.seed)
        for weight in network.named_arrays.values():
            if weight.ndim == 4:  # parallelcnn's own choice for a convolution without relu is Glorot's
                weight[...] = rng.normal(0, np.sqrt(2 / weight[0].size), weight.shape)
        return network


class Ours(Recipe):
    """The recipe in parallelcnn, in one process."""

    def __init__(self, options: argparse.Namespace, sets: list[tuple[Array, Array]]) -> None:
        super().__init__(options, sets)
        self.versions = {"parallelcnn": pc.__version__}
        self.reset()

    def reset(self) -> None:
        self._network = self.initial_network()

    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        images, labels = self.train_set
        some, one = (pc.Dataset(images[:n], labels[:n], 10) for n in (samples, 1))
        optimizer = pc.SGD(RATES, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
        say = pc.LambdaCallback(on_epoch_end=lambda epoch, logs: say_loss(epoch, logs["loss"]))
        how = {"seed": self.options.seed, "threads": self.options.threads, "callbacks": [say], "verbose": 0}
        history = pc.train(self._network, some, one, optimizer, epochs, BATCH_SIZE, **how)
        return history.train_seconds, np.array(history.losses).reshape(epochs, -1).mean(1).tolist()

    def evaluate(self) -> dict[str, float]:
        result = pc.evaluate(self._network, pc.Dataset(*self.test_set, 10), threads=self.options.threads)
        return {"test_accuracy": float(result["accuracy"]), "test_loss": result.loss}


class PyTorch(Recipe):
    """The recipe in PyTorch, in its memory format channels_last, eager or compiled.

    The images are in memory as bytes, channels last and with their border: one indexing operation crops and flips a
    minibatch.
    """

    def __init__(self, options: argparse.Namespace, sets: list[tuple[Array, Array]], compiled: bool = False) -> None:
        super().__init__(options, sets)
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        try:
            import torch
        except ImportError as error:
            raise contract.NotInstalled(f"PyTorch is not installed ({error})") from None
        self._torch, self.versions = torch, {"torch": torch.__version__}
        torch.set_num_threads(options.threads)
        border = ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0))
        self._images, self._test_images = (
            torch.from_numpy(np.pad(images.transpose(0, 2, 3, 1), border)) for images, _ in sets
        )
        self._labels, self._test_labels = (torch.from_numpy(labels) for _, labels in sets)
        self._numbers = [255 * torch.tensor(numbers, dtype=torch.float32) for numbers in (self.mean, self.deviation)]
        self._network = build(pc.resnet20(), (3, SIZE, SIZE)).to(memory_format=torch.channels_last)
        self._loss = torch.compile(self._loss_of) if compiled else self._loss_of
        self.reset()

    def reset(self) -> None:
        network = self.initial_network()
        slots = [network.named_arrays[slot.key] for slot in network.layout.slots]
        with self._torch.no_grad():
            for parameter, value in zip(self._network.parameters(), slots, strict=True):
                parameter.copy_(self._torch.from_numpy(value))
        for module in self._network.modules():
            if hasattr(module, "reset_running_stats"):
                module.reset_running_stats()

    def _loss_of(self, x: Any, y: Any) -> Any:
        return self._torch.nn.functional.cross_entropy(self._network(x), y)

    def _cut(self, images: Any, rows: Any, columns: Any, flips: Any) -> Any:
        """Windows of images with a border: (n, 3, 32, 32) floats, channels last in memory."""
        torch = self._torch
        place = torch.arange(SIZE)
        across = torch.where(flips[:, None], SIZE - 1 - place, place)
        sample = torch.arange(len(images))[:, None, None]
        cut = images[sample, (rows[:, None] + place)[:, :, None], (columns[:, None] + across)[:, None, :]]
        return ((cut - self._numbers[0]) / self._numbers[1]).permute(0, 3, 1, 2)

    def minibatches(self, samples: int, epoch: int) -> Iterator[Array]:
        """As in parallelcnn's default sampler."""
        order = np.random.default_rng((self.options.seed, epoch)).permutation(samples)
        for start in range(0, samples, BATCH_SIZE):
            yield order[start : start + BATCH_SIZE]

    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        torch = self._torch
        decayed = [parameter for parameter in self._network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self._network.parameters() if parameter.ndim == 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=MOMENTUM, nesterov=True, fused=True)
        steps, step, means = epochs * -(-samples // BATCH_SIZE), 0, []
        torch.manual_seed(self.options.seed)
        self._network.train()
        started = time.perf_counter()
        for epoch in range(1, epochs + 1):
            losses = []
            for minibatch in self.minibatches(samples, epoch):
                chosen, n = torch.from_numpy(minibatch), len(minibatch)
                rows, columns = torch.randint(2 * BORDER + 1, (2, n))
                x = self._cut(self._images[chosen], rows, columns, torch.rand(n) < 0.5)
                for group in optimizer.param_groups:
                    group["lr"] = RATES.at(step, steps)
                optimizer.zero_grad()
                loss = self._loss(x, self._labels[chosen])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                step += 1
            means.append(float(torch.stack(losses).mean()))
            say_loss(epoch, means[-1])
        return time.perf_counter() - started, means

    def evaluate(self) -> dict[str, float]:
        torch, outputs = self._torch, []
        self._network.eval()
        with torch.no_grad():
            for some in self._test_images.split(1000):
                centre = torch.full((len(some),), BORDER)
                x = self._cut(some, centre, centre, torch.zeros(len(some), dtype=torch.bool))
                outputs.append(self._network(x))
            logits = torch.cat(outputs)
            loss = torch.nn.functional.cross_entropy(logits, self._test_labels)
        accuracy = (logits.argmax(1) == self._test_labels).double().mean()
        return {"test_accuracy": float(accuracy), "test_loss": float(loss)}


def say_loss(epoch: int, loss: float) -> None:
    print(f"epoch {epoch}: mean training loss {loss:.4f}", file=sys.stderr, flush=True)


# The first two reach the same accuracies; the third only runs faster or slower.
SYSTEMS: dict[str, Any] = {
    "parallelcnn": Ours,
    "pytorch": PyTorch,
    "pytorch-compiled": lambda options, sets: PyTorch(options, sets, compiled=True),
}
NAMES = {"parallelcnn": "parallelcnn", "pytorch": "PyTorch, channels_last", "pytorch-compiled": "PyTorch, compiled"}
