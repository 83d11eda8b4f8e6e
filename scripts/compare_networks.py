#!/usr/bin/env python3
"""Times forward and backward passes of several networks in parallelcnn and in PyTorch, on the same cores, in turns.

    pip install torch
    scripts/compare_networks.py --cores 1 --out scripts/results/networks-1-core.md
    scripts/compare_networks.py --cores 2 --out scripts/results/networks-2-cores.md
    scripts/compare_networks.py --layers --only 3x3

On one core: one process against torch.set_num_threads(1). On more: that many MPI ranks, which share the minibatch and
sum their gradients (the sum counts as backward), against PyTorch with that many threads. PyTorch is run with both of
its memory formats, of which the faster counts; its inputs lie in that format, ours in ours. Outputs and gradients
must agree before anything is timed. Every round runs each of them in turn, within the same processes; a turn's time
is the median of its steps, and the figures are medians over rounds, the ratio that of the ratios within a round.

With --layers each convolution is timed alone: forward, the gradient by the weights (with that by the bias), and the
gradient by the input, which in parallelcnn is the difference of a backward pass with it and one without.

A rate counts the multiplications and additions of convolutions and matrix products by the layers' shapes, two for each
product: forward, gradient by the weights, and gradient by the input except in a network's first layer. What a cleverer
algorithm saves counts as if it had been done, on both sides.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from layers_alone import LAYERS, OPERATIONS, run_layer_rounds
from measuring import (
    FORMATS,
    Spread,
    command_line,
    file_to_write,
    markdown_table,
    matrix_product_rate,
    positive_integer,
    positive_number,
    processor,
    rank_0_alone,
    require_agreement,
    require_packages,
    run_to_the_end,
    steps_within,
    three_digits,
    verdict,
    versions,
    write_page,
)
from networks import NETWORKS, flop_per_sample

import parallelcnn as pc
from parallelcnn.comm import Communicator, abort_all_on_error, launched_ranks, mpi_library, mpirun, world
from parallelcnn.data.sampler import grain
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.training.compilation import compile_in_turns
from parallelcnn.training.threads import one_blas_thread
from parallelcnn.worker import LOSS


def main() -> int:
    options = _options()
    if options.cores > 1 and launched_ranks()[0] == 1:
        # Not --bind-to core, Open MPI's default: rank 0 lends its process to PyTorch's threads.
        return subprocess.call([mpirun(), "-n", str(options.cores), sys.executable, *sys.argv])
    comm = world()
    with abort_all_on_error(comm), one_blas_thread():
        page = compare_layers(options) if options.layers else compare_networks(options, comm)
    if comm.rank == 0 and options.out:
        write_page(options.out, page)
    return 0


# ---- networks


class OurNetwork:
    """Passes of this rank's share of a minibatch through a network of parallelcnn."""

    def __init__(self, network: pc.NetworkHandler, images: np.ndarray, labels: np.ndarray, comm: Communicator) -> None:
        self.network, self.comm, self.n = network, comm, len(images)
        share = grain(np.arange(self.n), comm.rank, comm.size)
        self.images, self.labels = images[share], labels[share]
        self.loss = SoftmaxCrossEntropy()

    def compute(self) -> tuple[float, float]:
        """Seconds of the forward pass, with loading and loss, and of the backward pass: block by block, as `train`."""
        worker, forward, backward = self.network.worker, 0.0, 0.0
        for block in worker.blocks(np.arange(len(self.labels))):
            started = time.perf_counter()
            output = worker.forward(worker.load(self.images, block), training=True)
            doutput = worker.output_gradient(len(block))
            worker.message[LOSS] = self.loss.forward_backward(output, self.labels[block], self.n, doutput)
            forward_done = time.perf_counter()
            worker.backward(doutput)
            forward += forward_done - started
            backward += time.perf_counter() - forward_done
        return forward, backward

    def step(self) -> tuple[float, float]:
        """Seconds of the forward pass with the loss, and of the backward pass with the sum over ranks."""
        forward, backward = self.compute()
        started = time.perf_counter()
        self.comm.sum_over_ranks(self.network.message)
        return forward, backward + time.perf_counter() - started


class TheirNetwork:
    """The same in PyTorch, for the whole minibatch."""

    def __init__(self, network: pc.NetworkHandler, images: np.ndarray, labels: np.ndarray, memory_format: str) -> None:
        import torch
        from pytorch_twin import MEMORY_FORMATS, pytorch_twin

        self.network = pytorch_twin(network, memory_format)
        self.x = torch.from_numpy(images).to(memory_format=MEMORY_FORMATS[memory_format])
        self.labels = torch.from_numpy(labels)
        self.cross_entropy = torch.nn.functional.cross_entropy

    def step(self) -> tuple[float, float]:
        """Seconds of the forward pass with the loss, and of the backward pass."""
        self.network.zero_grad()
        started = time.perf_counter()
        loss = self.cross_entropy(self.network(self.x), self.labels)
        forward_done = time.perf_counter()
        loss.backward()
        return forward_done - started, time.perf_counter() - forward_done


