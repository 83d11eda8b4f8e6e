"""How good a network is on a data set, computed in shares and exact: sums over counts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from parallelcnn.comm import as_communicator
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import grain, minibatches
from parallelcnn.losses import Loss, SoftmaxCrossEntropy
from parallelcnn.network import NetworkHandler
from parallelcnn.threads import one_blas_thread


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


def evaluate(network: NetworkHandler, dataset: Dataset, comm: Any = None, *, loss: Loss | None = None) -> Evaluation:
    """Loss and accuracy of a network, the same on every rank.

    Each rank runs its share of the samples; losses, right answers and samples are summed over ranks, and only then
    divided. Collective: every rank of `comm` must call it.

    Args:
        comm: see `train`.
        loss: softmax cross-entropy unless given.

    Raises:
        ShapeError: if data set, network and loss do not fit together.
    """
    comm = as_communicator(comm)
    loss = loss or SoftmaxCrossEntropy()
    loss.check(network.output_shape, dataset.labels, dataset.classes)
    sums = np.zeros(3)  # of losses, right answers, samples
    with one_blas_thread():
        for samples in minibatches(grain(np.arange(len(dataset)), comm.rank, comm.size), network.worker.block_size):
            output = network.forward(network.load(dataset.images, samples))
            labels = network.worker.load_labels(dataset.labels, samples)
            correct = loss.count_correct(output, labels)
            unused = network.output_gradient(len(samples))
            sums += (loss.forward_backward(output, labels, 1, unused), correct or 0, len(samples))
    comm.sum_over_ranks(sums)
    total_loss, total_correct, total_samples = sums
    accuracy = float(total_correct / total_samples) if dataset.classes is not None else None
    return Evaluation(float(total_loss / total_samples), accuracy, int(total_samples))
