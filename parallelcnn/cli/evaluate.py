"""`parallelcnn evaluate`: loss and accuracy of a trained network on a test set."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_data_options, add_model_option, add_rank_options, load_data_sets
from parallelcnn.errors import InputError
from parallelcnn.resilience.signals import catch_interrupts, interrupts_ending_the_process

if TYPE_CHECKING:
    from parallelcnn.comm import Communicator
    from parallelcnn.network import NetworkHandler

_EXAMPLES = """\
examples:
  parallelcnn evaluate runs/a
  parallelcnn evaluate model.npz --data mnist
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a trained network on a test set",
        description="Print loss and accuracy of a trained network on a test set.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=True)
    parser.add_argument("file", metavar="MODEL", help="model.npz, or the run directory that holds it")
    add_data_options(parser)
    add_model_option(parser, default=None, note="; only if its layers are your own")
    add_rank_options(parser)


def run(options: argparse.Namespace, comm: "Communicator") -> int:
    from parallelcnn.cli.progress import percent
    from parallelcnn.comm import Serial, run_together
    from parallelcnn.data import Dataset
    from parallelcnn.files.model import load_model
    from parallelcnn.models import find_model
    from parallelcnn.training.compilation import compile_in_turns
    from parallelcnn.training.evaluation import evaluate
    from parallelcnn.training.preparation import check_fit
    from parallelcnn.training.threads import check_threads

    catch_interrupts()
    run_together(comm, lambda: check_threads(options.threads))
    _, test_set = load_data_sets(options, comm)

    def load() -> "NetworkHandler":
        if options.file == "":
            raise InputError("evaluate takes a model file, got ''")
        file = Path(options.file)
        layers = None if options.model is None else find_model(options.model, test_set.classes)
        network = load_model(file / "model.npz" if os.path.isdir(file) else file, layers)
        check_fit(network, test_set)
        return network

    comm.activity = "reading the network"
    network = run_together(comm, load)
    one_sample = Dataset(test_set.images[:1], test_set.labels[:1], test_set.classes)
    with interrupts_ending_the_process():
        compile_in_turns(comm, lambda: evaluate(network, one_sample, Serial(), threads=1))
    result = evaluate(network, test_set, comm, threads=options.threads)
    if comm.rank == 0:
        print(f"{test_set.name}: test loss {result.loss:.4f}, test accuracy {percent(result.accuracy)}")
    return 0
