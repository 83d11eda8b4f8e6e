"""Layers with inputs they take: the one list that every test of layers walks over."""

from parallelcnn import (
    Activation,
    AvgPool2D,
    BatchNorm,
    Concat,
    Conv2D,
    Cutout,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Frozen,
    GlobalAvgPool2D,
    GlobalMaxPool2D,
    GroupNorm,
    LayerNorm,
    MaxPool2D,
    MixUp,
    Normalize,
    PReLU,
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    RandomZoom,
    Recompute,
    Reshape,
    Residual,
    Sequential,
    SpatialDropout,
    Upsample2D,
    ZeroPad2D,
)
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

GROUPED_CONVOLUTIONS = [
    (Conv2D(4, 3, groups=2), (6, 5, 6)),
    (Conv2D(6, (3, 2), groups=3, stride=2, padding=1, bias=False), (3, 6, 7)),
    (Conv2D(4, 1, groups=4, stride=(1, 2)), (4, 3, 5)),
    (DepthwiseConv2D(3, padding="same", activation="relu"), (5, 4, 6)),
    (DepthwiseConv2D(3, multiplier=2, stride=2, padding=1), (3, 7, 6)),
    (DepthwiseConv2D(3, stride=2, padding=1, bias=False), (2, 6, 7)),
    (DepthwiseConv2D(2, stride=3), (2, 7, 9)),
    (DepthwiseConv2D((7, 5), stride=(3, 2), padding=(4, 3)), (2, 6, 5)),
    (DepthwiseConv2D((2, 3), stride=(1, 2), padding=2), (2, 3, 4)),
    (DepthwiseConv2D((6, 1), multiplier=3, stride=(2, 4), padding=1), (2, 9, 6)),
    (DepthwiseConv2D((5, 13), stride=2, padding=4), (2, 5, 9)),  # too large to be unrolled
    (Conv2D(3, 3, dilation=2), (2, 7, 6)),
    (Conv2D(2, (3, 2), dilation=(2, 3), padding=(3, 1), bias=False), (2, 5, 7)),
    (Conv2D(2, 3, dilation=(3, 1), padding="same"), (1, 2, 4)),  # fewer rows than the distance of two taps
    (DepthwiseConv2D((2, 3), dilation=2, padding="same"), (3, 6, 5)),
]

