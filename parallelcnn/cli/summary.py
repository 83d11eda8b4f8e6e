"""What a run prints before and after training, and what summary.json holds."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn._version import __version__
from parallelcnn.cli.metrics import as_json
from parallelcnn.comm import mpi_library
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.training.config import LOSS, OPTIMIZER, SCHEDULE, TRAINING, TrainConfig, settings
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History
from parallelcnn.training.progress import percent
from parallelcnn.training.reduction import default_shards
from parallelcnn.wording import plural

_SETTINGS = (
    "model",
    *(one.name for one, setting in settings() if setting.group in (TRAINING, LOSS, OPTIMIZER, SCHEDULE)),
)


def describe_run(
    options: TrainConfig,
    hosts: Sequence[str],
    threads: Sequence[int],
    network: NetworkHandler,
    train_set: Dataset,
    evaluated: Dataset,
    test_set: Dataset,
    optimizer: Optimizer,
    loss: Loss,
) -> str:
    """The lines that are printed before the first step; `hosts` and `threads` are those of every rank."""
    ranks = ", ".join(f"{host} ({count})" for host, count in Counter(hosts).items())
    minibatch = np.arange(options.batch_size)
    if options.reproducible is not None or network.mixes_samples:
        number = options.reproducible or default_shards(options.batch_size)
        shards = [len(shard(minibatch, i, number)) for i in range(number)]
    else:
        of_ranks = [shard(minibatch, rank, len(hosts)) for rank in range(len(hosts))]
        counts = zip(of_ranks, threads, strict=True)
        shards = [len(shard(of_rank, i, count)) for of_rank, count in counts for i in range(count)]
    sizes = " + ".join(map(str, shards))
    if len(shards) > 8:
        low, high = min(shards), max(shards)
        sizes = f"{len(shards)} x {low}" if low == high else f"{len(shards)} shards of {low} or {high}"
    classes = "" if train_set.classes is None else f", {train_set.classes} classes"
    to_validate = "" if evaluated is test_set else f"{len(evaluated):,} to validate on, "
    steps = -(-len(train_set) // options.batch_size)
    recipe = [f"training   {plural(options.epochs, 'epoch')} of {steps:,} minibatches, {optimizer}"]
    if options.scale_learning_rate is not None:
        given = options.optimizer_of_constant_rate().learning_rate
        how = f"{given:g} * {options.batch_size} / {options.scale_learning_rate}"
        recipe.append(f"rate       {options.scaled(given):g} = {how}, the learning rate scaled with the batch size")
    if options.precision != "float32":
        recipe.append(f"precision  {options.precision}")
    if loss != SoftmaxCrossEntropy():
        recipe.append(f"loss       {loss}")
    return "\n".join(
        [
            network.summary(),
            f"network    {options.model}",
            f"data       {train_set.name}: {len(train_set):,} to train on, {to_validate}"
            f"{len(test_set):,} to test on{classes}",
            f"ranks      {len(hosts)} on {ranks}, {plural(threads, 'thread')} each",
            f"minibatch  {options.batch_size} = {sizes}",
            *recipe,
        ]
    )


def describe_other_ranks(before: object, threads: Sequence[int]) -> str:
    """What a resumed run says if its numbers of ranks or threads are not those before; "" if they are.

    Args:
        before: the number of threads of each rank, from a checkpoint; older ones have none, and it may be damaged.
        threads: those of this run.
    """
    if not (isinstance(before, list) and before and all(type(count) is int for count in before)):
        return ""
    if before == list(threads):
        return ""
    then, now = (f"{plural(len(some), 'rank')} ({plural(some, 'thread')} each)" for some in (before, list(threads)))
    return (
        f"on {now} instead of {then}: sums are rounded differently, and the result has other bits; "
        "with --reproducible from the start it has the same bits on any ranks"
    )


def summarize(
    options: TrainConfig,
    hosts: Sequence[str],
    threads: Sequence[int],
    network: NetworkHandler,
    train_set: Dataset,
    history: History,
    on_train_set: Evaluation,
    on_test_set: Evaluation,
) -> dict[str, Any]:
    """The content of `summary.json`: the settings of a run and its results."""
    of_optimizer = vars(options.optimizer_of_constant_rate())  # with the defaults of what the options leave open
    last = history.evaluations[-1][2]
    validated = last.role == "val"
    return {
        "version": __version__,
        **{name: of_optimizer.get(name, getattr(options, name)) for name in _SETTINGS},
        "layers": [repr(layer) for layer in network.layers],
        "parameters": network.params.size,
        "data": train_set.name,
        "data_directory": _data_directory(options),
        "ranks": len(hosts),
        "hosts": list(hosts),
        "threads": list(threads),
        "mpi_library": mpi_library() if len(hosts) > 1 else None,
        "reproducible": options.reproducible,
        "lost_ranks": history.lost_ranks,
        "samples_seen": history.samples_seen,
        "train_seconds": history.train_seconds,
        "compile_seconds": history.compile_seconds,
        "train_accuracy": on_train_set.accuracy,
        "train_loss": on_train_set.loss,
        "validation_accuracy": last.accuracy if validated else None,
        "validation_loss": last.loss if validated else None,
        "test_accuracy": on_test_set.accuracy,
        "test_loss": on_test_set.loss,
        "test_metrics": {name: as_json(value) for name, value in on_test_set.others},
        "parameters_sha256": network.parameters_sha256(),
    }


def describe_result(path: Path, summary: Mapping[str, Any]) -> str:
    """The two lines that are printed at the end; `path` is the run directory."""
    return (
        f"done       train accuracy {percent(summary['train_accuracy'])}, "
        f"test accuracy {percent(summary['test_accuracy'])}; "
        f"{summary['train_seconds']:.2f} s of training, {summary['compile_seconds']:.2f} s of compilation, "
        f"{summary['peak_rss_bytes'] / 2**20:,.0f} MiB a rank\n"
        f"written    {path}{os.sep}"
    )


def _data_directory(options: TrainConfig) -> str | None:
    """The absolute path of the data set's directory, or of MNIST's files; None if it was not given."""
    directory = {"mnist": options.data_dir, "digits": None}.get(options.data, options.data)
    return None if directory is None else os.path.abspath(directory)
