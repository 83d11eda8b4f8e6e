#!/usr/bin/env python3
"""Time single convolutions on one core, beside LIBXSMM and PyTorch: forward pass, input gradient, weight gradient.

    scripts/peers.sh scripts/benchmarks/convolutions.py --libxsmm PROGRAM

PROGRAM is made from `systems/libxsmm_convolution.c` (Debian's package libxsmm-dev); its first lines say how. Each
system has its own memory layout, which is not converted. All take turns; a turn's time is that of its fastest run,
which other programs have disturbed least. Rates count the multiplications and additions of the direct formula.
"""

import argparse
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from layers import backward_of_the_last, fastest
from pages import (
    Spread,
    file_to_write,
    markdown_table,
    matrix_product_rate,
    page_head,
    positive_integer,
    positive_number,
    print_page,
    run_to_the_end,
)
from threadpoolctl import threadpool_limits

import parallelcnn as pc

Run = Callable[[], object]
PASSES = ("forward", "input gradient", "weight gradient")
SYSTEMS = ("parallelcnn", "parallelcnn, bfloat16", "LIBXSMM", "PyTorch", "PyTorch, bfloat16")


RATIOS = {  # the systems that each column compares
    "ours / LIBXSMM": ("parallelcnn", "LIBXSMM"),
    "ours / PyTorch": ("parallelcnn", "PyTorch"),
    "ours / PyTorch, both bfloat16": ("parallelcnn, bfloat16", "PyTorch, bfloat16"),
}


class Convolution(NamedTuple):
    """A square convolution on a square image."""

    channels: int
    filters: int
    size: int
    window: int
    stride: int
    padding: int

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        padding = "" if self.padding or self.window == 1 else ", no padding"
        window, size = (f"{side} x {side}" for side in (self.window, self.size))
        return f"{self.channels} -> {self.filters}, {window}{stride}{padding}, {size}"

    def operations(self, samples: int) -> int:
        """Multiplications and additions of a pass."""
        outputs = (self.size + 2 * self.padding - self.window) // self.stride + 1
        return 2 * samples * self.channels * self.filters * (self.window * outputs) ** 2

    def layer(self) -> pc.Conv2D:
        return pc.Conv2D(self.filters, self.window, stride=self.stride, padding=self.padding, bias=False)


CONVOLUTIONS = (
    Convolution(1, 6, 28, 3, 1, 0),
    Convolution(6, 16, 13, 3, 1, 0),
    Convolution(3, 16, 32, 3, 1, 1),
    Convolution(16, 16, 32, 3, 1, 1),
    Convolution(32, 32, 16, 3, 1, 1),
    Convolution(64, 64, 8, 3, 1, 1),
    Convolution(64, 64, 32, 3, 1, 1),
    Convolution(128, 128, 16, 3, 1, 1),
    Convolution(256, 256, 8, 3, 1, 1),
    Convolution(16, 16, 13, 3, 1, 0),
    Convolution(16, 32, 32, 3, 2, 1),
    Convolution(32, 64, 16, 3, 2, 1),
    Convolution(64, 128, 32, 3, 2, 1),
    Convolution(128, 256, 16, 3, 2, 1),
    Convolution(6, 16, 14, 5, 1, 0),
    Convolution(16, 16, 16, 5, 1, 2),
    Convolution(32, 32, 16, 5, 1, 2),
    Convolution(64, 64, 16, 5, 1, 2),
    Convolution(3, 64, 32, 7, 2, 3),
    Convolution(3, 32, 32, 7, 1, 3),
    Convolution(16, 32, 32, 1, 2, 0),
    Convolution(64, 64, 16, 1, 1, 0),
    Convolution(64, 256, 16, 1, 1, 0),
    Convolution(256, 64, 8, 1, 1, 0),
)


def main() -> int:
    options = _options()
    rows = []
    with threadpool_limits(1), ExitStack() as opened:
        libxsmm = opened.enter_context(_started(options.libxsmm)) if options.libxsmm else None
        for convolution in CONVOLUTIONS:
            if options.only and not any(text in str(convolution) for text in options.only):
                continue
            rows += measured(convolution, libxsmm, options)
    header = ["convolution", "pass", *(f"{name} [GFLOP/s]" for name in SYSTEMS), *RATIOS]
    head = page_head("Convolutions beside LIBXSMM and PyTorch", "numpy", "numba", "torch")
    about = f"""One core, whose float32 matrix product of 512 x 512 runs at {matrix_product_rate():.0f} GFLOP/s.
{options.samples} samples, float32 except in the columns that say otherwise. Medians of {options.rounds} rounds in which
all take turns; for the ratios, lowest and highest in brackets."""
    print_page("\n\n".join([f"{head}.", about, markdown_table(header, rows)]) + "\n", options.out)
    return 0


