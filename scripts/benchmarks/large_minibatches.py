#!/usr/bin/env python3
"""Train a small network on CIFAR-10 with minibatches of several sizes: up to which size is the accuracy kept?

    scripts/benchmarks/large_minibatches.py train --images IMAGES --folder FOLDER
    scripts/benchmarks/large_minibatches.py page --folder FOLDER --out scripts/benchmarks/results/large-minibatches.md

A rank needs some samples of each minibatch to be busy, so the size of the minibatch limits the number of ranks. Each
size is trained twice, with a learning rate in proportion to the minibatch and with that of the smallest minibatch.
Both rise linearly in the first epochs.

IMAGES is as in `cifar10.py`. FOLDER keeps the decoded images and the results, a line of JSON for each training, from
which `page` writes the page. Trainings whose result is in FOLDER are not repeated. The accuracy does not depend on
what else the machine does, so it may run in the background.
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cifar10_recipe as recipe
from pages import (
    add_result,
    existing_folder,
    file_to_write,
    markdown_table,
    positive_integer,
    print_page,
    results_of,
    run_to_the_end,
)

import parallelcnn as pc
from parallelcnn.layers.normalize import mean_and_deviation

KIND = "large-minibatches"
BATCH_SIZES = (100, 400, 1600, 6400)
# 0.1 for 256 samples, and the momentum and weight decay: Goyal et al. 2017, arXiv:1706.02677, section 5.1.
RATE_PER_SAMPLE = 0.1 / 256
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
BORDER = 4  # pixels by which images are moved at random
WARM_UP = 2  # epochs in which the learning rate rises
KEPT = 1.0  # difference of accuracies that counts as none [points]
SAMPLES = 50  # of a minibatch that a rank should have at least


class Training(NamedTuple):
    """What distinguishes one training from another of the same network and number of epochs.

    Attributes:
        batch_size: samples in a minibatch.
        rate_for: the size of minibatch that the learning rate is meant for.
        seed: of weights, order of the samples and augmentation.
    """

    batch_size: int
    rate_for: int
    seed: int

    @property
    def rate(self) -> float:
        """The learning rate after the warm-up, with four digits."""
        return float(f"{RATE_PER_SAMPLE * self.rate_for:.4g}")


def trainings(batch_sizes: Sequence[int], seeds: Sequence[int]) -> Iterator[Training]:
    """All trainings, seed after seed, so that an interrupted run has all sizes of its first seeds.

    With the smallest minibatch both learning rates are the same one: it is trained once.
    """
    smallest = min(batch_sizes)
    for seed in seeds:
        for batch_size in sorted(batch_sizes):
            for rate_for in sorted({smallest, batch_size}):
                yield Training(batch_size, rate_for, seed)


def network(images: recipe.Array, seed: int) -> pc.NetworkHandler:
    """Three convolutions with batch normalisation and pooling, and the layers that prepare and augment the images."""
    prepare = pc.RandomFlip(), pc.RandomCrop(BORDER), pc.Normalize(*mean_and_deviation(images))
    blocks = [
        layer
        for filters in (16, 32, 64)
        for layer in (
            pc.Conv2D(filters, 3, padding="same", bias=False),
            pc.MaxPool2D(2),
            pc.BatchNorm(activation="relu"),
        )
    ]
    return pc.NetworkHandler((*prepare, *blocks, pc.Flatten(), pc.Dense(10)), images.shape[1:], seed)


def schedule(rate: float, steps_of_an_epoch: int) -> pc.Cosine:
    """A linear rise over the first epochs, then half a cosine to 0."""
    return pc.Cosine(rate, warmup=WARM_UP * steps_of_an_epoch)


# ---- train


def train(options: argparse.Namespace) -> int:
    """Train all that is not in the folder yet."""
    (images, labels), test = recipe.load(options.images, options.folder / "cifar10.npz")
    train_set, one = (pc.Dataset(images[:n], labels[:n], 10) for n in (len(images), 1))
    test_set = pc.Dataset(*test, 10)
    done = {(Training(*line["training"]), line["epochs"]) for line in results_of(_results(options), KIND)}
    for training in trainings(options.batch_sizes, options.seeds):
        if (training, options.epochs) in done:
            continue
        print(training, file=sys.stderr, flush=True)
        rates = schedule(training.rate, -(-len(images) // training.batch_size))
        optimizer = pc.SGD(rates, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
        net = network(images, training.seed)
        how: dict[str, Any] = {"seed": training.seed, "threads": options.threads, "verbose": 0}
        found: dict[str, Any] = {"training": training, "rate": training.rate, "epochs": options.epochs}
        try:
            history = pc.train(net, train_set, one, optimizer, options.epochs, training.batch_size, **how)
        except pc.DivergenceError as error:
            found |= {"test_accuracy": None, "diverged": str(error)}
        else:
            result = pc.evaluate(net, test_set, threads=options.threads)
            last = history.losses[-(history.steps // options.epochs) :]
            found |= {"test_accuracy": float(result["accuracy"]), "test_loss": result.loss}
            found |= {"last_epochs_loss": statistics.mean(last), "steps": history.steps}
            found |= {"train_seconds": history.train_seconds}
        add_result(_results(options), KIND, found, "parallelcnn", "numpy", "numba")
    return 0


def _results(options: argparse.Namespace) -> Path:
    return Path(options.folder) / "results.jsonl"


# ---- page


def write(options: argparse.Namespace) -> int:
    found = list(results_of(_results(options), KIND))
    if not found:
        raise pc.InputError(f"--folder must hold results of `train`, see {_results(options)}")
    print_page(page_of(found), options.out)
    return 0


def page_of(found: list[dict[str, Any]]) -> str:
    """The page from stored results. Seeds with which not every minibatch was trained are left out.

    Raises:
        InputError: if the trainings have different numbers of epochs, or there is no such seed.
    """
    lengths = sorted({line["epochs"] for line in found})
    if len(lengths) > 1:
        raise pc.InputError(f"all trainings must have the same number of epochs, got {lengths}")
    by_training = {Training(*line["training"]): line for line in found}
    sizes, seeds = (sorted({getattr(one, name) for one in by_training}) for name in ("batch_size", "seed"))
    seeds = [seed for seed in seeds if all(one in by_training for one in trainings(sizes, [seed]))]
    if not seeds:
        raise pc.InputError(
            f"of at least one seed there must be a training with each minibatch, {sizes}: `train` first"
        )
    about = sorted({f"{line['machine']}. {line['versions']}." for line in found})
    words = " ".join(["--epochs", str(lengths[0]), "--seeds", *map(str, seeds), "--batch-sizes", *map(str, sizes)])
    commands = (f"train --images IMAGES {words}", "page")
    accuracies = {
        (size, rate_for): Accuracies.of(by_training[Training(size, rate_for, seed)] for seed in seeds)
        for size in sizes
        for rate_for in (sizes[0], size)
    }
    smallest = Training(sizes[0], sizes[0], 0).rate
    by_seed = [*(f"seed {seed}" for seed in seeds), "mean"]
    header = ["minibatch", f"ranks of {SAMPLES}", "steps", "scaled rate", *by_seed]
    header += [f"rate {smallest:g}: {by_seed[0]}", *by_seed[1:]]
    rows = []
    for size in sizes:
        steps = next((str(line["steps"]) for line in found if line["training"][0] == size and "steps" in line), "-")
        rate = f"{Training(size, size, 0).rate:g}"
        cells = [*accuracies[size, size].cells(), *accuracies[size, sizes[0]].cells()]
        rows.append([f"{size:,}", str(max(size // SAMPLES, 1)), steps, rate, *cells])
    return (
        "\n\n".join(
            [
                f"# Large minibatches: test accuracy on CIFAR-10, {lengths[0]} epochs",
                "\n".join(f"    scripts/benchmarks/large_minibatches.py {one} --folder FOLDER" for one in commands),
                " ".join(about),
                _METHOD.format(warm_up=WARM_UP, decay=WEIGHT_DECAY, momentum=MOMENTUM, samples=SAMPLES),
                markdown_table(header, rows),
                _conclusion(sizes, {place: one.mean for place, one in accuracies.items()}),
            ]
        )
        + "\n"
    )


class Accuracies(NamedTuple):
    """Test accuracies [%] of one minibatch and learning rate, one for each seed; NaN where the training diverged."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, lines: Iterable[dict[str, Any]]) -> "Accuracies":
        found = [line["test_accuracy"] for line in lines]
        return cls(tuple(math.nan if one is None else 100 * one for one in found))

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def cells(self) -> list[str]:
        """The values, then their mean."""
        return ["diverged" if math.isnan(value) else f"{value:.2f}" for value in (*self.values, self.mean)]


