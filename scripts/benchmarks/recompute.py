#!/usr/bin/env python3
"""Measure what `Recompute` saves and costs on vgg-small: peak memory, and processor time per training step.

    scripts/benchmarks/recompute.py --out scripts/benchmarks/results/recompute.md

Each run is a process of its own with one thread, because the peak memory of a process never falls. A round runs every
variant once. The first round, which compiles the kernels, is not counted.
"""

import argparse
import json
import resource
import sys
import time
from statistics import median

from pages import Spread, file_to_write, markdown_table, page_head, positive_integer, print_page, run_to_the_end
from processes import options_as_words, run_json

import parallelcnn as pc

Layers = tuple[pc.Layer, ...]
VARIANTS = ("as it is", "by pair", "by convolution")


def main() -> int:
    options = _options()
    if options.variant is not None:
        print(json.dumps(run_variant(options.variant, options.samples, options.steps)))
        return 0
    rounds = []
    for _ in range(1 + options.rounds):
        rounds.append([start(variant, options) for variant in VARIANTS])
    print_page(f"{page_head('Recompute', 'numpy', 'numba')}.\n\n{table(rounds[1:], options)}\n", options.out)
    return 0


def layers_of(variant: str) -> Layers:
    """vgg-small, with a `Recompute` for each pair of convolutions, or for each convolution, but the last."""
    layers = pc.vgg_small()
    pieces = {"as it is": [], "by pair": [5, 5], "by convolution": [2, 3, 2, 3, 2]}[variant]
    found: Layers = ()
    for size in pieces:  # a convolution, its normalisation, and the pooling after the second one
        found, layers = (*found, pc.Recompute(layers[:size])), layers[size:]
    return (*found, *layers)


def run_variant(variant: str, samples: int, steps: int) -> dict[str, float]:
    """Train in this process; returns processor seconds of a step, and the peak memory of tape and process [MiB]."""
    import numpy as np

    network = pc.NetworkHandler(layers_of(variant), (3, 32, 32))
    network.replica.block_size = samples
    images = np.random.default_rng(0).integers(0, 256, (samples, 3, 32, 32), np.uint8)
    dy = np.full((10, samples), 1e-3, np.float32)
    times = []
    for _ in range(1 + steps):
        started = time.process_time()
        network.forward(network.load(images, training=True), training=True)
        network.backward(dy)
        times.append(time.process_time() - started)
    return {
        "seconds": median(times[1:]),
        "tape": network.replica.plan_size() / 2**20,
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def start(variant: str, options: argparse.Namespace) -> dict[str, float]:
    words = options_as_words({"variant": variant, "samples": options.samples, "steps": options.steps})
    return run_json([sys.executable, __file__, *words], {"OPENBLAS_NUM_THREADS": "1"})


def table(rounds: list[list[dict[str, float]]], options: argparse.Namespace) -> str:
    rows = []
    for place, variant in enumerate(VARIANTS):
        runs = [each[place] for each in rounds]
        ratio = Spread.of(each[place]["seconds"] / each[0]["seconds"] for each in rounds)
        rows.append(
            [
                variant,
                f"{runs[0]['tape']:.0f} MiB",
                Spread.of(run["process"] for run in runs).text(0, " MiB"),
                Spread.of(1e3 * run["seconds"] for run in runs).text(0, " ms"),
                ratio.text(unit="x"),
            ]
        )
    return f"""A step of `vgg-small` on {options.samples} samples of 32 x 32 at once, forwards and backwards on one
thread: its processor time, which other programs change little. Medians of {len(rounds)} rounds, lowest and highest in
brackets. The tape holds all activations and gradients of activations; the process also holds Python, the libraries, and
the parameters.

{markdown_table(["Recompute", "tape", "peak of the process", "a step", "relative to the first"], rows)}"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=positive_integer, default=128, help="that a step takes at once (128)")
    parser.add_argument("--steps", type=positive_integer, default=5, help="of each run, after the first (5)")
    parser.add_argument("--rounds", type=positive_integer, default=5, help="in which every variant runs once (5)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="also write the page to this file")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    run_to_the_end(main)
