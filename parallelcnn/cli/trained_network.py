"""Find a trained network by its run directory, model file or checkpoint, and what its run says of data and settings."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from parallelcnn.errors import DataError, InputError
from parallelcnn.training.config import TrainConfig

if TYPE_CHECKING:
    from parallelcnn.network import NetworkHandler

_READING = ("image_size", "resize", "color", "skip_broken")  # settings of folders of images
_IMPORTED = (".onnx", ".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # see `parallelcnn import`


class TrainedNetwork(NamedTuple):
    """A file that holds a trained network, and what its run says.

    Attributes:
        file: the model file or the checkpoint.
        note: a sentence on why it is this file; "" if the user named it.
        run: the directory of the run.
        is_checkpoint_of_run: whether the file is one of the run's checkpoints.
        config: the settings of the run; None: they are missing or damaged.
        summary: the strings of its summary.json that `evaluate` needs, or None for each.
    """

    file: Path
    note: str
    run: Path
    is_checkpoint_of_run: bool
    config: TrainConfig | None
    summary: dict[str, str | None]

    @property
    def is_unfinished(self) -> bool:
        """Whether the run has settings, but no results."""
        return self.config is not None and not any(self.summary.values())


def find_trained_network(name: str, *, best: bool = False) -> TrainedNetwork:
    """Find the file, and read what the run says.

    Args:
        name: a run directory, a model file or a checkpoint.
        best: take the run's checkpoint with the best evaluation.

    Raises:
        InputError: if there is no such file, or `best` is not possible.
    """
    from parallelcnn.files.archive import open_npz

    if name == "":
        raise InputError("MODEL must be a run directory, a model file or a checkpoint, got ''")
    path = Path(name)
    if path.suffix.lower() in _IMPORTED and path.is_file():
        raise InputError(f"{path} is no model file: parallelcnn import {path} --out model.npz makes one of it")
    file, note = _in_directory(path, best=best) if os.path.isdir(path) else (path, "")
    with open_npz(file, "model file"):  # if there is none, say so before anything about its data
        if best and file == path:
            raise InputError(f"--best takes a run directory, got the file {path}")
        is_checkpoint = file.parent.name == "checkpoints"
        run = file.parent.parent if is_checkpoint else file.parent
        return TrainedNetwork(file, note, run, is_checkpoint, _config_of(run), _summary_of(run))


def load_trained_network(
    found: TrainedNetwork, model: str | None = None, classes: int | None = None
) -> "NetworkHandler":
    """The network; of a checkpoint with averaged parameters, which evaluations use, with these.

    Args:
        model: the network that `--model` names, which is needed if it uses classes or functions of the user's own.
        classes: number of classes; files of earlier versions do not contain it.
    """
    from parallelcnn.cli.models import find_model
    from parallelcnn.files.archive import read_archive
    from parallelcnn.files.model import classes_of, load_model
    from parallelcnn.training.checkpoint import load_checkpoint

    layers = None if model is None else find_model(model, classes_of(found.file) or classes)
    network = load_model(found.file, layers)
    if read_archive(found.file, "model", "checkpoint").description["format"] == "parallelcnn checkpoint":
        checkpoint = load_checkpoint(found.file)
        # Another optimiser leaves the average of an earlier one in the state, as it was.
        if str(checkpoint.facts.get("optimizer")).startswith("EMA(") and "average" in checkpoint.state:
            network.trained_params[...] = checkpoint.state["average"]
    return network


def _in_directory(run: Path, *, best: bool) -> tuple[Path, str]:
    """The file of a run directory, and why it is this one."""
    from parallelcnn.training.checkpoint import CheckpointFolder

    checkpoints = CheckpointFolder(run / "checkpoints")
    if best:
        file = checkpoints.best_file()
        if file is None:
            raise InputError(
                f"--best: {checkpoints.path} does not hold the checkpoint with the best evaluation, which is kept if "
                f"the training was given --keep-best"
            )
        return file, f"the checkpoint with the best evaluation, {file.name}"
    model = run / "model.npz"
    newest = None if model.exists() else checkpoints.newest_file()
    if newest is None and not model.exists():
        raise InputError(f"{run} is no run directory with a model: it holds neither model.npz nor a checkpoint")
    return (
        (model, "") if newest is None else (newest, f"the run has not finished: its newest checkpoint, {newest.name}")
    )


def _config_of(run: Path) -> TrainConfig | None:
    from parallelcnn.files.run_files import read_config

    known = {one.name for one in fields(TrainConfig)}
    values = {name: value for name, value in read_config(run).items() if name in known}
    try:
        return TrainConfig(**values) if values else None
    except InputError:
        return None


def _summary_of(run: Path) -> dict[str, str | None]:
    """What `summary.json` says of data and parameters; nothing if it is missing or damaged."""
    from parallelcnn.files.run_files import read_summary

    summary = read_summary(run)
    kept: dict[str, Any] = {name: summary.get(name) for name in ("data", "data_directory", "loss", "parameters_sha256")}
    is_valid = all(value is None or isinstance(value, str) for value in kept.values())
    return kept if is_valid else dict.fromkeys(kept)


def data_settings(found: TrainedNetwork, data: str | None, data_dir: str | None) -> TrainConfig:
    """The settings with which the data are loaded: those of the run, where they are known.

    Args:
        data, data_dir: as given by the user; None: those of the run.

    Raises:
        InputError: if neither says which data, or those of the run are no longer there.
    """
    config = found.config or TrainConfig()
    if data is not None or config.class_weight is None:  # balanced weights are those of the part that is trained on
        config = replace(config, validation_split=None)
    if data is not None:  # how the images of the run's folder were read says nothing about other data
        read_as_usual: dict[str, Any] = {one.name: one.default for one in fields(TrainConfig) if one.name in _READING}
        return replace(config, data=data, data_dir=data_dir, **read_as_usual)
    trained_on, directory = found.summary["data"], found.summary["data_directory"]
    if trained_on is None:
        if not found.is_unfinished:
            raise InputError(
                f"--data NAME|PATH is needed: {found.run / 'summary.json'}, "
                f"which would say what {found.file} was trained on, is missing or unreadable"
            )
        config = config if data_dir is None else replace(config, data_dir=data_dir)
    elif (found.config.data if found.config else trained_on) == "mnist":  # which ./mnist is not
        config = replace(config, data="mnist", data_dir=directory if data_dir is None else data_dir)
    else:
        config = replace(config, data=directory or trained_on, data_dir=data_dir)  # which is refused if it is given
    place = config.data_dir or config.data
    if data_dir is None and os.path.isabs(place) and not os.path.exists(place):  # a name is no absolute path
        raise DataError(f"{place}, which holds the data of {found.run}, no longer exists: give its new place as --data")
    return config
