#!/usr/bin/env python3
"""Times training steps and predictions over batch sizes, in parallelcnn, PyTorch and onnxruntime, on the same cores.

    pip install torch onnx onnxruntime matplotlib
    scripts/compare_batch_sizes.py --cores 1 --out scripts/results/batch-sizes-1-core.md \
        --figure scripts/results/batch-sizes-1-core.png
    scripts/compare_batch_sizes.py --cores 2 --out scripts/results/batch-sizes-2-cores.md \
        --figure scripts/results/batch-sizes-2-cores.png

A training step gathers the samples of a minibatch, runs both passes and takes a step of SGD. Ours is the loop of
`train`, on uint8 images as data sets come; PyTorch's has its whole training set as a float32 tensor beforehand.
A prediction turns a batch of float32 images into class probabilities: `predict`; PyTorch under inference_mode;
onnxruntime with the softmax in the model. PyTorch runs with both of its memory formats, of which the faster counts.

On several cores parallelcnn has that many MPI ranks: in training they share each minibatch; in prediction each takes
its share of the batch, and the batch is done when the slowest is. PyTorch and onnxruntime have that many threads.
Every round runs everything once, in turns; figures are medians over rounds, the ratio that of ratios within a round.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import (
    FORMATS,
    Spread,
    command_line,
    file_to_write,
    markdown_table,
    matrix_product_rate,
    plain_axes,
    positive_integer,
    positive_number,
    processor,
    rank_0_alone,
    require_agreement,
    require_packages,
    run_to_the_end,
    seconds_of,
    steps_within,
    verdict,
    versions,
    write_page,
)
from networks import NETWORKS
from training_turns import LEARNING_RATE, our_training, random_dataset, samples_within

import parallelcnn as pc
from parallelcnn.comm import Communicator, abort_all_on_error, launched_ranks, mpi_library, mpirun, world
from parallelcnn.data.sampler import grain, shuffle
from parallelcnn.training.threads import one_blas_thread

BATCH_SIZES = [2**i for i in range(13)]
PEERS = {"training": ("PyTorch",), "prediction": ("PyTorch", "onnxruntime")}
SETTLE = 0.02  # after a peer's turn its threads still spin for a while, waiting for work [s]
Rates = dict[str, list[float]]


def main() -> int:
    options = _options()
    if options.cores > 1 and launched_ranks()[0] == 1:
        return subprocess.call([mpirun(), "-n", str(options.cores), sys.executable, *sys.argv])
    comm = world()
    rates: dict[str, list[Rates]] = {task: [] for task in PEERS}
    products: list[float] = []
    with abort_all_on_error(comm), one_blas_thread():
        for n in options.batch_sizes:
            for task, measured in zip(PEERS, measure(n, options, comm), strict=True):
                rates[task].append(measured)
                if comm.rank == 0:
                    print(f"{task} {' | '.join(_row(n, measured, PEERS[task]))}", flush=True)
            products.append(matrix_product_rate(seconds=0.1))
    if comm.rank == 0 and options.out:
        write_page(options.out, _page(options, rates, Spread.of(products)))
    if comm.rank == 0 and options.figure:
        draw(options, rates)
    return 0


def measure(n: int, options: argparse.Namespace, comm: Communicator) -> tuple[Rates, Rates]:
    """Samples per second in each round with batch size n, by who ran; on rank 0."""
    layers, input_shape = NETWORKS[options.network]
    train_set = random_dataset(input_shape, max(3 * n, 4096))
    batch = train_set.images[:n].astype(np.float32) / np.float32(255)
    network = pc.NetworkHandler(layers, input_shape, seed=1)

    # What a turn of each does: how many samples it handles, and the call, which returns the seconds.
    training = {"parallelcnn": our_training(network, train_set, n, options.seconds, comm, threads=1)}
    prediction = {"parallelcnn": our_prediction(network, batch, options.seconds, comm)}
    with rank_0_alone(comm) as alone:
        if alone:
            training |= pytorch_training(network, train_set, n, options)
            prediction |= peers_predictions(network, batch, options)
    rates: tuple[Rates, Rates] = ({who: [] for who in training}, {who: [] for who in prediction})
    for _ in range(options.rounds):
        for turns, measured in zip((training, prediction), rates, strict=True):
            comm.barrier()
            handled, turn = turns["parallelcnn"]
            measured["parallelcnn"].append(handled / turn())
            with rank_0_alone(comm) as alone:
                for who, (handled, turn) in turns.items():
                    if alone and who != "parallelcnn":
                        measured[who].append(handled / turn())
                        time.sleep(SETTLE)
    return rates


Turn = tuple[int, Callable[[], float]]


def our_prediction(network: pc.NetworkHandler, batch: np.ndarray, seconds: float, comm: Communicator) -> Turn:
    """Predictions of the same batch, again and again; each rank its share. Collective, as is its turn."""
    share = batch[grain(np.arange(len(batch)), comm.rank, comm.size)]

    def predict() -> None:
        network.predict(share)
        comm.barrier()

    network.predict(share)
    comm.barrier()
    steps = comm.gather(steps_within(seconds, lambda: network.predict(share)))[0]
    comm.barrier()
    return steps * len(batch), lambda: sum(seconds_of(predict, steps))


def pytorch_training(
    network: pc.NetworkHandler, train_set: pc.Dataset, n: int, options: argparse.Namespace
) -> dict[str, Turn]:
    """The same in PyTorch, with the whole training set as a float32 tensor, for both memory formats."""
    import torch
    from pytorch_twin import MEMORY_FORMATS, pytorch_twin

    torch.set_num_threads(options.cores)
    labels = torch.from_numpy(train_set.labels)
    turns: dict[str, Turn] = {}
    for memory_format in FORMATS:
        images = torch.from_numpy(train_set.images.astype(np.float32) / np.float32(255))
        images = images.to(memory_format=MEMORY_FORMATS[memory_format])
        twin = pytorch_twin(network, memory_format)
        optimizer = torch.optim.SGD(twin.parameters(), lr=LEARNING_RATE)

        def train(
            samples: int, images: Any = images, twin: Any = twin, optimizer: torch.optim.Optimizer = optimizer
        ) -> float:
            started = time.perf_counter()
            order = torch.from_numpy(shuffle(samples, 0, 1))
            for chosen in order.split(n):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(twin(images[chosen]), labels[chosen]).backward()
                optimizer.step()
            return time.perf_counter() - started

        samples = samples_within(options.seconds, train, n, len(train_set))
        turns[memory_format] = samples, lambda train=train, samples=samples: train(samples)  # type: ignore[misc]
    return turns


def peers_predictions(network: pc.NetworkHandler, batch: np.ndarray, options: argparse.Namespace) -> dict[str, Turn]:
    """Predictions with PyTorch, for both memory formats, and with onnxruntime where it is installed.

    Raises:
        ParallelCNNError: if their probabilities are not ours.
    """
    import torch
    from pytorch_twin import MEMORY_FORMATS, pytorch_twin

    calls: dict[str, Callable[[], np.ndarray]] = {}
    for memory_format in FORMATS:
        images = torch.from_numpy(batch).to(memory_format=MEMORY_FORMATS[memory_format])
        twin = pytorch_twin(network, memory_format)

        def predict(twin: Any = twin, images: Any = images) -> np.ndarray:
            with torch.inference_mode():
                return torch.softmax(twin(images), 1).numpy()

        calls[memory_format] = predict
    if importlib.util.find_spec("onnxruntime"):
        from onnx_twin import onnx_twin

        session = onnx_twin(network, options.cores)
        calls["onnxruntime"] = lambda: session.run(None, {"images": batch})[0]
    ours = network.predict(batch)
    turns: dict[str, Turn] = {}
    for who, call in calls.items():
        require_agreement(f"{who}: probabilities", [ours], [call()], 1e-4)
        steps = steps_within(options.seconds, call)
        turns[who] = steps * len(batch), lambda call=call, steps=steps: sum(seconds_of(call, steps))  # type: ignore[misc]
    return turns


def _fastest(measured: Rates, peer: str, i: int) -> float:
    """A peer's rate in round i; of PyTorch's memory formats the faster one's."""
    return max(measured[who][i] for who in (FORMATS if peer == "PyTorch" else (peer,)))


