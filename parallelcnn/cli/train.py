"""`parallelcnn train`: train a network."""

import argparse
import time
from dataclasses import Field
from typing import TYPE_CHECKING, Any

from parallelcnn.cli.options import data_name_or_path, path
from parallelcnn.resilience.signals import catch_interrupts
from parallelcnn.training.config import GROUPS, RESULTS, Setting, config_from, settings

if TYPE_CHECKING:
    from parallelcnn.comm import Transport

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
    parser.set_defaults(run=run, strict=True, prepare=prepare)
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for one, setting in settings():
        _add_option(groups[setting.group], one, setting)
    groups[RESULTS].add_argument(
        "--config", type=path, metavar="FILE.toml", help="take settings from this file; options given here win"
    )


def _add_option(group: argparse._ArgumentGroup, one: "Field[Any]", setting: Setting) -> None:
    """Add the option of a field of `TrainConfig`. What is not given on the command line stays out of the namespace."""
    flag = f"--{one.name.replace('_', '-')}"
    if setting.kind is bool:
        group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=setting.help)
        return
    kind: Any = setting.kind
    if setting.is_path:
        kind = data_name_or_path if one.name == "data" else path
    default = one.default
    shown = f"{default:g}" if isinstance(default, float) else default
    ending = "" if default is None else f" [default: {shown}]"
    more: dict[str, Any] = {} if setting.alone is None else {"nargs": "?", "const": setting.alone}
    group.add_argument(
        flag, type=kind, default=argparse.SUPPRESS, metavar=setting.metavar, help=f"{setting.help}{ending}", **more
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
    return Run(options.config, comm, _IMPORTED_AT).go()
