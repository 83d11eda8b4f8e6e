"""`parallelcnn evaluate`: loss, accuracy and other metrics of a trained network on a test set."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelcnn.cli.options import add_setting, add_trained_network, warn_of_too_many_threads
from parallelcnn.cli.output import aligned, say
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.resilience.signals import catch_interrupts, interrupts_ending_the_process
from parallelcnn.training.config import LOSSES, NETWORK, RANKS, RESULTS

if TYPE_CHECKING:
    from parallelcnn.cli.trained_network import TrainedNetwork
    from parallelcnn.comm import Transport
    from parallelcnn.data import Dataset
    from parallelcnn.data.readers.decoding import ImageOptions
    from parallelcnn.metrics import Metric
    from parallelcnn.network import NetworkHandler
    from parallelcnn.training.config import TrainConfig
    from parallelcnn.training.evaluation import Evaluation

_SCORES = ("precision", "recall", "f1")
_MOST_PRINTED = 20  # classes whose scores are printed
_MOST_IN_JSON = 2000

# Of a model file without its run: the losses whose networks predict this.
_LOSS_OF_PREDICTION = {"softmax": "SoftmaxCrossEntropy", "sigmoid": "BinaryCrossEntropy", "output": "MeanSquaredError"}

_EXAMPLES = """\
examples:
  parallelcnn evaluate runs/a                        on the test set of the run
  parallelcnn evaluate runs/a --best                 the best checkpoint of --keep-best
  parallelcnn evaluate runs/a --data other/images    on another test set
  parallelcnn evaluate model.npz --data mnist        a model file without its run directory
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a trained network on a test set",
        usage="parallelcnn evaluate MODEL [options]",
        description="Print loss and accuracy of a trained network on a test set, and the scores of each class\n"
        f"if there are at most {_MOST_PRINTED} classes.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=True)
    network, ranks, results = (parser.add_argument_group(title) for title in (NETWORK, RANKS, RESULTS))
    add_trained_network(parser, network)
    add_setting(network, "data", " [default: the data of the run]", default=None)
    add_setting(network, "data_dir")
    add_setting(network, "skip_broken")
    add_setting(network, "loss", " [default: that of the run]", default=None)
    add_setting(ranks, "threads")
    add_setting(ranks, "timeout")
    add_setting(
        results, "metrics", help="further metrics: top-5 or another number, precision, recall, f1, confusion-matrix"
    )
    results.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn import losses
    from parallelcnn.cli.data_sets import load_data_sets
    from parallelcnn.cli.trained_network import data_settings, find_trained_network, load_trained_network
    from parallelcnn.comm import Serial, run_together
    from parallelcnn.data import Dataset
    from parallelcnn.files.model import image_options_of
    from parallelcnn.trainer import evaluate
    from parallelcnn.training.compilation import compile_in_turns
    from parallelcnn.training.evaluation import default_metrics
    from parallelcnn.training.preparation import check_fit, check_same_classes
    from parallelcnn.training.progress import show_compilation
    from parallelcnn.training.threads import check_threads

    def find() -> "tuple[TrainedNetwork, TrainConfig, ImageOptions | None]":
        check_threads(options.threads)
        if options.loss not in (None, *LOSSES):
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {options.loss!r}")
        found = find_trained_network(options.file, best=options.best)
        config = data_settings(found, options.data, options.data_dir)
        config = replace(config, skip_broken=config.skip_broken or options.skip_broken, metrics=tuple(options.metrics))
        return found, config, image_options_of(found.file, skip_broken=config.skip_broken)

    catch_interrupts()
    found, config, like = comm.allgather(run_together(comm, find))[0]
    warn_of_too_many_threads(options, comm)
    other_data = options.data is not None
    with show_compilation(comm, sys.stderr):
        train_set, _, test_set, found_data, *_ = load_data_sets(config, comm, like)

    def load() -> "tuple[NetworkHandler, losses.Loss, list[Metric]]":
        network = load_trained_network(found, options.model, test_set.classes)
        is_of_the_run = (
            found.is_checkpoint_of_run
            or found.is_unfinished
            or found.summary["parameters_sha256"] == network.parameters_sha256()
        )
        if not other_data and not is_of_the_run:
            raise InputError(
                f"--data NAME|PATH is needed: {found.run / 'summary.json'} is about another model than {found.file}"
            )
        loss: losses.Loss
        if options.loss is None and not other_data and found.config is not None:
            loss = found.config.build_loss(train_set)  # with its class weights and its label smoothing
        else:
            name = options.loss or (found.summary["loss"] if is_of_the_run else None)
            by_prediction = _LOSS_OF_PREDICTION.get(network.prediction, "SoftmaxCrossEntropy")
            loss = getattr(losses, LOSSES.get(name or "", by_prediction))()
        check_fit(network, test_set, loss)
        check_same_classes(network.class_names, "the network's training", test_set)
        metrics = [*default_metrics(network, test_set, loss), *config.build_metrics(test_set.classes)]
        return network, loss, [*metrics, *_scores_of_classes(network, test_set, options.json)]

    comm.status = "reading the network"
    network, loss, metrics = run_together(comm, load)

    def one_sample() -> None:  # `evaluate` compiles for a full block, too
        first = Dataset(test_set.images[:1], test_set.labels[:1], test_set.classes)
        evaluate(network, first, Serial(), loss=loss, threads=1)

    with show_compilation(comm, sys.stderr), interrupts_ending_the_process():
        compile_in_turns(comm, one_sample, network, options.threads, training=False)
    result = evaluate(network, test_set, comm, loss=loss, metrics=metrics, threads=options.threads)
    if comm.rank == 0:
        names = class_names(network, test_set)
        if options.json:
            say(json.dumps(_as_json(found.file, test_set, result, names), indent=2))
        else:
            trained_on = found.summary["data"]
            if other_data and found_data:  # it says if the test set is only a part of these data
                say(f"found      {found_data}")
            if other_data and trained_on not in (None, test_set.name):
                say(f"trained on {trained_on}, evaluated on {test_set.name}")
            if found.note:
                say(found.note)
            say("\n".join(_lines(test_set, result, names)))
    return 0


