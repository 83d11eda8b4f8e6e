"""`parallelcnn predict`: what a trained network says about new images."""

import argparse
import contextlib
import csv
import json
import math
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelcnn.cli.options import add_setting, add_trained_network, path
from parallelcnn.cli.output import say
from parallelcnn.cli.trained_network import find_trained_network, load_trained_network
from parallelcnn.errors import InputError, printable
from parallelcnn.resilience.signals import catch_interrupts, interrupts_ending_the_process
from parallelcnn.training.config import NETWORK, RANKS
from parallelcnn.wording import plural

if TYPE_CHECKING:
    import numpy as np

    from parallelcnn.comm import Transport
    from parallelcnn.data.inputs import Item
    from parallelcnn.network import NetworkHandler

_IN_A_ROUND = 256  # images of each rank

_EXAMPLES = """\
examples:
  parallelcnn predict runs/photos new/*.jpg              a line for each image
  parallelcnn predict runs/photos new/ --top 3           the three most probable classes
  parallelcnn predict runs/photos new/ --csv > out.csv   for a spreadsheet
  mpirun -n 4 parallelcnn predict runs/photos new/       on four ranks
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "predict",
        help="predict the classes of images",
        usage="parallelcnn predict MODEL PATH... [options]",
        description="Predict from images, folders of images, and arrays in .npy and .npz files. Images are prepared as "
        "those of the training.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=True, prepare=prepare)
    network, ranks = (parser.add_argument_group(title) for title in (NETWORK, RANKS))
    add_trained_network(parser, network)
    parser.add_argument("paths", type=path, nargs="+", metavar="PATH", help="an image, a folder, or an array")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="show the K most probable classes [default: 1]")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print comma-separated values, with a header")
    form.add_argument("--json", action="store_true", help="print a JSON list, one image a line")
    add_setting(ranks, "timeout")


def prepare(options: argparse.Namespace) -> None:
    """Check the options before MPI starts."""
    if options.top < 1:
        raise InputError(f"top must be an integer of at least 1, got {options.top}")
    if "" in options.paths:  # a Path would make it the current folder
        raise InputError("PATH must name an image, a folder or an array, got ''")


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn.comm import run_together
    from parallelcnn.data.inputs import find_items
    from parallelcnn.data.sampler import shard
    from parallelcnn.training.compilation import compile_in_turns
    from parallelcnn.training.progress import show_compilation

    catch_interrupts()

    def load() -> "NetworkHandler":
        return load_trained_network(find_trained_network(options.file, best=options.best), options.model)

    network = run_together(comm, load)
    comm.status = "looking for images"
    items = comm.allgather(
        run_together(comm, lambda: list(find_items(map(Path, options.paths))) if comm.rank == 0 else [])
    )[0]
    with show_compilation(comm, sys.stderr), interrupts_ending_the_process():
        compile_in_turns(comm, lambda: _warm_up(network), network, training=False)
    kind = _CsvWriter if options.csv else _JsonWriter if options.json else _Writer
    writer = kind(network, [str(item) for item in items], options.top)
    failed, arrays = 0, dict[Path, "np.ndarray"]()
    with contextlib.ExitStack() as at_the_end:
        if comm.rank == 0:
            writer.begin()
            at_the_end.callback(writer.end)  # also after an error: JSON must not be left open
        for start in range(0, len(items), _IN_A_ROUND * comm.size):
            comm.status = "predicting from image {}", start + 1
            mine = shard(items[start : start + _IN_A_ROUND * comm.size], comm.rank, comm.size)
            for rows, failures in comm.allgather(run_together(comm, partial(_predict, network, mine, arrays))):
                failed += len(failures)
                if comm.rank == 0:
                    for name, output in rows:
                        writer.write(name, output)
                    for failure in failures:
                        say(f"parallelcnn: {failure}", sys.stderr)
    if failed:
        others = "; the others are predicted" if failed < len(items) else ""
        raise InputError(f"{failed} of {plural(len(items), 'image')} cannot be read{others}").together()
    return 0


def _warm_up(network: "NetworkHandler") -> None:
    """Compile the kernels of a prediction, for a single image and for a block."""
    import numpy as np

    for n in (1, network.replica.block_size):
        network.predict(np.zeros((n, *network.input_shape), np.uint8))


def _predict(
    network: "NetworkHandler", items: "Sequence[Item]", arrays: "dict[Path, np.ndarray]"
) -> "tuple[list[tuple[str, np.ndarray]], list[str]]":
    """The name and the prediction of each image that can be read, and why the others cannot.

    Args:
        arrays: see `read_items`. An array is forgotten once another file follows.
    """
    import numpy as np

    from parallelcnn.data.inputs import read_items
    from parallelcnn.data.readers.decoding import without_warnings

    with without_warnings():
        images, failures = read_items(items, network.input_shape, network.resize or "crop", arrays)
    last = items[-1].file if items else None
    for file in [file for file in arrays if file != last]:
        del arrays[file]
    known = [(str(item), image) for item, image in zip(items, images, strict=True) if image is not None]
    rows: list[tuple[str, np.ndarray]] = []
    for _, group in groupby(known, key=lambda one: (one[1].dtype, one[1].shape)):
        names, some = zip(*group, strict=True)
        rows += zip(names, network.predict(np.stack(some)), strict=True)
    return rows, failures


class _Writer:
    """Prints predictions as a table.

    Args:
        names: of all images.
        top: how many classes to show.
    """

    def __init__(self, network: "NetworkHandler", names: Sequence[str], top: int) -> None:
        self._network, self._names, self._top = network, names, top
        self._width = max(len(printable(name)) for name in names)

    def begin(self) -> None:
        pass

    def write(self, name: str, output: "np.ndarray") -> None:
        classes = self.classes(output)
        texts = [
            f"{printable(name_of):<{self._widest_class}} {100 * probability:6.2f} %"
            for _, name_of, probability in classes
        ]
        if not classes:
            texts = [" ".join(f"{number:.6g}" for number in output.ravel())]
        say(f"{printable(name):<{self._width}}  {'   '.join(texts)}")

    def end(self) -> None:
        pass

    def classes(self, output: "np.ndarray") -> list[tuple[int, str, float]]:
        """Number, name and probability of the most probable classes; none for regression."""
        if self._network.prediction not in ("softmax", "sigmoid"):
            return []
        probabilities = [1 - output[0], output[0]] if self._is_binary else list(output)
        best = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))[: self._top]
        return [(i, self._class_name(i), float(probabilities[i])) for i in best]

    @property
    def _is_binary(self) -> bool:
        return self._network.prediction == "sigmoid" and self._network.output_shape == (1,)

    def _class_name(self, label: int) -> str:
        names = self._network.class_names
        return str(label) if names is None else names[label]

    @cached_property
    def _widest_class(self) -> int:
        count = 2 if self._is_binary else self._network.output_shape[0]
        return max(len(printable(self._class_name(label))) for label in range(count))


class _CsvWriter(_Writer):
    """Prints predictions as comma-separated values."""

    def begin(self) -> None:
        columns = ["file"]
        if self._network.prediction in ("softmax", "sigmoid"):
            count = min(self._top, 2 if self._is_binary else self._network.output_shape[0])
            for place in range(1, count + 1):
                end = f"_{place}" if place > 1 else ""
                columns += [f"class{end}", f"probability{end}"]
        else:
            columns += [f"output_{i}" for i in range(math.prod(self._network.output_shape))]
        self._print(columns)

    def write(self, name: str, output: "np.ndarray") -> None:
        classes = self.classes(output)
        values = [value for _, class_name, probability in classes for value in (class_name, f"{probability:.6f}")]
        self._print([name, *(values or [f"{number:.9g}" for number in output.ravel()])])

    def _print(self, values: list[str]) -> None:
        csv.writer(sys.stdout, lineterminator="\n").writerow(values)


class _JsonWriter(_Writer):
    """Prints predictions as a JSON list with one image a line."""

    _before = "["

    def write(self, name: str, output: "np.ndarray") -> None:
        from parallelcnn.cli.metrics import as_json
        from parallelcnn.training.evaluation import as_value

        classes = [
            {"class": class_name, "label": label, "probability": as_json(round(probability, 6))}
            for label, class_name, probability in self.classes(output)
        ]
        found: dict[str, Any] = {"classes": classes} if classes else {"output": as_json(as_value(output))}
        print(f"{self._before}\n{json.dumps({'file': name, **found}, allow_nan=False)}", end="")
        self._before = ","

    def end(self) -> None:
        print(("[" if self._before == "[" else "") + "\n]", flush=True)
