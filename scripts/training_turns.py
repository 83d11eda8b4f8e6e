"""Trainings of a given length, on random images: what the scripts time when they time a training step."""

from collections.abc import Callable

import numpy as np

import parallelcnn as pc
from parallelcnn.comm import Communicator

LEARNING_RATE = 0.01


def random_dataset(input_shape: tuple[int, ...], samples: int) -> pc.Dataset:
    """Images of noise, uint8 as data sets come, and labels of ten classes."""
    rng = np.random.default_rng(0)
    return pc.Dataset(rng.integers(0, 256, (samples, *input_shape), np.uint8), rng.integers(0, 10, samples), 10)


def samples_within(seconds: float, train: Callable[[int], float], batch_size: int, limit: int) -> int:
    """How many samples, whole minibatches and at most `limit`, `train` gets through in so many seconds."""
    train(batch_size)  # compiles
    least = max(1, 512 // batch_size) * batch_size
    wanted = int(least * seconds / train(least)) // batch_size * batch_size
    return min(max(wanted, batch_size), limit // batch_size * batch_size)


def our_training(
    network: pc.NetworkHandler,
    train_set: pc.Dataset,
    batch_size: int,
    seconds: float,
    comm: Communicator,
    threads: int,
) -> tuple[int, Callable[[], float]]:
    """Training with parallelcnn for about so long, a rank on so many threads. Collective, as is what it returns.

    Returns:
        how many samples a training handles; a function that trains, and returns the seconds of the loop alone.
    """

    def train(samples: int) -> float:
        some, one = (pc.Dataset(train_set.images[:n], train_set.labels[:n], 10) for n in (samples, 1))
        optimizer = pc.SGD(LEARNING_RATE)
        return pc.train(
            network, some, one, optimizer, 1, batch_size, comm=comm, threads=threads, verbose=0
        ).train_seconds

    # Rank 0 decides for all.
    samples = samples_within(seconds, lambda n: comm.gather(train(n))[0], batch_size, len(train_set))
    return samples, lambda: train(samples)
