#!/usr/bin/env python3
"""Run a Keras program and its port to parallelcnn: test accuracy of several seeds, the time of both, and their length.

    scripts/peers.sh scripts/benchmarks/keras_example.py --data-dir FOLDER --seeds 5

The programs are `examples/mnist_in_keras.py` and `examples/mnist_in_parallelcnn.py`, which the guide shows. They run as
they are, except that the seed is set, and that Keras reads the same files of MNIST instead of downloading its own.

Every run is a new process; the two programs take turns, and the next seed begins with the other one. Two times are
measured: of the call that trains (`fit` or `train`: compiling or loading of kernels, all epochs, validation after each
one), and of the whole command, with imports and data. Not included is the first compilation of parallelcnn's kernels,
which stay in numba's cache: an untimed run comes first.

Keras runs on its fastest backend: each way to set it up gets one trial of two epochs, and the fastest takes part. The
settings that are tried beside the defaults are arguments of `model.compile`.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import (
    Spread,
    existing_folder,
    file_to_write,
    markdown_table,
    page_head,
    positive_integer,
    print_page,
    run_to_the_end,
)
from processes import ProgramFailed, on_cores, run_json

EXAMPLES = Path(__file__).with_name("examples")
# (backend, arguments of compile); 422 minibatches are an epoch, the steps of one call into TensorFlow's graph.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "TensorFlow": ("tensorflow", {}),
    "TensorFlow, jit_compile=False": ("tensorflow", {"jit_compile": False}),
    "TensorFlow, jit_compile=False, steps_per_execution=422": (
        "tensorflow",
        {"jit_compile": False, "steps_per_execution": 422},
    ),
    "JAX": ("jax", {}),
    "PyTorch": ("torch", {}),
}
PROGRAMS = {"Keras": "mnist_in_keras.py", "parallelcnn": "mnist_in_parallelcnn.py"}


def main() -> int:
    options = _options()
    if options.one_run:
        print(json.dumps(one_run(options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="keras-example-") as folder, on_cores(options.cores):
        import parallelcnn as pc

        try:
            _write_for_keras(Path(folder), pc.load_data("mnist", options.data_dir))
        except pc.ParallelCNNError as error:
            print(f"keras_example.py: error: {error}", file=sys.stderr)
            return 2
        try:
            print_page(compare(options, Path(folder)), options.out)
        except ProgramFailed as error:
            print(f"keras_example.py: error: {error}", file=sys.stderr)
            return 1
    return 0


# ---- one run


def one_run(options: argparse.Namespace) -> dict[str, float]:
    """Run a program in this process; returns its accuracy, its epochs and the seconds of the call that trains."""
    seconds: list[float] = []

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            returned = function(*arguments, **named)
            seconds.append(time.perf_counter() - started)
            return returned

        return call

    if options.one_run == "Keras":
        import keras
        import numpy as np

        with np.load(options.data_dir / "mnist.npz") as file:
            sets = (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
        compile_with, settings = keras.Sequential.compile, json.loads(options.settings)
        keras.Sequential.compile = lambda *a, **named: compile_with(*a, **settings, **named)
        keras.Sequential.fit = timed(keras.Sequential.fit)
        keras.datasets.mnist.load_data = lambda: sets
    else:
        import parallelcnn as pc

        load = pc.load_data
        pc.load_data, pc.train = lambda name: load(name, options.data_dir), timed(pc.train)
    file = EXAMPLES / PROGRAMS[options.one_run]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(with_numbers(file.read_text(), options.seed, options.epochs), str(file), "exec"), names)
    history = names["history"]
    values = history.history["val_accuracy"] if options.one_run == "Keras" else history["val_accuracy"]
    return {"training": seconds[0], "epochs": len(values), "accuracy": 100 * float(names["accuracy"])}


def with_numbers(source: str, seed: int, epochs: int | None) -> str:
    """A program with another seed and, unless None, another number of epochs."""
    line = re.search(r"^seed, epochs, batch_size = 0, (\d+), (\d+)$", source, re.M)
    assert line is not None
    changed = f"seed, epochs, batch_size = {seed}, {line[1] if epochs is None else epochs}, {line[2]}"
    return source.replace(line[0], changed)


def start(name: str, seed: int, settings: str, data_dir: Path, epochs: int | None = None) -> dict[str, float]:
    """One run in a process of its own, with the seconds from its start to its exit."""
    backend, arguments = SETTINGS[settings]
    words = ["--one-run", name, "--seed", str(seed), "--settings", json.dumps(arguments), "--data-dir", str(data_dir)]
    words += [] if epochs is None else ["--epochs", str(epochs)]
    started = time.perf_counter()
    found = run_json([sys.executable, __file__, *words], {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"})
    return {**found, "command": time.perf_counter() - started}


def _write_for_keras(folder: Path, sets: Any) -> None:
    """MNIST as Keras has it: (n, 28, 28) uint8."""
    import numpy as np

    (x_train, y_train), (x_test, y_test) = ((one.images.reshape(-1, 28, 28), one.labels) for one in sets)
    np.savez(folder / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


# ---- the page


def compare(options: argparse.Namespace, folder: Path) -> str:
    """Run everything; returns the page."""
    trials: dict[str, float] = {}
    lines = []
    for settings in SETTINGS:
        try:
            trials[settings] = start("Keras", 0, settings, folder, epochs=2)["training"]
            lines.append(f"* {settings}: {trials[settings]:.1f} s")
        except ProgramFailed as error:
            lines.append(f"* {settings}: {' '.join(str(error).split())[-200:]}")
        print(lines[-1], file=sys.stderr, flush=True)
    if not trials:
        raise ProgramFailed("Keras runs with none of its backends; scripts/peers.sh installs them")
    best = min(trials, key=lambda settings: trials[settings])
    folders = {"Keras": folder, "parallelcnn": options.data_dir}
    start("parallelcnn", 0, best, options.data_dir, epochs=1)  # compiles
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for seed in range(options.seeds):
        for name in list(PROGRAMS)[:: -1 if seed % 2 else 1]:
            runs[name].append(start(name, seed, best, folders[name]))
            print(name, seed, json.dumps(runs[name][-1]), file=sys.stderr, flush=True)
    return page_of(runs, best, lines, options.cores)


def page_of(runs: dict[str, list[dict[str, float]]], best: str, trials: list[str], cores: int) -> str:
    rows = []
    for name, found in runs.items():
        accuracies = [run["accuracy"] for run in found]
        rows.append(
            [
                f"Keras on {best}" if name == "Keras" else name,
                str(length(EXAMPLES / PROGRAMS[name])),
                f"{statistics.mean(accuracies):.2f} ({min(accuracies):.2f} to {max(accuracies):.2f})",
                *(Spread.of(run[what] for run in found).text(1) for what in ("training", "command")),
                Spread.of(run["epochs"] for run in found).text(0),
            ]
        )
    ratios = [
        Spread.of(theirs[what] / ours[what] for theirs, ours in zip(runs["Keras"], runs["parallelcnn"], strict=True))
        for what in ("training", "command")
    ]
    rows.append(["Keras / parallelcnn", "", "", *(ratio.text() for ratio in ratios), ""])
    header = ["", "lines", "test accuracy [%]", "training [s]", "whole command [s]", "epochs"]
    packages = ("parallelcnn", "numpy", "numba", "keras", "tensorflow-cpu", "jax", "torch")
    trial_lines = "\n".join(trials)
    return f"""{page_head("A Keras program and its port to parallelcnn", *packages)}.

`scripts/benchmarks/examples/mnist_in_keras.py` and `scripts/benchmarks/examples/mnist_in_parallelcnn.py` on MNIST, on
{cores} cores: seeds 0 to {len(runs["Keras"]) - 1}, in turns. Accuracies: mean (lowest to highest); times and epochs:
medians (lowest to highest), ratios within a seed. Lines are those that are not empty.

{markdown_table(header, rows)}

Trials of two epochs of Keras, of which the fastest went into the table:

{trial_lines}
"""


def length(file: Path) -> int:
    """Number of lines that are not empty."""
    return sum(bool(line.strip()) for line in file.read_text().splitlines())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data-dir", type=existing_folder, required=True, metavar="DIR", help="folder with the files of MNIST"
    )
    parser.add_argument("--seeds", type=positive_integer, default=5, help="number of seeds: 0, 1, ... (default: 5)")
    parser.add_argument("--cores", type=positive_integer, default=2, help="(default: 2)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    parser.add_argument("--one-run", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--settings", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    usable = len(os.sched_getaffinity(0))
    if options.cores > usable:
        parser.error(f"--cores must be at most {usable}, the cores that this process may use, got {options.cores}")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
