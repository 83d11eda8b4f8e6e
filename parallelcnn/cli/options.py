"""The argument parser, and options that several sub-commands share."""

import argparse
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from parallelcnn.training.config import TrainConfig, settings
from parallelcnn.training.setting import Setting
from parallelcnn.wording import plural

if TYPE_CHECKING:
    from parallelcnn.comm import Transport

_SETTINGS = {one.name: (one.default, setting) for one, setting in settings()}


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


def add_setting(group: argparse._ActionsContainer, name: str, note: str | None = None, **changes: Any) -> None:
    """Add the option of a field of `TrainConfig`.

    Args:
        note: the end of its help, instead of the default.
        changes: to the arguments of `add_argument`.
    """
    default, setting = _SETTINGS[name]
    keywords: dict[str, Any] = {"default": default, "help": setting.help}
    if setting.kind is bool:
        keywords["action"] = "store_true"
    else:
        shown = f"{default:g}" if isinstance(default, float) else default
        keywords["help"] += note if note is not None else f" [default: {shown}]" if default not in (None, ()) else ""
        keywords["metavar"] = tuple(setting.metavar.split()) if setting.length == 2 else setting.metavar
        keywords["type"] = data_name_or_path if name == "data" else path if setting.is_path else setting.kind
        if setting.length != 1:
            keywords["nargs"] = setting.length or "+"
        if setting.alone is not None:
            keywords |= {"nargs": "?", "const": setting.alone}
    action: Any = group.add_argument(f"--{name.replace('_', '-')}", **keywords | changes)
    if setting.choices or setting.known:
        action.completer = partial(_values, setting)  # for argcomplete; see `command._complete`


def add_trained_network(parser: argparse.ArgumentParser, group: argparse._ActionsContainer) -> None:
    """Add the arguments that name a trained network: MODEL to the parser, --best and --model to the group."""
    parser.add_argument(
        "file", type=path, metavar="MODEL", help="a run directory, a model file (model.npz) or a checkpoint"
    )
    group.add_argument(
        "--best", action="store_true", help="of a run with --keep-best: the checkpoint with the best evaluation"
    )
    text = "the function that returns the layers; needed only if they are your own"
    add_setting(group, "model", default=None, metavar="FILE.py:FUNCTION", help=text)


def _values(setting: Setting, prefix: str, **_: Any) -> list[str]:
    """The values with which a shell completes an option."""
    from argcomplete.completers import FilesCompleter

    return [*setting.choices, *setting.known, *(FilesCompleter()(prefix) if setting.is_path else ())]


def warn_of_too_many_threads(options: argparse.Namespace | TrainConfig, comm: "Transport") -> None:
    """Warn, on rank 0, if --threads asks for more threads than a node has cores.

    Collective: every rank of `comm` must call it.
    """
    from parallelcnn.comm import this_host
    from parallelcnn.errors import TrainingWarning
    from parallelcnn.resources import core_quota, usable_cores

    everyone = comm.allgather((this_host(), usable_cores(), core_quota()))
    if options.threads is None or comm.rank != 0:
        return
    for host in dict.fromkeys(host for host, _, _ in everyone):
        here = [(cores, quota) for where, cores, quota in everyone if where == host]
        quotas = [quota for _, quota in here if quota is not None]
        ranks, cores = len(here), min([len(frozenset().union(*(cores for cores, _ in here))), *quotas])
        fitting = max(1, cores // ranks)
        if options.threads > fitting:
            warnings.warn(
                f"--threads {options.threads}: {plural(ranks * options.threads, 'thread')} of {plural(ranks, 'rank')} "
                f"share {plural(cores, 'core')} on {host} and wait for each other; --threads {fitting} will be faster",
                TrainingWarning,
                stacklevel=2,
            )
            return
