"""`parallelcnn evaluate`: loss and accuracy of a trained network on a test set."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelcnn.cli.options import add_setting, path, warn_of_too_many_threads
from parallelcnn.cli.output import say
from parallelcnn.errors import InputError
from parallelcnn.resilience.signals import catch_interrupts, interrupts_ending_the_process
from parallelcnn.training.config import LOSSES, NETWORK, RANKS

if TYPE_CHECKING:
    from parallelcnn.comm import Transport
    from parallelcnn.network import NetworkHandler

_SUMMARY_LIMIT = 2**24  # bytes that are read of a summary.json: hosts and threads of 100,000 ranks

# Of a model file without its run: the losses whose networks predict this.
_LOSS_OF_PREDICTION = {"softmax": "SoftmaxCrossEntropy", "sigmoid": "BinaryCrossEntropy", "output": "MeanSquaredError"}

_EXAMPLES = """\
examples:
  parallelcnn evaluate runs/a                        on the test set of the run
  parallelcnn evaluate runs/a --data other/images    on another test set
  parallelcnn evaluate model.npz --data mnist        a model file without its run directory
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a trained network on a test set",
        usage="parallelcnn evaluate MODEL [options]",
        description="Print loss and accuracy of a trained network on a test set.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=True)
    parser.add_argument("file", type=path, metavar="MODEL", help="model.npz, or the run directory that holds it")
    network, ranks = (parser.add_argument_group(title) for title in (NETWORK, RANKS))
    add_setting(network, "data", " [default: the data of the run]", default=None)
    add_setting(network, "data_dir")
    add_setting(network, "skip_broken")
    add_setting(network, "model", "; needed only if its layers are your own", default=None)
    add_setting(network, "loss", " [default: that of the run]", default=None)
    add_setting(ranks, "threads")
    add_setting(ranks, "timeout")


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn import losses
    from parallelcnn.cli.data_sets import load_data_sets
    from parallelcnn.cli.models import find_model
    from parallelcnn.comm import Serial, run_together
    from parallelcnn.data import Dataset
    from parallelcnn.data.readers.decoding import ImageOptions
    from parallelcnn.files.archive import open_npz
    from parallelcnn.files.model import image_options_of, load_model
    from parallelcnn.trainer import evaluate
    from parallelcnn.training.compilation import compile_in_turns
    from parallelcnn.training.preparation import check_fit
    from parallelcnn.training.progress import percent, show_compilation
    from parallelcnn.training.threads import check_threads

    def find() -> tuple[Path, dict[str, Any], ImageOptions | None]:
        check_threads(options.threads)
        if options.loss not in (None, *LOSSES):
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {options.loss!r}")
        if options.file == "":
            raise InputError("evaluate takes a model file, got ''")
        file = Path(options.file)
        file = file / "model.npz" if os.path.isdir(file) else file
        with open_npz(file, "model file"):  # if there is none, say so before anything about its data
            pass
        return file, summary_of(file), image_options_of(file, skip_broken=options.skip_broken)

    catch_interrupts()
    file, summary, like = run_together(comm, find)
    warn_of_too_many_threads(options, comm)
    summary = comm.allgather(summary)[0]
    trained_on, other_data = summary.get("data"), options.data is not None
    if not other_data:
        if trained_on is None:
            raise InputError(
                f"evaluate needs --data NAME|DIR: {file.with_name('summary.json')}, "
                f"which would say what {file} was trained on, is missing or unreadable"
            ).together()
        options.data, options.data_dir = data_of_run(summary, options.data_dir)
    with show_compilation(comm, sys.stderr):
        test_set = load_data_sets(options, comm, like).test

    def load() -> "tuple[NetworkHandler, losses.Loss]":
        layers = None if options.model is None else find_model(options.model, test_set.classes)
        network = load_model(file, layers)
        is_of_the_run = summary.get("parameters_sha256") == network.parameters_sha256()
        if not other_data and not is_of_the_run:
            raise InputError(
                f"evaluate needs --data NAME|DIR: {file.with_name('summary.json')} is about another model than {file}"
            )
        name = options.loss or (summary.get("loss") if is_of_the_run else None)
        by_prediction = _LOSS_OF_PREDICTION.get(network.prediction, "SoftmaxCrossEntropy")
        loss = getattr(losses, LOSSES.get(name or "", by_prediction))()
        check_fit(network, test_set, loss)
        return network, loss

    comm.status = "reading the network"
    network, loss = run_together(comm, load)
    one_sample = Dataset(test_set.images[:1], test_set.labels[:1], test_set.classes)
    with show_compilation(comm, sys.stderr), interrupts_ending_the_process():
        compile_in_turns(comm, lambda: evaluate(network, one_sample, Serial(), loss=loss, threads=1))
    result = evaluate(network, test_set, comm, loss=loss, threads=options.threads)
    if comm.rank == 0:
        if other_data and trained_on is not None and trained_on != test_set.name:
            say(f"trained on {trained_on}, evaluated on {test_set.name}")
        say(f"{test_set.name}: test loss {result.loss:.4f}, test accuracy {percent(result.accuracy)}")
    return 0


def data_of_run(summary: dict[str, Any], data_dir: str | None = None) -> tuple[str | None, str | None]:
    """The settings `data` and `data_dir` that load the data of a run again; None for `data`: not known.

    Args:
        summary: see `summary_of`.
        data_dir: where MNIST is now.
    """
    trained_on, directory = summary.get("data"), summary.get("data_directory")
    if trained_on == "mnist":
        return trained_on, data_dir or directory
    return directory or trained_on, data_dir


def summary_of(file: Path) -> dict[str, Any]:
    """What `summary.json` beside a model file says of data and parameters; empty if that is missing or unreadable."""
    from parallelcnn.files.regular import open_regular

    try:
        with open_regular(file.with_name("summary.json")) as opened:
            summary = json.loads(opened.read(_SUMMARY_LIMIT))
        kept = {name: summary.get(name) for name in ("data", "data_directory", "loss", "parameters_sha256")}
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}
    return kept if all(value is None or isinstance(value, str) for value in kept.values()) else {}
