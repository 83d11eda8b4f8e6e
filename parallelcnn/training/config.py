"""The settings of a training run, each declared once.

The command's options, `--config FILE.toml` and the `config.toml` of every run directory are derived from the fields of
`TrainConfig`. To add a setting, add a field.
"""

import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from parallelcnn.errors import InputError, nearest_name

if TYPE_CHECKING:
    from parallelcnn.optimizers import Optimizer
    from parallelcnn.schedules import Schedule

NETWORK, TRAINING, RANKS = "network and data", "training", "ranks and threads"
RESULTS, CHECKPOINTS = "results", "checkpoints, saved after every epoch, and resuming from them"
GROUPS = (NETWORK, TRAINING, RANKS, RESULTS, CHECKPOINTS)
SCHEDULES = ("constant", "cosine", "one-cycle")


class Setting(NamedTuple):
    """What there is to know of a field besides its name and default.

    Attributes:
        kind: int, float, str or bool.
        group: the topic under which the help lists it.
        metavar: what the help calls the value.
        help: one sentence without a full stop.
        at_least: the smallest value.
        choices: all values; empty: any.
        is_path: `~` stands for the home directory.
        alone: the value of the option without a value.
        repeatable: whether it is part of `config.toml`.
    """

    kind: type
    group: str
    metavar: str
    help: str
    at_least: float | None = None
    choices: tuple[str, ...] = ()
    is_path: bool = False
    alone: Any = None
    repeatable: bool = True


