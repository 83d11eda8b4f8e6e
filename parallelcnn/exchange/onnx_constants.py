"""The tensors of an ONNX model that do not depend on the images: stored ones, and what is computed of them.

Other programs write a reshape such as x.view(len(x), -1) as nodes that compute the new shape from that of x. In shapes,
the number of samples is not known.
"""

import contextlib
from typing import Any

import numpy as np

from parallelcnn.exchange.onnx_rows import CannotImportError
from parallelcnn.exchange.optional import import_optional
from parallelcnn.layers.base import Array

SAMPLES = -(2**40)  # stands for the number of samples
_LEAST_BUDGET = 2**20  # numbers: shapes are small
# Operators that rearrange numbers. Concat may take an input several times.
_FOLDED = ("Cast", "Concat", "Gather", "Identity", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def find_constants(onnx: Any, model: Any) -> dict[str, Array]:
    """The constant tensors, by name."""
    found = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    opsets = {one.domain: one.version for one in model.opset_import}
    reference = import_optional("onnx.reference", "import_onnx")
    shapes: dict[str, list[int]] | None = None
    budget = max(_LEAST_BUDGET, 8 * sum(one.size for one in found.values()))  # what nodes may compute together
    for node in model.graph.node:
        output = node.output[0] if node.output else ""
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            found[output] = onnx.numpy_helper.to_array(node.attribute[0].t)
            budget += 8 * found[output].size
        elif node.op_type == "Shape" and not node.attribute:
            shapes = _shapes(onnx, model) if shapes is None else shapes
            shape = shapes.get(node.input[0], [])
            if shape and min(shape[1:], default=1) > 0:
                found[output] = np.array([SAMPLES, *shape[1:]], np.int64)
        elif node.op_type in _FOLDED and all(name in found for name in node.input if name):
            given = {name: found[name] for name in node.input if name}
            budget -= sum(found[name].size for name in node.input if name)
            if budget < 0:
                raise CannotImportError("constants that its nodes would multiply beyond the size of the file")
            if node.op_type != "Gather" or given[node.input[0]].ndim == 1:
                with contextlib.suppress(Exception):  # of any kind; then the node is one that no layer computes
                    found[output] = np.asarray(reference.ReferenceEvaluator(node, opsets=opsets).run(None, given)[0])
    return found


def _shapes(onnx: Any, model: Any) -> dict[str, list[int]]:
    """Shapes of tensors, with 0 for sizes that are not known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        one.name: [size.dim_value for size in one.type.tensor_type.shape.dim]
        for one in [*graph.value_info, *graph.input]
    }
