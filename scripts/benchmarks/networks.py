"""The networks that the benchmarks train, and the number of operations of each."""

import parallelcnn as pc

Shape = tuple[int, ...]


def same(channels: int, size: int = 3) -> pc.Conv2D:
    """A convolution with relu that keeps the size of the image."""
    return pc.Conv2D(channels, size, padding="same", activation="relu")


def halving(channels: int, size: int = 3) -> pc.Conv2D:
    """A convolution with relu and stride 2, with a padding that PyTorch has as well."""
    return pc.Conv2D(channels, size, stride=2, padding=size // 2, activation="relu")


CLASSIFIER = (pc.Flatten(), pc.Dense(10))
NETWORKS: dict[str, tuple[tuple[pc.Layer, ...], Shape]] = {
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
    "1x1": (
        (
            *(same(64), pc.MaxPool2D(2)),
            *(same(32, 1), same(32), same(128, 1), pc.MaxPool2D(2)),
            *(same(64, 1), same(64), same(256, 1), pc.MaxPool2D(2)),
            *CLASSIFIER,
        ),
        (3, 32, 32),
    ),
    "strided": ((same(32), halving(64), halving(128), halving(128), *CLASSIFIER), (3, 32, 32)),
    "7x7": ((halving(64, 7), pc.MaxPool2D(2), same(64), halving(128), *CLASSIFIER), (3, 32, 32)),
}
if hasattr(pc, "resnet8"):  # an earlier version, which `compare.py --against` may start, has none of them
    NETWORKS["ResNet-8"] = pc.resnet8(), (3, 32, 32)
    NETWORKS["ResNet-20"] = pc.resnet20(), (3, 32, 32)
    NETWORKS["MobileNet"] = pc.mobilenet_small(), (3, 32, 32)


def everything(classes: int) -> tuple[pc.Layer, ...]:
    """A network with the layers that make equal bits on any number of ranks hard: statistics over samples, random
    numbers, branches. For `parallelcnn train --model networks.py:everything`.
    """
    block = (
        pc.DepthwiseConv2D(3, padding=1, bias=False),
        pc.BatchNorm(activation="relu"),
        pc.Conv2D(16, 1, bias=False),
        pc.BatchNorm(),
        pc.SpatialDropout(0.1),
    )
    return (
        pc.Conv2D(8, 3, stride=2, padding=1, bias=False),
        pc.BatchNorm(activation="relu"),
        pc.Residual(block, shortcut=pc.Conv2D(16, 1), activation="relu"),
        pc.Concat(((), pc.AvgPool2D(3, stride=1, padding=1))),
        pc.GroupNorm(4, activation=lambda x: x if x > 0 else 0.1 * x),
        pc.GlobalAvgPool2D(),
        pc.Dropout(0.1),
        pc.Dense(classes),
    )


def flop_per_sample(layers: tuple[pc.Layer, ...], input_shape: Shape) -> float:
    """Multiplications and additions of convolutions and dense layers in a training step, counted from their shapes.

    Three products per weight: forward, gradient of the weights, gradient of the input; the first layer needs no
    gradient of the input.
    """
    total, shape = 0, tuple(input_shape)
    for position, layer in enumerate(layers):
        total += 2 * layer.multiply_adds(shape) * (3 if position else 2)
        shape = layer.output_shape(shape)
    return float(total)


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """3 -> (3, 3)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
