"""The same network in PyTorch: Python code, with modules of the same names."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parallelcnn._version import __version__
from parallelcnn.arguments import check_type
from parallelcnn.exchange.refusal import builtin_activation, refused
from parallelcnn.layers import (
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
    Layer,
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
from parallelcnn.layers.base import Shape, pair, written
from parallelcnn.layers.composite import Layers, row_of
from parallelcnn.layers.conv2d import sides_of
from parallelcnn.layers.pooling import padding_of, window_and_stride
from parallelcnn.layers.zeropad2d import sides_of_padding
from parallelcnn.network import NetworkHandler

_HEAD = '''\
"""A network of parallelcnn {version} in PyTorch. Its parameters have the same names.

    from safetensors.torch import load_file

    model = network()
    model.load_state_dict(load_file("FILE.safetensors"))    # or torch.load("FILE.pt", weights_only=True)
    model.eval()

It takes images of shape (N, {shape}), float32{scale}. Its outputs, of shape
(N, {outputs}), {meaning}.
"""

from collections import OrderedDict

from torch import {imports}

CLASS_NAMES = {class_names}
'''
_RESIDUAL = '''

class Residual(nn.Sequential):
    """activation(shortcut(x) + layers(x))"""

    def __init__(self, layers, shortcut, activation):
        super().__init__(layers)
        self.names = list(layers)
        self.shortcut, self.activation = shortcut, activation

    def forward(self, x):
        y = x
        for name in self.names:
            y = self.get_submodule(name)(y)
        return self.activation(self.shortcut(x) + y)
'''
_CONCAT = '''

class Concat(nn.ModuleList):
    """The outputs of several branches, joined along the channels."""

    def forward(self, x):
        return cat([branch(x) for branch in self], dim=1)
'''
_NORMALIZE = '''

class Normalize(nn.Module):
    """(x - mean) / std, with fixed numbers for each channel"""

    def __init__(self, mean, std, shape):
        super().__init__()
        self.register_buffer("mean", tensor(mean).reshape(shape), persistent=False)
        self.register_buffer("std", tensor(std).reshape(shape), persistent=False)

    def forward(self, x):
        return (x - self.mean) / self.std
'''
_ACTIVATIONS = {
    "identity": "nn.Identity()",
    "relu": "nn.ReLU()",
    "leaky_relu": "nn.LeakyReLU(0.01)",
    "sigmoid": "nn.Sigmoid()",
    "tanh": "nn.Tanh()",
    "softplus": "nn.Softplus()",
    "gelu": "nn.GELU()",
    "swish": "nn.SiLU()",
    "mish": "nn.Mish()",
    "relu6": "nn.ReLU6()",
    "elu": "nn.ELU()",
    "selu": "nn.SELU()",
    "hard_sigmoid": "nn.Hardsigmoid()",
    "hard_swish": "nn.Hardswish()",
}


def torch_code(network: NetworkHandler) -> str:
    """Python code of a function `network()` that returns the same network in PyTorch, an `nn.Sequential`.

    Modules have the names of the layers, so that they can load the files of `save_state_dict` and `save_safetensors`.
    The activation of layer 3 is called "3_activation", because "4" is the next layer.

    Raises:
        InputError: if a layer or an activation function is your own.
    """
    check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
    row = f"nn.Sequential({_row(network.layers, network.input_shape, '', '    ')})"
    classes = [one for one in (_NORMALIZE, _RESIDUAL, _CONCAT) if f" {one.split()[1].partition('(')[0]}(" in row]
    imported = ["cat"] * (_CONCAT in classes) + ["nn"] + ["tensor"] * (_NORMALIZE in classes)
    low_high = network.input_range
    scale = "" if low_high is None else f", with numbers from {low_high[0]:g} to {low_high[1]:g}"
    of_classes = network.prediction in ("softmax", "sigmoid")
    meaning = f"are those before the {network.prediction}" if of_classes else "are the predictions"
    head = _HEAD.format(
        version=__version__,
        shape=", ".join(map(str, network.input_shape)),
        scale=scale + (": pixels divided by 255" if low_high == (0, 1) else ""),
        outputs=", ".join(map(str, network.output_shape)),
        meaning=meaning,
        imports=", ".join(imported),
        class_names=network.class_names,
    )
    return "".join([head, *classes, f"\n\ndef network():\n    return {row}\n"])


def _row(layers: Layers, shape: Shape, within: str, indent: str) -> str:
    """An OrderedDict of modules that run one after the other, over several lines."""
    deeper, lines = indent + "    ", []
    for i, layer in enumerate(layers):
        for name, module in _modules(layer, f"{within}{i}", shape, deeper):
            lines.append(f'{deeper}("{i}{name}", {module}),\n')
        shape = layer.output_shape(shape)
    return f"OrderedDict([\n{''.join(lines)}{indent}])" if lines else "OrderedDict()"


def _modules(layer: Layer, place: str, shape: Shape, indent: str) -> "Modules":
    """The modules of a layer: (end of the name, code)."""
    if type(layer) is Frozen:
        for name, module in _modules(layer.layer, place, shape, indent):
            has_parameters = name == "" and layer.parameters(shape)
            yield name, f"{module}.requires_grad_(False)" if has_parameters else module
        return
    write = _WRITERS.get(type(layer))
    if write is None:
        raise refused(place, layer, "PyTorch")
    activation = builtin_activation(place, layer, getattr(layer, "activation", "identity"), "PyTorch")
    yield from write(layer, place, shape, indent)
    if activation != "identity" and type(layer) is not Residual:
        yield "_activation" if type(layer) is not Activation else "", _ACTIVATIONS[activation]


Modules = Iterator[tuple[str, str]]


def _conv(layer: Conv2D, place: str, shape: Shape, indent: str) -> Modules:
    (top, bottom), (left, right) = sides_of(layer, shape)
    padding = (top, left)
    if padding != (bottom, right):
        padding = (0, 0)
        yield "_padding", f"nn.ZeroPad2d(({left}, {right}, {top}, {bottom}))"
    options = _options(
        stride=(pair(layer, "stride", layer.stride), (1, 1)),
        padding=(padding, (0, 0)),
        dilation=(pair(layer, "dilation", layer.dilation), (1, 1)),
        groups=(layer.groups, 1),
        bias=(layer.bias, True),
    )
    yield "", f"nn.Conv2d({shape[0]}, {layer.filters}, {pair(layer, 'kernel_size', layer.kernel_size)}{options})"


def _depthwise_conv(layer: DepthwiseConv2D, place: str, shape: Shape, indent: str) -> Modules:
    return _conv(layer.as_conv2d(shape), place, shape, indent)


def _options(**values: tuple[object, object]) -> str:
    """Arguments by name, of those that differ from their defaults: (value, default)."""
    return "".join(f", {name}={written(value)}" for name, (value, default) in values.items() if value != default)


def _dense(layer: Dense, place: str, shape: Shape, indent: str) -> Modules:
    yield "", f"nn.Linear({shape[0]}, {layer.units}{_options(bias=(layer.bias, True))})"


def _pool(layer: MaxPool2D | AvgPool2D, place: str, shape: Shape, indent: str) -> Modules:
    window, stride = window_and_stride(layer)
    options = _options(padding=(padding_of(layer), (0, 0)))
    if isinstance(layer, AvgPool2D):
        options += _options(count_include_pad=(layer.count_include_pad, True))
    yield "", f"nn.{'Avg' if isinstance(layer, AvgPool2D) else 'Max'}Pool2d({window}, {stride}{options})"


def _global_pool(layer: Layer, place: str, shape: Shape, indent: str) -> Modules:
    kind = "Avg" if isinstance(layer, GlobalAvgPool2D) else "Max"
    yield "", f"nn.Sequential(nn.Adaptive{kind}Pool2d(1), nn.Flatten())"


def _batch_norm(layer: BatchNorm, place: str, shape: Shape, indent: str) -> Modules:
    options = _options(eps=(float(layer.epsilon), 1e-5), momentum=(float(layer.momentum), 0.1))
    yield "", f"nn.BatchNorm{2 if len(shape) == 3 else 1}d({shape[0]}{options})"


def _group_norm(layer: GroupNorm, place: str, shape: Shape, indent: str) -> Modules:
    yield "", f"nn.GroupNorm({layer.groups}, {shape[0]}{_options(eps=(float(layer.epsilon), 1e-5))})"


def _layer_norm(layer: LayerNorm, place: str, shape: Shape, indent: str) -> Modules:
    yield "", f"nn.LayerNorm({list(shape)}{_options(eps=(float(layer.epsilon), 1e-5))})"


def _normalize(layer: Normalize, place: str, shape: Shape, indent: str) -> Modules:
    mean, factor = layer.mean_and_factor(shape[0], np.dtype(np.float64))
    yield "", f"Normalize({mean.tolist()}, {(1 / factor).tolist()}, {[shape[0], *(1 for _ in shape[1:])]})"


def _reshape(layer: Reshape, place: str, shape: Shape, indent: str) -> Modules:
    yield "", f"nn.Sequential(nn.Flatten(), nn.Unflatten(1, {layer.shape}))"


def _zero_pad(layer: ZeroPad2D, place: str, shape: Shape, indent: str) -> Modules:
    (top, bottom), (left, right) = sides_of_padding(layer)
    yield "", f"nn.ZeroPad2d(({left}, {right}, {top}, {bottom}))"


def _sequential(layer: Sequential, place: str, shape: Shape, indent: str) -> Modules:
    yield "", f"nn.Sequential({_row(layer.layers, shape, f'{place}.', indent)})"


def _residual(layer: Residual, place: str, shape: Shape, indent: str) -> Modules:
    shortcut = "nn.Identity()"
    if layer.shortcut is not None:
        shortcut = f"nn.Sequential({_row(row_of(layer.shortcut), shape, f'{place}.shortcut.', indent)})"
    activation = _ACTIVATIONS[builtin_activation(place, layer, layer.activation, "PyTorch")]
    yield "", f"Residual({_row(layer.layers, shape, f'{place}.', indent)}, {shortcut}, {activation})"


def _concat(layer: Concat, place: str, shape: Shape, indent: str) -> Modules:
    rows = [_row(row_of(branch), shape, f"{place}.{i}.", indent) for i, branch in enumerate(layer.branches)]
    yield "", f"Concat([{', '.join(f'nn.Sequential({row})' for row in rows)}])"


def _fixed(code: str) -> "Writer":
    """A module that depends on nothing but the layer's fields and the number of channels."""

    def write(layer: Any, place: str, shape: Shape, indent: str) -> Modules:
        yield "", code.format(layer=layer, channels=shape[0])

    return write