class Times(NamedTuple):
    """Medians over the steps of one turn [s]."""

    forward: float
    backward: float
    total: float


def turn(step: Callable[[], tuple[float, float]], steps: int) -> Times:
    """Run so many steps."""
    times = np.array([step() for _ in range(steps)])
    return Times(*np.median(times, axis=0), float(np.median(times.sum(axis=1))))


def compare_networks(options: argparse.Namespace, comm: Communicator) -> str:
    """Time all networks; the page, on rank 0."""
    rows = []
    rates: list[float] = []
    header = (
        "network",
        "minibatch",
        "MFLOP per sample",
        "parallelcnn forward + backward [us per sample]",
        "GFLOP/s",
        "of the matrix product's rate",
        "PyTorch forward + backward [us per sample]",
        "GFLOP/s",
        "format",
        "parallelcnn is faster by",
    )
    for name, (layers, input_shape) in NETWORKS.items():
        if options.only.lower() not in name.lower():
            continue
        for n in options.batch_sizes:
            network = pc.NetworkHandler(layers, input_shape, seed=1)
            ours, theirs = _run_rounds(network, n, options, comm, rates)
            if comm.rank > 0:
                continue
            faster = min(FORMATS, key=lambda f: Spread.of(t.total for t in theirs[f]).median)
            # In a round the faster of the two counts, so that no noise is on our side.
            ratio = Spread.of(min(theirs[f][i].total for f in FORMATS) / ours[i].total for i in range(options.rounds))
            flop = flop_per_sample(network)
            our_columns = _columns(ours, n, flop)
            rows.append(
                (
                    name,
                    str(n),
                    three_digits(flop / 1e6),
                    *our_columns[:2],
                    f"{our_columns[2] / (np.median(rates) * options.cores):.0%}",
                    *_columns(theirs[faster], n, flop)[:2],
                    faster,
                    verdict(ratio),
                )
            )
            print(" | ".join(rows[-1]), flush=True)
    if comm.rank > 0:
        return ""
    title = f"Networks, forward and backward, on {_count(options.cores, 'core')}"
    return _page(title, options, Spread.of(rates), markdown_table(header, rows))


def _run_rounds(
    network: pc.NetworkHandler, n: int, options: argparse.Namespace, comm: Communicator, rates: list[float]
) -> tuple[list[Times], dict[str, list[Times]]]:
    """Times of every round, ours and, on rank 0, PyTorch's by memory format; adds to the matrix product's rates."""
    rng = np.random.default_rng(0)
    images = rng.random((n, *network.input_shape), np.float32)
    labels = rng.integers(0, 10, n)
    ours = OurNetwork(network, images, labels, comm)
    compile_in_turns(comm, ours.compute)
    theirs: dict[str, TheirNetwork] = {}
    their_steps: dict[str, int] = {}
    with rank_0_alone(comm) as alone:
        if alone:
            _torch_threads(options.cores)
            for memory_format in FORMATS:
                theirs[memory_format] = TheirNetwork(network, images, labels, memory_format)
                _require_same_results(ours, theirs[memory_format])
                their_steps[memory_format] = steps_within(options.seconds, theirs[memory_format].step)
    comm.barrier()
    our_steps = comm.gather(steps_within(options.seconds, ours.compute))[0]
    our_times: list[Times] = []
    their_times: dict[str, list[Times]] = {memory_format: [] for memory_format in FORMATS}
    for _ in range(options.rounds):
        comm.barrier()
        our_times.append(turn(ours.step, our_steps))
        with rank_0_alone(comm) as alone:
            if alone:
                for memory_format in FORMATS:
                    their_times[memory_format].append(turn(theirs[memory_format].step, their_steps[memory_format]))
                rates.append(matrix_product_rate(seconds=0.1))
    return our_times, their_times


def _require_same_results(ours: OurNetwork, theirs: TheirNetwork) -> None:
    """Raise ParallelCNNError unless outputs and gradients of rank 0's share agree."""
    n = len(ours.labels)
    output = theirs.network(theirs.x[:n])
    loss = theirs.cross_entropy(output, theirs.labels[:n])
    theirs.network.zero_grad()
    loss.backward()
    ours.compute()
    gradient = ours.network.gradients * (ours.n / n)  # a copy: going through the blocks again sums up others
    blocks = [
        ours.network.forward(ours.network.load(ours.images, block)).T.copy()
        for block in ours.network.worker.blocks(np.arange(n))
    ]
    require_agreement("output", [np.concatenate(blocks)], [output.detach().numpy()], 1e-4)
    # Ours are those of a share of a minibatch. They agree to 1e-6 until, of numbers in a pooling window that are equal
    # but for rounding, another one wins: then its gradient goes elsewhere, 0.3 % of the whole in the VGG-like network
    # (and as much between PyTorch's in float32 and in float64). The layers alone are held to 0.1 %.
    gradients = ours.network.layout.views(gradient)
    require_agreement(
        "gradient",
        [gradient for layer in gradients for gradient in layer.values()],
        [parameter.grad.numpy() for parameter in theirs.network.parameters() if parameter.grad is not None],
        1e-2,
    )


