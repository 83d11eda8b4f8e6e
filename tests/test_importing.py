"""ONNX models of other programs become networks that compute the same, or are refused by the name of an operator."""

import warnings

import numpy as np
import pytest
from exportable import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parallelcnn as pc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

RNG = np.random.default_rng(3)
FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


def node(operator, inputs, output, **attributes):
    return onnx.helper.make_node(operator, inputs.split(), [output], **attributes)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def write(path, nodes, shape, constants=None, opset=17, kind=FLOAT, n="N"):
    """Write a model from "x" to the output of the last node."""
    initializers = [onnx.numpy_helper.from_array(np.asarray(one), name) for name, one in (constants or {}).items()]
    graph = onnx.helper.make_graph(
        nodes,
        "other",
        [onnx.helper.make_tensor_value_info("x", kind, [n, *shape])],
        [onnx.helper.make_tensor_value_info(nodes[-1].output[0], FLOAT if kind == UINT8 else kind, None)],
        initializers,
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.other", 1)]
    model = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets))
    output = model.graph.output[0].type.tensor_type
    if not output.HasField("shape"):  # of an operator that onnx does not know
        output.shape.dim.add()
    onnx.save(model, path)


def are(layers, expected):
    """Whether they are the expected layers, or of the expected class."""
    pairs = zip(layers, expected, strict=True)
    return all(type(one) is wanted if isinstance(wanted, type) else one == wanted for one, wanted in pairs)


