#!/usr/bin/env python3
"""Time single layers, forwards and backwards, and the update of Adam, beside PyTorch on the same cores.

    scripts/peers.sh scripts/benchmarks/layers.py --cores 1 2 --out scripts/benchmarks/results/layers.md

Both run in this process, in turns. PyTorch runs with the faster of its two memory formats, and its fused Adam. The
time of a round is that of the fastest of its runs, which other programs have disturbed least.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count

import numpy as np
from pages import (
    Spread,
    check_cores,
    file_to_write,
    markdown_table,
    page_head,
    positive_integer,
    positive_number,
    print_page,
    run_to_the_end,
)

import parallelcnn as pc
from parallelcnn.replica import Replica
from parallelcnn.tape import Tape
from parallelcnn.training.thread_pool import ThreadPool

Run = Callable[[], object]
Shape = tuple[int, ...]

LAYERS: dict[str, tuple[pc.Layer, Shape]] = {
    "batch norm + relu, 16 x 32 x 32": (pc.BatchNorm(activation="relu"), (16, 32, 32)),
    "batch norm + relu, 64 x 8 x 8": (pc.BatchNorm(activation="relu"), (64, 8, 8)),
    "depthwise 3 x 3, 32 x 32 x 32": (pc.DepthwiseConv2D(3, padding=1, bias=False), (32, 32, 32)),
    "depthwise 3 x 3, stride 2, 64 x 16 x 16": (
        pc.DepthwiseConv2D(3, stride=2, padding=1, bias=False),
        (64, 16, 16),
    ),
    "average pooling 2 x 2, 16 x 32 x 32": (pc.AvgPool2D(2), (16, 32, 32)),
    "global average pooling, 64 x 8 x 8": (pc.GlobalAvgPool2D(), (64, 8, 8)),
    "max-pooling 2 x 2, 16 x 32 x 32": (pc.MaxPool2D(2), (16, 32, 32)),
}
PARAMETERS = (78_042, 1_148_874)  # of resnet8 and vgg-small


def main() -> int:
    options = _options()
    header = ["", "parallelcnn [us]", "PyTorch [us]", "PyTorch / parallelcnn"]
    tables = []
    for cores in options.cores:
        with ExitStack() as pools:
            pairs = contestants(cores, options.samples, pools)
            rows = [row(name, *pair, options) for name, pair in pairs.items()]
        tables.append(f"## On {cores} core{'s' * (cores > 1)}\n\n{markdown_table(header, rows)}")
    head = page_head("Layers beside PyTorch", "numpy", "numba", "torch")
    about = f"""{options.samples} samples, float32, forwards and backwards with the gradient of the input. Medians of
{options.rounds} rounds in which both take turns, lowest and highest in brackets."""
    print_page("\n\n".join([f"{head}.", about, *tables]) + "\n", options.out)
    return 0


def contestants(cores: int, samples: int, pools: ExitStack) -> dict[str, tuple[Run, list[Run]]]:
    """For each line of the table: our run, and those of PyTorch, of which the fastest counts."""
    import torch

    torch.set_num_threads(cores)
    found: dict[str, tuple[Run, list[Run]]] = {}
    for name, (layer, shape) in LAYERS.items():
        formats = torch.channels_last, torch.contiguous_format
        found[name] = ours(layer, shape, cores, samples, pools), [theirs(layer, shape, samples, one) for one in formats]
    for size in PARAMETERS:
        found[f"Adam, {size:,} parameters"] = (
            adam(size, cores, pools),
            [torch_adam(size, fused=fused) for fused in (True, False)],
        )
    return found


def ours(layer: pc.Layer, shape: Shape, cores: int, samples: int, pools: ExitStack) -> Run:
    """Run the layer on so many threads, each with its part of the samples."""
    # The layer before it has parameters, so that the gradient of the input is computed. It does not run.
    network = pc.NetworkHandler((pc.PReLU(), layer), shape)
    calls = {}
    for i, replica in enumerate(network.replicas(cores)):
        n = (i + 1) * samples // cores - i * samples // cores
        tape = replica.tape(n, training=True)
        for array in (tape.x, tape.dy):
            array[...] = np.random.default_rng(i).normal(size=array.shape)
        for call in tape.forward_parts[0]:
            call()
        calls[replica] = [*tape.forward_parts[1], *backward_of_the_last(tape)]

    def work(replica: Replica, _: object) -> None:
        for call in calls[replica]:
            call()

    pool = pools.enter_context(ThreadPool(network.replicas(cores)))
    return partial(pool.run, work, np.arange(samples))


def backward_of_the_last(tape: Tape) -> list[Run]:
    """The backward pass of the last layer; it is the first to run."""
    return tape.backward_parts[0]


def theirs(layer: pc.Layer, shape: Shape, samples: int, memory_format: object) -> Run:
    import torch
    from torch import nn

    channels = shape[0]
    module: nn.Module
    if isinstance(layer, pc.BatchNorm):
        module = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    elif isinstance(layer, pc.DepthwiseConv2D):
        stride = layer.stride if isinstance(layer.stride, int) else layer.stride[0]
        module = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    elif isinstance(layer, pc.AvgPool2D):
        module = nn.AvgPool2d(2)
    elif isinstance(layer, pc.MaxPool2D):
        module = nn.MaxPool2d(2)
    else:
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = module.to(memory_format=memory_format)
    x = torch.randn(samples, *shape).to(memory_format=memory_format).requires_grad_()
    dy = torch.randn_like(module(x))
    variables = [x, *module.parameters()]

    def run() -> None:
        for variable in variables:
            variable.grad = None
        module(x).backward(dy)

    return run


def adam(size: int, cores: int, pools: ExitStack) -> Run:
    rng = np.random.default_rng(0)
    params, gradients = rng.normal(size=(2, size)).astype(np.float32)
    pool = pools.enter_context(ThreadPool(pc.NetworkHandler((pc.Flatten(),), (1,)).replicas(cores)))
    optimizer, state, steps = pc.Adam(1e-6), {}, count()
    return lambda: optimizer.update(params, gradients, state, next(steps), share=pool.share)


def torch_adam(size: int, *, fused: bool) -> Run:
    import torch

    parameter = torch.nn.Parameter(torch.randn(size))
    parameter.grad = torch.randn(size)
    return torch.optim.Adam([parameter], 1e-6, fused=fused).step


def row(name: str, mine: Run, others: list[Run], options: argparse.Namespace) -> list[str]:
    """Measure one line of the table."""
    runs = [mine, *others]
    best = [[fastest(run, options.seconds) for run in runs] for _ in range(1 + options.rounds)][1:]
    other = min(range(1, len(runs)), key=lambda i: Spread.of(times[i] for times in best).median)
    texts = [Spread.of(1e6 * times[i] for times in best).text(1) for i in (0, other)]
    cells = [name, *texts, Spread.of(times[other] / times[0] for times in best).text()]
    print(" | ".join(cells), flush=True)
    return cells


def fastest(run: Run, seconds: float) -> float:
    """The shortest time of a run, of as many as fit into these seconds."""
    best, until = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        run()
        best = min(best, time.perf_counter() - started)
    return best


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cores", type=positive_integer, nargs="+", default=[1], help="a table for each number (1)")
    parser.add_argument("--samples", type=positive_integer, default=32, help="(32)")
    parser.add_argument("--rounds", type=positive_integer, default=7, help="(7)")
    parser.add_argument("--seconds", type=positive_number, default=0.2, help="length of a turn (0.2)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE.md", help="also write the page there")
    options = parser.parse_args()
    check_cores(parser, options.cores)
    return options


if __name__ == "__main__":
    run_to_the_end(main)
