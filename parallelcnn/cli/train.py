"""`parallelcnn train`: train a network."""

import argparse
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_setting, path
from parallelcnn.resilience.signals import catch_interrupts
from parallelcnn.training.config import GROUPS, RESULTS, config_from, settings

if TYPE_CHECKING:
    from parallelcnn.comm import Transport

_EXAMPLES = """\
examples:
  parallelcnn train                                            the built-in digits
  parallelcnn train --data mnist --out runs/a                  MNIST; results in runs/a
  mpirun -n 4 parallelcnn train --data mnist                   on four ranks
  parallelcnn train --model net.py:network --data images       your own network and data
  parallelcnn train --data mnist --out runs/a --resume         continue from the newest checkpoint

exit codes:
  0 success, 1 failure, 2 wrong usage or input
  74 stopped by a signal, but the checkpoint could not be saved
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
    parser.set_defaults(run=run, strict=True, prepare=prepare)
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for one, setting in settings():
        # What is not given on the command line stays out of the namespace: --config may set it.
        add_setting(groups[setting.group], one.name, default=argparse.SUPPRESS)
    groups[RESULTS].add_argument(
        "--config", type=path, metavar="FILE.toml", help="take settings from this file; options given here win"
    )


def prepare(options: argparse.Namespace) -> None:
    """Turn the options into a `TrainConfig`, before MPI starts.

    Raises:
        InputError: for values outside their range, or a file that cannot be read.
    """
    given = {one.name: getattr(options, one.name) for one, _ in settings() if hasattr(options, one.name)}
    options.config = config_from(given, options.config)
    options.timeout = options.config.timeout


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn.cli.run import Run

    catch_interrupts()
    return Run(options.config, comm).go()
