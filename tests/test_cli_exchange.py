"""`parallelcnn export` and `parallelcnn import`."""

import json
import sys

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.cli import main


@pytest.fixture
def command(capsys):
    """Runs the command in this process; returns its exit code, and what it prints on stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        return main(list(map(str, words))), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run of a small network."""
    path = tmp_path_factory.mktemp("runs")
    (path / "net.py").write_text(
        "import parallelcnn as pc\n"
        "def network(classes):\n"
        "    return (pc.Conv2D(3, 3, bias=False), pc.BatchNorm(activation='relu'), pc.Flatten(), pc.Dense(classes))\n"
    )
    line = ["train", "--data", folder, "--epochs", 1, "--model", f"{path / 'net.py'}:network", "--out", path / "a"]
    assert main(list(map(str, line))) == 0
    return path / "a"


OWN = """
from dataclasses import dataclass
import parallelcnn as pc

@dataclass(frozen=True, repr=False)
class Same(pc.Layer):
    def output_shape(self, input_shape):
        return input_shape

    def forward(self, step, x):
        return x

    def backward(self, step, dy):
        return dy

def network(classes):
    return pc.Conv2D(3, 3), Same(), pc.Flatten(), pc.Dense(classes)

def with_numbers(classes):
    return (pc.Normalize("auto"), *network(classes))
"""


@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("network", ["--augment", "crop:1", "cutout:3", "--normalize", "--freeze", 2]),
        ("with_numbers", ["--augment", "mixup"]),
        ("with_numbers", ["--freeze", 2]),
        ("network", []),
    ],
)
def test_a_run_of_own_layers_is_opened_again_by_its_function_whatever_its_options_have_added(
    folder, command, tmp_path, function, options
):
    (tmp_path / "net.py").write_text(OWN)
    model, run = ["--model", f"{tmp_path / 'net.py'}:{function}"], tmp_path / "a"
    code, _, err = command("train", "--data", folder, "--epochs", 1, *options, *model, "--out", run)
    assert code == 0, err
    for line in (["evaluate", run], ["export", run, tmp_path / "a.safetensors"]):
        code, out, err = command(*line, *model)
        assert code == 0, err
    np.save(tmp_path / "images.npy", np.zeros((2, 28, 28), np.uint8))
    code, out, err = command("predict", run, tmp_path / "images.npy", *model)
    assert code == 0, err
    (tmp_path / "net.py").write_text(OWN.replace("Conv2D(3, 3)", "Conv2D(4, 3)"))
    code, out, err = command("evaluate", run, *model)
    assert (code, out) == (2, "")
    assert "does not fit the network: its layer" in err


