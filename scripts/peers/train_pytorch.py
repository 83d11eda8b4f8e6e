#!/usr/bin/env python3
"""The paper's network in PyTorch.

Variants: eager; channels_last, the memory format that its documentation advises for convolutions; compiled, that by
torch.compile; ddp, DistributedDataParallel over gloo, a process of one thread for each of --threads, and
ddp_channels_last.
"""

import argparse
import os
import tempfile
from typing import Any

import numpy as np
from contract import (
    WARM_UP_STEPS,
    Meter,
    load,
    parse_options,
    peak_rss_bytes,
    print_result,
    require,
    skip,
    start_values,
    steps_of_epoch,
)

from parallelcnn.data.sampler import grain

VARIANTS = ("eager", "channels_last", "compiled", "ddp", "ddp_channels_last")


def main() -> None:
    options = parse_options("PyTorch", VARIANTS)
    ranks = options.threads if options.variant.startswith("ddp") else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads // ranks))
    require("torch", options)
    if ranks == 1:
        train(0, 1, options, "")
        return
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(train, (ranks, options, f"file://{folder}/rendezvous"), nprocs=ranks)


def train(rank: int, ranks: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One training, or one rank's part of it; rank 0 prints the result."""
    import torch
    from torch import nn

    torch.set_num_threads(options.threads // ranks)
    if ranks > 1:
        torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=ranks)
    compiled = options.variant == "compiled"
    channels_last = compiled or options.variant.endswith("channels_last")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    with Meter() as loading:
        data = load(options)
        images = torch.from_numpy(data.images).unsqueeze(1).contiguous(memory_format=memory_format)
        labels = torch.from_numpy(data.labels)
        test_images = torch.from_numpy(data.test_images).unsqueeze(1).contiguous(memory_format=memory_format)
        test_labels = torch.from_numpy(data.test_labels)

    network = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    ).to(memory_format=memory_format)

    def set_start_values() -> None:
        layers = (layer for layer in network if list(layer.parameters()))
        with torch.no_grad():
            for layer, values in zip(layers, start_values(options.seed), strict=True):
                layer.weight.copy_(torch.from_numpy(values["weight"]))
                layer.bias.copy_(torch.from_numpy(values["bias"]))

    model: Any = network
    if ranks > 1:
        model = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)

    def loss_of(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y, reduction="sum") * scale

    run = torch.compile(loss_of) if compiled else loss_of
    # One pass over all parameters instead of one a parameter.
    optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate, fused=True)

    def step(minibatch: np.ndarray) -> torch.Tensor:
        chosen = torch.from_numpy(grain(minibatch, rank, ranks))
        optimizer.zero_grad()
        # DDP takes the mean over ranks: of sums over shares, times ranks / minibatch, that is the minibatch's mean.
        loss = run(images.index_select(0, chosen), labels.index_select(0, chosen), ranks / len(minibatch))
        loss.backward()
        optimizer.step()
        return loss.detach()

    warm_up = list(steps_of_epoch(options, len(images), 1))
    try:
        for minibatch in [*warm_up[:WARM_UP_STEPS], warm_up[-1]]:
            step(minibatch)
    except Exception as error:
        if not compiled:
            raise
        skip(options, f"torch.compile does not work here: {type(error).__name__}: {error}"[:300])
    set_start_values()

    losses: list[torch.Tensor] = []
    if ranks > 1:
        torch.distributed.barrier()
    with Meter() as training:
        for epoch in range(1, options.epochs + 1):
            for minibatch in steps_of_epoch(options, len(images), epoch):
                losses.append(step(minibatch))
        if ranks > 1:
            torch.distributed.barrier()

    def evaluate(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        """(loss, accuracy), a thousand samples at a time."""
        with torch.no_grad():
            outputs = torch.cat([network(some) for some in x.split(1000)])
            return nn.functional.cross_entropy(outputs, y).item(), (outputs.argmax(1) == y).double().mean().item()

    peak_rss, all_losses = peak_rss_bytes(), torch.stack(losses)
    if ranks > 1:
        torch.distributed.all_reduce(all_losses)
        all_losses /= ranks
        figures: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(figures, (peak_rss, loading.allocated_bytes, training.allocated_bytes))
        peak_rss = max(peak for peak, _, _ in figures)
        if training.allocated_bytes is not None:
            loading.allocated_bytes = sum(loaded for _, loaded, _ in figures)
            training.allocated_bytes = sum(trained for _, _, trained in figures)
        torch.distributed.destroy_process_group()
    if rank != 0:
        return
    test_loss, test_accuracy = evaluate(test_images, test_labels)
    print_result(
        options,
        loading=loading,
        training=training,
        losses=all_losses.tolist(),
        versions={"torch": torch.__version__},
        processes=ranks,
        peak_rss=peak_rss,
        train_accuracy=evaluate(images, labels)[1],
        test_accuracy=test_accuracy,
        test_loss=test_loss,
    )


if __name__ == "__main__":
    main()
