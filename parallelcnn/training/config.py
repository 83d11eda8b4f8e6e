"""The settings of a training run. Each is declared once, as a field of `TrainConfig`.

The command's options, `--config FILE.toml` and the `config.toml` of every run directory are derived from these fields.
To add a setting, add a field.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelcnn.arguments import PRECISIONS
from parallelcnn.errors import InputError, nearest_name
from parallelcnn.training.setting import Setting, checked_value, declare, declare_path, setting_of

if TYPE_CHECKING:
    from parallelcnn.data import Dataset
    from parallelcnn.data.readers.decoding import ImageOptions
    from parallelcnn.layers import Layer
    from parallelcnn.losses import Loss
    from parallelcnn.metrics import Metric
    from parallelcnn.optimizers import KernelOptimizer, Optimizer
    from parallelcnn.schedules import Schedule
    from parallelcnn.training.checkpoint import CheckpointFolder
    from parallelcnn.training.early_stopping import EarlyStopping

NETWORK, TRAINING, LOSS = "network and data", "training", "loss"
OPTIMIZER, SCHEDULE, RANKS = "optimiser", "learning-rate schedule", "ranks and threads"
RESULTS, CHECKPOINTS = "results", "checkpoints, saved after every epoch, and resuming from them"
GROUPS = (NETWORK, TRAINING, LOSS, OPTIMIZER, SCHEDULE, RANKS, RESULTS, CHECKPOINTS)
LOSSES = {  # class names
    "softmax-cross-entropy": "SoftmaxCrossEntropy",
    "binary-cross-entropy": "BinaryCrossEntropy",
    "squared": "MeanSquaredError",
}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "lion": "Lion"}  # class names
_OF_OPTIMIZERS = (
    "learning_rate",
    "momentum",
    "nesterov",
    "betas",
    "alpha",
    "eps",
    "weight_decay",
    "clip_norm",
    "clip_value",
)
_OF_LOSSES = ("label_smoothing", "class_weight")
METRICS = ("top-1, top-2, ...", "precision", "recall", "f1", "confusion-matrix")
LOGS = ("csv", "tensorboard")
# The schedules, and the settings of each besides the learning rate and the warm-up.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": (),
    "one-cycle": (),
    "step": ("decay_every", "decay_factor"),
    "multistep": ("milestones", "decay_factor"),
    "exponential": ("decay_factor",),
    "polynomial": (),
    "plateau": ("decay_factor", "patience", "monitor", "min_delta", "cooldown", "min_learning_rate"),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. `parallelcnn train --help` describes each setting.

    Raises:
        InputError: if a value has another type or is outside its range.
    """

    model: str = declare_path(
        "auto",
        NETWORK,
        "NAME|FILE.py:FUNCTION",
        "the network: paper, lenet5, resnet8, resnet20, vgg-small, mobilenet-small, or your own function that returns "
        "the layers; auto: paper for grey images from 10 x 10 to 32 x 32, resnet8 for others up to 48 x 48, "
        "otherwise mobilenet-small",
        known=("auto", "paper", "lenet5", "resnet8", "resnet20", "vgg-small", "mobilenet-small"),
    )
    data: str = declare_path(
        "digits",
        NETWORK,
        "NAME|PATH",
        "digits, mnist, or a path: images in folders of classes, or a format of the guide's page arrays-and-tables",
        known=("digits", "mnist"),
    )
    data_dir: str | None = declare_path(
        None, NETWORK, "DIR", "directory of MNIST's files; by default the cache, filled by a download"
    )
    image_size: str | None = declare(
        None,
        NETWORK,
        "rows and columns of the images of a folder; by default those of the images if all have the same and at most "
        "128 x 128, otherwise 64x64",
        metavar="H[xW]",
    )
    resize: str = declare(
        "crop",
        NETWORK,
        "how images are brought to this size: crop what is too much, pad with black, or stretch",
        metavar="HOW",
        choices=("crop", "pad", "stretch"),
    )
    color: str | None = declare(
        None, NETWORK, "rgb or gray; by default gray if all images are grey", metavar="KIND", choices=("rgb", "gray")
    )
    skip_broken: bool = declare(False, NETWORK, "leave out images that cannot be decoded")
    epochs: int = declare(3, TRAINING, "passes over the training set", at_least=1)
    batch_size: int = declare(
        100, TRAINING, "samples in a minibatch, over all ranks; by default all, if they are fewer", at_least=1
    )
    seed: int = declare(
        0, TRAINING, "seed of weights, sample order, augmentation, dropout, validation split", at_least=0
    )
    precision: str = declare(
        "float32",
        TRAINING,
        "float32, or bfloat16: in training, convolutions and dense layers multiply numbers rounded to 8 bits of "
        "precision, which is faster on processors with AMX",
        metavar="TYPE",
        choices=PRECISIONS,
    )
    augment: tuple[str, ...] = declare(
        (),
        TRAINING,
        "change the training images at random: light (flip, crop), strong, or a list of flip, crop, rotation, zoom, "
        "brightness, contrast, cutout, mixup; NAME:NUMBER replaces the default, such as crop:4; no flip for digits",
        metavar="NAME",
        known=("light", "strong", "flip", "crop", "rotation", "zoom", "brightness", "contrast", "cutout", "mixup"),
    )
    normalize: bool = declare(
        False, TRAINING, "normalise each channel by its mean and standard deviation in the training set"
    )
    start_from: str | None = declare_path(
        None,
        TRAINING,
        "RUN|FILE",
        "start from the parameters of a run, a model file, safetensors, .pt or .onnx: all that fit by name and shape",
    )
    freeze: int = declare(0, TRAINING, "do not change the parameters of the first N layers", at_least=0)
    validation_split: float | None = declare(
        None,
        TRAINING,
        "evaluate on this fraction of the training set during training, and on the test set once, at the end",
        at_least=0,
    )
    evaluate_every: int | None = declare(
        None, TRAINING, "evaluate after every K minibatches as well as every epoch", metavar="K", at_least=1
    )
    metrics: tuple[str, ...] = declare(
        (),
        TRAINING,
        "further metrics in metrics.jsonl: top-5 or another number, precision, recall, f1 (means over the "
        "classes), confusion-matrix",
        metavar="NAME",
        known=("top-5", "precision", "recall", "f1", "confusion-matrix"),
    )
    early_stopping: int | None = declare(
        None,
        TRAINING,
        "stop when what --monitor names has not improved for more than N epochs; the last parameters are kept",
        at_least=0,
    )
    monitor: str | None = declare(
        None,
        TRAINING,
        "what must improve, for --early-stopping and the schedule plateau: loss or accuracy; by default loss",
        metavar="NAME",
        choices=("loss", "accuracy"),
    )
    min_delta: float | None = declare(
        None,
        TRAINING,
        "change that counts as an improvement; by default 0 for --early-stopping, 0.0001 for plateau",
        at_least=0,
    )
    loss: str = declare(
        "softmax-cross-entropy", LOSS, f"the loss: {', '.join(LOSSES)}", metavar="NAME", choices=tuple(LOSSES)
    )
    label_smoothing: float = declare(
        0.0, LOSS, "softmax cross-entropy: part of each label that all classes share, from 0 to 1", at_least=0
    )
    class_weight: str | None = declare(
        None,
        LOSS,
        "balanced: give all classes the same influence, in the softmax cross-entropy",
        metavar="HOW",
        choices=("balanced",),
    )
    optimizer: str = declare(
        "sgd", OPTIMIZER, f"the optimiser: {', '.join(OPTIMIZERS)}", metavar="NAME", choices=tuple(OPTIMIZERS)
    )
    learning_rate: float | None = declare(
        None,
        OPTIMIZER,
        "learning rate; by default 0.1 with sgd, 0.001 with adam and adamw, 0.01 with rmsprop, 0.0001 with lion",
        at_least=0,
    )
    scale_learning_rate: int | None = declare(
        None,
        OPTIMIZER,
        "the learning rate is meant for minibatches of B samples: multiply it by the batch size over B",
        metavar="B",
        at_least=1,
    )
    momentum: float = declare(0.0, OPTIMIZER, "momentum of sgd and rmsprop, at least 0 and below 1", at_least=0)
    nesterov: bool = declare(False, OPTIMIZER, "use Nesterov momentum with sgd")
    betas: tuple[float, float] | None = declare(
        None,
        OPTIMIZER,
        "decay of the averages of adam and adamw, by default 0.9 0.999, and of lion, 0.9 0.99",
        metavar="B1 B2",
    )
    alpha: float | None = declare(
        None, OPTIMIZER, "decay of the mean square of rmsprop, below 1; by default 0.99", at_least=0
    )
    eps: float | None = declare(
        None, OPTIMIZER, "added to the root of the mean square by adam, adamw and rmsprop; by default 1e-08", at_least=0
    )
    weight_decay: float | None = declare(
        None, OPTIMIZER, "weight decay, not of biases and normalisation; by default 0, with adamw 0.01", at_least=0
    )
    clip_norm: float | None = declare(
        None, OPTIMIZER, "clip the gradient to this L2 norm over all parameters", at_least=0
    )
    clip_value: float | None = declare(None, OPTIMIZER, "limit every number of the gradient to [-X, X]", at_least=0)
    ema: float | None = declare(
        None, OPTIMIZER, "average the parameters with this decay, such as 0.999, to evaluate them", at_least=0
    )
    schedule: str = declare(
        "constant",
        SCHEDULE,
        f"how the learning rate changes during training: {', '.join(SCHEDULES)}",
        metavar="NAME",
        choices=tuple(SCHEDULES),
    )
    warmup: int = declare(0, SCHEDULE, "steps in which the learning rate rises; not for one-cycle", at_least=0)
    decay_every: int | None = declare(
        None,
        SCHEDULE,
        "steps between two changes of the learning rate; the schedule step needs it",
        metavar="K",
        at_least=1,
    )
    milestones: tuple[int, ...] | None = declare(
        None, SCHEDULE, "steps after which the learning rate changes; the schedule multistep needs them", at_least=1
    )
    decay_factor: float | None = declare(
        None,
        SCHEDULE,
        "factor of each change: with step, multistep and plateau 0.1 by default; the schedule exponential needs it",
        at_least=0,
    )
    patience: int | None = declare(
        None, SCHEDULE, "evaluations without an improvement that plateau accepts; by default 10", at_least=0
    )
    cooldown: int | None = declare(
        None, SCHEDULE, "evaluations after a change of plateau that are not counted; by default 0", at_least=0
    )
    min_learning_rate: float | None = declare(
        None, SCHEDULE, "plateau does not go below this learning rate; by default 0", at_least=0
    )
    threads: int | None = declare(
        None,
        RANKS,
        "threads of each rank; by default its share of the node's cores, or fewer if there is too little work",
        at_least=1,
    )
    timeout: float = declare(
        300.0,
        RANKS,
        "how long a rank may wait for the others; then the job ends, and a message names the missing ranks; "
        "0: no limit",
        metavar="SECONDS",
        at_least=0,
    )
    reproducible: int | None = declare(
        None,
        RANKS,
        "cut each minibatch into G shards and sum them exactly: the same bits on any number of ranks and threads",
        metavar="G",
        at_least=1,
    )
    verify: int | None = declare(
        None,
        RANKS,
        "first train K minibatches (20), and compare the gradients of all ranks with those of one alone",
        metavar="K",
        at_least=1,
        alone=20,
    )
    out: str | None = declare_path(
        None, RESULTS, "DIR", "run directory for the results; by default runs/ and the time in UTC", repeatable=False
    )
    log: tuple[str, ...] = declare(
        (),
        RESULTS,
        "also write a row for each epoch to epochs.csv, or files for TensorBoard: csv, tensorboard",
        metavar="NAME",
        choices=LOGS,
    )
    profile: bool = declare(False, RESULTS, "measure where the time goes: a table, and a timeline in trace.json")
    checkpoint_every: int | None = declare(
        None, CHECKPOINTS, "save after every K minibatches as well", metavar="K", at_least=1
    )
    checkpoint_seconds: float | None = declare(
        None, CHECKPOINTS, "save every T seconds as well", metavar="T", at_least=0
    )
    keep_last: int = declare(2, CHECKPOINTS, "how many checkpoints to keep", at_least=1)
    keep_best: bool = declare(
        False, CHECKPOINTS, "keep the checkpoint with the best evaluation, by accuracy, then by loss, as well"
    )
    resume: str | None = declare_path(
        None,
        CHECKPOINTS,
        "FILE",
        "continue from this checkpoint, or without FILE from the newest readable one in --out",
        alone="auto",
        repeatable=False,
    )
    repair: str = declare(
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
                object.__setattr__(self, one.name, checked_value(one.name, value, setting))
        if self.validation_split is not None and not 0 < self.validation_split < 1:
            raise InputError(f"validation_split must be above 0 and below 1, got {self.validation_split!r}")
        for name in self.metrics:
            _metric_of(name, classes=None)
        self.build_first_layers((1, 1, 1))
        if self.out == "":
            raise InputError("out must name a directory, got ''")
        if self.resume == "auto" and self.out is None:
            raise InputError("--resume takes the run directory, --out DIR, or a checkpoint, --resume FILE")
        self.build_image_options()
        self.build_optimizer()
        self.build_loss()

    def build_image_options(self) -> "ImageOptions":
        """How the images of a folder become arrays."""
        from parallelcnn.data.readers.decoding import ImageOptions

        size = None
        if self.image_size is not None:
            numbers = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", self.image_size)
            if numbers is None:
                raise InputError(f"image_size must be a number or ROWSxCOLUMNS, such as 64x48, got {self.image_size!r}")
            size = int(numbers[1]), int(numbers[2] or numbers[1])
        return ImageOptions(size, self.resize, self.color, self.skip_broken)

    def build_optimizer(self, role: str | None = None) -> "Optimizer":
        """The optimiser that these settings describe.

        Args:
            role: of the data set that is evaluated during training; None: not known yet.
        """
        from parallelcnn.optimizers import EMA

        optimizer: Any = self.optimizer_of_constant_rate()
        optimizer = replace(optimizer, learning_rate=self._scheduled(self.scaled(optimizer.learning_rate), role))
        return optimizer if self.ema is None else EMA(optimizer, self.ema)

    def optimizer_of_constant_rate(self) -> "KernelOptimizer":
        """As `build_optimizer`, with the learning rate that was given, and without a schedule and an average. What is
        not given has the optimiser's default.

        Raises:
            InputError: if a setting is given that the optimiser does not have, or does not accept.
        """
        # Imported here because numba takes half a second to load, and --help needs only the fields.
        from parallelcnn import optimizers

        kinds = {name: getattr(optimizers, kind) for name, kind in OPTIMIZERS.items()}
        given = self._given(_OF_OPTIMIZERS)
        for name in given:
            having = [other for other, kind in kinds.items() if hasattr(kind, name)]
            if self.optimizer not in having:
                raise InputError(f"{name} is for the optimizer {' or '.join(having)}, got {self.optimizer}")
        return kinds[self.optimizer](**given)

    def scaled(self, learning_rate: Any) -> float:
        """The learning rate for this batch size: with `scale_learning_rate`, the linear scaling rule of Goyal et al.
        2017 ("Accurate, large minibatch SGD", arXiv:1706.02677, section 2.1).
        """
        base = self.scale_learning_rate
        return learning_rate if base is None else learning_rate * self.batch_size / base

    def build_loss(self, train_set: "Dataset | None" = None) -> "Loss":
        """The loss that these settings describe.

        Args:
            train_set: for balanced class weights; None: without them, to check the settings.

        Raises:
            InputError: if a setting is given that the loss does not have, or does not accept; if a class has no
                samples; if the labels are no classes, and the loss is for classes.
        """
        from parallelcnn import losses

        given = self._given(_OF_LOSSES)
        if self.loss == "softmax-cross-entropy" and train_set is not None and train_set.classes is None:
            raise InputError(
                f"{train_set.name}: the labels are numbers, not classes: --loss squared is for regression, and "
                f"--loss binary-cross-entropy for zeros and ones, several for each sample"
            )
        for name, value in given.items():
            if self.loss != "softmax-cross-entropy":
                raise InputError(f"{name} is for the loss softmax-cross-entropy, got {value!r} with {self.loss}")
        if "class_weight" in given:
            given["class_weight"] = None if train_set is None else train_set.balanced_class_weight()
        return getattr(losses, LOSSES[self.loss])(**given)

    def build_first_layers(self, input_shape: tuple[int, ...]) -> "tuple[Layer, ...]":
        """The layers of augmentation and normalisation, to be put in front of the network's.

        Args:
            input_shape: shape of one sample.

        Raises:
            InputError: if a name is not known or given twice, or an argument breaks its rule.
        """
        from parallelcnn.training.augmentation import first_layers

        return first_layers(self.augment, self.normalize, input_shape)

    def build_metrics(self, classes: int | None) -> "list[Metric]":
        """The metrics that are computed besides the default one.

        Args:
            classes: of the data set; None: the labels are no classes.

        Raises:
            InputError: if a metric needs classes and there are none.
        """
        from parallelcnn import metrics

        found = []
        for name in dict.fromkeys(self.metrics):
            kind, takes = _metric_of(name, classes)
            found.append(getattr(metrics, kind)(takes))
        return found

    def build_early_stopping(self, role: str | None = None) -> "EarlyStopping | None":
        """The callback that stops training early, if it is asked for; see `build_optimizer`."""
        from parallelcnn.training.early_stopping import EarlyStopping

        if self.early_stopping is None:
            return None
        return EarlyStopping(self._monitored(role), self.early_stopping, self.min_delta or 0.0)

    def build_checkpoints(self, directory: Path, locate: "Callable[[], Path] | None" = None) -> "CheckpointFolder":
        """Where and how often a run in this directory saves checkpoints; for `locate`, see `CheckpointFolder`."""
        from parallelcnn.training.checkpoint import CheckpointFolder

        every = self.checkpoint_every, self.checkpoint_seconds
        return CheckpointFolder(directory / "checkpoints", *every, self.keep_last, self.keep_best, locate)

    def _monitored(self, role: str | None) -> str | None:
        """The name, in the logs of callbacks, of what must improve; None: the loss."""
        role = role or ("test" if self.validation_split is None else "val")
        return None if self.monitor is None else f"{role}_{self.monitor}"

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of the settings that differ from their defaults."""
        defaults = {one.name: one.default for one in fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    def _scheduled(self, rate: float, role: str | None) -> "float | Schedule":
        """The learning rate, or the schedule of it that these settings describe."""
        from parallelcnn import schedules

        name, warmup = self.schedule, self.warmup
        given = self._given(dict.fromkeys(option for options in SCHEDULES.values() for option in options))
        for option, value in given.items():
            shared = option in ("monitor", "min_delta")
            if option not in SCHEDULES[name] and not (shared and self.early_stopping is not None):
                users = [other for other, options in SCHEDULES.items() if option in options]
                also = "early_stopping and " if shared else ""
                raise InputError(f"{option} is for {also}the schedule {' or '.join(users)}, got {value!r} with {name}")
        needed = {"step": "decay_every", "multistep": "milestones", "exponential": "decay_factor"}.get(name)
        if needed is not None and needed not in given:
            raise InputError(f"the schedule {name} needs {needed}")
        if name == "one-cycle":
            if warmup:
                raise InputError(f"warmup must be 0 with the schedule one-cycle, which has its own, got {warmup}")
            return schedules.OneCycle(rate)
        if name == "step":
            return schedules.Step(rate, given["decay_every"], given.get("decay_factor", 0.1), warmup)
        if name == "multistep":
            return schedules.MultiStep(rate, given["milestones"], given.get("decay_factor", 0.1), warmup)
        if name == "exponential":
            return schedules.Exponential(rate, given["decay_factor"], warmup)
        if name == "plateau":
            given["monitor"] = self._monitored(role)
            return schedules.Plateau(rate, given.pop("decay_factor", 0.1), warmup=warmup, **given)
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
        if kept["start_from"] is not None:
            kept["start_from"] = os.path.abspath(kept["start_from"])
        if ".py:" in kept["model"]:
            kept["model"] = os.path.abspath(kept["model"])
        return kept

    def to_arguments(self) -> list[str]:
        """The repeatable settings that differ from their defaults, as arguments of `parallelcnn train`."""
        values, found = self.repeatable(), []
        for one, setting in settings():
            value = values.get(one.name, one.default)
            if value == one.default:
                continue
            option = f"--{one.name.replace('_', '-')}"
            words = [] if setting.kind is bool else [str(word) for word in (value if setting.length != 1 else (value,))]
            is_option_like = len(words) == 1 and words[0].startswith("-")
            found += [f"{option}={words[0]}"] if is_option_like else [option, *words]
        return found

    def to_toml(self) -> str:
        """The repeatable settings as TOML, without those that are None."""
        # TOML writes basic strings, booleans and finite numbers as JSON does, but without pairs of surrogates, and with
        # DEL escaped.
        known = {name: value for name, value in self.repeatable().items() if value is not None}
        text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in known.items())
        return text.replace("\x7f", "\\u007f")


def settings() -> Iterator[tuple[Field[Any], Setting]]:
    """Every field of `TrainConfig` with its setting."""
    return ((one, setting_of(one)) for one in fields(TrainConfig))


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


def _metric_of(name: str, classes: int | None) -> tuple[str, Any]:
    """The class of a metric, in `metrics`, and its argument."""
    if (top := re.fullmatch(r"top-([1-9]\d{0,8})", name)) is not None:
        return "TopK", int(top[1])
    kinds = {"precision": "Precision", "recall": "Recall", "f1": "F1", "confusion-matrix": "ConfusionMatrix"}
    if name not in kinds:
        raise InputError(f"metrics must be a list of {', '.join(METRICS)}, got {name!r}")
    return kinds[name], classes
