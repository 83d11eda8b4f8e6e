"""`--verify`: compare training on all ranks with training on one, on the given network and data."""

from typing import Any

import numpy as np

from parallelcnn.comm import Serial, Transport, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.errors import ReplicaMismatchError
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.trainer import train

# Tolerances of every parameter after some minibatches. float32 resolves 6e-8, and rounding grows over steps.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


def verify(
    network: NetworkHandler,
    dataset: Dataset,
    optimizer: Optimizer,
    batch_size: int,
    seed: int,
    comm: Transport,
    *,
    steps: int,
    loss: Loss,
    threads: int,
    reproducible: int | None,
) -> str:
    """Train some minibatches on all ranks and on one alone, from the same parameters, and compare the results.

    Does not change the network. Collective: every rank of `comm` must call it.

    Args:
        steps: number of minibatches.
        threads: of each rank; the training on one rank uses one.
        reproducible: number of shards, with which the bits must be equal; None: the numbers must be close.

    Returns:
        the result, as a sentence.

    Raises:
        ReplicaMismatchError: on every rank, if the parameters differ.
    """
    before = {name: vector.copy() for name, vector in network.state.items()}
    start = network.params.copy()
    comm.broadcast(start)
    epochs = -(-steps * batch_size // len(dataset))
    few = Dataset(dataset.images[:1], dataset.labels[:1], dataset.classes, dataset.name)

    def train_from_the_start(ranks: Transport, on_threads: int) -> tuple[np.ndarray, int]:
        network.set_state({"params": start})
        countdown = iter([False] * (steps - 1))
        history = train(
            network,
            dataset,
            few,
            optimizer,
            epochs,
            batch_size,
            seed,
            ranks,
            loss=loss,
            threads=on_threads,
            reproducible=reproducible,
            stop=lambda: next(countdown, True),
            verbose=0,
        )
        return network.params.copy(), history.steps

    together, done = train_from_the_start(comm, threads)
    alone: Any = run_together(comm, lambda: train_from_the_start(Serial(), 1)[0])
    network.set_state(before)
    difference = float(np.abs(together - alone).max(initial=0))
    what = f"{done} minibatches on {comm.size} x {threads} threads and on one"
    same_bits = np.array_equal(together, alone)
    close = np.allclose(together, alone, _RELATIVE, _ABSOLUTE)
    bad = sum(comm.allgather(not (same_bits if reproducible is not None else close)))
    if bad:
        raise ReplicaMismatchError(
            f"{what} give parameters that differ by up to {difference:.2g}, on {bad} of {comm.size} ranks"
        ).together()
    return f"{what}: the same {'bits' if same_bits else f'parameters, up to {difference:.1e}'}"
