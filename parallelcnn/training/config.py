"""The settings of a training run. Each is declared once, as a field of `TrainConfig`.

The command's options, `--config FILE.toml` and the `config.toml` of every run directory are derived from these fields.
To add a setting, add a field.
"""

import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from parallelcnn.errors import InputError, nearest_name

if TYPE_CHECKING:
    from parallelcnn.losses import Loss
    from parallelcnn.optimizers import KernelOptimizer, Optimizer
    from parallelcnn.schedules import Schedule

NETWORK, TRAINING, RANKS = "network and data", "training", "ranks and threads"
RESULTS, CHECKPOINTS = "results", "checkpoints, saved after every epoch, and resuming from them"
GROUPS = (NETWORK, TRAINING, RANKS, RESULTS, CHECKPOINTS)
SCHEDULES = ("constant", "cosine", "one-cycle", "step", "exponential", "polynomial")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "lion": "Lion"}  # class names
_OF_OPTIMIZERS = ("learning_rate", "momentum", "nesterov", "weight_decay", "clip_norm", "clip_value")
_METAVARS = {int: "N", float: "X"}


class Setting(NamedTuple):
    """The properties of a setting besides its name and default.

    Attributes:
        kind: int, float, str or bool.
        group: the heading of the setting in the help.
        help: one sentence without a full stop.
        metavar: name of the value in the help.
        at_least: the smallest allowed value.
        choices: all allowed values; empty: any value.
        is_path: whether `~` is expanded to the home directory.
        alone: the value if the option is given without one.
        repeatable: whether `config.toml` contains the setting.
    """

    kind: type
    group: str
    help: str
    metavar: str
    at_least: float | None = None
    choices: tuple[str, ...] = ()
    is_path: bool = False
    alone: Any = None
    repeatable: bool = True