# Strides and many channels: panels; many filters and zeros around the columns: rows are copied with them. Too many
# weights to differentiate by each.
LARGE_CONVOLUTIONS = [
    (Conv2D(32, 3, padding=1), (3, 2, 17)),
    (Conv2D(33, (3, 4), padding="same"), (2, 3, 16)),  # one column of zeros before, two after
    (Conv2D(32, (3, 7), stride=(2, 1), padding=(1, 3), bias=False), (3, 5, 26)),
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

PADDED_POOLINGS = [
    (MaxPool2D(3, stride=2, padding=1), (2, 7, 8)),
    (MaxPool2D(3, stride=1, padding=1), (2, 4, 5)),
    (MaxPool2D(2, padding=1), (2, 5, 4)),
    (MaxPool2D(3, stride=4, padding=(1, 0), activation="tanh"), (2, 8, 7)),  # gaps
    (MaxPool2D(3, stride=(3, 2), padding=(0, 1)), (2, 7, 5)),  # a row left over
    (MaxPool2D(3, stride=1, padding=1), (2, 1, 2)),  # no window lies inside the image
    (MaxPool2D(9, stride=4, padding=4), (1, 8, 6)),  # a large window
    (MaxPool2D(3, stride=9, padding=1), (2, 2, 3)),  # a stride larger than the image
]

AVERAGE_POOLINGS = [
    (AvgPool2D(), (2, 6, 6)),
    (AvgPool2D(2), (3, 7, 5)),
    (AvgPool2D(1), (2, 3, 3)),
    (AvgPool2D(3, stride=1), (2, 5, 6)),
    (AvgPool2D(2, stride=3), (2, 8, 7)),
    (AvgPool2D((2, 3)), (2, 5, 7)),
    (AvgPool2D((3, 1), stride=(2, 1)), (2, 6, 4)),
    (AvgPool2D(3, stride=2, padding=1), (2, 7, 8)),
    (AvgPool2D(3, stride=2, padding=1, count_include_pad=False), (2, 7, 8)),
    (AvgPool2D(4, stride=1, padding=(2, 1), count_include_pad=False), (1, 3, 5)),
    (AvgPool2D(2, stride=3, padding=(0, 1), count_include_pad=False), (2, 5, 8)),
    (AvgPool2D(3, padding=1), (2, 1, 2)),
    (AvgPool2D(2, stride=9, padding=1), (1, 2, 3)),
]

RESHAPING = [
    (GlobalAvgPool2D(), (3, 5, 7)),
    (GlobalAvgPool2D(), (2, 1, 1)),
    (GlobalMaxPool2D(), (3, 2, 3)),
    (GlobalMaxPool2D(), (2, 1, 1)),
    (GlobalMaxPool2D(), (2, 9, 9)),  # more places than a tile takes
    (ZeroPad2D(), (2, 3, 4)),
    (ZeroPad2D((0, 2)), (1, 3, 2)),
    (ZeroPad2D(((1, 0), (2, 3))), (2, 2, 3)),
    (ZeroPad2D(0), (2, 2, 3)),
    (Upsample2D(), (2, 3, 4)),
    (Upsample2D((3, 1)), (2, 1, 3)),
    (Upsample2D((1, 2)), (1, 2, 3)),
    (Reshape((6, 4)), (2, 3, 4)),
    (Reshape((3, 2, 2)), (12,)),
]

DROPOUTS = [
    (Residual((Dropout(0), Dense(5), Dropout(0.25), Reshape((5,)))), (5,)),
    (Dropout(), (2, 3, 4)),
    (Dropout(0.2), (7,)),
    (Dropout(0), (5,)),
    (SpatialDropout(), (5, 2, 3)),
    (SpatialDropout(0.1), (3, 1, 1)),
]

AUGMENTATIONS = [
    (RandomFlip(), (2, 3, 5)),
    (RandomFlip("vertical"), (1, 4, 1)),
    (RandomFlip("horizontal_and_vertical"), (3, 4, 5)),
    (RandomCrop(2), (2, 4, 5)),
    (RandomCrop((0, 3)), (1, 3, 2)),  # more zeros than columns
    (RandomCrop(0), (1, 3, 2)),
    (RandomRotation(30), (2, 5, 4)),
    (RandomRotation(180), (1, 1, 6)),
    (RandomZoom(0.5), (3, 4, 5)),
    (RandomZoom(0.99), (1, 1, 1)),
    (RandomBrightness(0.3), (2, 3, 4)),
    (RandomContrast(0.7), (2, 3, 5)),
    (RandomContrast(1), (1, 1, 1)),
    (Cutout(2), (2, 4, 5)),
    (Cutout((3, 1)), (1, 2, 3)),
    (Cutout(9), (1, 3, 4)),
    (MixUp(), (2, 3, 1)),
    (MixUp(4), (3,)),
    (Normalize(0.5, 2), (2, 3, 4)),
    (Normalize((1.0, -2.0), (0.5, 3.0)), (2, 3, 1)),
    (Normalize((1, 2, 3), 0.1), (3,)),
    (Sequential((Conv2D(2, 1, activation="tanh"), RandomCrop(1), RandomZoom(0.3), Flatten(), Dense(2))), (1, 3, 4)),
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
    (PooledConv2D(Conv2D(32, 5, padding=2, bias=False), MaxPool2D(2, activation="relu")), (3, 3, 19)),
]

OTHERS = [
    (Dense(1), (1,)),
    (Dense(4), (7,)),
    (Dense(3, bias=False), (5,)),
    (Flatten(), (2, 3, 4)),
    (Flatten(), (5,)),
    (PReLU(), (3, 4, 5)),
    (PReLU(), (7,)),
]

_NAMES = ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "softplus", "gelu", "swish")
_MORE_NAMES = ("mish", "relu6", "elu", "selu", "hard_sigmoid", "hard_swish")
ACTIVATED = [
    *((Activation(name), (2, 3, 4)) for name in _MORE_NAMES),
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

NORMALISATIONS = [
    (BatchNorm(), (1, 1, 1)),
    (BatchNorm(activation="tanh"), (3, 3, 5)),
    (BatchNorm(momentum=1, epsilon=0.1), (5,)),
    (LayerNorm(), (7,)),
    (LayerNorm(epsilon=0.1, activation="softplus"), (2, 3, 1)),
    (GroupNorm(1), (3, 1, 3)),
    (GroupNorm(3, activation="sigmoid"), (6, 3, 5)),
    (GroupNorm(2, epsilon=0.1), (6,)),
    (Residual((BatchNorm(), Conv2D(2, 3, padding="same"), BatchNorm(activation="swish"))), (2, 3, 3)),
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

LAYERS = [
    *ACTIVATED,
    *AUGMENTATIONS,
    *AVERAGE_POOLINGS,
    *COMPOSITES,
    *CONVOLUTIONS,
    *DROPOUTS,
    *FROZEN,
    *GROUPED_CONVOLUTIONS,
    *NORMALISATIONS,
    *OTHERS,
    *PADDED_POOLINGS,
    *POOLINGS,
    *RECOMPUTED,
    *RESHAPING,
    *RESIDUALS,
]


def name_of(value: object) -> str:
    return repr(value).replace(" ", "")
