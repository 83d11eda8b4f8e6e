"""What a run prints before and after training, and what summary.json holds."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn._version import __version__
from parallelcnn.comm import mpi_library
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import shard
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.training.config import TrainConfig
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History
from parallelcnn.training.progress import percent


def describe_run(
    options: TrainConfig,
    hosts: Sequence[str],
    threads: Sequence[int],
    network: NetworkHandler,
    train_set: Dataset,
    test_set: Dataset,
    optimizer: Optimizer,
) -> str:
    """The lines that are printed before the first step.

    Args:
        options: the settings.
        hosts, threads: of every rank.
    """
    ranks = ", ".join(f"{host} ({hosts.count(host)})" for host in dict.fromkeys(hosts))
    fewest, most = min(threads), max(threads)
    each = f"{plural(most, 'thread') if fewest == most else f'{fewest} to {most} threads'} each"
    parts = []
    for rank, count in enumerate(threads):
        of_rank = shard(np.arange(options.batch_size), rank, len(hosts))
        parts += [len(shard(of_rank, i, count)) for i in range(count)]
    classes = "" if train_set.classes is None else f", {train_set.classes} classes"
    steps = -(-len(train_set) // options.batch_size)
    return "\n".join(
        [
            network.summary(),
            f"network    {options.model}",
            f"data       {train_set.name}: {len(train_set):,} to train on, {len(test_set):,} to test on{classes}",
            f"ranks      {len(hosts)} on {ranks}, {each}",
            f"minibatch  {options.batch_size} = {' + '.join(map(str, parts)) if len(parts) <= 8 else _short(parts)}",
            f"training   {options.epochs} epochs of {steps:,} minibatches, {optimizer}",
        ]
    )


def summarize(
    options: TrainConfig,
    hosts: Sequence[str],
    threads: Sequence[int],
    network: NetworkHandler,
    train_set: Dataset,
    history: History,
    on_train_set: Evaluation,
) -> dict[str, Any]:
    """The content of `summary.json`: the settings of a run and its results."""
    on_test_set = history.evaluations[-1][2]
    return {
        "version": __version__,
        **{name: getattr(options, name) for name in _SETTINGS},
        "layers": [repr(layer) for layer in network.layers],
        "parameters": network.params.size,
        "data": train_set.name,
        "data_directory": _data_directory(options),
        "ranks": len(hosts),
        "hosts": list(hosts),
        "threads": list(threads),
        "mpi_library": mpi_library() if len(hosts) > 1 else None,
        "grains": options.reproducible,
        "lost_ranks": history.lost_ranks,
        "samples_seen": history.samples_seen,
        "train_seconds": history.train_seconds,
        "compile_seconds": history.compile_seconds,
        "train_accuracy": on_train_set.accuracy,
        "train_loss": on_train_set.loss,
        "test_accuracy": on_test_set.accuracy,
        "test_loss": on_test_set.loss,
        "parameters_sha256": network.parameters_sha256(),
    }


_SETTINGS = [
    *("model", "epochs", "batch_size", "learning_rate", "schedule", "warmup"),
    *("momentum", "nesterov", "weight_decay", "clip_norm", "seed"),
]


def describe_result(path: Path, summary: Mapping[str, Any]) -> str:
    """The two lines that are printed at the end.

    Args:
        path: of the run directory.
    """
    accuracies = [percent(summary[f"{which}_accuracy"]) for which in ("train", "test")]
    return (
        f"done       train accuracy {accuracies[0]}, test accuracy {accuracies[1]}; "
        f"{summary['train_seconds']:.2f} s of training, {summary['compile_seconds']:.2f} s of compilation, "
        f"{summary['peak_rss_bytes'] / 2**20:,.0f} MiB a rank\n"
        f"written    {path}{os.sep}"
    )


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 thread, 2 threads."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _data_directory(options: TrainConfig) -> str | None:
    """The absolute path of the directory that was named as the data set, or as the place of MNIST's files."""
    directory = options.data_dir if options.data == "mnist" else None if options.data == "digits" else options.data
    return None if directory is None else os.path.abspath(directory)


def _short(parts: list[int]) -> str:
    low, high = min(parts), max(parts)
    return f"{len(parts)} x {low}" if low == high else f"{len(parts)} parts of {low} or {high}"