def _row(n: int, measured: Rates, peers: tuple[str, ...]) -> list[str]:
    """Batch size; everyone's median; the ratio to the fastest peer of each round."""
    rounds = range(len(measured["parallelcnn"]))
    present = [peer for peer in peers if peer in measured or peer == "PyTorch"]
    row = [str(n), f"{statistics.median(measured['parallelcnn']):,.0f}"]
    for peer in peers:
        row.append(f"{statistics.median(_fastest(measured, peer, i) for i in rounds):,.0f}" if peer in present else "-")
    best = [max(_fastest(measured, peer, i) for peer in present) for i in rounds]
    return [*row, verdict(Spread.of(ours / their for ours, their in zip(measured["parallelcnn"], best, strict=True)))]


def draw(options: argparse.Namespace, rates: dict[str, list[Rates]]) -> None:
    """Samples per second over batch sizes, one panel for training and one for prediction."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    for panel, (task, measured) in zip(panels, rates.items(), strict=True):
        for who in ("parallelcnn", *PEERS[task]):
            if who in measured[0] or who == "PyTorch":
                rounds = range(options.rounds)
                spreads = [Spread.of(_fastest(at_size, who, i) for i in rounds) for at_size in measured]
                medians, lows, highs = zip(*spreads, strict=True)
                (line,) = panel.loglog(options.batch_sizes, medians, "o-", markersize=3, label=who)
                panel.fill_between(options.batch_sizes, lows, highs, alpha=0.2, color=line.get_color())
        panel.set(title=f"{task}, {_cores(options)}", xlabel="batch size", ylabel="samples per second")
        plain_axes(panel, options.batch_sizes)
        panel.legend()
    figure.savefig(options.figure, dpi=120)


def _page(options: argparse.Namespace, rates: dict[str, list[Rates]], product: Spread) -> str:
    ranks = f"{options.cores} MPI ranks ({mpi_library()})" if options.cores > 1 else "one process, one thread"
    tables = []
    for task, peers in PEERS.items():
        header = ["batch size", *(f"{who} [samples/s]" for who in ("parallelcnn", *peers))]
        faster_than = "the faster of them" if len(peers) > 1 else peers[0]
        header.append(f"parallelcnn against {faster_than}")
        rows = [_row(n, at_size, peers) for n, at_size in zip(options.batch_sizes, rates[task], strict=True)]
        tables.append(f"## {task.capitalize()}\n\n{markdown_table(header, rows)}")
    picture = ""
    if options.figure:
        picture = f"\n![samples per second]({os.path.relpath(options.figure, options.out.parent)})\n"
    body = "\n\n".join(tables)
    return f"""# Batch sizes, {options.network} network, on {_cores(options)}

    {command_line()}

