"""The argument parser, and options that several sub-commands share."""

import argparse
import os
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from parallelcnn.comm import Transport
    from parallelcnn.data import Dataset
    from parallelcnn.training.config import TrainConfig


def path(text: str) -> str:
    """A path as a shell user means it: `~` and `~user` expanded, also where a shell does not, as in --out=~/runs."""
    return os.path.expanduser(text)


def data_name_or_path(text: str) -> str:
    """The same for a name or a directory, without trailing slashes. `mnist/` is a directory, unlike `mnist`."""
    expanded = path(text)
    stripped = expanded.rstrip(os.sep)
    return stripped if os.sep in stripped else expanded


class UsageError(Exception):
    """Arguments that the parser rejects; the message holds the usage line."""


class Parser(argparse.ArgumentParser):
    """An argument parser for many ranks: rank 0 alone prints the help, and a mistake is raised instead of printed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage()}{self.prog}: error: {message}")

    def print_help(self, file: Any = None) -> None:
        from parallelcnn.resilience.launch import launched_rank

        if launched_rank() == 0:
            super().print_help(file)


def add_data_options(parser: argparse._ActionsContainer, default: str | None = "digits") -> None:
    """Add --data and --data-dir.

    Args:
        default: None: the data of the run.
    """
    parser.add_argument(
        "--data",
        type=data_name_or_path,
        default=default,
        metavar="NAME|DIR",
        help=f"digits, mnist, or a directory with the four IDX files [default: {default or 'the data of the run'}]",
    )
    parser.add_argument(
        "--data-dir",
        type=path,
        metavar="DIR",
        help="directory of MNIST's files; by default the cache, filled by a download",
    )


def add_model_option(parser: argparse._ActionsContainer, default: str | None = "paper", note: str = "") -> None:
    """Add --model.

    Args:
        note: when the option is needed, for its help.
    """
    ending = f" [default: {default}]" if default else ""
    parser.add_argument(
        "--model",
        type=path,
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


def load_data_sets(options: "argparse.Namespace | TrainConfig", comm: "Transport") -> "tuple[Dataset, Dataset]":
    """Load the training and the test set, one copy for each node. Collective: every rank of `comm` must call it."""
    from parallelcnn.comm import share_on_node
    from parallelcnn.data import load_data

    comm.status = "reading the data set"
    return share_on_node(comm, lambda: load_data(options.data, options.data_dir))


def warn_of_too_many_threads(options: "argparse.Namespace | TrainConfig", comm: "Transport") -> None:
    """Warn, on rank 0, if --threads asks for more threads than a node has cores.

    Collective: every rank of `comm` must call it.
    """
    from parallelcnn.cli.summary import plural
    from parallelcnn.comm import this_host
    from parallelcnn.errors import TrainingWarning
    from parallelcnn.resources import core_quota, usable_cores

    everyone = comm.allgather((this_host(), usable_cores(), core_quota()))
    if options.threads is None or comm.rank != 0:
        return
    for host in dict.fromkeys(host for host, _, _ in everyone):
        cores_of_ranks, quotas = zip(
            *((cores, quota) for where, cores, quota in everyone if where == host), strict=True
        )
        ranks = len(cores_of_ranks)
        cores = min(len(frozenset().union(*cores_of_ranks)), *(quota for quota in quotas if quota is not None), 10**9)
        fitting = max(1, cores // ranks)
        if options.threads > fitting:
            warnings.warn(
                f"--threads {options.threads}: {plural(ranks * options.threads, 'thread')} of {plural(ranks, 'rank')} "
                f"share {plural(cores, 'core')} on {host} and wait for each other; --threads {fitting} will be faster",
                TrainingWarning,
                stacklevel=2,
            )
            return