def _torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _columns(times: list[Times], n: int, flop: float) -> tuple[str, str, float]:
    """Microseconds per sample as forward + backward = total, GFLOP/s as text, and as a number."""
    medians = [float(np.median(values)) / n for values in zip(*times, strict=True)]
    rate = flop / medians[2] / 1e9
    return " + ".join(three_digits(1e6 * value) for value in medians[:2]), f"{rate:.0f}", rate


# ---- layers alone


def compare_layers(options: argparse.Namespace) -> str:
    """Time each convolution alone; the page."""
    _torch_threads(1)
    rates: list[float] = []
    rows = []
    rates_of = [f"{operation}: parallelcnn, PyTorch [GFLOP/s]" for operation in OPERATIONS]
    ratios_of = ("as a first layer, without dx, faster by", "parallelcnn is faster by")
    header = ("channels, image, filter", "samples", *rates_of, "format", *ratios_of)
    for case in LAYERS:
        if options.only.lower() not in case.name.lower():
            continue
        for n in options.batch_sizes:
            ours, theirs = run_layer_rounds(case, n, options, rates)
            faster = min(FORMATS, key=lambda f: Spread.of(_total(times) for times in theirs[f]).median)
            ratios = [
                Spread.of(
                    min(_total(theirs[f][i], without) for f in FORMATS) / _total(ours[i], without)
                    for i in range(options.rounds)
                )
                for without in ("dx", None)
            ]
            weight = case.layer.param_shapes(case.input_shape)["weight"]
            flop = 2 * n * math.prod(weight) * math.prod(case.layer.output_shape(case.input_shape)[1:])
            rate = {
                (who, operation): flop / Spread.of(times[operation] for times in turns).median / 1e9
                for who, turns in (("ours", ours), ("theirs", theirs[faster]))
                for operation in OPERATIONS
            }
            pairs = [f"{rate['ours', operation]:.0f}, {rate['theirs', operation]:.0f}" for operation in OPERATIONS]
            rows.append((case.name, str(n), *pairs, faster, *map(verdict, ratios)))
            print(" | ".join(rows[-1]), flush=True)
    return _page("Convolutions alone, on 1 core", options, Spread.of(rates), markdown_table(header, rows))


def _total(times: dict[str, float], without: str | None = None) -> float:
    return sum(seconds for operation, seconds in times.items() if operation != without)


# ---- the page and the command


def _page(title: str, options: argparse.Namespace, rate: Spread, table: str) -> str:
    ours = f"{options.cores} MPI ranks ({mpi_library()})" if options.cores > 1 else "one process, one thread"
    return f"""# {title}

    {command_line()}

{processor()}. A float32 matrix product of 512 x 512 runs at {rate.text(0)} GFLOP/s
on one thread of it (numpy, in the same run). {versions("numpy", "numba", "torch")}.
parallelcnn: {ours}; PyTorch: {_count(options.cores, "thread")}, the faster of contiguous and channels_last.
Medians of {options.rounds} rounds in turns; ratios within a round, lowest and highest in brackets.
Where parallelcnn is the slower one, the last column says so.

{table}
"""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times networks in parallelcnn and in PyTorch on the same cores.")
    parser.add_argument("--layers", action="store_true", help="time each convolution alone, on one core")
    parser.add_argument("--cores", type=positive_integer, default=1, help="our ranks, PyTorch's threads (default: 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only networks or layers with TEXT in their names")
    parser.add_argument("--batch-sizes", type=positive_integer, nargs="+", metavar="N", help="samples (default: 100)")
    parser.add_argument("--rounds", type=positive_integer, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=positive_number, help="length of a turn (default: 0.3, of a layer 0.1)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="write the page, Markdown, to FILE")
    options = parser.parse_args()
    options.batch_sizes = options.batch_sizes or [100]
    options.seconds = options.seconds or (0.1 if options.layers else 0.3)
    names = [case.name for case in LAYERS] if options.layers else list(NETWORKS)
    if not any(options.only.lower() in name.lower() for name in names):
        parser.error(f"--only must be part of a name among {', '.join(names)}, got {options.only!r}")
    if options.layers and options.cores > 1:
        parser.error(f"--layers takes --cores 1, got {options.cores}: ranks share minibatches, not layers")
    require_packages(parser, "torch")
    return options


if __name__ == "__main__":
    run_to_the_end(main)
