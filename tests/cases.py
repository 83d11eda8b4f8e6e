"""Layers with inputs they take: the one list that every test of layers walks over."""

from parallelcnn import Activation, Concat, Conv2D, Dense, Flatten, Frozen, MaxPool2D, Recompute, Residual, Sequential
from parallelcnn.fusions import PooledConv2D

CONVOLUTIONS = [
    # channels: 1 and many, odd and even, and filters of every size that a kernel treats in its own way
    (Conv2D(1, 1), (1, 1, 1)),
    (Conv2D(6, 3), (1, 8, 8)),
    (Conv2D(7, 3), (4, 4, 4)),
    (Conv2D(5, 3), (3, 5, 7)),
    (Conv2D(3, 1), (4, 3, 5)),
    (Conv2D(2, 5), (2, 6, 7)),
    (Conv2D(3, 7), (1, 7, 9)),
    (Conv2D(9, 2), (5, 4, 4)),
    # filters and images that are not square
    (Conv2D(2, (1, 3)), (2, 3, 6)),
    (Conv2D(2, (3, 1)), (2, 6, 3)),
    (Conv2D(3, (2, 4)), (2, 5, 4)),
    (Conv2D(2, (4, 3)), (1, 4, 9)),
    # strides, also larger than the filter, and such that rows and columns are left over
    (Conv2D(2, 3, stride=2), (2, 7, 8)),
    (Conv2D(3, 2, stride=3), (2, 8, 9)),
    (Conv2D(2, 3, stride=(1, 2)), (2, 5, 6)),
    (Conv2D(2, 3, stride=(2, 1)), (2, 6, 5)),
    (Conv2D(3, 1, stride=2), (2, 5, 6)),
    # filters of 1 x 1 and many channels: a product, unless steps or zeros come in between
    (Conv2D(33, 1), (35, 2, 3)),
    (Conv2D(64, 1, bias=False), (32, 4, 3)),
    (Conv2D(32, 1, stride=2, padding=1), (32, 3, 3)),
    (Conv2D(32, 1, stride=(1, 2)), (33, 3, 2)),
    # steps and many channels: panels
    (Conv2D(64, 1, stride=2), (32, 4, 3)),
    (Conv2D(2, (2, 5), stride=(3, 4)), (1, 9, 14)),
    # paddings
    (Conv2D(2, 3, padding="same"), (2, 5, 6)),
    (Conv2D(2, 2, padding="same"), (2, 4, 5)),
    (Conv2D(2, 4, padding="same"), (1, 5, 5)),
    (Conv2D(2, 3, stride=2, padding="same"), (2, 6, 7)),
    (Conv2D(2, (5, 2), stride=(2, 3), padding="same"), (2, 7, 8)),
    (Conv2D(2, 3, padding=1), (2, 4, 5)),
    (Conv2D(2, 3, padding=(2, 0)), (1, 4, 5)),
    (Conv2D(2, 3, stride=2, padding=2), (2, 5, 6)),
    (Conv2D(2, 5, padding=2), (1, 3, 3)),
    (Conv2D(2, 3, stride=2, padding=(0, 3)), (1, 5, 2)),
    (Conv2D(2, 3, bias=False), (2, 5, 5)),
    (Conv2D(2, 3, padding=1, stride=2, bias=False), (2, 5, 5)),
]

# Steps and many channels: panels. Too many weights to differentiate by each.
LARGE_CONVOLUTIONS = [
    (Conv2D(65, 3, stride=2, padding=1), (33, 4, 3)),
    (Conv2D(64, 3, stride=2, padding="same", bias=False), (32, 4, 5)),
    (Conv2D(64, 3, stride=(1, 2)), (32, 3, 5)),
    (Conv2D(72, (2, 1), stride=(3, 2)), (32, 7, 4)),
]

POOLINGS = [
    (MaxPool2D(), (2, 6, 6)),
    (MaxPool2D(2), (3, 7, 5)),
    (MaxPool2D(1), (2, 3, 3)),
    (MaxPool2D(3, stride=1), (2, 5, 6)),
    (MaxPool2D(3, stride=2), (1, 7, 8)),
    (MaxPool2D(2, stride=3), (2, 8, 7)),
    (MaxPool2D((2, 3)), (2, 5, 7)),
    (MaxPool2D((3, 1), stride=(2, 1)), (2, 6, 4)),
    (MaxPool2D(17, stride=1), (1, 17, 18)),  # more taps than a byte can count
]

