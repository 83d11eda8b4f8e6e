#!/usr/bin/env python3
"""Time predictions of one image, and count wrong ones while many threads predict on one network.

    scripts/benchmarks/predictions.py --out scripts/benchmarks/results/predictions.md

The network is the paper's, with images of 28 x 28 in uint8. Single predictions run on one core. Each thread predicts
images in its own random order, one at a time, or some of them at once, and compares every probability with the one that
a single thread has found.
"""

import argparse
import threading
import time

import numpy as np
from pages import Spread, file_to_write, markdown_table, page_head, positive_integer, print_page, run_to_the_end

import parallelcnn as pc

IMAGES = 500
AT_ONCE = (1, 1, 1, 7, 48)  # images in a prediction


def main() -> int:
    options = _options()
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28), seed=0)
    network.input_range = (0.0, 1.0)  # as after training on pixels: predictions check the scale
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28), np.uint8)
    kinds = {"uint8": images, "float32": (images / np.float32(255)), "float64": images / 255}
    rows = []
    for name, some in kinds.items():
        network.predict(some[:1])
        times = [one_round(network, some, options.predictions) for _ in range(1 + options.rounds)][1:]
        medians = Spread.of(1e6 * np.median(one) for one in times)
        rows.append([f"one image in {name}", medians.text(1), Spread.of(1e6 * one.min() for one in times).text(1)])
        print(" | ".join(rows[-1]), flush=True)
    predicted, wrong, seconds = predict_on_threads(network, images, options.threads, options.total)
    found = f"""{options.threads} threads predicted {predicted:,} images on one network in {seconds:.1f} s,
1, 7 or 48 at once. Wrong: {wrong:,}."""
    head = page_head("Single predictions, and predictions on many threads", "numpy", "numba")
    header = ["", "median [us]", "shortest [us]"]
    about = f"""The paper's network. {options.rounds} rounds of {options.predictions:,} predictions: medians of the
rounds, lowest and highest in brackets."""
    print_page("\n\n".join([f"{head}.", about, markdown_table(header, rows), found]) + "\n", options.out)
    return 1 if wrong else 0


def one_round(network: pc.NetworkHandler, images: np.ndarray, predictions: int) -> np.ndarray:
    """The time of each of so many predictions of one image [s]."""
    singles = [images[i : i + 1] for i in range(len(images))]
    times = np.empty(predictions)
    for i in range(predictions):
        image = singles[i % len(singles)]
        started = time.perf_counter()
        network.predict(image)
        times[i] = time.perf_counter() - started
    return times


def predict_on_threads(
    network: pc.NetworkHandler, images: np.ndarray, threads: int, total: int
) -> tuple[int, int, float]:
    """Predict at least `total` images on so many threads at the same time.

    Returns:
        the number of images predicted, how many of them differ by more than rounding from the predictions of a single
        thread, and the time [s].
    """
    wanted = network.predict(images)
    counts = np.zeros((threads, 2), np.int64)

    def predict(thread: int) -> None:
        rng = np.random.default_rng(thread)
        while counts[thread, 0] < -(-total // threads):
            some = rng.integers(0, len(images), AT_ONCE[rng.integers(len(AT_ONCE))])
            wrong = (np.abs(network.predict(images[some]) - wanted[some]) > 1e-5).any(axis=1)
            counts[thread] += len(some), np.count_nonzero(wrong)

    workers = [threading.Thread(target=predict, args=(thread,)) for thread in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    predicted, wrong = counts.sum(axis=0).tolist()
    return predicted, wrong, time.perf_counter() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=positive_integer, default=8, help="that predict at the same time (8)")
    parser.add_argument("--total", type=positive_integer, default=100_000, help="images they predict (100,000)")
    parser.add_argument("--predictions", type=positive_integer, default=3000, help="of one image, in a round (3,000)")
    parser.add_argument("--rounds", type=positive_integer, default=7, help="(7)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    return parser.parse_args()


if __name__ == "__main__":
    run_to_the_end(main)
