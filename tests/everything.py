"""One training with everything in it: layers that mix samples or draw random numbers, a recipe with state."""

import small

import parallelcnn as pc

BATCH_SIZE, EPOCHS, SHARDS = 25, 2, 6


def network(seed=0):
    block = (
        pc.DepthwiseConv2D(3, padding="same", bias=False),
        pc.BatchNorm(activation="relu"),
        pc.Conv2D(6, 1, bias=False),
        pc.BatchNorm(momentum=0.3),
        pc.SpatialDropout(0.2),
    )
    layers = (
        pc.RandomFlip("vertical"),
        pc.RandomCrop((0, 2)),
        pc.Normalize("auto"),
        pc.RandomRotation(5),
        pc.RandomContrast(0.1),
        pc.MixUp(0.1),
        pc.Conv2D(4, 3, padding="same", bias=False),
        pc.BatchNorm(activation=lambda x: x if x > 0 else 0.1 * x),
        pc.MaxPool2D(3, stride=2, padding=1),
        pc.Dropout(0.1),
        pc.Residual(block, shortcut=pc.Conv2D(6, 1), activation="relu"),
        pc.Concat((pc.Conv2D(3, 3, padding="same", groups=3), pc.AvgPool2D(3, stride=1, padding=1), ())),
        pc.GroupNorm(3, activation="swish"),
        pc.GlobalAvgPool2D(),
        pc.Dense(5),
    )
    return pc.NetworkHandler(layers, (1, 11, 9), seed)


def adapted_network(seed=0):
    """The same after `Normalize("auto")` has got its numbers."""
    found = network(seed)
    found.adapt(small.dataset(20))
    return found


def train(network, comm, **options):
    """Train on 211 samples in minibatches of 25, the last one of 11."""
    optimizer = pc.EMA(pc.AdamW(pc.Cosine(0.01, warmup=4), weight_decay=0.1, clip_norm=0.5), decay=0.9)
    options = {"verbose": 0, "loss": pc.SoftmaxCrossEntropy(label_smoothing=0.1), **options}
    return pc.train(
        network, small.dataset(211), small.dataset(97, seed=1), optimizer, EPOCHS, BATCH_SIZE, comm=comm, **options
    )
