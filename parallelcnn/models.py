"""Networks by name: functions that return their layers.

    >>> network = NetworkHandler(resnet20(classes=10), (3, 32, 32))

The argument `classes` is the number of outputs. `--model NAME` of the command takes the names in `MODELS`.
"""

from collections.abc import Callable

from parallelcnn.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    Residual,
)

Layers = tuple[Layer, ...]


def paper(classes: int = 10) -> Layers:
    """The network of the course behind the paper that this library answers (M. Guryn, "Efficient Automatic
    Differentiation Library for Convolutional Neural Networks in Julia Language"). The paper does not print its network.

    35,474 parameters for 28 x 28 grey images and ten classes.
    """
    return (
        Conv2D(6, 3, activation="relu"),
        MaxPool2D(2),
        Conv2D(16, 3, activation="relu"),
        MaxPool2D(2),
        Flatten(),
        Dense(84, activation="relu"),
        Dense(classes),
    )


def lenet5(classes: int = 10) -> Layers:
    """LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", fig. 2) as it is trained
    today: relu and max-pooling instead of tanh and averages, and every channel reads all channels before it.

    61,706 parameters for 28 x 28 grey images and ten classes.
    """
    return (
        Conv2D(6, 5, padding="same", activation="relu"),
        MaxPool2D(2),
        Conv2D(16, 5, activation="relu"),
        MaxPool2D(2),
        Flatten(),
        Dense(120, activation="relu"),
        Dense(84, activation="relu"),
        Dense(classes),
    )


def resnet8(classes: int = 10) -> Layers:
    """ResNet-8 of the benchmark MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597, table 1): one block of each width.

    78,042 parameters for 32 x 32 colour images and ten classes.
    """
    return (*_convolution(16), _block(16), _block(32, stride=2), _block(64, stride=2), *_classifier(classes))


def resnet20(classes: int = 10) -> Layers:
    """ResNet-20 for small images (He et al. 2016, arXiv:1512.03385, section 4.2): three blocks of each width. Where the
    width changes, the shortcut is a convolution of 1 x 1 (their option B) instead of added zeros.

    272,474 parameters for 32 x 32 colour images and ten classes.
    """
    blocks = [_block(width, stride=stride) for width, first in ((16, 1), (32, 2), (64, 2)) for stride in (first, 1, 1)]
    return (*_convolution(16), *blocks, *_classifier(classes))


def vgg_small(classes: int = 10) -> Layers:
    """A small network in the manner of VGG (Simonyan & Zisserman 2015, arXiv:1409.1556): pairs of convolutions of
    3 x 3, then pooling; with batch normalisation and dropout.

    1,148,874 parameters for 32 x 32 colour images and ten classes.
    """
    pairs = [(*_convolution(width), *_convolution(width), MaxPool2D(2)) for width in (64, 128, 256)]
    return (*pairs[0], *pairs[1], *pairs[2], GlobalAvgPool2D(), Dropout(0.5), Dense(classes))


def mobilenet_small(classes: int = 10) -> Layers:
    """MobileNet (Howard et al. 2017, arXiv:1704.04861, table 1) with a quarter of its width, as in MLPerf Tiny. The
    first convolution has stride 1, because the images are small.

    215,642 parameters for 32 x 32 colour images and ten classes.
    """
    widths = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))
    separable = [layer for width, stride in widths for layer in _separable(width, stride)]
    return (*_convolution(8), *separable, *_classifier(classes))


def _convolution(filters: int, kernel_size: int = 3, stride: int = 1, activation: str = "relu") -> Layers:
    """A convolution with batch normalisation. The normalisation takes the place of the bias."""
    padding = kernel_size // 2
    convolution = Conv2D(filters, kernel_size, stride=stride, padding=padding, bias=False)
    return (convolution, BatchNorm(activation=activation))


def _block(filters: int, stride: int = 1) -> Layer:
    """A residual block. With a stride its shortcut is a convolution, which also changes the number of channels."""
    layers = (*_convolution(filters, stride=stride), *_convolution(filters, activation="identity"))
    shortcut = None if stride == 1 else _convolution(filters, 1, stride, activation="identity")
    return Residual(layers, shortcut=shortcut, activation="relu")


def _separable(filters: int, stride: int) -> Layers:
    """A depthwise convolution, then one of 1 x 1."""
    depthwise = DepthwiseConv2D(3, stride=stride, padding=1, bias=False)
    return (depthwise, BatchNorm(activation="relu"), *_convolution(filters, 1))


def _classifier(classes: int) -> Layers:
    return (GlobalAvgPool2D(), Dense(classes))


MODELS: dict[str, Callable[[int], Layers]] = {
    "paper": paper,
    "lenet5": lenet5,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "vgg-small": vgg_small,
    "mobilenet-small": mobilenet_small,
}
