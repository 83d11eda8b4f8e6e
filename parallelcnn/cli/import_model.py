"""`parallelcnn import`: make a model file of a model or of parameters of other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_setting, path
from parallelcnn.cli.output import say
from parallelcnn.errors import InputError
from parallelcnn.training.config import NETWORK

if TYPE_CHECKING:
    from parallelcnn.comm import Transport
    from parallelcnn.network import NetworkHandler

_PREDICTIONS = ("softmax", "sigmoid", "output")

_EXAMPLES = """\
examples:
  parallelcnn import other.onnx --out model.npz
  parallelcnn import exported.safetensors --out model.npz
  parallelcnn import weights.pt --model resnet20 --classes 10 --input-shape 3 32 32 --out model.npz
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="read a model of another program",
        usage="parallelcnn import FILE --out model.npz [options]",
        description="Make a model file of an ONNX model (.onnx), or of the parameters in a safetensors file or a "
        "state_dict of PyTorch (.pt, .pth, .bin, .ckpt) and the network that --model names. Names and shapes must be "
        "those that parallelcnn export writes for this network; with --by-order, only the shapes.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=None, prepare=prepare, timeout=0.0)
    parser.add_argument("file", type=path, metavar="FILE", help="the model, or its parameters")
    parser.add_argument("--out", type=path, required=True, metavar="FILE.npz", help="the model file to write")
    network = parser.add_argument_group(NETWORK)
    add_setting(network, "model", "; not for ONNX models", default=None)
    network.add_argument("--classes", type=int, metavar="N", help="outputs of the network that --model names")
    network.add_argument("--input-shape", type=int, nargs="+", metavar="N", help="of an image: channels, rows, columns")
    network.add_argument(
        "--by-order", action="store_true", help="take the arrays in their order, whatever their names are"
    )
    network.add_argument("--class-names", nargs="+", metavar="NAME", help="names of the classes, in their order")
    network.add_argument(
        "--prediction",
        choices=_PREDICTIONS,
        help="what is applied to the output for a prediction; output: nothing [default: as the file says, or softmax]",
    )


def prepare(options: argparse.Namespace) -> None:
    """Check the options."""
    if not options.out.endswith(".npz"):
        raise InputError(f"--out must be a file named .npz, got {options.out!r}")
    is_onnx = options.file.lower().endswith(".onnx")
    if is_onnx and (options.model is not None or options.input_shape is not None):
        raise InputError("an ONNX model says what its layers and its input are: give no --model and --input-shape")
    if options.by_order and options.model is None:
        raise InputError("--by-order needs --model, the network that takes the arrays")
    if options.by_order and options.file.lower().endswith(".safetensors"):
        raise InputError("--by-order takes a state_dict of PyTorch, got a safetensors file, which is sorted by name")
    if options.model is not None and options.input_shape is None:
        raise InputError("--model needs --input-shape, such as 3 32 32: channels, rows, columns")


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn.data.dataset import check_class_names
    from parallelcnn.files.model import save_model
    from parallelcnn.resilience.launch import launched_rank

    if launched_rank() != 0:
        return 0
    network = _network(options)
    if options.class_names is not None:
        classes = 2 if network.output_shape == (1,) else network.output_shape[0]
        network.class_names = check_class_names("--class-names", options.class_names, classes)
    network.prediction = options.prediction or network.prediction
    save_model(options.out, network)
    say(network.summary())
    say(f"written    {options.out}")
    return 0


def _network(options: argparse.Namespace) -> "NetworkHandler":
    from parallelcnn.cli.models import find_model
    from parallelcnn.errors import CheckpointError
    from parallelcnn.exchange.onnx_import import import_onnx
    from parallelcnn.exchange.parameter_files import load_safetensors, read_parameters
    from parallelcnn.models import MODELS
    from parallelcnn.network import NetworkHandler

    file = Path(options.file)
    kind = file.suffix.lower()
    if kind == ".onnx":
        return import_onnx(file)
    if options.model is None:
        if kind == ".safetensors":
            return load_safetensors(file)
        if kind == ".npz" or file.is_dir():
            raise InputError(
                f"{file} needs no import: predict, evaluate and export take run directories and .npz files"
            )
        raise InputError(f"{file} holds parameters without their layers: give --model and --input-shape")
    if options.model in MODELS and options.classes is None:
        raise InputError(f"--model {options.model} needs --classes, the number of its outputs")
    network = NetworkHandler(find_model(options.model, options.classes), options.input_shape)
    try:
        network.load_parameters(read_parameters(file), by_order=options.by_order)
    except InputError as error:
        if isinstance(error, CheckpointError):
            raise
        raise InputError(f"{file}: {error}") from None
    return network
