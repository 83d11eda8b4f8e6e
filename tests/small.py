"""A small data set and network, whose sizes are multiples of nothing, for tests of training."""

from collections.abc import Callable

import numpy as np

import parallelcnn as pc
from parallelcnn.comm import Transport

LAYERS = (
    pc.Conv2D(3, 3, activation="relu"),
    pc.MaxPool2D(2),
    pc.Conv2D(4, 2, padding="same", activation="tanh"),
    pc.Flatten(),
    pc.Dense(5),
)


class Scaled(pc.Dense):
    """A layer with a value that is neither a field of the dataclass nor in its `repr`."""

    def __init__(self, units: int, factor: object) -> None:
        super().__init__(units)
        object.__setattr__(self, "factor", factor)

    def __repr__(self) -> str:
        return f"Scaled({self.units})"


def dataset(n: int, seed: int = 0) -> pc.Dataset:
    """Images of 11 x 9 with a bright stripe at the place of their label."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (n, 11, 9), dtype=np.uint8)
    labels = rng.integers(0, 5, n)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    return pc.Dataset(images, labels, 5, f"stripes-{n}")


def network(seed: int = 0, dtype: type = np.float32) -> pc.NetworkHandler:
    return pc.NetworkHandler(LAYERS, (1, 11, 9), seed, dtype)


class _After:
    """A callback that only calls something, with the minibatch's number."""

    def __init__(self, minibatch: Callable[[int], None]) -> None:
        self._call = minibatch

    def on_batch_end(self, step, logs):
        self._call(step)


def train(comm: Transport, epochs: int, after_minibatch: Callable[[int], None] | None = None) -> None:
    """Train the small network over nine minibatches an epoch; the first training compiles. Collective."""
    callbacks = [_After(after_minibatch)] if after_minibatch else []
    pc.train(network(), dataset(211), dataset(97), pc.SGD(0.1), epochs, 25, comm=comm, callbacks=callbacks, verbose=0)
