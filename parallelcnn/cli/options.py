"""The argument parser, and options that several sub-commands share."""

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from parallelcnn.comm import Communicator
    from parallelcnn.data import Dataset


class UsageError(Exception):
    """Arguments that the parser rejects; the message holds the usage line."""


class Parser(argparse.ArgumentParser):
    """An argument parser for many ranks: rank 0 alone prints the help, and a mistake is raised instead of printed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage()}{self.prog}: error: {message}")

    def print_help(self, file: Any = None) -> None:
        from parallelcnn.comm import launched_rank

        if launched_rank() == 0:
            super().print_help(file)


def add_data_options(parser: argparse._ActionsContainer, default: str | None = "digits") -> None:
    """Add --data and --data-dir.

    Args:
        default: None: the data of the run.
    """
    parser.add_argument(
        "--data",
        default=default,
        metavar="NAME|DIR",
        help=f"digits, mnist, or a directory with the four IDX files [default: {default or 'the data of the run'}]",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="directory of MNIST's files; by default the cache, filled by a download"
    )


def add_model_option(parser: argparse._ActionsContainer, default: str | None = "paper", note: str = "") -> None:
    """Add --model.

    Args:
        note: when the option is needed, for its help.
    """
    ending = f" [default: {default}]" if default else ""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME|FILE.py:FUNCTION",
        help=f"the network: paper, lenet5, or your own function that returns the layers{note}{ending}",
    )


def add_batch_size_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--batch-size", type=int, default=100, metavar="N", help="samples in a minibatch, over all ranks [default: 100]"
    )


def add_rank_options(parser: argparse._ActionsContainer) -> None:
    """Add --threads and --timeout."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of each rank; by default its share of the node's cores, or fewer if there is too little work",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long a rank may wait for the others; then the job ends, and a message names the missing ranks; "
        "0: no limit [default: 300]",
    )


def load_data_sets(options: argparse.Namespace, comm: "Communicator") -> "tuple[Dataset, Dataset]":
    """Load the training and the test set, one copy for each node. Collective: every rank of `comm` must call it."""
    from parallelcnn.comm import share_on_node
    from parallelcnn.data import load_data

    comm.activity = "reading the data set"
    return share_on_node(comm, lambda: load_data(options.data, options.data_dir))
