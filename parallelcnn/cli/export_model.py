"""`parallelcnn export`: write a trained network for other programs."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_setting, add_trained_network, path
from parallelcnn.cli.output import say
from parallelcnn.cli.trained_network import TrainedNetwork, data_settings, find_trained_network, load_trained_network
from parallelcnn.errors import InputError, ParallelCNNError
from parallelcnn.training.config import NETWORK
from parallelcnn.wording import in_units, plural

if TYPE_CHECKING:
    import numpy as np

    from parallelcnn.comm import Transport
    from parallelcnn.network import NetworkHandler

_KINDS = (".onnx", ".safetensors", ".pt", ".pth", ".py")
_STATES = (".safetensors", ".pt", ".pth")
_MOST_IMAGES = 200  # of the test set, that onnxruntime and the network predict from
_CODE_STARTS = '"""A network of parallelcnn'  # what a .py file starts with that may be overwritten

_EXAMPLES = """\
examples:
  parallelcnn export runs/a a.onnx                      for ONNX Runtime, microcontrollers, the web
  parallelcnn export runs/a a.onnx --scale              the model takes uint8 and scales it itself
  parallelcnn export runs/a a.safetensors a_torch.py    parameters, and the network in PyTorch
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "export",
        help="write a trained network for other programs",
        usage="parallelcnn export MODEL FILE... [options]",
        description="Write a trained network as an ONNX model (.onnx), as a safetensors file (.safetensors), as a "
        "state_dict of PyTorch (.pt, .pth), or as Python code that builds it in PyTorch (.py).",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=None, prepare=prepare, timeout=0.0)
    network = parser.add_argument_group(NETWORK)
    add_trained_network(parser, network)
    parser.add_argument("targets", type=path, nargs="+", metavar="FILE", help=f"a file named {', '.join(_KINDS)}")
    onnx = parser.add_argument_group("ONNX models")
    onnx.add_argument("--scale", action="store_true", help="take uint8, and divide by 255 in the model")
    onnx.add_argument("--raw-output", action="store_true", help="leave out the softmax or sigmoid at the end")
    onnx.add_argument("--keep-batch-norm", action="store_true", help="do not fold it into the convolutions before it")
    onnx.add_argument(
        "--opset", type=int, default=13, metavar="N", help="version of the operators, 13 to 18 [default: 13]"
    )
    add_setting(network, "data", "; to compare predictions [default: the data of the run]", default=None)
    add_setting(network, "data_dir")


def prepare(options: argparse.Namespace) -> None:
    """Check the options."""
    for target in options.targets:
        kind = os.path.splitext(target)[1]
        if kind not in _KINDS:
            raise InputError(f"export writes files named {', '.join(_KINDS)}, got {target!r}")
        if kind == ".py" and os.path.exists(target) and not _may_be_overwritten(target):
            raise InputError(f"{target} exists, and is no code that parallelcnn wrote: choose another name")


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn.exchange.parameter_files import save_safetensors, save_state_dict
    from parallelcnn.exchange.torch_code import torch_code
    from parallelcnn.files.atomic import write_atomically
    from parallelcnn.resilience.launch import launched_rank

    if launched_rank() != 0:
        return 0
    found = find_trained_network(options.file, best=options.best)
    network = load_trained_network(found, options.model)
    targets = [Path(target) for target in options.targets]
    for target in targets:
        if target.suffix == ".onnx":
            _export_onnx(options, found, network, target)
        elif target.suffix == ".py":
            write_atomically(target, torch_code(network).encode())
        else:
            (save_safetensors if target.suffix == ".safetensors" else save_state_dict)(target, network)
        say(f"written    {target}, {in_units(target.stat().st_size)}")
    kinds = {target.suffix for target in targets}
    if kinds & {*_STATES} and ".py" not in kinds:
        say(f"PyTorch    parallelcnn export {options.file} FILE.py writes the network that loads these parameters")
    return 0


def _export_onnx(options: argparse.Namespace, found: TrainedNetwork, network: "NetworkHandler", target: Path) -> None:
    from parallelcnn.comm import Serial
    from parallelcnn.exchange.onnx_export import export_onnx
    from parallelcnn.training.progress import show_compilation

    images, why_none = _test_images(options, found, network)
    with show_compilation(Serial(), sys.stderr):
        difference = export_onnx(
            target,
            network,
            probabilities=not options.raw_output,
            scale=options.scale,
            fold=not options.keep_batch_norm,
            opset=options.opset,
            images=images,
        )
    if why_none:
        say(f"compared   not on images of a test set: {why_none}")
    if difference is None:
        say("compared   not at all, since onnxruntime is not installed: pip install 'parallelcnn[onnx]'")
    else:
        where = "" if images is None else f" and {plural(len(images), 'image')} of the test set"
        say(f"compared   onnxruntime and parallelcnn, on random images{where}: largest difference {difference:.1e}")


def _test_images(
    options: argparse.Namespace, found: TrainedNetwork, network: "NetworkHandler"
) -> "tuple[np.ndarray | None, str | None]":
    """Some images of the test set; or why there are none."""
    from parallelcnn.cli.data_sets import load_data_sets
    from parallelcnn.comm import Serial
    from parallelcnn.files.model import image_options_of

    try:
        config = data_settings(found, options.data, options.data_dir)
        test_set = load_data_sets(config, Serial(), image_options_of(found.file, skip_broken=True)).test
    except (ParallelCNNError, OSError) as error:
        return None, str(error)
    if test_set.input_shape != network.input_shape:
        return None, f"the network takes {network.input_shape}, but the images are {test_set.input_shape}"
    if options.scale and test_set.images.dtype.name != "uint8":
        return None, f"they are {test_set.images.dtype}, and the exported model takes uint8"
    return test_set.images[:_MOST_IMAGES], None


def _may_be_overwritten(target: str) -> bool:
    try:
        with open(target, encoding="utf-8") as content:
            return content.read(len(_CODE_STARTS)) == _CODE_STARTS
    except (OSError, UnicodeDecodeError):
        return False
