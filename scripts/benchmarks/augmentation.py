#!/usr/bin/env python3
"""Measure the layers of augmentation on images of CIFAR's size: processor time for each image, on one thread.

    scripts/benchmarks/augmentation.py --out scripts/benchmarks/results/augmentation.md

A round loads one minibatch with each set of layers. The images are drawn from 50,000, so they are in no cache.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from pages import Spread, file_to_write, markdown_table, page_head, positive_integer, print_page, run_to_the_end

import parallelcnn as pc

FLIP, CROP, NORMALIZE = pc.RandomFlip(), pc.RandomCrop(4), pc.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
LOADED = [(), (FLIP, CROP), (NORMALIZE,), (FLIP, CROP, NORMALIZE)]
ALONE = [
    *(FLIP, CROP, NORMALIZE, pc.RandomRotation(15), pc.RandomZoom(0.1), pc.RandomBrightness(0.2)),
    *(pc.RandomContrast(0.2), pc.Cutout(8), pc.MixUp(0.2)),
]
SHAPE = (3, 32, 32)


def main() -> int:
    options = _options()
    times = measure(options.images, options.samples, options.rounds)
    print_page(f"{page_head('Augmentation', 'numpy', 'numba')}.\n\n{text(times, options)}\n", options.out)
    return 0


def measure(images: int, samples: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds for each image: by name, of each round but the first, which compiles."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (images, *SHAPE), np.uint8)
    tasks: dict[str, Callable[[np.ndarray], object]] = {}
    for layers in LOADED:
        replica = pc.NetworkHandler((*layers, pc.Flatten()), SHAPE).replica
        tasks[", ".join(map(repr, layers)) or "loading alone"] = lambda some, replica=replica: replica.load(
            pictures, some, training=True, fused=True
        )
    x = np.moveaxis(rng.random((samples, *SHAPE), np.float32), 0, -1).copy()
    for layer in ALONE:
        replica = pc.NetworkHandler((layer,), SHAPE).new_replica({0: layer})
        replica.load(pictures, rng.integers(0, images, samples), training=True)
        tasks[f"{layer} behind another layer"] = lambda _, replica=replica: replica.forward(x, training=True)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            some = rng.integers(0, images, samples)
            started = time.thread_time()
            task(some)
            times[name].append(1e6 * (time.thread_time() - started) / samples)
    return {name: some[1:] for name, some in times.items()}


def text(times: dict[str, list[float]], options: argparse.Namespace) -> str:
    alone = times["loading alone"]
    rows = []
    for name, some in times.items():
        more = "" if "behind" in name else f"{np.median(some) - np.median(alone):.2f} us"
        spread = Spread(*np.quantile(some, [0.5, 0.1, 0.9]))
        rows.append([f"`{name}`" if "(" in name else name, spread.text(2, " us"), f"{min(some):.2f} us", more])
    return f"""Processor time for an image of 3 x 32 x 32 in minibatches of {options.samples}, on one thread: medians
of {len(alone)} rounds, and in brackets what a tenth of them stays below and above.

{markdown_table(["layers", "for an image", "least", "more than loading alone"], rows)}"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=positive_integer, default=50_000, help="from which are drawn (50000)")
    parser.add_argument("--samples", type=positive_integer, default=128, help="of a minibatch (128)")
    parser.add_argument("--rounds", type=positive_integer, default=500, help="after the first (500)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="also write the page to this file")
    return parser.parse_args()


if __name__ == "__main__":
    run_to_the_end(main)
