"""Networks go out to ONNX, safetensors and PyTorch and come back, equal to float32 rounding."""

import json
import subprocess
import sys
import types

import exportable
import noisy
import numpy as np
import pytest
import small
from exportable import assert_same

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.exchange import onnx_export, torch_code
from parallelcnn.files.safetensors import map_safetensors

named = pytest.mark.parametrize("name", exportable.NAMES)


def exported(network, path, **options):
    """The ONNX model, the names of its input and output, and a function that runs it."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    difference = pc.export_onnx(path, network, **options)
    assert difference < 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert given.shape == ["N", *network.input_shape]
    assert got.shape == ["N", *network.output_shape]
    return (
        onnx.load(path),
        (given.name, given.type, got.name),
        lambda images: session.run(None, {given.name: images})[0],
    )


def test_the_network_with_every_layer_has_every_layer_and_every_activation():
    assert exportable.activations_in(exportable.LAYERS) == ACTIVATIONS.keys() - {"identity"}
    written = repr(exportable.LAYERS)
    for writers in (onnx_export._WRITERS, torch_code._WRITERS):
        assert [kind.__name__ for kind in writers if f"{kind.__name__}(" not in written] == []
    ours = {kind for kind in vars(pc.layers).values() if isinstance(kind, type) and issubclass(kind, pc.Layer)}
    assert ours - onnx_export._WRITERS.keys() == {pc.Layer, pc.Frozen}


@named
def test_ours_to_onnx_to_onnxruntime_and_back(name, tmp_path):
    network = exportable.named(name)
    images = exportable.images(network)
    path = tmp_path / "model.onnx"
    model, names, run = exported(network, path, images=images)
    assert names == ("images", "tensor(float)", "probabilities")
    assert (model.ir_version, model.opset_import[0].version) == (8, 13)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node} or name == "every layer"
    wanted = network.predict(images)
    for some in (slice(None), slice(2, 3)):
        assert_same(run(images[some] / np.float32(255)), wanted[some])
    again = pc.import_onnx(path)
    assert again.origin == network.origin
    assert_same(again.predict(images), wanted)
    assert_same(exportable.outputs(again, images), exportable.outputs(network, images))


@named
def test_the_output_without_softmax_and_with_batch_norm_and_scaled_bytes(name, tmp_path):
    network = exportable.named(name)
    images = exportable.images(network)
    path = tmp_path / "model.onnx"
    options = {"probabilities": False, "fold": False, "scale": True, "opset": 18, "images": images}
    model, names, run = exported(network, path, **options)
    assert names == ("images", "tensor(uint8)", "output")
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    assert_same(run(images), exportable.outputs(network, images))
    again = pc.import_onnx(path)
    assert again.prediction == "softmax"
    assert repr(again.layers).count("BatchNorm") == repr(network.layers).count("BatchNorm")
    assert_same(again.predict(images), network.predict(images))


def test_what_the_network_knows_of_its_training_is_in_the_model(tmp_path):
    network = small.network()
    network.class_names, network.input_range, network.resize = tuple("abcdé"), (-1.0, 2.5), "crop"
    path = tmp_path / "model.onnx"
    model, *_ = exported(network, path)
    found = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert found["class_names"] == ["a", "b", "c", "d", "é"]
    assert pc.import_onnx(path).origin == network.origin
    network.prediction = "sigmoid"
    model, names, _ = exported(network, path)
    assert model.graph.node[-1].op_type == "Sigmoid"
    assert names[-1] == "probabilities"
    assert pc.import_onnx(path).prediction == "sigmoid"
    network.prediction = "output"
    assert exported(network, path)[1][-1] == "output"
    assert pc.import_onnx(path).prediction == "output"
    last = exportable.network((pc.Flatten(), pc.Dense(3, activation="sigmoid")), (1, 3, 2))
    last.prediction = "output"
    exported(last, path)
    assert pc.import_onnx(path).layers == last.layers


def test_only_old_operators_are_used(tmp_path):
    """Tools for microcontrollers accept these; a new one needs a look into their lists."""
    found = set()
    for name in exportable.NAMES:
        model, *_ = exported(exportable.named(name), tmp_path / "model.onnx", scale=True)
        found |= {node.op_type for node in model.graph.node}
    assert found == {
        *("Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Elu", "Erf", "Flatten"),
        *("Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "InstanceNormalization", "LeakyRelu", "MaxPool"),
        *("Mul", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Softmax", "Softplus", "Tanh"),
    }


@named
def test_ours_to_safetensors_to_pytorch_and_back(name, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    load_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").load_file
    network = exportable.named(name)
    images = exportable.images(network)
    pc.save_safetensors(tmp_path / "model.safetensors", network)
    pc.save_state_dict(tmp_path / "model.pt", network)
    page = types.ModuleType("page")
    exec(pc.torch_code(network), page.__dict__)
    model = page.network()
    floats = torch.from_numpy(images / np.float32(255))
    for state in (
        load_file(tmp_path / "model.safetensors"),
        torch.load(tmp_path / "model.pt", weights_only=True),
    ):
        for values in model.parameters():
            torch.nn.init.zeros_(values)
        model.load_state_dict(state)
        with torch.no_grad():
            assert_same(model.eval()(floats).numpy(), exportable.outputs(network, images))
    frozen = {name for name, values in model.named_parameters() if not values.requires_grad}
    assert frozen == {
        network.layout.slots[i].key for i in range(len(network.layout.trained.slots), len(network.layout.slots))
    }
    torch.save(
        {"epoch": 3, "model_state_dict": {f"module.{key}": one for key, one in model.state_dict().items()}},
        tmp_path / "back.pth",
    )
    again = pc.NetworkHandler(network.layers, network.input_shape, seed=9)
    matching = again.load_parameters(pc.read_parameters(tmp_path / "back.pth"))
    assert matching.fits
    assert again.state_sha256() == network.state_sha256()
    rebuilt = pc.load_safetensors(tmp_path / "model.safetensors")
    assert rebuilt.layers == network.layers
    assert rebuilt.state_sha256() == network.state_sha256()


def test_a_safetensors_file_says_what_the_network_is(tmp_path):
    network = small.network()
    network.class_names, network.input_range = tuple("abcde"), (0.0, 1.0)
    path = tmp_path / "model.safetensors"
    pc.save_safetensors(path, network)
    metadata = map_safetensors(path).metadata
    assert metadata["format"] == "pt"
    assert json.loads(metadata["input_shape"]) == [1, 11, 9]
    assert json.loads(metadata["class_names"]) == list("abcde")
    assert [layer["written"] for layer in json.loads(metadata["layers"])] == [repr(layer) for layer in small.LAYERS]
    again = pc.load_safetensors(path)
    assert again.origin == network.origin
    assert type(again.params) is np.ndarray
    again.params[:] = 0  # a copy, not the file


def test_the_code_for_pytorch_names_classes_and_scale():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    network = small.network()
    network.class_names, network.input_range = ("it's", '"b"', "\\", "d", "e"), (0.0, 1.0)
    page = {}
    code = pc.torch_code(network)
    exec(compile(code, "page", "exec"), {"__name__": "page"} | page, page)
    assert page["CLASS_NAMES"] == network.class_names
    assert "with numbers from 0 to 1: pixels divided by 255. Its outputs" in code
    assert "are those before the softmax." in code
    assert code.isascii()


def test_the_code_for_pytorch_has_no_names_of_numpy_and_no_text_of_ones_own():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    layers = (pc.Conv2D(4, 3, groups=np.int64(2), bias=np.False_), pc.Upsample2D((np.int64(2), 1)), pc.Flatten())
    names = np.unique(["cat", "dog", "cat"])
    labels = np.arange(4) % 2
    dataset = pc.Dataset(np.zeros((4, 2, 5, 5), np.float32), labels, 2, class_names=names)
    network = pc.NetworkHandler((*layers, pc.Dense(2)), (2, 5, 5))
    network.class_names, network.prediction = dataset.class_names, '"""\nraise SystemExit'
    page = {"__name__": "page"}
    exec(compile(pc.torch_code(network), "page", "exec"), page)
    assert page["CLASS_NAMES"] == ("cat", "dog")
    assert page["network"]()


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    """As one that was built for another numpy: a model must not be written unchecked."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    message = "export_onnx needs onnxruntime, which is installed but cannot be imported: numpy.core.multiarray failed"
    with pytest.raises(pc.InputError, match=message):
        pc.export_onnx(tmp_path / "x.onnx", small.network())
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("path", ["", "."])
def test_a_path_that_names_no_file_is_refused(path):
    for save in (pc.save_model, pc.save_safetensors):
        with pytest.raises(pc.InputError, match=r"path must name a file, got '\.'"):
            save(path, small.network())


def test_parameters_of_pytorch_lose_all_prefixes_and_keep_float64(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weight = torch.tensor([1 / 3], dtype=torch.float64)
    tensors = {"_orig_mod.module.0.weight": weight, "_orig_mod.module.0.bias": torch.ones(1, dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "x.pt")
    found = pc.read_parameters(tmp_path / "x.pt")
    assert found.keys() == {"0.weight", "0.bias"}
    assert found["0.weight"].tolist() == [1 / 3]
    assert found["0.bias"].dtype == np.float32


def test_layers_and_functions_of_ones_own_are_refused_by_name(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    own = pc.NetworkHandler((pc.Sequential((pc.Dense(4), noisy.Noisy())), pc.Dense(2)), (3,))
    function = pc.NetworkHandler((pc.Dense(2, activation=lambda x: x + abs(x)),), (3,))
    for write, target in ((lambda one: pc.export_onnx(tmp_path / "x.onnx", one), "ONNX"), (pc.torch_code, "PyTorch")):
        with pytest.raises(pc.InputError, match=rf"layer 0\.1, Noisy\(.*\), cannot be exported to {target}: it is a"):
            write(own)
        with pytest.raises(pc.InputError, match=rf"cannot be exported to {target}: its activation .*lambda.* your own"):
            write(function)
    assert not list(tmp_path.iterdir())
    pc.save_safetensors(tmp_path / "x.safetensors", own)  # the arrays are all that it needs
    with pytest.raises(pc.CheckpointError, match=r"Noisy.* is not this library's own: say where it is"):
        pc.load_safetensors(tmp_path / "x.safetensors")
    assert pc.load_safetensors(tmp_path / "x.safetensors", own.layers).state_sha256() == own.state_sha256()
    with pytest.raises(pc.CheckpointError, match="does not fit the network"):
        pc.load_safetensors(tmp_path / "x.safetensors", small.LAYERS)


def test_wrong_arguments_are_refused_in_a_sentence(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    network, path = small.network(), tmp_path / "x"
    for function in (pc.export_onnx, pc.save_safetensors, pc.save_state_dict):
        with pytest.raises(pc.InputError, match=rf"^{function.__name__} takes the path first: {function.__name__}"):
            function(network, path)
        with pytest.raises(pc.InputError, match="network must be of type NetworkHandler"):
            function(path, small.LAYERS)
    for opset in (12, 19, "13"):
        with pytest.raises(pc.InputError, match=f"opset must be one of 13, 14, 15, 16, 17, 18, got {opset!r}"):
            pc.export_onnx(path, network, opset=opset)
    with pytest.raises(pc.InputError, match="scale=True takes images of uint8 to compare with, got float32"):
        pc.export_onnx(path, network, scale=True, images=np.zeros((2, 1, 11, 9), np.float32))
    with pytest.raises(pc.ShapeError, match="the network takes images of shape"):
        pc.export_onnx(path, network, images=np.zeros((2, 5), np.float32))
    network.parameters["0.weight"][0] = np.inf
    for function in (pc.export_onnx, pc.save_safetensors, pc.save_state_dict):
        with pytest.raises(pc.InputError, match=r"numbers must be finite.*, and array '0\.weight' of this network"):
            function(path, network)
    large = pc.NetworkHandler((pc.Dense(2),), (3,), dtype=np.float64)
    large.parameters["0.weight"] = np.full((2, 3), 1e300)
    with pytest.raises(pc.InputError, match=r"finite float32, and array '0\.weight' of this network has others"):
        pc.export_onnx(path, large)
    assert not list(tmp_path.iterdir())


def test_a_model_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setitem(onnx_export._ACTIVATIONS, "tanh", onnx_export._ACTIVATIONS["softplus"])
    with pytest.raises(pc.CheckpointError, match=r"onnxruntime .* computes other outputs .* largest difference is 0\."):
        pc.export_onnx(tmp_path / "x.onnx", small.network())
    assert not list(tmp_path.iterdir())


def test_a_network_of_float64_is_exported_as_float32(tmp_path):
    network = small.network(dtype=np.float64)
    _, _, run = exported(network, tmp_path / "model.onnx")
    images = exportable.images(network)
    assert_same(run(images / np.float32(255)), network.predict(images))
    pc.save_safetensors(tmp_path / "x.safetensors", network)
    assert pc.load_safetensors(tmp_path / "x.safetensors").state_sha256() == network.state_sha256()


def test_a_network_of_no_layer_that_computes_anything_and_one_of_vectors(tmp_path):
    for layers, shape in (((pc.Dropout(),), (3,)), ((pc.Concat(((), ())),), (2, 3, 2)), ((pc.Dense(2),), (5,))):
        network = exportable.network(layers, shape)
        network.prediction = "output"
        _, names, run = exported(network, tmp_path / "model.onnx")
        images = np.ones((4, *shape), np.float32)
        assert names[-1] == "output"
        assert_same(run(images), network.predict(images))
        assert_same(pc.import_onnx(tmp_path / "model.onnx").predict(images), network.predict(images))


def test_packages_that_are_not_installed_are_named_with_their_extra(tmp_path):
    script = """
import sys
import parallelcnn as pc
network = pc.NetworkHandler((pc.Dense(2),), (3,))
pc.export_onnx, pc.import_onnx, pc.save_state_dict, pc.save_safetensors
assert not {"onnx", "onnxruntime", "torch", "safetensors"} & set(sys.modules)
sys.modules.update(onnx=None, onnxruntime=None, torch=None, safetensors=None)
open("x.pt", "w").close()
for call in (
    lambda: pc.export_onnx("x.onnx", network),
    lambda: pc.import_onnx("x.onnx"),
    lambda: pc.save_state_dict("y.pt", network),
    lambda: pc.read_parameters("x.pt"),
):
    try:
        call()
    except pc.InputError as error:
        print(error)
pc.save_safetensors("x.safetensors", network)
pc.load_safetensors("x.safetensors")
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "export_onnx needs onnx: pip install 'parallelcnn[onnx]'",
        "import_onnx needs onnx: pip install 'parallelcnn[onnx]'",
        "save_state_dict needs torch: pip install 'parallelcnn[torch]'",
        "to read x.pt, parallelcnn needs torch: pip install 'parallelcnn[torch]'",
    ]