POOLED_CONVOLUTIONS = [
    (PooledConv2D(Conv2D(6, 3), MaxPool2D(2)), (1, 8, 8)),
    (PooledConv2D(Conv2D(7, 3), MaxPool2D(2, activation="relu")), (4, 7, 9)),  # rows and columns left over
    (PooledConv2D(Conv2D(3, 3, padding="same"), MaxPool2D(2, activation="softplus")), (2, 6, 6)),
    (PooledConv2D(Conv2D(4, 5, padding=2, bias=False), MaxPool2D((2, 3), activation="tanh")), (2, 7, 6)),
    (PooledConv2D(Conv2D(2, (2, 3), stride=(1, 2)), MaxPool2D((3, 1))), (3, 7, 8)),
    (PooledConv2D(Conv2D(9, 3, stride=2, padding=1), MaxPool2D(2)), (3, 9, 10)),
    (PooledConv2D(Conv2D(5, 1), MaxPool2D(4)), (2, 8, 8)),
    (PooledConv2D(Conv2D(33, 1), MaxPool2D(2)), (32, 4, 2)),
    (PooledConv2D(Conv2D(33, 1), MaxPool2D(2)), (32, 5, 4)),  # a row left over
]

LARGE_POOLED_CONVOLUTIONS = [
    (PooledConv2D(Conv2D(64, 3, stride=2, padding=1), MaxPool2D(2)), (33, 9, 6)),
    (PooledConv2D(Conv2D(33, 3), MaxPool2D(2)), (32, 6, 7)),  # Winograd's way
]

OTHERS = [
    (Dense(1), (1,)),
    (Dense(4), (7,)),
    (Dense(3, bias=False), (5,)),
    (Flatten(), (2, 3, 4)),
    (Flatten(), (5,)),
]

_NAMES = ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "softplus", "gelu", "swish")
ACTIVATED = [
    *((Activation(name), (2, 3, 4)) for name in _NAMES),
    *((Conv2D(3, 2, activation=name), (2, 4, 4)) for name in _NAMES),
    *((Dense(4, activation=name), (5,)) for name in _NAMES),
    *((MaxPool2D(2, activation=name), (2, 5, 4)) for name in _NAMES),
]

# Odd sizes; layers inside that have no parameters, before, between and after those that have; activations that keep
# their output; one that returns its input's memory; one inside another.
RESIDUALS = [
    (Residual((Dense(5),)), (5,)),
    (Residual((Dense(7, activation="tanh"), Dense(3, activation="sigmoid"))), (3,)),
    (Residual((Conv2D(5, 3, padding="same", activation="gelu"), Conv2D(3, 3, padding="same"))), (3, 5, 7)),
    (Residual((Activation("tanh"), Conv2D(3, 1), Activation("softplus"))), (3, 3, 5)),
    (Residual((Activation("swish"),)), (2, 3, 1)),
    (Residual((Flatten(), Flatten())), (5,)),
    (Residual((Conv2D(2, 2, padding=1, activation="tanh"), MaxPool2D(2, stride=1))), (2, 3, 5)),  # not fused
    (Residual((Dense(3), Residual((Residual((Dense(3, activation="swish"),)), Activation("tanh"))), Dense(3))), (3,)),
]

# Layers without parameters in any place; branches and shortcuts that are x itself; composites inside each other.
COMPOSITES = [
    (Sequential(()), (2, 3)),
    (Sequential((Conv2D(3, 2, activation="tanh"), MaxPool2D(2), Flatten(), Dense(2))), (2, 4, 5)),
    (Residual((Dense(4, activation="tanh"),), shortcut=Dense(4, bias=False)), (3,)),
    (Residual((Activation("tanh"),), shortcut=Dense(5), activation="swish"), (5,)),
    (Residual((Conv2D(3, 3, stride=2, padding=1),), shortcut=(Conv2D(3, 1, stride=2),), activation="relu"), (2, 5, 4)),
    (Residual((Dense(3),), shortcut=(), activation="sigmoid"), (3,)),
    (Concat((Conv2D(3, 1), (Conv2D(2, 1, activation="tanh"), Conv2D(1, 3, padding="same")), ())), (2, 3, 5)),
    (Concat(((), Activation("tanh"), ())), (3,)),
    (Concat((Dense(3, activation="tanh"),)), (4,)),
    (Sequential((Concat(((Residual((Dense(3),)), Dense(2)), Sequential((Dense(4),)))), Activation("tanh"))), (3,)),
]

RECOMPUTED = [
    (Recompute((Conv2D(3, 2, activation="tanh"), MaxPool2D(2), Flatten(), Dense(2, activation="swish"))), (2, 4, 5)),
    (Recompute((Residual((Recompute((Dense(4, activation="tanh"), Dense(3))),)), Dense(2))), (3,)),
]

FROZEN = [
    (Frozen(Conv2D(3, 2, activation="tanh")), (2, 4, 5)),
    (Sequential((Dense(4, activation="swish"), Frozen(Dense(3, activation="tanh")), Dense(2))), (3,)),
    (Concat((Frozen(Sequential((Dense(2), Activation("tanh")))), Dense(3))), (4,)),
]

LAYERS = [*CONVOLUTIONS, *POOLINGS, *OTHERS, *ACTIVATED, *RESIDUALS, *COMPOSITES, *RECOMPUTED, *FROZEN]


def name_of(value: object) -> str:
    return repr(value).replace(" ", "")
