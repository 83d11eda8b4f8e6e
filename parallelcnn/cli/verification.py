"""Does training on many ranks do what training on one does? Tried out, on the network and data at hand."""

from typing import Any

import numpy as np

from parallelcnn.comm import Communicator, Serial, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.errors import ReplicaMismatchError
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import SGD
from parallelcnn.trainer import train

# Every parameter after some minibatches; float32 resolves 6e-8, and steps add up.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


def verify(
    network: NetworkHandler,
    dataset: Dataset,
    optimizer: SGD,
    batch_size: int,
    seed: int,
    comm: Communicator,
    *,
    steps: int,
    loss: Loss,
    threads: int,
    grains: int | None,
) -> str:
    """Train some minibatches on all ranks and on one alone, from the same start, and compare the parameters.

    Leaves the network as it was. Collective: every rank of `comm` must call it.

    Args:
        steps: minibatches.
        threads: on each rank; the one alone takes one.
        grains: with them the bits must be the same, otherwise the numbers up to rounding.

    Returns:
        what was found, in words.

    Raises:
        ReplicaMismatchError: on every rank, if they are not.
    """
    before = {name: vector.copy() for name, vector in network.state.items()}
    start = network.params.copy()
    comm.broadcast(start)
    epochs = -(-steps * batch_size // len(dataset))
    few = Dataset(dataset.images[:1], dataset.labels[:1], dataset.classes, dataset.name)

    def train_from_the_start(ranks: Communicator, on_threads: int) -> tuple[np.ndarray, int]:
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
            grains=grains,
            leave=lambda: next(countdown, True),
        )
        return network.params.copy(), history.steps

    together, done = train_from_the_start(comm, threads)
    alone: Any = run_together(comm, lambda: train_from_the_start(Serial(), 1)[0])
    network.set_state(before)
    difference = float(np.abs(together - alone).max(initial=0))
    what = f"{done} minibatches on {comm.size} x {threads} threads and on one"
    same_bits = np.array_equal(together, alone)
    close = np.allclose(together, alone, _RELATIVE, _ABSOLUTE)
    bad = sum(comm.gather(not (same_bits if grains is not None else close)))
    if bad:
        raise ReplicaMismatchError(
            f"{what} give parameters that differ by up to {difference:.2g}, on {bad} of {comm.size} ranks"
        ).together()
    return f"{what}: the same {'bits' if same_bits else f'parameters, up to {difference:.1e}'}"
