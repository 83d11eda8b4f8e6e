"""How good a network is on a data set, computed in shares and exact: sums over counts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.comm import Communicator, as_communicator, run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import warn_of_another_range
from parallelcnn.data.sampler import grain
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import Replica
from parallelcnn.training.agreement import check_replicas, describe_data
from parallelcnn.training.thread_pool import Team
from parallelcnn.training.threads import check_threads, choose_threads, one_blas_thread


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over a whole data set.

    Attributes:
        loss: mean over samples.
        accuracy: share of samples that are classified right, in [0, 1]; None where labels are not classes.
        samples: how many there were.
    """

    loss: float
    accuracy: float | None
    samples: int


def evaluate(
    network: NetworkHandler,
    dataset: Dataset,
    comm: Any = None,
    *,
    loss: Loss | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Loss and accuracy of a network, the same on every rank.

    Collective: every rank of `comm` must call it.

    Args:
        comm, threads: see `train`.
        loss: softmax cross-entropy unless given.

    Raises:
        ShapeError: if data set, network and loss do not fit together, or not into this machine's memory.
        DataError: if the data set holds NaN or infinity.
        InputError: for a number of threads below 1, or larger than machines have.
        ReplicaMismatchError: if the ranks were not called with the same arguments.
    """
    comm = as_communicator(comm)
    loss = loss or SoftmaxCrossEntropy()

    def check() -> None:
        check_threads(threads)
        loss.check(network.output_shape, dataset.labels, dataset.classes)
        dataset.check_numbers()
        if comm.rank == 0:
            images = f"the images of {dataset.name}"
            warn_of_another_range(images, dataset.input_range, network.input_range, stacklevel=4)

    run_together(comm, check)
    if comm.size > 1:
        told = {"layers": network.layers, "loss": loss, "classes": dataset.classes}
        read = {"parameters": network.parameters_sha256(), **describe_data(comm, dataset=dataset)}
        check_replicas(comm, {**told, **read})
    threads = choose_threads(comm, threads, network.multiply_adds(len(dataset), training=False))
    run_together(comm, lambda: network.check_memory(threads))
    with network.idle_replicas(threads) as replicas, one_blas_thread(), Team(replicas) as team:
        for n in (1, replicas[0].block_size):  # compiles, and that is for one thread; see `compile_kernels`
            _run_block(replicas[0], dataset, np.zeros(n, np.intp), loss)
        return evaluate_by(team, dataset, comm, loss)


def evaluate_by(team: Team, dataset: Dataset, comm: Communicator, loss: Loss) -> Evaluation:
    """The same with a team of threads that is there already, for a data set that fits its network.

    Each thread of each rank takes some of the blocks that the samples are cut into; losses, right answers and samples
    are summed over all blocks, in order, and only then divided: the same bits, whoever takes which. Collective: every
    rank of `comm` must call it.
    """
    comm.activity = f"evaluating on {dataset.name}"
    size = team.replicas[0].block_size
    blocks = np.zeros((-(-len(dataset) // size), 3))

    def run_blocks(replica: Replica, numbers: Array) -> None:
        for number in numbers:
            samples = np.arange(number * size, min((number + 1) * size, len(dataset)))
            blocks[number] = _run_block(replica, dataset, samples, loss)

    team.run(run_blocks, grain(np.arange(len(blocks)), comm.rank, comm.size))
    comm.sum_over_ranks(blocks)  # of each row but one rank has anything but zeros
    total_loss, total_correct, total_samples = blocks.sum(axis=0)
    accuracy = float(total_correct / total_samples) if dataset.classes is not None else None
    return Evaluation(float(total_loss / total_samples), accuracy, int(total_samples))


def _run_block(replica: Replica, dataset: Dataset, samples: Array, loss: Loss) -> tuple[float, int, int]:
    """Sums over a block of losses, right answers and samples."""
    output = replica.forward(replica.load(dataset.images, samples))
    labels = replica.load_labels(dataset.labels, samples)
    correct = loss.count_correct(output, labels)
    unused = replica.output_gradient(len(samples))
    return loss.forward_backward(output, labels, 1, unused), correct or 0, len(samples)