def check(path, shape, n=3, images=None):
    """The network, after its outputs have been compared with those of onnxruntime."""
    network = pc.import_onnx(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = floats(n, *shape) if images is None else images
    assert_same(network.predict(images), session.run(None, {"x": images})[0])
    return network


CONV = {"w": floats(4, 2, 3, 3), "b": floats(4)}
VECTOR, IMAGE = (6,), (2, 7, 6)
CASES = [  # nodes, input shape, constants, layers
    (
        [node("MatMul", "x w", "y"), node("Add", "b y", "z"), node("Relu", "z", "out")],
        VECTOR,
        {"w": floats(6, 4), "b": floats(4)},
        (pc.Dense(4, activation="relu"),),
    ),
    ([node("Gemm", "x w", "out", alpha=0.5)], VECTOR, {"w": floats(6, 4)}, (pc.Dense(4, bias=False),)),
    (
        [node("Gemm", "x w b", "out", transB=1, beta=2.0)],
        VECTOR,
        {"w": floats(4, 6), "b": floats(1)},
        (pc.Dense(4),),
    ),
    (
        [node("Conv", "x w b", "y"), node("Flatten", "y", "z"), node("Softmax", "z", "out")],
        IMAGE,
        CONV,
        (pc.Conv2D(4, 3), pc.Flatten()),
    ),
    (
        [node("Conv", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 1]), node("Add", "y c", "out")],
        IMAGE,
        {**CONV, "c": floats(1, 4, 1, 1)},
        (pc.Conv2D(4, 3, stride=(2, 1), padding=1),),
    ),
    (
        [node("Conv", "x w", "out", auto_pad="SAME_UPPER", strides=[1, 2])],
        IMAGE,
        CONV,
        (pc.Conv2D(4, 3, stride=(1, 2), padding="same", bias=False),),
    ),
    (
        [node("Conv", "x w", "out", auto_pad="SAME_LOWER", strides=[1, 2])],
        IMAGE,
        CONV,
        (pc.ZeroPad2D(((1, 1), (1, 0))), pc.Conv2D(4, 3, stride=(1, 2), bias=False)),
    ),
    (
        [node("Conv", "x w", "out", pads=[0, 1, 2, 3], dilations=[2, 1])],
        IMAGE,
        CONV,
        (pc.ZeroPad2D(((0, 2), (1, 3))), pc.Conv2D(4, 3, bias=False, dilation=(2, 1))),
    ),
    (
        [node("Conv", "x w", "out", group=2, auto_pad="VALID")],
        IMAGE,
        {"w": floats(6, 1, 3, 2)},
        (pc.DepthwiseConv2D((3, 2), multiplier=3, bias=False),),
    ),
    ([node("LeakyRelu", "x", "out", alpha=0.3)], IMAGE, {}, (pc.PReLU(),)),
    ([node("LeakyRelu", "x", "out")], IMAGE, {}, (pc.Activation("leaky_relu"),)),
    ([node("Sigmoid", "x", "out")], IMAGE, {}, (pc.Activation("sigmoid"),)),
    ([node("PRelu", "x w", "out")], IMAGE, {"w": floats(2, 1, 1)}, (pc.PReLU(),)),
    (
        [node("Clip", "x lo", "y"), node("Clip", "y lo hi", "out")],
        IMAGE,
        {"lo": np.float32(0), "hi": np.float32(6)},
        (pc.Activation("relu"), pc.Activation("relu6")),
    ),
    (
        [node("HardSwish", "x", "y"), node("HardSigmoid", "y", "out", alpha=1 / 6)],
        IMAGE,
        {},
        (pc.Activation("hard_swish"), pc.Activation("hard_sigmoid")),
    ),
    (
        [
            node("Div", "x c", "y"),
            node("Erf", "y", "z"),
            node("Add", "one z", "t"),
            node("Mul", "t x", "u"),
            node("Mul", "half u", "out"),
        ],
        IMAGE,
        {"c": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
        (pc.Activation("gelu"),),
    ),
    (
        [node("Softplus", "x", "y"), node("Tanh", "y", "z"), node("Mul", "z x", "out")],
        IMAGE,
        {},
        (pc.Activation("mish"),),
    ),
    (
        [node("Sub", "x c", "y"), node("Div", "y d", "z"), node("Mul", "z d", "out")],
        IMAGE,
        {"c": floats(2, 1, 1), "d": np.float32(3)},
        (pc.Normalize,),
    ),
    (
        [node("Mul", "x c", "y"), node("Relu", "y", "z"), node("Add", "z d", "out")],
        VECTOR,
        {"c": floats(6), "d": floats(1)},
        (pc.BatchNorm(activation="relu"), pc.BatchNorm()),
    ),
    (
        [node("BatchNormalization", "x a b c d", "out", epsilon=0.1, momentum=0.75)],
        IMAGE,
        {"a": floats(2), "b": floats(2), "c": floats(2), "d": np.array([1, 2], np.float32)},
        (pc.BatchNorm(0.25, 0.1),),
    ),
    ([node("InstanceNormalization", "x a b", "out")], IMAGE, {"a": floats(2), "b": floats(2)}, (pc.GroupNorm(2),)),
    (
        [node("LayerNormalization", "x a b", "out", axis=1)],
        IMAGE,
        {"a": floats(*IMAGE), "b": floats(6)},
        (pc.LayerNorm(),),
    ),
    (
        [node("MaxPool", "x", "out", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1])],
        IMAGE,
        {},
        (pc.MaxPool2D((3, 2), 2, padding=1),),
    ),
    (
        [node("AveragePool", "x", "out", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        IMAGE,
        {},
        (pc.AvgPool2D(3, 1, padding=1, count_include_pad=False),),
    ),
    (
        [node("AveragePool", "x", "out", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)],
        IMAGE,
        {},
        (pc.ZeroPad2D(((0, 1), (0, 1))), pc.AvgPool2D(2, 1)),
    ),
    (
        [node("ReduceMean", "x", "y", axes=[-1, 2], keepdims=0), node("Gemm", "y w", "out")],
        IMAGE,
        {"w": floats(2, 3)},
        (pc.GlobalAvgPool2D(), pc.Dense(3, bias=False)),
    ),
    (
        [node("GlobalMaxPool", "x", "y"), node("Squeeze", "y a", "out")],
        IMAGE,
        {"a": np.array([2, -1])},
        (pc.GlobalMaxPool2D(),),
    ),
    (
        [node("GlobalAveragePool", "x", "y"), node("Conv", "y w", "out")],
        IMAGE,
        {"w": floats(3, 2, 1, 1)},
        (pc.GlobalAvgPool2D(), pc.Reshape((2, 1, 1)), pc.Conv2D(3, 1, bias=False)),
    ),
    (
        [node("Reshape", "x s", "y"), node("Reshape", "y t", "out")],
        IMAGE,
        {"s": np.array([0, 0, -1]), "t": np.array([-1, 3, 4, 7])},
        (pc.Reshape((3, 4, 7)),),
    ),
    ([node("Pad", "x p", "out")], IMAGE, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, (pc.ZeroPad2D(1),)),
    (
        [node("Resize", "x  s".replace("  ", " e "), "out", mode="nearest")],
        IMAGE,
        {"e": floats(0), "s": np.array([1, 1, 2, 3], np.float32)},
        (pc.Upsample2D((2, 3)),),
    ),
    ([node("Relu", "x", "y"), node("Add", "x y", "out")], IMAGE, {}, (pc.Residual((pc.Activation("relu"),)),)),
    ([node("Add", "x x", "out")], IMAGE, {}, (pc.Residual((pc.Sequential(()),)),)),
    (
        [
            node("Tanh", "x", "y"),
            node("Conv", "x w b", "z"),
            node("Conv", "y w", "t"),
            node("Sum", "z t", "u"),
            node("Relu", "u", "out"),
        ],
        IMAGE,
        CONV,
        (
            pc.Residual(
                (pc.Activation("tanh"), pc.Conv2D(4, 3, bias=False)), shortcut=pc.Conv2D(4, 3), activation="relu"
            ),
        ),
    ),
    (
        [node("Concat", "x x", "y", axis=-3), node("Sigmoid", "x", "z"), node("Concat", "z y", "out", axis=1)],
        IMAGE,
        {},
        (pc.Concat((pc.Activation("sigmoid"), pc.Concat(((), ())))),),
    ),
    (
        [node("Identity", "x", "y"), node("Dropout", "y", "z"), node("Relu", "z", "out")],
        IMAGE,
        {},
        (pc.Activation("relu"),),
    ),
    (
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node("Unsqueeze", "n a", "m"),
            node("Concat", "m rest", "t", axis=0),
            node("Reshape", "x t", "out"),
        ],
        IMAGE,
        {"zero": np.array(0), "a": np.array([0]), "rest": np.array([-1])},
        (pc.Flatten(),),
    ),
]


@pytest.mark.parametrize(("nodes", "shape", "constants", "layers"), CASES)
def test_models_of_other_programs_compute_the_same(nodes, shape, constants, layers, tmp_path):
    path = tmp_path / "x.onnx"
    write(path, nodes, shape, constants)
    assert are(check(path, shape).layers, layers)


def refusal(path):
    with pytest.raises(pc.CheckpointError) as caught:
        pc.import_onnx(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be imported: ")
    assert message.isprintable()
    return message.removeprefix(f"{path} cannot be imported: ")


REFUSED = [  # nodes, input shape, constants, message
    (
        [node("LRN", "x", "y", size=3), node("Transpose", "y", "out")],
        {},
        "no layer computes the operator LRN, Transpose",
    ),
    ([node("Conv", "x w", "out", strides=[2, 2], dilations=[2, 2])], CONV, "a dilation above 1 takes stride 1"),
    ([node("Conv", "x w", "out")], {"w": floats(4, 3, 3, 3)}, "0.weight must have shape (4, 2, 3, 3), got"),
    ([node("MatMul", "x w", "out")], {"w": floats(6, 3)}, "operator MatMul on samples of shape (2, 7, 6)"),
    ([node("PRelu", "x x", "out")], {}, "operator PRelu with 2 variable inputs"),
    ([node("Mul", "x x", "out")], {}, "operator Mul of two branches, except in swish, hard_swish, mish and gelu"),
    ([node("Erf", "x", "out")], {}, "no layer computes the operator Erf, except in gelu"),
    ([node("Sub", "c x", "out")], {"c": np.float32(1)}, "operator Sub from a constant"),
    ([node("Add", "x c", "out")], {"c": floats(7, 6)}, "operator Add with a constant of shape (1, 7, 6) on samples of"),
    ([node("Add", "x c", "out")], {"c": floats(2, 2, 7, 6)}, "a constant of shape (2, 2, 7, 6) combined with samples"),
    ([node("Elu", "x", "out", alpha=0.5)], {}, "operator Elu with alpha=0.5, where it must be 1.0"),
    ([node("HardSigmoid", "x", "out")], {}, "operator HardSigmoid with alpha=0.2, where it must be 0.16"),
    ([node("Clip", "x c", "out")], {"c": np.float32(-1)}, "operator Clip to (-1.0, None), where 0 and 6 can be"),
    ([node("MaxPool", "x", "out", kernel_shape=[2, 2], ceil_mode=1)], {}, "operator MaxPool with ceil_mode=1"),
    (
        [node("MaxPool", "x", "out", kernel_shape=[3, 3], pads=[0, 0, 1, 1])],
        {},
        "operator MaxPool with different padding",
    ),
    (
        [node("MaxPool", "x", "out", kernel_shape=[3, 3], pads=[2, 2, 2, 2])],
        {},
        "padding must be at most half the window",
    ),
    ([node("ReduceMean", "x", "out", axes=[1])], {}, "operator ReduceMean over other axes than rows and columns"),
    ([node("Flatten", "x", "out", axis=2)], {}, "operator Flatten with axis=2, where it must be 1"),
    (
        [node("Reshape", "x s", "out")],
        {"s": np.array([-1, 6])},
        "operator Reshape to [-1, 6] from samples of shape (2,",
    ),
    ([node("Concat", "x x", "out", axis=2)], {}, "operator Concat with axis=2"),
    ([node("Concat", "x c", "out", axis=1)], {"c": floats(1, 2, 7, 6)}, "operator Concat with a constant"),
    ([node("Softmax", "x", "out", axis=2)], {}, "operator Softmax with axis=2, where it must be 1"),
    ([node("Softmax", "x", "out", axis=1)], {}, "operator Softmax on samples of shape (2, 7, 6)"),
    ([node("Softmax", "x", "y"), node("Relu", "y", "out")], {}, "no layer computes the operator Softmax"),
    ([node("Pad", "x p", "out", mode="reflect")], {"p": np.zeros(8, np.int64)}, "operator Pad with mode='reflect'"),
    ([node("Pad", "x p", "out")], {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0])}, "where zeros around an image can be"),
    (
        [node("Resize", "x e s", "out")],
        {"e": floats(0), "s": np.array([1, 1, 2, 1.5], np.float32)},
        "operator Resize by",
    ),
    (
        [node("Relu", "x", "y"), node("Tanh", "y", "z"), node("Add", "y x", "u"), node("Concat", "z u", "out", axis=1)],
        {},
        "operator Relu whose output 'y' several branches share",
    ),
    ([node("Sum", "x a c", "out"), node("Relu", "x", "a")][::-1], {"c": floats(1)}, "Sum of 2 branches and 3 inputs"),
    (
        [node("Relu", "x", "y"), node("Cast", "y", "out", to=FLOAT), node("Cast", "out", "z", to=UINT8)],
        {},
        "Cast with to=2",
    ),
    (
        [node("Resize", "x e e s", "out")],
        {"e": floats(0), "s": np.array([3, 4, 14, 12])},
        "operator Resize by [1.0, 2.0, 2.0, 2.0]",
    ),
    (
        [
            *(node("Reshape", "x s", "y"), node("InstanceNormalization", "y one zero", "z"), node("Relu", "z", "u")),
            *(node("Reshape", "u t", "v"), node("Mul", "v c", "out")),
        ],
        {
            "s": np.array([0, 1, -1]),
            "t": np.array([0, 2, 7, 6]),
            **{"one": np.ones(1, np.float32), "zero": np.zeros(1, np.float32), "c": floats(2, 7, 6)},
        },
        "operator Mul with a constant of shape (2, 7, 6)",
    ),
    ([onnx.helper.make_node("Attention", ["x"], ["out"], domain="com.other")], {}, "the operator com.other.Attention"),
]


