"""A small data set and network, whose sizes are multiples of nothing, for tests of training."""

import numpy as np

import parallelcnn as pc

LAYERS = (
    pc.Conv2D(3, 3, activation="relu"),
    pc.MaxPool2D(2),
    pc.Conv2D(4, 2, padding="same", activation="tanh"),
    pc.Flatten(),
    pc.Dense(5),
)


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