def _upsample(layer: Upsample2D, place: str, shape: Shape, indent: str) -> Modules:
    yield "", f"nn.Upsample(scale_factor={written(layer.size)}, mode='nearest')"


def _nothing(layer: Layer, place: str, shape: Shape, indent: str) -> Modules:
    return iter(())


Writer = Callable[[Any, str, Shape, str], Modules]
_WRITERS: dict[type, Writer] = {
    Activation: _nothing,
    AvgPool2D: _pool,
    BatchNorm: _batch_norm,
    Concat: _concat,
    Conv2D: _conv,
    Cutout: _nothing,
    Dense: _dense,
    DepthwiseConv2D: _depthwise_conv,
    Dropout: _fixed("nn.Dropout({layer.rate})"),
    Flatten: _fixed("nn.Flatten()"),
    GlobalAvgPool2D: _global_pool,
    GlobalMaxPool2D: _global_pool,
    GroupNorm: _group_norm,
    LayerNorm: _layer_norm,
    MaxPool2D: _pool,
    MixUp: _nothing,
    Normalize: _normalize,
    PReLU: _fixed("nn.PReLU({channels})"),
    RandomBrightness: _nothing,
    RandomContrast: _nothing,
    RandomCrop: _nothing,
    RandomFlip: _nothing,
    RandomRotation: _nothing,
    RandomZoom: _nothing,
    Recompute: _sequential,
    Reshape: _reshape,
    Residual: _residual,
    Sequential: _sequential,
    SpatialDropout: _fixed("nn.Dropout2d({layer.rate})"),
    Upsample2D: _upsample,
    ZeroPad2D: _zero_pad,
}