@pytest.mark.parametrize(("nodes", "constants", "message"), REFUSED)
def test_what_no_layer_computes_is_refused_by_the_name_of_the_operator(nodes, constants, message, tmp_path):
    write(tmp_path / "x.onnx", nodes, IMAGE, constants)
    assert message in refusal(tmp_path / "x.onnx")


def test_constants_are_not_multiplied_beyond_the_size_of_the_file(tmp_path):
    """4 kB that become 2^40 numbers."""
    nodes = [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(30)]
    write(tmp_path / "x.onnx", [*nodes, node("Relu", "x", "out")], IMAGE, {"c0": floats(1024)})
    assert "constants that its nodes would multiply beyond the size of the file" in refusal(tmp_path / "x.onnx")


def test_channels_are_joined_by_the_last_axis_of_vectors_only(tmp_path):
    path = tmp_path / "x.onnx"
    pools = [node("GlobalAveragePool", "x", "a"), node("GlobalMaxPool", "x", "b")]
    flat = [node("Flatten", "a", "c"), node("Flatten", "b", "d"), node("Concat", "c d", "out", axis=-1)]
    write(path, pools + flat, IMAGE)
    check(path, IMAGE)
    branches = [one for i in "ab" for one in (node("Gemm", f"x w{i}", i), node("Reshape", f"{i} s", f"{i}{i}"))]
    joined = [node("Concat", "aa bb", "c", axis=-1), node("Flatten", "c", "out")]
    write(path, branches + joined, VECTOR, {"wa": floats(6, 8), "wb": floats(6, 8), "s": np.array([-1, 2, 2, 2])})
    assert "operator Concat with axis=-1, where channels of branches can be joined, axis=1" in refusal(path)