_METHOD = """A network of three convolutions (16, 32 and 64 filters of 3 x 3), each with pooling and batch
normalisation, and a dense layer, on the JPEG files of `cifar10.py`. Images are cropped and flipped at random. SGD with
Nesterov momentum {momentum} and weight decay {decay:g}. The scaled learning rate is 0.1 for 256 samples (Goyal et al.
2017, arXiv:1706.02677), in proportion to the minibatch; beside it, all minibatches have the rate of the smallest one.
Both rates rise linearly over {warm_up} epochs, then fall to 0 along half a cosine. Statistics of batch normalisation
are those of a shard of about 25 samples, whatever the minibatch is. The table has the test accuracy [%] after the last
epoch, and how many ranks have {samples} samples of the minibatch each. All trainings see the same number of images;
the steps are those of the whole training."""


def _conclusion(sizes: list[int], means: dict[tuple[int, int], float]) -> str:
    """Up to which minibatch the accuracy is kept.

    Args:
        means: mean accuracy by size of the minibatch and size that the learning rate is meant for [%].
    """
    least = means[sizes[0], sizes[0]] - KEPT

    def largest(kept: Iterable[bool]) -> str:
        good = [size for size, _ in itertools.takewhile(lambda one: one[1], zip(sizes, kept, strict=True))]
        return f"{good[-1]:,}" if good else "none"

    scaled = largest(means[size, size] >= least for size in sizes)
    unscaled = largest(means[size, sizes[0]] >= least for size in sizes)
    return (
        f"The mean accuracy is at most {KEPT:g} point below that of minibatches of {sizes[0]:,} up to minibatches of "
        f"{scaled} with the scaled rate, and of {unscaled} without scaling."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True, metavar="train|page")
    run, page = (actions.add_parser(name) for name in ("train", "page"))
    run.add_argument("--images", type=existing_folder, required=True, metavar="DIR", help="the JPEG files")
    run.add_argument("--batch-sizes", type=positive_integer, nargs="+", default=BATCH_SIZES, metavar="N")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="(default: 0 1)")
    run.add_argument("--epochs", type=positive_integer, default=8, metavar="N", help="(default: 8)")
    run.add_argument("--threads", type=positive_integer, default=1, metavar="N", help="(default: 1)")
    for each in (run, page):
        each.add_argument(
            "--folder", type=existing_folder, required=True, metavar="DIR", help="for decoded images and results"
        )
    page.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    return parser.parse_args()


def main() -> int:
    options = _options()
    try:
        return {"train": train, "page": write}[options.action](options)
    except pc.ParallelCNNError as error:
        print(f"large_minibatches.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_to_the_end(main)