def _setting(default: Any, kind: type, group: str, metavar: str, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(kind, group, metavar, text, **more)})


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. `parallelcnn train --help` describes each of them.

    Raises:
        InputError: for a value of another type, or outside its range.
    """

    model: str = _setting(
        "paper",
        str,
        NETWORK,
        "NAME|FILE.py:FUNCTION",
        "the network: paper, lenet5, or your own function that returns the layers",
        is_path=True,
    )
    data: str = _setting(
        "digits",
        str,
        NETWORK,
        "NAME|DIR",
        "digits, mnist, or a directory with the four IDX files",
        is_path=True,
    )
    data_dir: str | None = _setting(
        None,
        str,
        NETWORK,
        "DIR",
        "directory of MNIST's files; by default the cache, filled by a download",
        is_path=True,
    )
    epochs: int = _setting(3, int, TRAINING, "N", "passes over the training set", at_least=1)
    batch_size: int = _setting(100, int, TRAINING, "N", "samples in a minibatch, over all ranks", at_least=1)
    learning_rate: float = _setting(0.1, float, TRAINING, "X", "learning rate of SGD", at_least=0)
    schedule: str = _setting(
        "constant",
        str,
        TRAINING,
        "NAME",
        f"how the learning rate changes during training: {', '.join(SCHEDULES)}",
        choices=SCHEDULES,
    )
    warmup: int = _setting(
        0, int, TRAINING, "N", "steps in which the learning rate rises, of constant and cosine", at_least=0
    )
    momentum: float = _setting(0.0, float, TRAINING, "X", "momentum of SGD, at least 0 and below 1", at_least=0)
    nesterov: bool = _setting(False, bool, TRAINING, "", "use Nesterov momentum")
    weight_decay: float = _setting(0.0, float, TRAINING, "X", "weight decay (L2 penalty)", at_least=0)
    clip_norm: float | None = _setting(
        None, float, TRAINING, "X", "shorten gradients to this L2 norm over all parameters", at_least=0
    )
    seed: int = _setting(0, int, TRAINING, "N", "seed of initial weights and sample order", at_least=0)
    evaluate_every: int | None = _setting(
        None, int, TRAINING, "K", "evaluate after every K minibatches as well as every epoch", at_least=1
    )
    threads: int | None = _setting(
        None,
        int,
        RANKS,
        "N",
        "threads of each rank; by default its share of the node's cores, or fewer if there is too little work",
        at_least=1,
    )
    timeout: float = _setting(
        300.0,
        float,
        RANKS,
        "SECONDS",
        "how long a rank may wait for the others; then the job ends, and a message names the missing ranks; "
        "0: no limit",
        at_least=0,
    )
    reproducible: int | None = _setting(
        None,
        int,
        RANKS,
        "G",
        "cut each minibatch into G shards and sum them exactly: the same bits on any number of ranks and threads",
        at_least=1,
    )
    verify: int | None = _setting(
        None,
        int,
        RANKS,
        "K",
        "first train K minibatches (20) on all ranks and on one alone, and compare the parameters",
        at_least=1,
        alone=20,
    )
    out: str | None = _setting(
        None,
        str,
        RESULTS,
        "DIR",
        "run directory for the results; by default runs/ and the time in UTC",
        is_path=True,
        repeatable=False,
    )
    profile: bool = _setting(
        False, bool, RESULTS, "", "measure where the time goes: a table, and a timeline in trace.json"
    )
    checkpoint_every: int | None = _setting(
        None, int, CHECKPOINTS, "K", "save after every K minibatches as well", at_least=1
    )
    checkpoint_seconds: float | None = _setting(
        None, float, CHECKPOINTS, "T", "save every T seconds as well", at_least=0
    )
    keep_last: int = _setting(2, int, CHECKPOINTS, "N", "how many checkpoints to keep", at_least=1)
    keep_best: bool = _setting(False, bool, CHECKPOINTS, "", "keep the checkpoint with the best test result as well")
    resume: str | None = _setting(
        None,
        str,
        CHECKPOINTS,
        "FILE",
        "continue from this checkpoint, or without FILE from the newest readable one in --out",
        is_path=True,
        alone="auto",
        repeatable=False,
    )
    repair: str = _setting(
        "stop",
        str,
        CHECKPOINTS,
        "HOW",
        "if the ranks no longer hold the same parameters: stop, majority (take those of most ranks) or checkpoint "
        "(go back to the last good one)",
        choices=("stop", "majority", "checkpoint"),
    )

    def __post_init__(self) -> None:
        for one, setting in settings():
            value = getattr(self, one.name)
            if value is not None or one.default is not None:
                object.__setattr__(self, one.name, _checked(one.name, value, setting))
        if self.out == "":
            raise InputError("out must name a directory, got ''")
        if self.resume == "auto" and self.out is None:
            raise InputError("--resume takes the run directory, --out DIR, or a checkpoint, --resume FILE")
        self.optimizer()

    def optimizer(self) -> "Optimizer":
        """The optimiser that these settings describe."""
        # Here, because numba takes half a second to load, and --help needs the fields alone.
        from parallelcnn.optimizers import SGD
        from parallelcnn.schedules import Constant, Cosine, OneCycle

        rate: float | Schedule = self.learning_rate
        if self.schedule == "cosine":
            rate = Cosine(self.learning_rate, self.warmup)
        elif self.schedule == "one-cycle":
            if self.warmup:
                raise InputError(f"warmup must be 0 with the schedule one-cycle, which has its own, got {self.warmup}")
            rate = OneCycle(self.learning_rate)
        elif self.warmup:
            rate = Constant(self.learning_rate, self.warmup)
        return SGD(rate, self.momentum, self.nesterov, self.weight_decay, self.clip_norm)

    def repeatable(self) -> dict[str, Any]:
        """The settings that a repetition of the run needs; paths are absolute."""
        values = asdict(self)
        kept = {one.name: values[one.name] for one, setting in settings() if setting.repeatable}
        if kept["data"] not in ("digits", "mnist"):
            kept["data"] = os.path.abspath(kept["data"])
        if kept["data_dir"] is not None:
            kept["data_dir"] = os.path.abspath(kept["data_dir"])
        if ".py:" in kept["model"]:
            kept["model"] = os.path.abspath(kept["model"])
        return kept

    def to_toml(self) -> str:
        """The repeatable settings as TOML. Settings that are None are left out."""
        lines = [f"{name} = {_as_toml(value)}" for name, value in self.repeatable().items() if value is not None]
        return "\n".join(lines) + "\n"


def settings() -> Iterator[tuple[Field[Any], Setting]]:
    """Every field of `TrainConfig` with its setting."""
    for one in fields(TrainConfig):
        yield one, one.metadata["setting"]


def read_config(path: str) -> dict[str, Any]:
    """The settings in a TOML file, by name.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not TOML: {error}") from None
    known = {one.name: setting for one, setting in settings()}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"--config {path}: no setting {name!r}: {nearest_name(name, list(known))}")
        if known[name].is_path and isinstance(value, str):
            values[name] = os.path.expanduser(value)
    return values


def config_from(given: Mapping[str, Any], file: str | None = None) -> TrainConfig:
    """The settings of the command line, then those of a file, then the defaults."""
    values = {} if file is None else read_config(file)
    return TrainConfig(**{**values, **given})


def default_of(one: Field[Any]) -> Any:
    """The default of a field."""
    assert one.default is not MISSING
    return one.default


def _checked(name: str, value: Any, setting: Setting) -> Any:
    """The value, as its kind; InputError if it is none of that kind, or outside its range."""
    kind = setting.kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        rule, good = "an integer", isinstance(value, int) and number
    elif kind is float:
        rule, good = "a finite number", number and math.isfinite(value)
    elif kind is bool:
        rule, good = "true or false", isinstance(value, bool)
    else:
        rule, good = "a string", isinstance(value, str)
    if setting.at_least is not None:
        rule, good = f"{rule} of at least {setting.at_least:g}", good and value >= setting.at_least
    if setting.choices:
        rule, good = f"one of {', '.join(setting.choices)}", good and value in setting.choices
    if not good:
        raise InputError(f"{name} must be {rule}, got {value!r}")
    return kind(value)


def _as_toml(value: Any) -> str:
    # TOML's basic strings, booleans and finite numbers are written as JSON's.
    return json.dumps(value)