def test_a_run_is_exported_in_every_format_and_imported_again(run, command, tmp_path):
    for package in ("onnx", "onnxruntime", "torch"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    names = ("a.onnx", "a.safetensors", "a.pt", "a_torch.py")
    code, out, err = command("export", run, *(tmp_path / name for name in names))
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith(
        "compared   onnxruntime and parallelcnn, on random images and 70 images of the test set: largest difference "
    )
    assert [line.split(", ")[0] for line in lines[1:]] == [f"written    {tmp_path / name}" for name in names]
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    wanted = pc.load_model(run / "model.npz").predict(images)
    for name, options in (
        ("a.onnx", []),
        ("a.safetensors", []),
        ("a.pt", ["--model", f"{run.parent / 'net.py'}:network", "--classes", 10, "--input-shape", 1, 28, 28]),
        ("a.safetensors", ["--model", f"{run.parent / 'net.py'}:network", "--classes", 10, "--input-shape", 1, 28, 28]),
    ):
        code, out, err = command("import", tmp_path / name, *options, "--out", tmp_path / "model.npz")
        assert code == 0, err
        assert out.endswith(f"\nwritten    {tmp_path / 'model.npz'}\n")
        assert "Conv2D(3, 3" in out
        np.testing.assert_allclose(pc.load_model(tmp_path / "model.npz").predict(images), wanted, atol=1e-6)
    page = {}
    exec((tmp_path / "a_torch.py").read_text(), page)
    assert len(page["network"]()) == 5


def test_the_options_of_onnx_models(run, command, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    path = tmp_path / "a.onnx"
    options = ["--scale", "--raw-output", "--keep-batch-norm", "--opset", 18]
    code, _, err = command("export", run / "model.npz", path, *options)
    assert code == 0, err
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node] == [
        *("Cast", "Mul", "Conv", "BatchNormalization", "Relu", "Flatten", "Gemm")
    ]
    assert model.opset_import[0].version == 18
    assert model.graph.output[0].name == "output"


def test_predictions_are_compared_without_data_of_the_run_and_without_onnxruntime(run, command, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pc.save_model(tmp_path / "model.npz", small.network())
    said = []
    for more in ([], ["--data", tmp_path / "none"], ["--data", "digits"]):
        code, out, err = command("export", tmp_path / "model.npz", tmp_path / "a.onnx", *more)
        assert code == 0, err
        said.append(out.splitlines()[0])
    assert said[0].startswith(
        f"compared   not on images of a test set: --data NAME|PATH is needed: {tmp_path / 'summary.json'}"
    )
    assert said[1] == f"compared   not on images of a test set: {tmp_path / 'none'}: there is no such file or folder"
    assert said[2].endswith("the network takes (1, 11, 9), but the images are (1, 28, 28)")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = command("export", run, tmp_path / "a.onnx")
    assert out.splitlines()[0] == (
        "compared   not at all, since onnxruntime is not installed: pip install 'parallelcnn[onnx]'"
    )


def test_parameters_for_pytorch_say_where_the_code_is_and_code_of_ones_own_is_not_overwritten(run, command, tmp_path):
    code, out, _ = command("export", run, tmp_path / "a.safetensors")
    assert code == 0
    assert (
        out.splitlines()[1]
        == f"PyTorch    parallelcnn export {run} FILE.py writes the network that loads these parameters"
    )
    for content in ("import parallelcnn", "\xff"):
        (tmp_path / "net.py").write_bytes(content.encode("latin-1"))
        code, _, err = command("export", run, tmp_path / "a.safetensors", tmp_path / "net.py")
        assert code == 2
        assert f"{tmp_path / 'net.py'} exists, and is no code that parallelcnn wrote: choose another name" in err
    for _ in range(2):
        assert command("export", run, tmp_path / "torch_net.py")[0] == 0


def test_a_state_dict_with_other_names_is_imported_by_order(command, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch import nn

    (tmp_path / "net.py").write_text(
        "import parallelcnn as pc\n"
        "def network():\n"
        "    block = (pc.Conv2D(4, 3, padding=1, bias=False), pc.BatchNorm(activation='relu'), pc.Conv2D(4, 1))\n"
        "    return (pc.Residual(block, shortcut=pc.Conv2D(4, 1)), pc.Flatten(), pc.Dense(3))\n"
    )

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.second, self.shortcut, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(2, 4, 1), nn.Linear(80, 3)

        def forward(self, x):
            inside = self.second(torch.relu(self.norm(self.convolution(x))))
            return self.last((inside + self.shortcut(x)).flatten(1))

    model = Network().eval()
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            values += 0.5 if name.endswith("var") else torch.rand_like(values)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    line = ["import", tmp_path / "x.pt", "--model", f"{tmp_path / 'net.py'}:network", "--input-shape", 2, 5, 4]
    line += ["--prediction", "output", "--out", tmp_path / "x.npz"]
    code, _, err = command(*line)
    assert code == 2
    assert "0 of 11 arrays fit; missing there: 0.0.weight" in err
    code, _, err = command(*line, "--by-order")
    assert code == 0, err
    images = torch.rand(6, 2, 5, 4)
    found = pc.load_model(tmp_path / "x.npz").predict(images.numpy())
    np.testing.assert_allclose(found, model(images).detach().numpy(), rtol=1e-5, atol=1e-5)
    torch.save({**model.state_dict(), "z": torch.ones(2)}, tmp_path / "x.pt")
    assert "11 of 11 arrays fit; only there: one more, z" in command(*line, "--by-order")[2]
    torch.save(dict(list(model.state_dict().items())[:2]), tmp_path / "x.pt")
    assert "2 of 11 arrays fit; missing there: 0.1.bias" in command(*line, "--by-order")[2]


def test_class_names_and_the_prediction_of_an_imported_network(run, command, tmp_path):
    source = tmp_path / "a.safetensors"
    pc.save_safetensors(source, small.network())
    line = ["import", source, "--out", tmp_path / "model.npz"]
    assert command(*line, "--class-names", "a", "b", "c", "d", "e", "--prediction", "sigmoid")[0] == 0
    network = pc.load_model(tmp_path / "model.npz")
    assert network.class_names == tuple("abcde")
    assert network.prediction == "sigmoid"
    code, _, err = command(*line, "--class-names", "a", "b")
    assert code == 2
    assert "--class-names must be 5 different names" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["export", "RUN", "a.tflite"],
            "export writes files named .onnx, .safetensors, .pt, .pth, .py, got 'a.tflite'",
        ),
        (["export", "none", "a.onnx"], "no model file none"),
        (["export", "RUN", "a.onnx", "--opset", "12"], "opset must be one of 13, 14, 15, 16, 17, 18, got 12"),
        (["export", "RUN"], "the following arguments are required: FILE"),
        (["import", "a.onnx"], "the following arguments are required: --out"),
        (["import", "a.onnx", "--out", "a.h5"], "--out must be a file named .npz, got 'a.h5'"),
        (["import", "a.onnx", "--out", "a.npz"], "a.onnx cannot be read: No such file"),
        (["import", "a.onnx", "--out", "a.npz", "--model", "paper"], "an ONNX model says what its layers"),
        (["import", "a.pt", "--out", "a.npz"], "a.pt holds parameters without their layers: give --model"),
        (["import", "RUN", "--out", "a.npz"], " needs no import: predict, evaluate and export take run directories"),
        (["evaluate", "MODEL"], ".safetensors --out model.npz makes one of it"),
        (["predict", "MODEL", "x.png"], ".safetensors is no model file: parallelcnn import "),
        (["import", "a.pt", "--out", "a.npz", "--model", "paper"], "--model needs --input-shape, such as 3 32 32"),
        (
            ["import", "a.pt", "--out", "a.npz", "--model", "paper", "--input-shape", "1", "28", "28"],
            "--model paper needs --classes, the number of its outputs",
        ),
        (
            [
                "import",
                "MODEL",
                "--out",
                "a.npz",
                "--model",
                "lenet5",
                "--classes",
                "10",
                "--input-shape",
                "1",
                "28",
                "28",
            ],
            "a.safetensors: the parameters do not fit the network: 0 of 10 arrays fit; 0.weight (6, 1, 5, 5) has shape",
        ),
        (["import", "MODEL", "--out", "a.npz", "--by-order"], "--by-order needs --model, the network that takes"),
        (
            ["import", "MODEL", "--out", "a.npz", "--by-order", "--model", "net.py:f", "--input-shape", "5"],
            "--by-order takes a state_dict of PyTorch, got a safetensors file",
        ),
        (["export", "RUN", "none/a.safetensors"], "error: none/a.safetensors: No such file or directory\n"),
        (["export", "RUN", "none/a.onnx"], "error: none/a.onnx: No such file or directory\n"),
        (["import", "FOREIGN", "--out", "a.npz"], "foreign.safetensors says nothing of the layers: give --model and"),
        (["import", "DAMAGED", "--out", "a.npz"], "damaged.safetensors is damaged: its metadata is not JSON"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(words, message, run, command, tmp_path, monkeypatch):
    from parallelcnn.files.safetensors import write_safetensors

    monkeypatch.chdir(tmp_path)
    pytest.importorskip("onnx", reason="onnx is not installed")
    pc.save_safetensors("a.safetensors", small.network())
    write_safetensors(tmp_path / "foreign.safetensors", {"a": np.zeros(3)})
    broken = {"layers": "[", "input_shape": "[]", "dtype": json.dumps("float32")}
    write_safetensors(tmp_path / "damaged.safetensors", {"a": np.zeros(3)}, broken)
    files = {
        "RUN": run,
        **{name.upper(): f"{name}.safetensors" for name in ("foreign", "damaged")},
        "MODEL": "a.safetensors",
    }
    code, out, err = command(*(files.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_only_rank_0_writes(run, command, tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    assert command("export", run, tmp_path / "a.safetensors") == (0, "", "")
    assert command("import", tmp_path / "a.safetensors", "--out", tmp_path / "a.npz") == (0, "", "")
    assert not list(tmp_path.iterdir())
