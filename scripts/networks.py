"""The networks that the comparisons run, and what they cost by their shapes."""

import math

import parallelcnn as pc


def same(channels: int, size: int = 3) -> pc.Conv2D:
    """A convolution that keeps the image's size, with relu."""
    return pc.Conv2D(channels, size, padding="same", activation="relu")


def halving(channels: int, size: int = 3) -> pc.Conv2D:
    """A convolution of stride 2 that halves the image, with relu; its zeros lie as PyTorch can have them."""
    return pc.Conv2D(channels, size, stride=2, padding=size // 2, activation="relu")


CLASSIFIER = (pc.Flatten(), pc.Dense(10))
NETWORKS: dict[str, tuple[tuple[pc.Layer, ...], tuple[int, int, int]]] = {
    "paper": (pc.paper(), (1, 28, 28)),
    "LeNet-5": (pc.lenet5(), (1, 28, 28)),
    "CIFAR-size": (
        (same(32), pc.MaxPool2D(2), same(64), pc.MaxPool2D(2), same(128), pc.MaxPool2D(2), *CLASSIFIER),
        (3, 32, 32),
    ),
    "VGG-like": (
        tuple(layer for channels in (64, 128, 256) for layer in (same(channels), same(channels), pc.MaxPool2D(2)))
        + CLASSIFIER,
        (3, 32, 32),
    ),
    "1x1 bottlenecks": (
        (
            *(same(64), pc.MaxPool2D(2)),
            *(same(32, 1), same(32), same(128, 1), pc.MaxPool2D(2)),
            *(same(64, 1), same(64), same(256, 1), pc.MaxPool2D(2)),
            *CLASSIFIER,
        ),
        (3, 32, 32),
    ),
    "strided 3x3": ((same(32), halving(64), halving(128), halving(128), *CLASSIFIER), (3, 32, 32)),
    "7x7 first": ((halving(64, 7), pc.MaxPool2D(2), same(64), halving(128), *CLASSIFIER), (3, 32, 32)),
}


def flop_per_sample(network: pc.NetworkHandler) -> float:
    """Multiplications and additions of convolutions and matrix products, forward and backward, by shapes alone."""
    total = 0
    for position, (layer, shape, output) in enumerate(
        zip(network.layers, network.shapes[:-1], network.shapes[1:], strict=True)
    ):
        weight = layer.param_shapes(shape).get("weight")
        if weight is not None:
            forward = 2 * math.prod(weight) * math.prod(output[1:])
            total += forward * (3 if position > 0 else 2)
    return total