{processor()}. A float32 matrix product of 512 x 512 runs at {product.text(0)} GFLOP/s
on one thread of it (numpy, in the same run). {versions("numpy", "numba", "torch", "onnxruntime")}.
parallelcnn: {ranks}; the others: as many threads. PyTorch: the faster of contiguous and channels_last.
Medians of {options.rounds} rounds in turns; ratios within a round, lowest and highest in brackets.
Where parallelcnn is the slower one, the last column says so.
{picture}
{body}
"""


def _cores(options: argparse.Namespace) -> str:
    return "1 core" if options.cores == 1 else f"{options.cores} cores"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times batch sizes in parallelcnn, PyTorch and onnxruntime.")
    parser.add_argument("--network", default="paper", choices=NETWORKS, help="(default: paper)")
    parser.add_argument("--cores", type=positive_integer, default=1, help="our ranks, the others' threads (default: 1)")
    parser.add_argument(
        "--batch-sizes", type=positive_integer, nargs="+", default=BATCH_SIZES, metavar="N", help="(1, 2, ... 4096)"
    )
    parser.add_argument("--rounds", type=positive_integer, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=positive_number, default=0.2, help="length of a turn (default: 0.2)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="write the page, Markdown, to FILE")
    parser.add_argument(
        "--figure", type=file_to_write, metavar="FILE", help="draw the picture, PNG, to FILE; needs matplotlib"
    )
    options = parser.parse_args()
    require_packages(parser, "torch", *(["matplotlib"] if options.figure else []))
    return options


if __name__ == "__main__":
    run_to_the_end(main)
