"""Export of a network to an ONNX model.

The graph uses old, widely supported operators, in versions that do not change from opset 13 to 18: tools for
microcontrollers accept no later ones. What has no such operator, such as gelu or group normalisation, is composed of
others. The tensors have the samples first, (N, C, H, W).
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parallelcnn._version import __version__
from parallelcnn.arguments import as_path, check_type
from parallelcnn.data.numbers import check_images
from parallelcnn.errors import CheckpointError, InputError
from parallelcnn.exchange.optional import NotInstalledError, import_optional
from parallelcnn.exchange.refusal import builtin_activation, refused
from parallelcnn.files.atomic import write_atomically
from parallelcnn.folding import folded
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
from parallelcnn.layers.base import Array, Shape, pair
from parallelcnn.layers.composite import Layers, row_of
from parallelcnn.layers.conv2d import sides_of
from parallelcnn.layers.frozen import thawed
from parallelcnn.layers.pooling import padding_of, window_and_stride
from parallelcnn.layers.zeropad2d import sides_of_padding
from parallelcnn.network import NetworkHandler

INPUT, OUTPUT, PROBABILITIES = "images", "output", "probabilities"
OPSETS = range(13, 19)
_IR_VERSION = 8
_LARGEST_MODEL = 2**31 - 2**20  # bytes: protobuf's limit, and some room for the graph
_RANDOM_IMAGES = 8
_TOLERANCE = 1e-3  # of the largest output; rounding is far below, an operator of another meaning far above


def export_onnx(
    path: str | Path,
    network: NetworkHandler,
    *,
    probabilities: bool = True,
    scale: bool = False,
    fold: bool = True,
    opset: int = OPSETS[0],
    images: Array | None = None,
) -> float | None:
    """Write a network as an ONNX model, atomically. Needs the extra `onnx`.

    The model has one input, "images", of shape (N, *input_shape) for any N. Its output has the name "probabilities"
    with the softmax or sigmoid that `predict` would compute, and otherwise "output". Class names are in
    `metadata_props`, as JSON. If onnxruntime is installed, it runs the model before the file gets its name.

    Args:
        probabilities: whether the model computes the softmax or sigmoid that `predict` would compute.
        scale: whether the model takes uint8 and divides by 255 itself. Otherwise it takes float32, in the scale that
            the network was trained on: [0, 1] if that was uint8.
        fold: whether each convolution computes the batch normalisation after it; see `folded`.
        opset: version of the operators, 13 to 18. The graph is the same.
        images: as for `predict`; compare the outputs for these, too.

    Returns:
        the largest difference between the outputs of onnxruntime and of `predict`, on random images and `images`; None
        if onnxruntime is not installed.

    Raises:
        InputError: if onnx is not installed, an argument is outside its range, or ONNX cannot express a layer.
        CheckpointError: if onnxruntime computes other outputs than the network; then there is no file.
        OSError: if the file cannot be written.
    """
    if isinstance(path, NetworkHandler):
        raise InputError("export_onnx takes the path first: export_onnx(path, network)")
    path = as_path("path", path)
    check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
    if opset not in OPSETS:
        raise InputError(f"opset must be one of {', '.join(map(str, OPSETS))}, got {opset!r}")
    onnx = import_optional("onnx", "export_onnx")
    if network.params.size * 4 > _LARGEST_MODEL:
        raise InputError(f"an ONNX model has at most 2 GiB, and this network has {network.params.size:,} parameters")
    model = _model_of(onnx, folded(network) if fold else network, probabilities, scale, opset)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    difference = _largest_difference(content, network, probabilities, scale, images)
    write_atomically(path, content)
    return difference


def _largest_difference(
    content: bytes, network: NetworkHandler, probabilities: bool, scale: bool, images: Array | None
) -> float | None:
    """See `export_onnx`; CheckpointError if the difference is no rounding."""
    try:
        onnxruntime = import_optional("onnxruntime", "export_onnx")
    except NotInstalledError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several would be bound to cores, which fails noisily where some are not allowed
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    twin = copy.copy(network)
    twin.input_range = None  # no warning of random images
    if not _predicts(network, probabilities):
        twin.prediction = "output"
    shape = (_RANDOM_IMAGES, *network.input_shape)
    rng = np.random.default_rng(0)
    floats = rng.uniform(*(network.input_range or (0.0, 1.0)), shape).astype(np.float32)
    tried: list[Array] = [rng.integers(0, 256, shape, np.uint8) if scale else floats]
    if images is not None:
        tried.append(check_images(images, network.input_shape, None, stacklevel=3).reshape(-1, *network.input_shape))
    largest = 0.0
    for some in tried:
        if scale and some.dtype != np.uint8:
            raise InputError(f"scale=True takes images of uint8 to compare with, got {some.dtype}")
        (found,) = session.run(None, {INPUT: some if scale else _as_floats(some)})
        with np.errstate(all="ignore"):
            wanted = twin.predict(some)
            difference = np.abs(found - wanted).max(initial=0)
        if not difference <= _TOLERANCE * max(np.abs(wanted).max(initial=0), 1e-6):
            raise CheckpointError(
                f"no ONNX model is written: onnxruntime {onnxruntime.__version__} computes other outputs than the "
                f"network, the largest difference is {difference:g}"
            )
        largest = max(largest, float(difference))
    return largest


def _as_floats(images: Array) -> Array:
    return images * np.float32(1 / 255) if images.dtype == np.uint8 else images.astype(np.float32)


def _predicts(network: NetworkHandler, probabilities: bool) -> bool:
    """Whether the model ends in a softmax or sigmoid."""
    return probabilities and network.prediction in ("softmax", "sigmoid") and len(network.output_shape) == 1


def _model_of(onnx: Any, network: NetworkHandler, probabilities: bool, scale: bool, opset: int) -> Any:
    """The ONNX model, a ModelProto."""
    graph = _Graph(onnx, network)
    x, name = INPUT, OUTPUT
    if scale:
        x = graph.node("Cast", [x], "scale", to=onnx.TensorProto.FLOAT)
        x = graph.node("Mul", [x, graph.constant("scale.factor", np.float32(1 / 255))], "scale")
    x = graph.row(network.layers, "", x, network.input_shape)
    if _predicts(network, probabilities):
        name = PROBABILITIES
        if network.prediction == "softmax":
            x = graph.node("Softmax", [x], "prediction", axis=1)
        else:
            x = graph.node("Sigmoid", [x], "prediction")
    graph.name_output(x, name)

    number = onnx.TensorProto.UINT8 if scale else onnx.TensorProto.FLOAT
    images = onnx.helper.make_tensor_value_info(INPUT, number, ["N", *network.input_shape])
    output = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *network.output_shape])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "network", [images], [output], graph.initializers),
        ir_version=_IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        producer_name="parallelcnn",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in network.origin.items()})
    return model


class _Graph:
    """The nodes and constants of an ONNX graph. Methods return the names of tensors."""

    def __init__(self, onnx: Any, network: NetworkHandler) -> None:
        self._onnx = onnx
        self._arrays = network.named_arrays
        self._names: set[str] = set()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, operator: str, inputs: list[str], layer: str, **attributes: Any) -> str:
        """Add a node of the layer with that name; returns the name of its output."""
        name, count = f"{layer}.{operator}", 1
        while name in self._names:
            count += 1
            name = f"{layer}.{operator}_{count}"
        self._names.add(name)
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Add a constant tensor, once."""
        if name not in self._names:
            self._names.add(name)
            self.initializers.append(self._onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def array(self, name: str, shape: Shape | None = None) -> str:
        """Add an array of the network."""
        values = self._arrays[name]
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise InputError(f"a model's numbers must be finite float32, and array {name!r} of this network has others")
        return self.constant(name, numbers if shape is None else numbers.reshape(shape))

    def has(self, name: str) -> bool:
        return name in self._arrays

    def row(self, layers: Layers, within: str, x: str, shape: Shape) -> str:
        """Add layers that run one after the other, named "0", "1", ... after `within`."""
        for i, layer in enumerate(layers):
            x = self.layer(thawed(layer), f"{within}{i}", x, shape)
            shape = layer.output_shape(shape)
        return x

    def layer(self, layer: Layer, name: str, x: str, shape: Shape) -> str:
        """Add a layer and its activation."""
        write = _WRITERS.get(type(layer))
        if write is None:
            raise refused(name, layer, "ONNX")
        activation = builtin_activation(name, layer, getattr(layer, "activation", "identity"), "ONNX")
        return _ACTIVATIONS[activation](self, name, write(self, layer, name, x, shape))

    def name_output(self, tensor: str, name: str) -> None:
        """Give the last tensor another name."""
        if tensor == INPUT or not self.nodes:
            tensor = self.node("Identity", [tensor], "output")
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, one in enumerate(names):
                    if one == tensor:
                        names[i] = name


def _conv(graph: _Graph, layer: Conv2D, name: str, x: str, shape: Shape) -> str:
    (top, bottom), (left, right) = sides_of(layer, shape)
    bias = [graph.array(f"{name}.bias")] if layer.bias else []
    return graph.node(
        "Conv",
        [x, graph.array(f"{name}.weight"), *bias],
        name,
        kernel_shape=pair(layer, "kernel_size", layer.kernel_size),
        strides=pair(layer, "stride", layer.stride),
        dilations=pair(layer, "dilation", layer.dilation),
        pads=[top, left, bottom, right],
        group=layer.groups,
    )


def _depthwise_conv(graph: _Graph, layer: DepthwiseConv2D, name: str, x: str, shape: Shape) -> str:
    return _conv(graph, layer.as_conv2d(shape), name, x, shape)


def _dense(graph: _Graph, layer: Dense, name: str, x: str, shape: Shape) -> str:
    bias = [graph.array(f"{name}.bias")] if layer.bias else []
    return graph.node("Gemm", [x, graph.array(f"{name}.weight"), *bias], name, transB=1)


def _pool(operator: str) -> "Writer":
    def write(graph: _Graph, layer: Any, name: str, x: str, shape: Shape) -> str:
        window, stride = window_and_stride(layer)
        padding = padding_of(layer)
        more = {"count_include_pad": int(layer.count_include_pad)} if isinstance(layer, AvgPool2D) else {}
        return graph.node(operator, [x], name, kernel_shape=window, strides=stride, pads=[*padding, *padding], **more)

    return write


def _global_pool(operator: str) -> "Writer":
    def write(graph: _Graph, layer: Layer, name: str, x: str, shape: Shape) -> str:
        return graph.node("Flatten", [graph.node(operator, [x], name)], name, axis=1)

    return write


def _batch_norm(graph: _Graph, layer: BatchNorm, name: str, x: str, shape: Shape) -> str:
    arrays = [graph.array(f"{name}.{one}") for one in ("weight", "bias", "running_mean", "running_var")]
    options = {"epsilon": float(layer.epsilon), "momentum": 1 - float(layer.momentum)}
    return graph.node("BatchNormalization", [x, *arrays], name, **options)


def _normalise(graph: _Graph, layer: Any, name: str, x: str, shape: Shape, groups: int, weights: Shape) -> str:
    """Instance normalisation of groups as channels: there is no operator of its own before opset 17."""
    ones = [graph.constant(f"{name}.{one}", np.full(groups, value, np.float32)) for one, value in _NO_SCALE]
    x = _reshape(graph, name, x, (groups, int(np.prod(shape)) // groups), "grouped")
    x = graph.node("InstanceNormalization", [x, *ones], name, epsilon=float(layer.epsilon))
    x = _reshape(graph, name, x, shape, "shape")
    x = graph.node("Mul", [x, graph.array(f"{name}.weight", weights)], name)
    return graph.node("Add", [x, graph.array(f"{name}.bias", weights)], name)


_NO_SCALE = (("ones", 1), ("zeros", 0))


def _group_norm(graph: _Graph, layer: GroupNorm, name: str, x: str, shape: Shape) -> str:
    return _normalise(graph, layer, name, x, shape, layer.groups, (shape[0], *(1 for _ in shape[1:])))


def _layer_norm(graph: _Graph, layer: LayerNorm, name: str, x: str, shape: Shape) -> str:
    return _normalise(graph, layer, name, x, shape, 1, shape)


def _normalize(graph: _Graph, layer: Normalize, name: str, x: str, shape: Shape) -> str:
    mean, factor = layer.mean_and_factor(shape[0], np.dtype(np.float32))
    size = (shape[0], *(1 for _ in shape[1:]))
    x = graph.node("Mul", [x, graph.constant(f"{name}.factor", factor.reshape(size))], name)
    return graph.node("Add", [x, graph.constant(f"{name}.added", (-mean * factor).reshape(size))], name)


def _prelu(graph: _Graph, layer: PReLU, name: str, x: str, shape: Shape) -> str:
    return graph.node("PRelu", [x, graph.array(f"{name}.weight", (shape[0], *(1 for _ in shape[1:])))], name)


def _flatten(graph: _Graph, layer: Flatten, name: str, x: str, shape: Shape) -> str:
    return graph.node("Flatten", [x], name, axis=1)


def _reshape(graph: _Graph, name: str, x: str, shape: Shape, constant: str = "shape") -> str:
    sizes = np.array([-1, *shape], np.int64)
    return graph.node("Reshape", [x, graph.constant(f"{name}.{constant}", sizes)], name)


def _reshape_layer(graph: _Graph, layer: Reshape, name: str, x: str, shape: Shape) -> str:
    return _reshape(graph, name, x, layer.shape)


def _zero_pad(graph: _Graph, layer: ZeroPad2D, name: str, x: str, shape: Shape) -> str:
    (top, bottom), (left, right) = sides_of_padding(layer)
    pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return graph.node("Pad", [x, graph.constant(f"{name}.pads", pads)], name, mode="constant")


def _upsample(graph: _Graph, layer: Upsample2D, name: str, x: str, shape: Shape) -> str:
    scales = graph.constant(f"{name}.scales", np.array([1, 1, *pair(layer, "size", layer.size)], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.node("Resize", [x, "", scales], name, **how)


def _sequential(graph: _Graph, layer: Sequential, name: str, x: str, shape: Shape) -> str:
    return graph.row(layer.layers, f"{name}.", x, shape)


def _residual(graph: _Graph, layer: Residual, name: str, x: str, shape: Shape) -> str:
    added = x if layer.shortcut is None else graph.row(row_of(layer.shortcut), f"{name}.shortcut.", x, shape)
    return graph.node("Add", [graph.row(layer.layers, f"{name}.", x, shape), added], name)


def _concat(graph: _Graph, layer: Concat, name: str, x: str, shape: Shape) -> str:
    branches = [graph.row(row_of(branch), f"{name}.{i}.", x, shape) for i, branch in enumerate(layer.branches)]
    return graph.node("Concat", branches, name, axis=1)


def _nothing(graph: _Graph, layer: Layer, name: str, x: str, shape: Shape) -> str:
    return x


Writer = Callable[[_Graph, Any, str, str, Shape], str]
_WRITERS: dict[type, Writer] = {
    Activation: _nothing,
    AvgPool2D: _pool("AveragePool"),
    BatchNorm: _batch_norm,
    Concat: _concat,
    Conv2D: _conv,
    Cutout: _nothing,
    Dense: _dense,
    DepthwiseConv2D: _depthwise_conv,
    Dropout: _nothing,
    Flatten: _flatten,
    GlobalAvgPool2D: _global_pool("GlobalAveragePool"),
    GlobalMaxPool2D: _global_pool("GlobalMaxPool"),
    GroupNorm: _group_norm,
    LayerNorm: _layer_norm,
    MaxPool2D: _pool("MaxPool"),
    MixUp: _nothing,
    Normalize: _normalize,
    PReLU: _prelu,
    RandomBrightness: _nothing,
    RandomContrast: _nothing,
    RandomCrop: _nothing,
    RandomFlip: _nothing,
    RandomRotation: _nothing,
    RandomZoom: _nothing,
    Recompute: _sequential,
    Reshape: _reshape_layer,
    Residual: _residual,
    Sequential: _sequential,
    SpatialDropout: _nothing,
    Upsample2D: _upsample,
    ZeroPad2D: _zero_pad,
}


def _simple(operator: str, **attributes: float) -> Callable[[_Graph, str, str], str]:
    return lambda graph, name, x: graph.node(operator, [x], name, **attributes)


def _relu6(graph: _Graph, name: str, x: str) -> str:
    limits = [graph.constant(f"limit.{limit}", np.float32(limit)) for limit in (0, 6)]
    return graph.node("Clip", [x, *limits], name)


def _gelu(graph: _Graph, name: str, x: str) -> str:
    one, half, factor = (graph.constant(f"factor.{one:g}", np.float32(one)) for one in (1, 0.5, 0.5**0.5))
    probability = graph.node("Erf", [graph.node("Mul", [x, factor], name)], name)
    half_x = graph.node("Mul", [x, half], name)
    return graph.node("Mul", [half_x, graph.node("Add", [probability, one], name)], name)


def _swish(graph: _Graph, name: str, x: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x], name)], name)


def _mish(graph: _Graph, name: str, x: str) -> str:
    return graph.node("Mul", [x, graph.node("Tanh", [graph.node("Softplus", [x], name)], name)], name)


def _hard_swish(graph: _Graph, name: str, x: str) -> str:
    return graph.node("Mul", [x, _ACTIVATIONS["hard_sigmoid"](graph, name, x)], name)


_ACTIVATIONS: dict[str, Callable[[_Graph, str, str], str]] = {
    "identity": lambda graph, name, x: x,
    "relu": _simple("Relu"),
    "leaky_relu": _simple("LeakyRelu", alpha=0.01),
    "sigmoid": _simple("Sigmoid"),
    "tanh": _simple("Tanh"),
    "softplus": _simple("Softplus"),
    "gelu": _gelu,
    "swish": _swish,
    "mish": _mish,
    "relu6": _relu6,
    "elu": _simple("Elu", alpha=1.0),
    "selu": _simple("Selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "hard_sigmoid": _simple("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_swish": _hard_swish,
}
