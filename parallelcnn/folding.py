"""Networks without batch normalisation that predict the same, for other programs."""

import math
from dataclasses import replace
from typing import Any

from parallelcnn.fusions import COMPOSITES, CONVOLUTIONS
from parallelcnn.kernels.batch_norm import fold
from parallelcnn.layers.base import Layer
from parallelcnn.layers.batch_norm import BatchNorm
from parallelcnn.layers.composite import Composite, Layers, Sequential
from parallelcnn.layers.conv_windows import NO_BIAS
from parallelcnn.layers.frozen import thawed
from parallelcnn.network import NetworkHandler


def folded(network: NetworkHandler) -> NetworkHandler:
    """A network with the same predictions, in which each convolution computes the `BatchNorm` after it.

    An empty `Sequential` takes the place of that BatchNorm, so all other arrays keep their names. A BatchNorm that does
    not follow a convolution without activation stays. No layer is frozen. Training changes the new network in another
    way than the given one, which stays as it is.

    Shapes: those of the network.

    Example:
        >>> network = NetworkHandler((Conv2D(8, 3, bias=False), BatchNorm(activation="relu")), (3, 9, 9))
        >>> folded(network).layers
        (Conv2D(8, 3, activation='relu'), Sequential(()))
    """
    new = NetworkHandler(_fold_row(network.layers), network.input_shape, dtype=network.dtype.type)
    new.origin = network.origin
    old = network.named_arrays
    for name, array in new.named_arrays.items():
        if name in old:
            array[...] = old[name]
    leaves, kept = (_leaves(Sequential(one.layers).inside) for one in (network, new))
    for name in leaves.keys() - kept.keys():
        normalisation: Any = leaves[name]
        row, _, place = name.rpartition(".")
        before = f"{row}.{int(place) - 1}".removeprefix(".")
        weight, bias = old[f"{before}.weight"], old.get(f"{before}.bias", NO_BIAS[network.dtype])
        scale = old[f"{name}.weight"], old[f"{name}.bias"], float(normalisation.epsilon)
        statistics = old[f"{name}.running_mean"], old[f"{name}.running_var"]
        rows = len(weight), math.prod(weight.shape[1:])
        written = new.parameters[f"{before}.weight"].reshape(rows), new.parameters[f"{before}.bias"]
        fold(weight.reshape(rows), bias, *scale, *statistics, *written)
    return new


def _fold_row(layers: Layers) -> Layers:
    """The layers of a row, with convolutions that compute the normalisation after them. All keep their places."""
    found: list[Any] = [_fold_inside(thawed(layer)) for layer in layers]
    for i in range(len(found) - 1):
        layer, after = found[i : i + 2]
        if type(layer) in CONVOLUTIONS and layer.activation == "identity" and type(after) is BatchNorm:
            found[i : i + 2] = replace(layer, activation=after.activation, bias=True), Sequential(())
    return tuple(found)


def _fold_inside(layer: Layer) -> Layer:
    return layer.map_rows(_fold_row) if isinstance(layer, Composite) and type(layer) in COMPOSITES else layer


def _leaves(inside: dict[str, Layer], within: str = "") -> dict[str, Layer]:
    """The layers that contain no others, at any depth, by their names in the network."""
    found: dict[str, Layer] = {}
    for name, layer in inside.items():
        bare = thawed(layer)
        deeper = _leaves(bare.inside, f"{within}{name}.") if isinstance(bare, Composite) else {f"{within}{name}": bare}
        found |= deeper
    return found
