#!/usr/bin/env python3
"""Trains the paper's network once a seed and prints each test accuracy, the lowest and the median.

    scripts/accuracy_over_seeds.py --data mnist --data-dir FOLDER --seeds 5

What is not an option of this script is passed on to `parallelcnn train`.
"""

import argparse
import statistics
import sys

from launching import on_ranks, summary_of
from measuring import positive_integer, run_to_the_end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=positive_integer, default=5, help="seeds 0, 1, ... (default: 5 of them)")
    parser.add_argument("--ranks", type=positive_integer, default=2, help="(default: 2)")
    options, passed_on = parser.parse_known_args()
    accuracies = []
    for seed in range(options.seeds):
        command = [sys.executable, "-m", "parallelcnn", "train", *passed_on, "--seed", str(seed)]
        summary = summary_of(on_ranks(options.ranks, command))
        accuracies.append(100 * summary["test_accuracy"])
        print(f"seed {seed}   {accuracies[-1]:.2f} %   {summary['train_seconds']:.2f} s", flush=True)
    print(f"lowest {min(accuracies):.2f} %, median {statistics.median(accuracies):.2f} %")
    return 0


if __name__ == "__main__":
    run_to_the_end(main)