def _setting(default: Any, group: str, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": text, **more})


def _path(default: Any, group: str, metavar: str, text: str, **more: Any) -> Any:
    return _setting(default, group, text, metavar=metavar, is_path=True, **more)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. `parallelcnn train --help` describes each setting.

    Raises:
        InputError: if a value has another type or is outside its range.
    """

    model: str = _path(
        "paper",
        NETWORK,
        "NAME|FILE.py:FUNCTION",
        "the network: paper, lenet5, resnet8, resnet20, vgg-small, mobilenet-small, or your own function that returns "
        "the layers",
    )
    data: str = _path("digits", NETWORK, "NAME|DIR", "digits, mnist, or a directory with the four IDX files")
    data_dir: str | None = _path(
        None, NETWORK, "DIR", "directory of MNIST's files; by default the cache, filled by a download"
    )
    epochs: int = _setting(3, TRAINING, "passes over the training set", at_least=1)
    batch_size: int = _setting(100, TRAINING, "samples in a minibatch, over all ranks", at_least=1)
    optimizer: str = _setting(
        "sgd", TRAINING, f"the optimiser: {', '.join(OPTIMIZERS)}", metavar="NAME", choices=tuple(OPTIMIZERS)
    )
    learning_rate: float | None = _setting(
        None,
        TRAINING,
        "learning rate; by default 0.1 with sgd, 0.001 with adam and adamw, 0.01 with rmsprop, 0.0001 with lion",
        at_least=0,
    )
    schedule: str = _setting(
        "constant",
        TRAINING,
        f"how the learning rate changes during training: {', '.join(SCHEDULES)}",
        metavar="NAME",
        choices=SCHEDULES,
    )
    warmup: int = _setting(0, TRAINING, "steps in which the learning rate rises; not for one-cycle", at_least=0)
    decay_every: int | None = _setting(
        None,
        TRAINING,
        "steps between two changes of the learning rate; the schedule step needs it",
        metavar="K",
        at_least=1,
    )
    decay_factor: float | None = _setting(
        None, TRAINING, "factor of each change: with step 0.1 by default; the schedule exponential needs it", at_least=0
    )
    momentum: float = _setting(0.0, TRAINING, "momentum of sgd and rmsprop, at least 0 and below 1", at_least=0)
    nesterov: bool = _setting(False, TRAINING, "use Nesterov momentum with sgd")
    weight_decay: float | None = _setting(
        None, TRAINING, "weight decay, not of biases and normalisation; by default 0, with adamw 0.01", at_least=0
    )
    clip_norm: float | None = _setting(
        None, TRAINING, "clip the gradient to this L2 norm over all parameters", at_least=0
    )
    clip_value: float | None = _setting(None, TRAINING, "limit every number of the gradient to [-X, X]", at_least=0)
    label_smoothing: float = _setting(
        0.0, TRAINING, "part of each label that all classes share, of the softmax cross-entropy, up to 1", at_least=0
    )
    ema: float | None = _setting(
        None, TRAINING, "average the parameters with this decay, such as 0.999, to evaluate them", at_least=0
    )
    seed: int = _setting(0, TRAINING, "seed of initial weights, sample order and dropout", at_least=0)
    validation_split: float | None = _setting(
        None,
        TRAINING,
        "evaluate on this fraction of the training set during training, and on the test set once, at the end",
        at_least=0,
    )
    evaluate_every: int | None = _setting(
        None, TRAINING, "evaluate after every K minibatches as well as every epoch", metavar="K", at_least=1
    )
    threads: int | None = _setting(
        None,
        RANKS,
        "threads of each rank; by default its share of the node's cores, or fewer if there is too little work",
        at_least=1,
    )
    timeout: float = _setting(
        300.0,
        RANKS,
        "how long a rank may wait for the others; then the job ends, and a message names the missing ranks; "
        "0: no limit",
        metavar="SECONDS",
        at_least=0,
    )
    reproducible: int | None = _setting(
        None,
        RANKS,
        "cut each minibatch into G shards and sum them exactly: the same bits on any number of ranks and threads",
        metavar="G",
        at_least=1,
    )
    verify: int | None = _setting(
        None,
        RANKS,
        "first train K minibatches (20), and compare the gradients of all ranks with those of one alone",
        metavar="K",
        at_least=1,
        alone=20,
    )
    out: str | None = _path(
        None, RESULTS, "DIR", "run directory for the results; by default runs/ and the time in UTC", repeatable=False
    )
    profile: bool = _setting(False, RESULTS, "measure where the time goes: a table, and a timeline in trace.json")
    checkpoint_every: int | None = _setting(
        None, CHECKPOINTS, "save after every K minibatches as well", metavar="K", at_least=1
    )
    checkpoint_seconds: float | None = _setting(
        None, CHECKPOINTS, "save every T seconds as well", metavar="T", at_least=0
    )
    keep_last: int = _setting(2, CHECKPOINTS, "how many checkpoints to keep", at_least=1)
    keep_best: bool = _setting(False, CHECKPOINTS, "keep the checkpoint with the best evaluation as well")
    resume: str | None = _path(
        None,
        CHECKPOINTS,
        "FILE",
        "continue from this checkpoint, or without FILE from the newest readable one in --out",
        alone="auto",
        repeatable=False,
    )
    repair: str = _setting(
        "stop",
        CHECKPOINTS,
        "if the ranks no longer hold the same parameters: stop, majority (take those of most ranks) or checkpoint "
        "(go back to the last good one)",
        metavar="HOW",
        choices=("stop", "majority", "checkpoint"),
    )

    def __post_init__(self) -> None:
        for one, setting in settings():
            value = getattr(self, one.name)
            if value is not None or one.default is not None:
                object.__setattr__(self, one.name, _checked(one.name, value, setting))
        if self.validation_split is not None and not 0 < self.validation_split < 1:
            raise InputError(f"validation_split must be above 0 and below 1, got {self.validation_split!r}")
        if self.out == "":
            raise InputError("out must name a directory, got ''")
        if self.resume == "auto" and self.out is None:
            raise InputError("--resume takes the run directory, --out DIR, or a checkpoint, --resume FILE")
        self.build_optimizer()
        self.build_loss()

    def build_optimizer(self) -> "Optimizer":
        """The optimiser that these settings describe."""
        from parallelcnn.optimizers import EMA

        optimizer: Any = self.optimizer_of_constant_rate()
        optimizer = replace(optimizer, learning_rate=self._scheduled(optimizer.learning_rate))
        return optimizer if self.ema is None else EMA(optimizer, self.ema)

    def optimizer_of_constant_rate(self) -> "KernelOptimizer":
        """As `build_optimizer`, without a schedule and an average. What is not given has the optimiser's default.

        Raises:
            InputError: if a setting is given that the optimiser does not have, or does not accept.
        """
        # Imported here because numba takes half a second to load, and --help needs only the fields.
        from parallelcnn import optimizers

        kinds = {name: getattr(optimizers, kind) for name, kind in OPTIMIZERS.items()}
        defaults = {one.name: one.default for one in fields(self)}
        given = {name: getattr(self, name) for name in _OF_OPTIMIZERS if getattr(self, name) != defaults[name]}
        for name in given:
            having = [other for other, kind in kinds.items() if hasattr(kind, name)]
            if self.optimizer not in having:
                raise InputError(f"{name} is for the optimizer {' or '.join(having)}, got {self.optimizer}")
        return kinds[self.optimizer](**given)

    def build_loss(self) -> "Loss":
        """The loss that these settings describe."""
        from parallelcnn.losses import SoftmaxCrossEntropy

        return SoftmaxCrossEntropy(self.label_smoothing)

    def _scheduled(self, rate: float) -> "float | Schedule":
        """The learning rate, or the schedule of it that these settings describe."""
        from parallelcnn import schedules

        name, warmup = self.schedule, self.warmup
        for option, users in (("decay_every", ("step",)), ("decay_factor", ("step", "exponential"))):
            value = getattr(self, option)
            if value is not None and name not in users:
                raise InputError(f"{option} is for the schedule {' or '.join(users)}, got {value!r} with {name}")
            if value is None and name == users[-1]:
                raise InputError(f"the schedule {name} needs {option}")
        if name == "one-cycle":
            if warmup:
                raise InputError(f"warmup must be 0 with the schedule one-cycle, which has its own, got {warmup}")
            return schedules.OneCycle(rate)
        if name == "step":
            assert self.decay_every is not None
            factor = 0.1 if self.decay_factor is None else self.decay_factor
            return schedules.Step(rate, self.decay_every, factor, warmup)
        if name == "exponential":
            assert self.decay_factor is not None
            return schedules.Exponential(rate, self.decay_factor, warmup)
        if name == "polynomial":
            return schedules.Polynomial(rate, warmup)
        if name == "cosine":
            return schedules.Cosine(rate, warmup)
        return schedules.Constant(rate, warmup) if warmup else rate

    def repeatable(self) -> dict[str, Any]:
        """The settings needed to repeat the run, with absolute paths."""
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
        """The repeatable settings as TOML, without those that are None."""
        # TOML writes basic strings, booleans and finite numbers as JSON does.
        known = {name: value for name, value in self.repeatable().items() if value is not None}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in known.items())


def settings() -> Iterator[tuple[Field[Any], Setting]]:
    """Every field of `TrainConfig` with its setting."""
    for one in fields(TrainConfig):
        kind, *_ = *get_args(one.type), one.type  # int for int | None
        yield one, Setting(kind, **{"metavar": _METAVARS.get(kind, ""), **one.metadata})


def config_from(given: Mapping[str, Any], file: str | None = None) -> TrainConfig:
    """Combine settings: the command line overrides a TOML file, which overrides the defaults.

    Raises:
        InputError: if the file cannot be read or is not TOML, or `TrainConfig` rejects a setting.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            with open(file, "rb") as content:
                values = tomllib.load(content)
        except OSError as error:
            raise InputError(f"--config {file} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"--config {file} is not TOML: {error}") from None
    known = {one.name: setting for one, setting in settings()}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"--config {file}: no setting {name!r}: {nearest_name(name, list(known))}")
        if known[name].is_path and isinstance(value, str):
            values[name] = os.path.expanduser(value)
    return TrainConfig(**{**values, **given})


def _checked(name: str, value: Any, setting: Setting) -> Any:
    """The value, converted to the setting's kind; InputError if it has another type or is outside its range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    rule, good = {
        int: ("an integer", number and isinstance(value, int)),
        float: ("a finite number", number and abs(value) <= sys.float_info.max),
        bool: ("true or false", isinstance(value, bool)),
        str: ("a string", isinstance(value, str)),
    }[setting.kind]
    if setting.at_least is not None:
        rule, good = f"{rule} of at least {setting.at_least:g}", good and value >= setting.at_least
    if setting.choices:
        rule, good = f"one of {', '.join(setting.choices)}", good and value in setting.choices
    if not good:
        raise InputError(f"{name} must be {rule}, got {value!r}")
    return setting.kind(value)