def test_a_sum_may_have_any_number_of_constants(tmp_path):
    constants = {"c": floats(2, 1, 1), "d": floats(1)}
    write(tmp_path / "x.onnx", [node("Sum", "c x d", "y"), node("Sum", "y", "out")], IMAGE, constants)
    check(tmp_path / "x.onnx", IMAGE)


def test_an_input_of_bytes_is_scaled_by_the_network(tmp_path):
    path, images = tmp_path / "x.onnx", RNG.integers(0, 256, (3, *IMAGE), np.uint8)
    cast = node("Cast", "x", "y", to=FLOAT)
    for nodes, constants, layers in (
        ([cast, node("Div", "y c", "z"), node("Relu", "z", "out")], {"c": np.float32(255)}, (pc.Activation("relu"),)),
        ([cast, node("Relu", "y", "out")], {}, (pc.Normalize, pc.Activation("relu"))),
        ([cast, node("Sub", "y c", "z"), node("Div", "z c", "out")], {"c": np.float32(127.5)}, (pc.Normalize,)),
    ):
        write(path, nodes, IMAGE, constants, kind=UINT8)
        assert are(check(path, IMAGE, images=images).layers, layers)


def test_a_model_for_a_fixed_number_of_samples_and_one_of_other_inputs(tmp_path):
    path = tmp_path / "x.onnx"
    write(path, [node("Reshape", "x s", "out")], IMAGE, {"s": np.array([4, -1])}, n=4)
    assert check(path, IMAGE, n=4).layers == (pc.Flatten(),)
    for shape, message in (((2, 7), "its input has the shape (0, 2, 7), where"), (("H", 7, 7), "(0, 0, 7, 7), where")):
        write(path, [node("Relu", "x", "out")], shape)
        assert message in refusal(path)
    write(path, [node("Relu", "x", "out")], IMAGE)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", FLOAT, [1]))
    onnx.save(model, path)
    assert refusal(path) == "it has 2 inputs, where one can be imported"


