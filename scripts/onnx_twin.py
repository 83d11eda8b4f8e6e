"""A network of parallelcnn, with its parameters and a softmax at its end, as an ONNX model that onnxruntime runs."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import parallelcnn as pc
from parallelcnn.layers.base import pair
from parallelcnn.layers.conv2d import windows_of

_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus"}


def onnx_twin(network: pc.NetworkHandler, threads: int) -> onnxruntime.InferenceSession:
    """The session, with input "images", (N, *input_shape) float32, and output "probabilities", (N, classes)."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        _model(network).SerializeToString(), session_options, providers=["CPUExecutionProvider"]
    )


def _model(network: pc.NetworkHandler) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    parameters: list[onnx.TensorProto] = []
    value = "images"  # what the node before has written

    def add(kind: str, names: tuple[str, ...] = (), **attributes: object) -> None:
        nonlocal value
        output = f"value{len(nodes)}"
        nodes.append(helper.make_node(kind, [value, *names], [output], **attributes))
        value = output

    views = network.layout.views(network.params)
    for position, (layer, shape, values) in enumerate(zip(network.layers, network.shapes[:-1], views, strict=True)):
        names = tuple(f"{name}{position}" for name in values)
        parameters += [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in zip(names, values.values(), strict=True)
        ]
        if isinstance(layer, pc.Conv2D):
            axes = windows_of(layer, shape)
            # "same" may need one zero more below and to the right.
            needed = [(axis.outputs - 1) * axis.stride + axis.window - axis.before for axis in axes]
            after = [max(need - size, 0) for need, size in zip(needed, shape[1:], strict=True)]
            pads = [*(axis.before for axis in axes), *after]
            add("Conv", names, pads=pads, strides=[axis.stride for axis in axes])
        elif isinstance(layer, pc.Dense):
            add("Gemm", names, transB=1)
        elif isinstance(layer, pc.MaxPool2D):
            window = pair(layer, "pool_size", layer.pool_size)
            stride = window if layer.stride is None else pair(layer, "stride", layer.stride)
            add("MaxPool", kernel_shape=list(window), strides=list(stride))
        elif isinstance(layer, pc.Flatten):
            add("Flatten")
        elif not isinstance(layer, pc.Activation):
            raise pc.ParallelCNNError(f"no node of ONNX is known here for {layer}")
        activation = getattr(layer, "activation", "identity")
        if activation != "identity":
            add(_ACTIVATIONS[activation])
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *network.input_shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", *network.output_shape])],
        initializer=parameters,
    )
    # Versions of 2021, which every onnxruntime in use reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model
