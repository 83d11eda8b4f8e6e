#!/usr/bin/env python3
"""Times the training of one network with parallelcnn and with PyTorch, on the same cores, in turns.

    pip install torch
    scripts/compare_with_pytorch.py --data mnist --data-dir FOLDER --ranks 2 --rounds 5

Both train the paper's network from the same kind of start, by plain SGD, over the same minibatches in float32, and
the time is that of the training loop alone: no start-up, no compilation, no loading of data, no evaluation. PyTorch
gets as many threads as parallelcnn gets ranks, its whole training set as a float32 tensor beforehand, a warm-up, and
is run with both of its memory formats, of which the faster counts. Machines are noisy: every round runs everything
once, and the figure to quote is the median of the ratios within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parallelcnn.comm import mpirun


def main() -> int:
    options = _options()
    if options.pytorch_format:
        print(json.dumps(train_with_pytorch(options)))
        return 0
    ratios = []
    print(f"{'round':>5} {'parallelcnn':>14} {'PyTorch':>14} {'channels_last':>14} {'ratio':>7}   test accuracies")
    for number in range(1, options.rounds + 1):
        ours = run_parallelcnn(options)
        theirs = {name: run_pytorch(options, name) for name in ("contiguous", "channels_last")}
        seconds = [ours["train_seconds"], *(run["train_seconds"] for run in theirs.values())]
        ratios.append(min(seconds[1:]) / seconds[0])
        accuracies = ", ".join(f"{100 * run['test_accuracy']:.2f} %" for run in (ours, *theirs.values()))
        columns = " ".join(f"{value:>12.2f} s" for value in seconds)
        print(f"{number:>5} {columns} {ratios[-1]:>6.2f}x   {accuracies}", flush=True)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(
        f"parallelcnn on {options.ranks} ranks trains {middle:.2f} times as fast as PyTorch on {options.ranks} threads "
        f"(median of {len(ratios)} rounds, {low:.2f} to {high:.2f}; {options.epochs} epochs, minibatch "
        f"{options.batch_size})"
    )
    return 0


def run_parallelcnn(options: argparse.Namespace) -> dict:
    """One training as a user starts it; its summary."""
    launcher = [mpirun(), "-n", str(options.ranks)] if options.ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, sys.executable, "-m", "parallelcnn", "train", *_shared(options), "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "summary.json").read_text())


def run_pytorch(options: argparse.Namespace, memory_format: str) -> dict:
    """One training with PyTorch, in a process of its own."""
    command = [sys.executable, __file__, *_shared(options), "--ranks", str(options.ranks)]
    done = subprocess.run(
        [*command, "--pytorch-format", memory_format],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(options.ranks)},
    )
    return json.loads(done.stdout)


def train_with_pytorch(options: argparse.Namespace) -> dict:
    """The same training in PyTorch, eager; only here is torch needed."""
    import torch
    from torch import nn

    from parallelcnn import load_data

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.ranks)
    channels_last = options.pytorch_format == "channels_last"
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    sets = []
    for dataset in load_data(options.data, options.data_dir):
        images = torch.from_numpy(dataset.images.copy()).unsqueeze(1).float() / 255
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        sets.append((images, torch.from_numpy(dataset.labels)))
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    (images, labels), (test_images, test_labels) = sets

    def step(optimizer: torch.optim.Optimizer, chosen: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()

    warm_up = torch.optim.SGD(network.parameters(), lr=0.0)
    for _ in range(10):
        step(warm_up, torch.arange(options.batch_size))
    optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate)
    started = time.perf_counter()
    for _ in range(options.epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), options.batch_size):
            step(optimizer, order[start : start + options.batch_size])
    seconds = time.perf_counter() - started
    with torch.no_grad():
        right = (network(test_images).argmax(1) == test_labels).float().mean().item()
    return {"train_seconds": seconds, "test_accuracy": right}


def _shared(options: argparse.Namespace) -> list[str]:
    """The options that parallelcnn's command and this script have in common."""
    names = ("data", "data_dir", "epochs", "batch_size", "learning_rate", "seed")
    given = {name: getattr(options, name) for name in names}
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times parallelcnn against PyTorch on the same cores.")
    parser.add_argument("--data", default="mnist", help="digits, mnist or a folder (default: mnist)")
    parser.add_argument("--data-dir", help="where mnist lies")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2, help="parallelcnn's ranks, PyTorch's threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pytorch-format", choices=("contiguous", "channels_last"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
