"""Layers and functions of the user's own cannot be exported: only this library knows what they compute."""

from parallelcnn.activations import ACTIVATIONS, AnyActivation, find_activation
from parallelcnn.errors import InputError, shown
from parallelcnn.layers import Layer


def refused(place: str, layer: Layer, target: str) -> InputError:
    """The error about a layer that cannot be exported.

    Args:
        place: the layer's name in the network, such as "3.0".
        target: what it cannot be exported to.
    """
    return InputError(f"layer {place}, {shown(repr(layer))}, cannot be exported to {target}: it is a layer of your own")


def builtin_activation(place: str, layer: Layer, activation: AnyActivation, target: str) -> str:
    """The name of a layer's activation function; InputError if it is not one of the built-in ones."""
    found = find_activation(activation)
    if ACTIVATIONS.get(found.name) != found:
        raise InputError(
            f"layer {place}, {shown(repr(layer))}, cannot be exported to {target}: its activation function "
            f"{found.name!r} is your own"
        )
    return found.name
