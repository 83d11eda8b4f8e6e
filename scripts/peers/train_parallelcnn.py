#!/usr/bin/env python3
"""The paper's network in parallelcnn itself, by the peers' command line; under mpirun, on as many ranks.

Times are better taken from `parallelcnn train`, as a user starts it. This program is for what the command does not
tell, the bytes allocated in a training, counted as those of the peers are.
"""

import argparse
import inspect

from contract import Meter, load_sets, parse_options, peak_rss_bytes, print_result

import parallelcnn as pc
from parallelcnn.comm import Communicator, world


def main() -> None:
    options = parse_options("parallelcnn", ("train",))
    comm = world()
    with Meter() as loading:
        train_set, test_set = load_sets(options)
    first = pc.Dataset(train_set.images[:1], train_set.labels[:1], train_set.classes)
    train(first, first, 1, 1, options, comm)  # compiles
    with Meter() as training:
        network, history = train(train_set, test_set, options.epochs, options.batch_size, options, comm)
    training.seconds = history.train_seconds
    figures = comm.gather((peak_rss_bytes(), loading.allocated_bytes, training.allocated_bytes))
    on_train_set = pc.evaluate(network, train_set, comm)
    if comm.rank != 0:
        return
    if training.allocated_bytes is not None:
        loading.allocated_bytes = sum(loaded for _, loaded, _ in figures)
        training.allocated_bytes = sum(trained for _, _, trained in figures)
    on_test_set = history.evaluations[-1][2]
    print_result(
        options,
        loading=loading,
        training=training,
        losses=history.losses,
        versions={"parallelcnn": pc.__version__},
        processes=comm.size,
        peak_rss=max(peak for peak, _, _ in figures),
        train_accuracy=on_train_set.accuracy,
        test_accuracy=on_test_set.accuracy,
        test_loss=on_test_set.loss,
    )


def train(
    train_set: pc.Dataset,
    test_set: pc.Dataset,
    epochs: int,
    batch_size: int,
    options: argparse.Namespace,
    comm: Communicator,
) -> tuple[pc.NetworkHandler, pc.History]:
    """A new network, and what its training tells."""
    network = pc.NetworkHandler(pc.paper(), train_set.input_shape, options.seed)
    optimizer = pc.SGD(options.learning_rate)
    threads = {}
    if "threads" in inspect.signature(pc.train).parameters:
        threads["threads"] = options.threads // comm.size
    return network, pc.train(network, train_set, test_set, optimizer, epochs, batch_size, options.seed, comm, **threads)


if __name__ == "__main__":
    main()