def measured(
    convolution: Convolution, libxsmm: "subprocess.Popen[str] | None", options: argparse.Namespace
) -> list[list[str]]:
    """The lines of the table for a convolution."""
    runs = {
        "parallelcnn": ours(convolution, options.samples, "float32"),
        "parallelcnn, bfloat16": ours(convolution, options.samples, "bfloat16"),
        **theirs(convolution, options.samples),
    }
    rounds = []
    for _ in range(1 + options.rounds):
        times = {name: [fastest(run, options.seconds) for run in passes] for name, passes in runs.items()}
        if libxsmm is not None:
            times["LIBXSMM"] = ask(libxsmm, convolution, options)
        for name in ("PyTorch", "PyTorch, bfloat16"):  # the faster of its memory formats
            times[name] = [min(pair) for pair in zip(times.pop(name), times.pop(f"{name}, last"), strict=True)]
        rounds.append(times)
    operations, lines = convolution.operations(options.samples), []
    for i, name in enumerate(PASSES):
        cells = [str(convolution) if i == 0 else "", name]
        for system in SYSTEMS:
            rates = [operations / times[system][i] / 1e9 for times in rounds[1:] if system in times]
            cells.append(f"{Spread.of(rates).median:.0f}" if rates else "-")
        for one, other in RATIOS.values():
            ratios = [times[other][i] / times[one][i] for times in rounds[1:] if other in times]
            cells.append(Spread.of(ratios).text() if ratios else "-")
        print(" | ".join(cells), flush=True)
        lines.append(cells)
    return lines


def ours(convolution: Convolution, samples: int, precision: str) -> list[Run]:
    """The three passes. The first layer of a network has no input gradient, and a frozen layer no weight gradient.

    Arrays do not share memory: where y takes the place of x, numbers shrink from run to run until they are subnormal,
    and take a hundred times as long.
    """
    layer, shape = convolution.layer(), (convolution.channels, convolution.size, convolution.size)
    networks = (layer,), (pc.PReLU(), pc.Frozen(layer))
    first, frozen = (
        pc.NetworkHandler(layers, shape, precision=precision)
        .new_replica(shares_memory=False)
        .tape(samples, training=True)
        for layers in networks
    )
    for tape in (first, frozen):
        for array in (tape.x, tape.dy):
            array[...] = np.random.default_rng(0).normal(size=array.shape)
    frozen.forward_parts[0][0]()
    passes = first.forward_parts[0], backward_of_the_last(frozen), backward_of_the_last(first)
    return [partial(_call_all, calls) for calls in passes]


def _call_all(calls: list[Run]) -> None:
    for call in calls:
        call()


def theirs(convolution: Convolution, samples: int) -> dict[str, list[Run]]:
    """The three passes of PyTorch, with channels first and last."""
    import torch

    torch.set_num_threads(1)
    c = convolution
    found: dict[str, list[Run]] = {}
    for name, dtype in (("PyTorch", torch.float32), ("PyTorch, bfloat16", torch.bfloat16)):
        for suffix, memory_format in (("", torch.contiguous_format), (", last", torch.channels_last)):
            x = torch.randn(samples, c.channels, c.size, c.size, dtype=dtype).to(memory_format=memory_format)
            weight = torch.randn(c.filters, c.channels, c.window, c.window, dtype=dtype).to(memory_format=memory_format)
            forward = partial(torch.nn.functional.conv2d, x, weight, None, c.stride, c.padding)
            dy = torch.randn_like(forward())
            fixed = [c.stride] * 2, [c.padding] * 2, [1, 1], False, [0, 0], 1
            backward = partial(torch.ops.aten.convolution_backward, dy, x, weight, None, *fixed)
            gradients = (partial(backward, [i == 0, i == 1, False]) for i in range(2))
            found[name + suffix] = [forward, *gradients]
    return found


@contextmanager
def _started(program: Path) -> "Iterator[subprocess.Popen[str]]":
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([program.resolve()], text=True, bufsize=1, **pipes) as process:
        yield process
        process.stdin.close()


def ask(libxsmm: "subprocess.Popen[str]", convolution: Convolution, options: argparse.Namespace) -> list[float]:
    """The times of the three passes of LIBXSMM [s]."""
    c = convolution
    question = [options.samples, c.channels, c.size, c.size, c.filters, c.window, c.window, c.stride, c.padding]
    assert libxsmm.stdin is not None
    assert libxsmm.stdout is not None
    print(*question, options.seconds, file=libxsmm.stdin, flush=True)
    return [float(number) for number in libxsmm.stdout.readline().split()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--libxsmm", type=existing_file, metavar="PROGRAM", help="made from libxsmm_convolution.c")
    parser.add_argument("--samples", type=positive_integer, default=32, help="(32)")
    parser.add_argument("--rounds", type=positive_integer, default=3, help="(3)")
    parser.add_argument("--seconds", type=positive_number, default=0.1, help="length of a turn (0.1)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="convolutions whose name has one of these in it")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    return parser.parse_args()


def existing_file(text: str) -> Path:
    file = Path(text)
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"must be a file that exists, got {text!r}")
    return file


if __name__ == "__main__":
    run_to_the_end(main)