def test_numbers_of_other_types_become_float32(tmp_path):
    path = tmp_path / "x.onnx"
    for dtype in (np.float16, np.float64):
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        write(path, [node("MatMul", "x w", "out")], VECTOR, {"w": np.full((6, 2), 0.1, dtype)}, kind=kind)
        network = pc.import_onnx(path)
        np.testing.assert_array_equal(network.parameters["0.weight"], np.full((2, 6), 0.1, dtype).astype(np.float32))
    write(path, [node("MatMul", "x w", "out")], VECTOR, {"w": np.full((6, 2), np.nan, np.float32)})
    assert refusal(path) == "0.weight must hold finite numbers of float32, got others"


def test_what_pytorch_exports_is_imported(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.SiLU())
            self.inside = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.GroupNorm(2, 6), nn.GELU())
            self.after = nn.Sequential(nn.MaxPool2d(2), nn.Hardswish(), nn.Mish())
            self.last = nn.Linear(12, 3)

        def forward(self, x):
            x = self.before(x)
            x = self.after(x + self.inside(x))
            x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
            return torch.softmax(self.last(x.view(x.size(0), -1)), 1)

    model, path, images = Network().eval(), tmp_path / "x.onnx", torch.rand(3, *IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(
            model, (images,), path, dynamo=False, opset_version=17, dynamic_axes={"x": {0: "N"}}, input_names=["x"]
        )
    network = pc.import_onnx(path)
    assert network.prediction == "softmax"
    assert "Residual" in repr(network.layers)
    assert_same(network.predict(images.numpy()), model(images).detach().numpy())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "x.onnx"
    layers = (
        pc.Residual((pc.Conv2D(1, 3, padding=1, activation="swish"),)),
        pc.GroupNorm(1),
        pc.Flatten(),
        pc.Dense(2),
    )
    pc.export_onnx(path, pc.NetworkHandler(layers, (1, 3, 3)))
    return path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_model_is_read_or_refused(tmp_path, good, data):
    path, content = tmp_path / "x.onnx", bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        network = pc.import_onnx(path)
    except pc.CheckpointError:
        return
    assert network.params.size < 10**6


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4", bytes(100), b"\x08\x08"])
def test_what_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(pc.CheckpointError, match=r"x\.onnx is no ONNX model, or a damaged one"):
        pc.import_onnx(path)


def test_a_missing_file_a_folder_and_weights_that_lie_elsewhere(tmp_path):
    with pytest.raises(pc.CheckpointError, match=r"none\.onnx cannot be read: No such file"):
        pc.import_onnx(tmp_path / "none.onnx")
    with pytest.raises(pc.CheckpointError, match="must be an ONNX model, not a folder"):
        pc.import_onnx(tmp_path)
    path, folder = tmp_path / "a" / "x.onnx", tmp_path / "a"
    folder.mkdir()
    write(path, [node("MatMul", "x w", "out")], VECTOR, {"w": floats(6, 500)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert check(path, VECTOR).layers == (pc.Dense(500, bias=False),)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    content = path.read_bytes()
    assert content.count(b"weights.bin") == 1
    for location in (b"weights.bin", b"../weights.b", b"/etc/passwd"):  # never outside its folder
        path.write_bytes(content.replace(b"weights.bin", location.ljust(11, b"x")[:11]))
        with pytest.raises(pc.CheckpointError):
            pc.import_onnx(path)
