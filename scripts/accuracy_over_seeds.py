#!/usr/bin/env python3
"""Trains the paper's network once a seed and prints each test accuracy, the lowest and the median.

    scripts/accuracy_over_seeds.py --data mnist --data-dir FOLDER --seeds 5

What is not an option of this script is passed on to `parallelcnn train`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from parallelcnn.comm import mpirun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5 of them)")
    parser.add_argument("--ranks", type=int, default=2, help="(default: 2)")
    options, passed_on = parser.parse_known_args()
    launcher = [mpirun(), "-n", str(options.ranks)] if options.ranks > 1 else []
    accuracies = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "parallelcnn", "train", *passed_on, "--seed", str(seed), "--out", folder]
            subprocess.run([*launcher, *command], check=True, stdout=subprocess.DEVNULL)
            summary = json.loads((Path(folder) / "summary.json").read_text())
        accuracies.append(100 * summary["test_accuracy"])
        print(f"seed {seed}   {accuracies[-1]:.2f} %   {summary['train_seconds']:.2f} s", flush=True)
    print(f"lowest {min(accuracies):.2f} %, median {statistics.median(accuracies):.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
