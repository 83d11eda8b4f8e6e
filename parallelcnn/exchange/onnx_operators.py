"""The operators of ONNX that can be imported: which layer computes what a node computes."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from parallelcnn.exchange.onnx_constants import SAMPLES
from parallelcnn.exchange.onnx_rows import ERF, TWICE_GELU, CannotImportError, Item, Row, is_all
from parallelcnn.layers import (
    Activation,
    AvgPool2D,
    BatchNorm,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    GlobalAvgPool2D,
    GlobalMaxPool2D,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool2D,
    PReLU,
    Residual,
    Sequential,
    Upsample2D,
    ZeroPad2D,
)
from parallelcnn.layers.base import Array
from parallelcnn.layers.conv2d import sides_of

_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Elu": ("elu", {"alpha": 1.0}),
    "Gelu": ("gelu", {"approximate": "none"}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "HardSwish": ("hard_swish", {}),
    "Mish": ("mish", {}),
    "Relu": ("relu", {}),
    "Selu": ("selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}),
    "Sigmoid": ("sigmoid", {}),
    "Softplus": ("softplus", {}),
    "Swish": ("swish", {"alpha": 1.0}),
    "Tanh": ("tanh", {}),
}
_DEFAULTS = {"HardSigmoid": {"alpha": 0.2, "beta": 0.5}}  # where they are not the values above


class Node:
    """A node of the graph: its operator, its inputs and attributes.

    Attributes:
        variable: the inputs that depend on the images.
        output: the first output; the others are not read.
    """

    def __init__(self, onnx: Any, node: Any, constants: Mapping[str, Array]) -> None:
        self.operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        self.inputs, self.output = list(node.input), node.output[0]
        self.variable = [name for name in self.inputs if name and name not in constants]
        self.attributes = {one.name: _plain(onnx.helper.get_attribute_value(one)) for one in node.attribute}
        self._constants = {i: constants[name] for i, name in enumerate(self.inputs) if name in constants}

    def require(self, **wanted: Any) -> None:
        """Raise an error unless the attributes have these values, or are not given."""
        for name, value in wanted.items():
            given = self.attributes.get(name, value)
            same = math.isclose(given, value, rel_tol=1e-5) if isinstance(value, float) else given == value
            if not same:
                raise CannotImportError(f"operator {self.operator} with {name}={given!r}, where it must be {value!r}")

    def constant(self, position: int, attribute: str = "") -> Array | None:
        """A constant input, or the attribute that it was in earlier opsets; None if it is not given."""
        if position in self._constants:
            values = self._constants[position]
            return values if values.dtype.kind in "iub" else values.astype(np.float32)
        if position < len(self.inputs) and self.inputs[position]:
            raise CannotImportError(f"operator {self.operator} with input {position} that is no constant")
        found = self.attributes.get(attribute)
        return None if found is None else np.asarray(found)

    def needed(self, position: int, attribute: str = "") -> Array:
        """As `constant`; an error if it is not given."""
        values = self.constant(position, attribute)
        if values is None:
            raise CannotImportError(f"operator {self.operator} without input {position}")
        return values

    def constants(self) -> list[int]:
        """The positions of the constant inputs."""
        return sorted(self._constants)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else list(value) if isinstance(value, Iterable) else value


def _image(row: Row, node: Node) -> tuple[int, int, int]:
    if len(row.shape) != 3:
        raise CannotImportError(
            f"operator {node.operator} on samples of shape {row.shape}, where images can be imported"
        )
    C, H, W = row.shape
    return C, H, W


def _decimal(value: Any) -> float:
    """The number that was rounded to float32: 1e-05 rather than 9.999999747e-06."""
    return float(str(np.float32(value)))


def _one_or_pair(values: Iterable[int]) -> int | tuple[int, int]:
    rows, columns = (int(one) for one in values)
    return rows if rows == columns else (rows, columns)


def _zero_pad(rows: tuple[int, int], columns: tuple[int, int]) -> ZeroPad2D:
    uneven = rows[0] != rows[1] or columns[0] != columns[1]
    return ZeroPad2D((rows, columns) if uneven else _one_or_pair((rows[0], columns[0])))


def _sides(row: Row, node: Node, window: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """((above, below), (left, right)) of a convolution or pooling, given the convolution with padding="same"."""
    how = node.attributes.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER") and isinstance(window, Conv2D):
        rows, columns = sides_of(window, row.shape)
        return (rows, columns) if how == "SAME_UPPER" else (rows[::-1], columns[::-1])
    top, left, bottom, right = [0] * 4 if how == "VALID" else node.attributes.get("pads", [0] * 4)
    return (top, bottom), (left, right)


def _conv(row: Row, node: Node, samples: int) -> None:
    C, _, _ = _image(row, node)
    weight, bias = node.needed(1), node.constant(2)
    if weight.ndim != 4:
        raise CannotImportError(f"operator Conv with weights of shape {weight.shape}")
    K, kernel, groups = len(weight), _one_or_pair(weight.shape[2:]), node.attributes.get("group", 1)
    options: dict[str, Any] = {
        "stride": _one_or_pair(node.attributes.get("strides", [1, 1])),
        "dilation": _one_or_pair(node.attributes.get("dilations", [1, 1])),
        "bias": bias is not None,
    }
    same = Conv2D(K, kernel, padding="same", groups=groups, **options)
    (top, bottom), (left, right) = sides = _sides(row, node, same)
    if (top, left) == (bottom, right):
        options["padding"] = _one_or_pair((top, left)) if top or left else "valid"
    elif sides == sides_of(same, row.shape):
        options["padding"] = "same"
    else:
        row.add(_zero_pad(*sides))
    arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
    if groups == C > 1 and K % C == 0:
        row.add(DepthwiseConv2D(kernel, multiplier=K // C, **options), arrays)
    else:
        row.add(Conv2D(K, kernel, groups=groups, **options), arrays)


def _dense(row: Row, node: Node, samples: int) -> None:
    weight, bias = node.needed(1), None
    if len(row.shape) != 1 or weight.ndim != 2:
        raise CannotImportError(
            f"operator {node.operator} on samples of shape {row.shape}, where vectors can be imported"
        )
    node.require(transA=0)
    if not node.attributes.get("transB", 0):
        weight = weight.T
    if node.operator == "Gemm":
        bias = node.constant(2)
        weight = weight * np.float32(node.attributes.get("alpha", 1.0))
    arrays = {"weight": weight}
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(bias.size), len(weight))
        arrays["bias"] = bias * np.float32(node.attributes.get("beta", 1.0))
    row.add(Dense(len(weight), bias=bias is not None), arrays)


def _pool(row: Row, node: Node, samples: int) -> None:
    _image(row, node)
    node.require(ceil_mode=0, dilations=[1, 1], storage_order=0)
    window = _one_or_pair(node.attributes["kernel_shape"])
    stride = _one_or_pair(node.attributes.get("strides", [1, 1]))
    sides = _sides(row, node, Conv2D(1, window, stride=stride, padding="same"))
    (top, bottom), (left, right) = sides
    options: dict[str, Any] = {"padding": _one_or_pair((top, left))}
    is_average = node.operator == "AveragePool"
    if is_average:
        options["count_include_pad"] = bool(node.attributes.get("count_include_pad", 0)) or not any((top, left))
    if (top, left) != (bottom, right):
        if not (is_average and options["count_include_pad"] and node.attributes.get("count_include_pad", 0)):
            raise CannotImportError(
                f"operator {node.operator} with different padding on opposite sides, {[top, left, bottom, right]}"
            )
        options["padding"] = 0
        row.add(_zero_pad(*sides))
    row.add((AvgPool2D if is_average else MaxPool2D)(window, None if stride == window else stride, **options))


def _global_pool(row: Row, node: Node, samples: int) -> None:
    C, _, _ = _image(row, node)
    is_average = node.operator in ("GlobalAveragePool", "ReduceMean")
    keeps = True
    if node.operator in ("ReduceMean", "ReduceMax"):
        axes = node.constant(1, "axes")
        if axes is None or sorted(int(one) % 4 for one in axes) != [2, 3]:
            raise CannotImportError(f"operator {node.operator} over other axes than rows and columns")
        keeps = bool(node.attributes.get("keepdims", 1))
    row.add(GlobalAvgPool2D() if is_average else GlobalMaxPool2D())
    if keeps:
        row.reshape((C, 1, 1))


def _batch_norm(row: Row, node: Node, samples: int) -> None:
    node.require(training_mode=0, spatial=1)
    names = ("weight", "bias", "running_mean", "running_var")
    momentum, epsilon = node.attributes.get("momentum", 0.9), node.attributes.get("epsilon", 1e-5)
    layer = BatchNorm(_decimal(1 - _decimal(momentum)) or 0.1, _decimal(epsilon))
    row.add(layer, {name: node.needed(i) for i, name in enumerate(names, start=1)})


def _instance_norm(row: Row, node: Node, samples: int) -> None:
    epsilon = _decimal(node.attributes.get("epsilon", 1e-5))
    arrays = {"weight": node.needed(1), "bias": node.needed(2)}
    row.add(GroupNorm(row.shape[0], epsilon), arrays)


def _layer_norm(row: Row, node: Node, samples: int) -> None:
    axis = node.attributes.get("axis", -1)
    if axis not in (1, -len(row.shape)):
        raise CannotImportError(f"operator LayerNormalization with axis={axis}, where it must cover whole samples")
    weight, bias = node.needed(1), node.constant(2)
    arrays = {"weight": weight, "bias": np.zeros_like(weight) if bias is None else bias}
    epsilon = _decimal(node.attributes.get("epsilon", 1e-5))
    row.add(LayerNorm(epsilon), {name: np.broadcast_to(one, row.shape) for name, one in arrays.items()})


def _activation(row: Row, node: Node, samples: int) -> None:
    name, attributes = _ACTIVATIONS[node.operator]
    node.attributes = {**_DEFAULTS.get(node.operator, {}), **node.attributes}
    node.require(**attributes)
    row.activate(name)


def _leaky_relu(row: Row, node: Node, samples: int) -> None:
    slope = node.attributes.get("alpha", 0.01)
    if math.isclose(slope, 0.01, rel_tol=1e-5):
        row.activate("leaky_relu")
    else:
        row.add(PReLU(), {"weight": np.full(row.shape[:1], slope)})


def _prelu(row: Row, node: Node, samples: int) -> None:
    row.add(PReLU(), {"weight": row.by_channel(node.needed(1), "PRelu")})


def _clip(row: Row, node: Node, samples: int) -> None:
    found = (node.constant(1, "min"), node.constant(2, "max"))
    limits = tuple(None if one is None or math.isinf(one) else float(one) for one in found)
    names = {(0.0, 6.0): "relu6", (0.0, None): "relu"}
    if limits not in names:
        raise CannotImportError(f"operator Clip to {limits}, where 0 and 6 can be imported")
    row.activate(names[limits])


def _erf(row: Row, node: Node, samples: int) -> None:
    row.activate(ERF)


def _concat_of_one(row: Row, node: Node, samples: int) -> None:
    if len(node.inputs) != 1:
        raise CannotImportError("operator Concat with a constant")


def _flatten(row: Row, node: Node, samples: int) -> None:
    node.require(axis=1)
    row.reshape((math.prod(row.shape),))


def _reshape(row: Row, node: Node, samples: int) -> None:
    node.require(allowzero=0)
    sizes = [int(one) for one in node.needed(1, "shape")]
    first, others = sizes[0], [row.shape[i] if one == 0 else one for i, one in enumerate(sizes[1:])]
    known = math.prod(one for one in others if one != -1)
    shape = tuple(math.prod(row.shape) // max(known, 1) if one == -1 else one for one in others)
    keeps_samples = first in (0, SAMPLES) or (first == -1 and -1 not in others) or first == samples > 0
    if not keeps_samples or not shape or min(shape) < 1 or math.prod(shape) != math.prod(row.shape):
        raise CannotImportError(f"operator Reshape to {sizes} from samples of shape {row.shape}")
    row.reshape(shape)


def _squeeze(row: Row, node: Node, samples: int) -> None:
    axes = node.needed(1, "axes")
    gone = {int(one) % (len(row.shape) + 1) for one in axes}
    shape = tuple(size for i, size in enumerate(row.shape, start=1) if i not in gone)
    if 0 in gone or math.prod(shape) != math.prod(row.shape) or not shape:
        raise CannotImportError(f"operator Squeeze of the axes {axes.tolist()} of samples of shape {row.shape}")
    row.reshape(shape)


def _pad(row: Row, node: Node, samples: int) -> None:
    _image(row, node)
    node.require(mode="constant", value=0.0)
    pads, value, axes = [int(one) for one in node.needed(1, "pads")], node.constant(2), node.constant(3)
    others = len(pads) == 8 and [pads[i] for i in (0, 1, 4, 5)]
    if axes is not None or others != [0] * 4 or min(pads) < 0 or (value is not None and float(value) != 0):
        raise CannotImportError(f"operator Pad with pads={pads}, where zeros around an image can be imported")
    row.add(_zero_pad((pads[2], pads[6]), (pads[3], pads[7])))


def _resize(row: Row, node: Node, samples: int) -> None:
    C, H, W = _image(row, node)
    node.require(mode="nearest")
    is_old = node.operator == "Upsample" or len(node.inputs) == 2
    scales, sizes = node.constant(1 if is_old else 2, "scales"), node.constant(3)
    node.require(keep_aspect_ratio_policy="stretch")
    if sizes is not None and len(sizes) == 4:
        scales = np.array([1, sizes[1] / C, sizes[2] / H, sizes[3] / W])
    how = node.attributes.get("coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel")
    nearest = node.attributes.get("nearest_mode", "floor" if is_old else "round_prefer_floor")
    same = {"asymmetric": ["floor"], "half_pixel": ["round_prefer_floor", "round_prefer_ceil"]}
    factors = [] if scales is None else scales.tolist()
    whole = len(factors) == 4 and factors[:2] == [1, 1] and all(one >= 1 and one == int(one) for one in factors)
    if not whole or nearest not in same.get(how, []):
        raise CannotImportError(
            f"operator {node.operator} by {factors}, {how}, {nearest}, where rows and columns can be repeated"
        )
    row.add(Upsample2D(_one_or_pair(factors[2:])))


def _arithmetic(row: Row, node: Node, samples: int) -> None:
    """Add, Sub, Mul or Div with a constant, or Sum with constants."""
    for position in node.constants():  # Sum may have several, or none
        values = np.asarray(node.needed(position), np.float32)
        if node.operator in ("Sub", "Div") and position == 0:
            raise CannotImportError(f"operator {node.operator} from a constant")
        if node.operator in ("Add", "Sub", "Sum"):
            row.shift(-values if node.operator == "Sub" else values)
        else:
            with np.errstate(all="ignore"):
                row.multiply(1 / values if node.operator == "Div" else values)


READERS: dict[str, Callable[[Row, Node, int], None]] = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(("Add", "Sub", "Sum", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"), _global_pool),
    **dict.fromkeys(("Gemm", "MatMul"), _dense),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat_of_one,
    "Conv": _conv,
    "Erf": _erf,
    "Flatten": _flatten,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "Pad": _pad,
    "PRelu": _prelu,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
}


def _join_sum(row: Row, node: Node, branches: list[Row]) -> None:
    """Add of two branches: the shorter one is the shortcut, or the second."""
    if not len(branches) == len(node.inputs) == 2:
        raise CannotImportError(f"operator {node.operator} of {len(branches)} branches and {len(node.inputs)} inputs")
    layers, shortcut = sorted(branches, key=lambda one: -len(one.items))
    if layers.shape != shortcut.shape:
        raise CannotImportError(f"operator {node.operator} of the shapes {layers.shape} and {shortcut.shape}")
    if not layers.items:
        layers.add(Sequential(()))
    inside, arrays = layers.joined()
    added, arrays_of_shortcut = shortcut.joined("shortcut.")
    row.add(Residual(inside, shortcut=added or None), arrays | arrays_of_shortcut)


def _join_product(row: Row, node: Node, branches: list[Row]) -> None:
    """Mul of two branches: x times a function of x."""
    for plain, other in (branches, branches[::-1]) if len(branches) == 2 else ():
        found = [getattr(item.layer, "activation", None) for item in other.items]
        if not plain.items:
            names = {
                ("sigmoid",): "swish",
                ("hard_sigmoid",): "hard_swish",
                ("softplus", "tanh"): "mish",
            }
            all_activations = all(isinstance(item.layer, Activation) for item in other.items)
            name = names.get(tuple(found)) if all_activations else None  # type: ignore[arg-type]
            if name is not None:
                row.activate(name)
                return
        scaled = len(found) == 3 and found[1] is ERF and _is_affine(other.items[0], 0.5**0.5, 0)
        if scaled and _is_affine(other.items[2], 1, 1):
            for factor, activation in ((0.5, "gelu"), (1, TWICE_GELU)):
                if is_all(_factor(plain), factor):
                    row.activate(activation)
                    return
    raise CannotImportError("operator Mul of two branches, except in swish, hard_swish, mish and gelu")


def _factor(row: Row) -> Any:
    """The factor by which a row multiplies; NaN if it does something else."""
    if not row.items:
        return 1
    item = row.items[0]
    return item.arrays["weight"] if len(row.items) == 1 and _is_affine(item, item.arrays.get("weight"), 0) else math.nan


def _is_affine(item: Item, factor: Any, added: float) -> bool:
    is_bare = item.is_affine and getattr(item.layer, "activation", None) == "identity"
    return is_bare and is_all(item.arrays["weight"], factor) and is_all(item.arrays["bias"], added)


def _join_channels(row: Row, node: Node, branches: list[Row]) -> None:
    axis = node.attributes.get("axis", 1)
    ranks = {len(branch.shape) for branch in branches}
    if axis not in (1, -min(ranks)) or len(ranks) > 1 or len(branches) != len(node.inputs):
        raise CannotImportError(f"operator Concat with axis={axis}, where channels of branches can be joined, axis=1")
    joined = [branch.joined(f"{i}.") for i, branch in enumerate(branches)]
    arrays = {name: one for _, some in joined for name, one in some.items()}
    row.add(Concat(tuple(layers for layers, _ in joined)), arrays)


JOINERS: dict[str, Callable[[Row, Node, list[Row]], None]] = {
    "Add": _join_sum,
    "Concat": _join_channels,
    "Mul": _join_product,
    "Sum": _join_sum,
}
