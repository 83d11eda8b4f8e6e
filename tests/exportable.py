"""A network with every layer and activation function that can be exported, of odd sizes, and numbers for it."""

import numpy as np

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.models import MODELS

INPUT_SHAPE = (3, 23, 19)
_BLOCK = (
    pc.Conv2D(6, (3, 2), padding="same", activation="leaky_relu", groups=2),
    pc.BatchNorm(epsilon=0.01, momentum=0.3, activation="hard_swish"),
    pc.Frozen(pc.DepthwiseConv2D(3, multiplier=2, padding="same", dilation=2)),
    pc.Conv2D(5, 1, bias=False),
)
LAYERS = (
    pc.RandomFlip(),
    pc.RandomCrop(2),
    pc.Sequential(
        (pc.RandomRotation(9), pc.RandomZoom(0.1), pc.RandomBrightness(0.1), pc.RandomContrast(0.1), pc.Cutout(3))
    ),
    pc.MixUp(),
    pc.Normalize((0.1, 0.5, 0.3), 0.25),
    pc.BatchNorm(),
    pc.ZeroPad2D(((1, 0), (2, 3))),
    pc.Conv2D(6, (4, 3), stride=(2, 1), padding=(2, 1), bias=False),
    pc.BatchNorm(activation="mish"),
    pc.Sequential((pc.MaxPool2D(3, stride=2, padding=1, activation="elu"), pc.Sequential(()))),
    pc.Residual(_BLOCK, shortcut=(pc.Conv2D(5, 1), pc.GroupNorm(5)), activation="selu"),
    pc.SpatialDropout(0.2),
    pc.Residual((pc.Conv2D(5, 3, padding=1, activation="gelu"),)),
    pc.Recompute((pc.Concat((pc.AvgPool2D(3, stride=1, padding=1, count_include_pad=False), pc.Conv2D(3, 1), ())),)),
    pc.PReLU(),
    pc.GroupNorm(1, activation="softplus"),
    pc.LayerNorm(epsilon=0.1, activation="swish"),
    pc.Upsample2D((2, 3)),
    pc.AvgPool2D((3, 2), padding=1),
    pc.Activation("relu6"),
    pc.Concat(((pc.GlobalAvgPool2D(), pc.Dense(4, activation="tanh")), pc.GlobalMaxPool2D(), pc.Flatten())),
    pc.Dropout(0.1),
    pc.Dense(12, activation="hard_sigmoid", bias=False),
    pc.Reshape((3, 2, 2)),
    pc.Conv2D(5, 2, activation="sigmoid"),
    pc.Flatten(),
    pc.LayerNorm(activation="relu"),
    pc.GroupNorm(1),
    pc.Dense(7),
)


def network(layers=LAYERS, input_shape=INPUT_SHAPE, seed=0):
    """A network whose arrays are all different from what they are before training."""
    rng = np.random.default_rng(seed)
    found = pc.NetworkHandler(layers, input_shape, seed)
    found.params += rng.normal(0, 0.05, found.params.size)
    found.buffers += rng.uniform(0, 0.5, found.buffers.size)
    return found


def named(name):
    """A named model for 20 x 20 colour images and five classes, or the network with every layer."""
    return network() if name == "every layer" else network(MODELS[name](5), (3, 20, 20))


NAMES = ["every layer", *MODELS]


def images(network, n=5):
    return np.random.default_rng(1).integers(0, 256, (n, *network.input_shape), np.uint8)


def outputs(network, images):
    """What `predict` returns without softmax or sigmoid."""
    return network.activations(images, layer=-1)


def assert_same(found, wanted):
    """Equal to float32 rounding."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5 * np.abs(wanted).max())


def activations_in(layers):
    text = repr(layers)
    return {name for name in ACTIVATIONS if f"activation='{name}'" in text or f"Activation('{name}')" in text}