def class_names(network: "NetworkHandler", test_set: "Dataset") -> list[str]:
    """The names of the classes, or of several labels of a sample: their numbers where there are no names."""
    count = test_set.classes or network.output_shape[0]
    names = network.class_names or test_set.class_names or ()
    return [*names[:count], *(str(i) for i in range(len(names), count))]


def _scores_of_classes(network: "NetworkHandler", test_set: "Dataset", as_json: bool) -> "list[Metric]":
    """The metrics of each class, unless there are too many classes, or the network does not predict classes."""
    from parallelcnn.metrics import F1, Precision, Recall

    is_multi_label = test_set.classes is None and network.prediction == "sigmoid"
    count = network.output_shape[0] if is_multi_label else test_set.classes or 0
    if not 2 <= count <= (_MOST_IN_JSON if as_json else _MOST_PRINTED):
        return []
    metrics = [kind(count, None) for kind in (Precision, Recall, F1)]
    try:
        metrics[0].check(network.output_shape, test_set.labels, test_set.classes)
    except ShapeError:  # a network with more outputs than classes
        return []
    return list(metrics)


def _per_class(result: "Evaluation", test_set: "Dataset", names: list[str]) -> list[dict[str, Any]]:
    """The scores of each class, and its number of samples; empty if they were not measured."""
    import numpy as np

    measured = dict(result.others)
    if "f1_per_class" not in measured:
        return []
    scores = [result[f"{name}_per_class"] for name in _SCORES]
    labels = test_set.labels
    is_multi_label = test_set.classes is None
    samples = (labels > 0.5).sum(axis=0) if is_multi_label else np.bincount(labels, minlength=len(names))
    return [
        {"class": name, **{key: float(score[i]) for key, score in zip(_SCORES, scores, strict=True)}, "samples": int(n)}
        for i, (name, n) in enumerate(zip(names, samples, strict=True))
    ]


def _as_json(file: Path, test_set: "Dataset", result: "Evaluation", names: list[str]) -> dict[str, Any]:
    from parallelcnn.cli.metrics import as_json

    measured = {name: as_json(value) for name, value in result.others if not name.endswith("_per_class")}
    return {
        "file": str(file),
        "data": test_set.name,
        "samples": result.samples,
        "loss": as_json(result.loss),
        "accuracy": result.accuracy,
        "metrics": measured,
        "classes": _per_class(result, test_set, names),
    }


def _lines(test_set: "Dataset", result: "Evaluation", names: list[str]) -> Iterator[str]:
    """What is printed: loss and accuracy, other metrics, and a table of the classes."""
    from parallelcnn.training.progress import percent

    accuracy = "" if result.accuracy is None else f", test accuracy {percent(result.accuracy)}"
    yield f"{test_set.name}: test loss {result.loss:.4f}{accuracy}"
    for name, value in result.others:
        if isinstance(value, float | int):
            yield f"{name.replace('_', ' ')} {value:.4f}"
        elif name == "confusion_matrix":
            yield from _matrix(result[name], names)
    rows = _per_class(result, test_set, names)
    if rows:
        cells = [[row["class"], *(f"{row[score]:.4f}" for score in _SCORES), f"{row['samples']:,}"] for row in rows]
        yield from aligned([["class", *_SCORES, "samples"], *cells])


def _matrix(matrix: Any, names: list[str]) -> Iterator[str]:
    if len(names) > _MOST_PRINTED:
        yield f"confusion matrix of {len(names)} classes: see --json"
        return
    yield "confusion matrix (rows: true classes, columns: predicted ones)"
    yield from aligned([["", *names], *([name, *map(str, row)] for name, row in zip(names, matrix, strict=True))])
