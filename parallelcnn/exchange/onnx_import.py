"""Import of an ONNX model as a network.

The graph is read from its output back to its input. A node with one variable input continues a row of layers. At a node
with several, such as Add, the row continues at the nearest tensor that all of them depend on, and the rows in between
become branches.

Neighbouring nodes are combined: an activation becomes that of the layer before it, an added constant its bias, and the
parts of swish, gelu, mish or group normalisation these. What is left of factors and added constants of channels becomes
a `BatchNorm`.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallelcnn.activations import ActivationFunction
from parallelcnn.arguments import as_path
from parallelcnn.errors import CheckpointError, InputError, shown
from parallelcnn.exchange.onnx_constants import find_constants
from parallelcnn.exchange.onnx_export import PROBABILITIES
from parallelcnn.exchange.onnx_operators import JOINERS, READERS, Node
from parallelcnn.exchange.onnx_rows import CannotImportError, Row
from parallelcnn.exchange.optional import import_optional
from parallelcnn.files.archive import naming_damage
from parallelcnn.files.model import checked_origin
from parallelcnn.layers import (
    Layer,
    Sequential,
)
from parallelcnn.layers.base import Shape
from parallelcnn.network import NetworkHandler
from parallelcnn.wording import listed

_PASSED = ("Cast", "Dropout", "Identity")
_FLOATS = (1, 10, 11)  # float32, float16 and float64, as Cast calls them
_PREDICTIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def import_onnx(path: str | Path) -> NetworkHandler:
    """Read an ONNX model that is built of layers that this library has. Needs the extra `onnx`.

    The model must have one input, images (N, C, H, W) or (N, features), and one output. A softmax or sigmoid at the end
    becomes the network's `prediction`, and an input of uint8 that the model scales itself is scaled by the network.

    Raises:
        InputError: if onnx is not installed.
        CheckpointError: if there is no such file, it is damaged, or no layer computes what one of its nodes computes;
            the message names the operator.
    """
    path = as_path("path", path)
    onnx = import_optional("onnx", "import_onnx")
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(f"{path} must be an ONNX model, not a folder or a device")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # protobuf and the checker raise various kinds
        raise CheckpointError(shown(f"{path} is no ONNX model, or a damaged one: {error}")) from None
    with naming_damage(path, "it makes no network"):
        try:
            return _Reader(onnx, model).network()
        except (CannotImportError, InputError) as error:
            raise CheckpointError(shown(f"{path} cannot be imported: {error}")) from None


class _Reader:
    """Reads the graph of a model."""

    def __init__(self, onnx: Any, model: Any) -> None:
        graph = model.graph
        self._is_ours = model.producer_name == "parallelcnn"
        self._properties = {one.key: one.value for one in model.metadata_props}
        constants = find_constants(onnx, model)
        nodes = [Node(onnx, one, constants) for one in graph.node]
        self._nodes = {node.output: node for node in nodes if node.output not in constants}
        inputs = [one for one in graph.input if one.name not in constants]
        for what, names in (("inputs", inputs), ("outputs", graph.output)):
            if len(names) != 1:
                raise CannotImportError(f"it has {len(names)} {what}, where one can be imported")
        self._input, self._output = inputs[0].name, graph.output[0].name
        tensor = inputs[0].type.tensor_type
        self._takes_bytes = tensor.elem_type == onnx.TensorProto.UINT8
        sizes = [one.dim_value for one in tensor.shape.dim]
        self._samples, self._shape = sizes[0] if sizes else 0, tuple(sizes[1:])  # 0: any number of samples
        if len(self._shape) not in (1, 3) or min(self._shape) < 1:
            raise CannotImportError(
                f"its input has the shape {tuple(sizes)}, where (N, C, H, W) or (N, features) can be imported, of "
                f"known sizes except N"
            )
        self._output, self._prediction = self._before_prediction()
        self._used: set[str] = set()
        self._dominators = self._find_dominators()

    def network(self) -> NetworkHandler:
        """The network with its parameters."""
        needed = {self._nodes[name].operator for name in self._dominators if name != self._input}
        unknown = sorted(needed - READERS.keys() - JOINERS.keys() - {*_PASSED})
        if unknown:
            raise CannotImportError(f"no layer computes the operator {listed(unknown)}")
        row = self._row(self._input, self._output, self._shape)
        if self._takes_bytes:
            row.scale_input(255)  # the network divides uint8 by 255 itself
        if self._prediction != "output" and len(row.shape) != 1:  # `predict` takes networks that end in a vector
            if self._prediction == "softmax":
                raise CannotImportError(f"operator Softmax on samples of shape {row.shape}")
            row.activate("sigmoid")
            self._prediction = "output"
        row.normalize_input()
        if not row.items:
            row.add(Sequential(()))
        layers, arrays = row.joined()
        _check_activations(layers)
        network = NetworkHandler(layers, self._shape)
        named = network.named_arrays
        for name in named:
            named[name] = arrays[name]
        network.prediction = self._prediction
        self._take_origin(network)
        return network

    def _before_prediction(self) -> tuple[str, str]:
        """The tensor before the softmax or sigmoid at the end, and the network's `prediction`."""
        output = self._output
        while output in self._nodes and self._nodes[output].operator in _PASSED:
            if self._nodes[output].attributes.get("to", _FLOATS[0]) not in _FLOATS:  # a Cast to integers
                break
            output = self._nodes[output].inputs[0]
        node = self._nodes.get(output)
        ends_before = self._is_ours and self._output != PROBABILITIES
        if node is None or node.operator not in _PREDICTIONS or ends_before:
            return output, "output"
        if node.operator == "Softmax" and node.attributes.get("axis", -1) not in (1, -1):
            node.require(axis=1)
        return node.inputs[0], _PREDICTIONS[node.operator]

    def _take_origin(self, network: NetworkHandler) -> None:
        """Take over what a model that this library has exported says of the training, if it is valid."""
        found = self._properties
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            if self._is_ours:
                description = {name: json.loads(found[name]) for name in network.origin if name in found}
                network.origin = checked_origin(description, network.output_shape)

    def _find_dominators(self) -> dict[str, tuple[str, int]]:
        """For each tensor that the output depends on: the nearest one that all its inputs depend on, and the number of
        such tensors. The input depends on nothing.
        """
        found: dict[str, tuple[str, int]] = {self._input: (self._input, 0)}
        for name in self._in_order():
            variable = self._nodes[name].variable
            if not variable:
                raise CannotImportError(f"operator {self._nodes[name].operator} of constants only")
            nearest = variable[0]
            for other in variable[1:]:
                while nearest != other:
                    if found[nearest][1] >= found[other][1]:
                        nearest = found[nearest][0]
                    else:
                        other = found[other][0]
            found[name] = nearest, found[nearest][1] + 1
        return found

    def _in_order(self) -> list[str]:
        """The tensors that the output depends on, each after its inputs. `check_model` has found no cycles."""
        order: list[str] = []
        state: dict[str, bool] = {}  # False: inputs are being visited
        todo = [self._output]
        while todo:
            name = todo[-1]
            if name == self._input or state.get(name):
                todo.pop()
            elif name in state:
                state[name] = True
                order.append(todo.pop())
            elif name not in self._nodes:
                raise CannotImportError(f"tensor {name!r}, which is no node's first output")
            else:
                state[name] = False
                todo += [one for one in self._nodes[name].variable if not state.get(one)]
        return order

    def _row(self, start: str, end: str, shape: Shape) -> Row:
        """The layers between two tensors."""
        steps: list[tuple[Node, str]] = []
        while end != start:
            node = self._nodes[end]
            if end in self._used:
                raise CannotImportError(f"operator {node.operator} whose output {end!r} several branches share")
            self._used.add(end)
            end = self._dominators[end][0]
            steps.append((node, end))
        row = Row(shape)
        for node, before in reversed(steps):
            variable = node.variable
            if len(variable) == 1:
                if node.operator not in _PASSED:
                    read = READERS.get(node.operator)
                    if read is None:
                        raise CannotImportError(f"operator {node.operator} with one variable input")
                    read(row, node, self._samples)
                elif node.operator == "Cast":
                    node.require(to=1)
            elif node.operator in JOINERS:
                branches = [self._row(before, one, row.shape) for one in variable]
                JOINERS[node.operator](row, node, branches)
            else:
                raise CannotImportError(f"operator {node.operator} with {len(variable)} variable inputs")
        return row


def _check_activations(layers: Iterable[Layer]) -> None:
    for layer in layers:
        activation = getattr(layer, "activation", None)
        if isinstance(activation, ActivationFunction):
            raise CannotImportError("no layer computes the operator Erf, except in gelu")
        inside = getattr(layer, "inside", {})
        _check_activations(inside.values())
