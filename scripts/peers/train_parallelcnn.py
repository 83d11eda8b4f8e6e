#!/usr/bin/env python3
"""The paper's network in parallelcnn itself, by the peers' command line; under mpirun, on as many ranks.

Times are better taken from `parallelcnn train`, as a user starts it. This program is for what the command does not
tell, the bytes allocated in a training, counted as those of the peers are.
"""

import argparse

from contract import Meter, exit_on_bad_input, load_sets, parse_options, peak_rss_bytes, print_result

import parallelcnn as pc
from parallelcnn.comm import Communicator, share_on_node, world


def main() -> None:
    run(parse_options("parallelcnn", ("train",)), pc.paper())


def run(options: argparse.Namespace, layers: tuple[pc.Layer, ...]) -> None:
    """Train a network of these layers; rank 0 prints the result."""
    comm = world()
    with Meter() as loading, exit_on_bad_input(comm.rank):
        train_set, test_set = share_on_node(comm, lambda: load_sets(options))
    first = pc.Dataset(train_set.images[:1], train_set.labels[:1], train_set.classes)
    train(layers, first, first, options, comm)  # compiles
    with Meter() as training:
        network, history = train(layers, train_set, test_set, options, comm)
    training.seconds = history.train_seconds
    figures = comm.gather((peak_rss_bytes(), loading.allocated_bytes, training.allocated_bytes))
    on_train_set = pc.evaluate(network, train_set, comm)
    if comm.rank != 0:
        return
    if training.allocated_bytes is not None:
        loading.allocated_bytes = sum(loaded for _, loaded, _ in figures)
        training.allocated_bytes = sum(trained for _, _, trained in figures)
        if comm.size > 1:  # the file that ranks share is memory, too, though nobody asked the C library for it
            arrays = (train_set.images, train_set.labels, test_set.images, test_set.labels)
            loading.allocated_bytes += sum(array.nbytes for array in arrays)
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
    layers: tuple[pc.Layer, ...],
    train_set: pc.Dataset,
    test_set: pc.Dataset,
    options: argparse.Namespace,
    comm: Communicator,
) -> tuple[pc.NetworkHandler, pc.History]:
    """A new network, and what its training tells."""
    network = pc.NetworkHandler(layers, train_set.input_shape, options.seed)
    batch_size = min(options.batch_size, len(train_set))
    threads = max(options.threads // comm.size, 1)
    optimizer = pc.SGD(options.learning_rate)
    history = pc.train(
        network,
        train_set,
        test_set,
        optimizer,
        options.epochs,
        batch_size,
        options.seed,
        comm,
        threads=threads,
        verbose=0,
    )
    return network, history


if __name__ == "__main__":
    main()
