"""`parallelcnn train`: train a network."""

import argparse
import time
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_batch_size_option, add_data_options, add_model_option, add_rank_options, path
from parallelcnn.resilience.signals import catch_interrupts

if TYPE_CHECKING:
    from parallelcnn.comm import Communicator

_IMPORTED_AT = time.perf_counter()  # the process has just started

_EXAMPLES = """\
examples:
  parallelcnn train                                            the built-in digits
  parallelcnn train --data mnist --out runs/a                  MNIST; results in runs/a
  mpirun -n 4 parallelcnn train --data mnist                   on four ranks
  parallelcnn train --model net.py:network --data images       your own network and data
  parallelcnn train --data mnist --out runs/a --resume         continue from the newest checkpoint

exit codes:
  0 success, 1 failure, 2 wrong usage or input
  130, 138, 143  stopped by Ctrl-C, SIGUSR1 or SIGTERM after saving a checkpoint; --resume continues
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "train",
        help="train a network",
        description="Train a network. The results go to a run directory: model, metrics, summary and checkpoints.",
        usage="parallelcnn train [options]",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=True)
    network = parser.add_argument_group("network and data")
    add_model_option(network)
    add_data_options(network)

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=int, default=3, metavar="N", help="passes over the training set [default: 3]"
    )
    add_batch_size_option(training)
    training.add_argument(
        "--learning-rate", type=float, default=0.1, metavar="X", help="learning rate of SGD [default: 0.1]"
    )
    training.add_argument(
        "--momentum", type=float, default=0.0, metavar="X", help="momentum of SGD, at least 0 and below 1 [default: 0]"
    )
    training.add_argument("--nesterov", action="store_true", help="use Nesterov momentum")
    training.add_argument(
        "--weight-decay", type=float, default=0.0, metavar="X", help="weight decay (L2 penalty) [default: 0]"
    )
    training.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of initial weights and sample order [default: 0]"
    )
    training.add_argument(
        "--evaluate-every", type=int, metavar="K", help="evaluate after every K minibatches as well as every epoch"
    )

    ranks = parser.add_argument_group("ranks and threads")
    add_rank_options(ranks)
    ranks.add_argument(
        "--reproducible",
        type=int,
        metavar="G",
        help="cut each minibatch into G shards and sum them exactly: the same bits on any number of ranks and threads",
    )
    ranks.add_argument(
        "--verify",
        type=int,
        nargs="?",
        const=20,
        metavar="K",
        help="first train K minibatches (20) on all ranks and on one alone, and compare the parameters",
    )

    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=path, metavar="DIR", help="run directory for the results; by default runs/ and the time in UTC"
    )
    results.add_argument(
        "--profile", action="store_true", help="measure where the time goes: a table, and a timeline in trace.json"
    )

    checkpoints = parser.add_argument_group("checkpoints, saved after every epoch, and resuming from them")
    checkpoints.add_argument("--checkpoint-every", type=int, metavar="K", help="save after every K minibatches as well")
    checkpoints.add_argument("--checkpoint-seconds", type=float, metavar="T", help="save every T seconds as well")
    checkpoints.add_argument(
        "--keep-last", type=int, default=2, metavar="N", help="how many checkpoints to keep [default: 2]"
    )
    checkpoints.add_argument(
        "--keep-best", action="store_true", help="keep the checkpoint with the best test result as well"
    )
    checkpoints.add_argument(
        "--resume",
        type=path,
        nargs="?",
        const="auto",
        metavar="FILE",
        help="continue from this checkpoint, or without FILE from the newest readable one in --out",
    )
    checkpoints.add_argument(
        "--repair",
        default="stop",
        metavar="HOW",
        help="if the ranks no longer hold the same parameters: stop, majority (take those of most ranks) or checkpoint "
        "(go back to the last good one) [default: stop]",
    )


def run(options: argparse.Namespace, comm: "Communicator") -> int:
    from parallelcnn.cli.run import Run

    catch_interrupts()
    return Run(options, comm, _IMPORTED_AT).go()
