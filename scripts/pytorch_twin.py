"""The PyTorch module that computes what a network of parallelcnn computes, with copies of its parameters."""

import numpy as np
import torch

import parallelcnn as pc

_ACTIVATIONS = {
    "relu": torch.nn.ReLU,
    "leaky_relu": torch.nn.LeakyReLU,
    "sigmoid": torch.nn.Sigmoid,
    "tanh": torch.nn.Tanh,
    "softplus": torch.nn.Softplus,
    "gelu": torch.nn.GELU,
    "swish": torch.nn.SiLU,
}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def pytorch_twin(network: pc.NetworkHandler, memory_format: str = "contiguous") -> torch.nn.Sequential:
    """The same network in PyTorch.

    Args:
        memory_format: "contiguous" or "channels_last", of weights; inputs must be brought into it by the caller.
    """
    modules: list[torch.nn.Module] = []
    for layer, shape, values in zip(
        network.layers, network.shapes[:-1], network.layout.views(network.params), strict=True
    ):
        if isinstance(layer, pc.Conv2D):
            padding = layer.padding if isinstance(layer.padding, str) else tuple(np.broadcast_to(layer.padding, 2))
            modules.append(
                torch.nn.Conv2d(shape[0], layer.filters, layer.kernel_size, layer.stride, padding, bias=layer.bias)
            )
        elif isinstance(layer, pc.Dense):
            modules.append(torch.nn.Linear(shape[0], layer.units, bias=layer.bias))
        elif isinstance(layer, pc.MaxPool2D):
            modules.append(torch.nn.MaxPool2d(layer.pool_size, layer.stride))
        elif isinstance(layer, pc.Flatten):
            modules.append(torch.nn.Flatten())
        elif not isinstance(layer, pc.Activation):
            raise pc.ParallelCNNError(f"no module of PyTorch is known here for {layer}")
        with torch.no_grad():
            for name, value in values.items():
                getattr(modules[-1], name).copy_(torch.from_numpy(value))
        activation = getattr(layer, "activation", "identity")
        if activation != "identity":
            modules.append(_ACTIVATIONS[activation]())
    return torch.nn.Sequential(*modules).to(memory_format=MEMORY_FORMATS[memory_format])
