"""The gradient of a minibatch: computed in pieces by threads and ranks, and summed.

`FloatSum` is the fastest: each thread takes one piece, and float32 sums follow. Its rounding depends on how many
threads and ranks there are. `FixedPointSum` cuts every minibatch into the same pieces, whoever takes them, and adds
integers: the same bits on any number of threads and ranks.
"""

from typing import Protocol

import numpy as np

from parallelcnn.data.dataset import Dataset
from parallelcnn.data.sampler import grain
from parallelcnn.errors import DivergenceError, InputError
from parallelcnn.kernels.fixed_point import add_fixed_point, from_fixed_point
from parallelcnn.layers.base import Array
from parallelcnn.losses import Loss
from parallelcnn.network import NetworkHandler
from parallelcnn.replica import LOSS, STOP, Replica
from parallelcnn.training.thread_pool import Team

# A sum may be 2**15 in fixed point, see the kernel; half of it keeps clear of the edge.
_LARGEST_SUM = 2.0**14
_LOSS_SCALE = 2.0**-16  # so that losses may be large
_MOST_GRAINS = 2**14


class Ranks(Protocol):
    """What a sum needs to know of ranks; see `Communicator`."""

    rank: int
    size: int

    def sum_over_ranks(self, array: Array) -> None: ...


class Summation(Protocol):
    """Computes and sums what the ranks' threads find out about a minibatch."""

    def compute(self, minibatch: Array, ranks: Ranks, *, leave: int) -> None:
        """Make the network's message that of the whole minibatch, on every rank.

        Collective: every rank must call it.

        Args:
            minibatch: (batch_size,), indices of samples, on every rank all of them.
            leave: this rank's number for the place LEAVE, at least 0, where the ranks' sum will stand.

        Raises:
            DivergenceError: on every rank, for a sum that cannot be held.
        """


def compute_gradient(replica: Replica, dataset: Dataset, samples: Array, batch_size: int, loss: Loss) -> None:
    """One replica's part: its message becomes the sum over `samples` of gradient and loss, by `batch_size`."""
    for block in replica.blocks(samples):
        x = replica.load(dataset.images, block, training=True)
        output = replica.forward(x, training=True)
        doutput = replica.output_gradient(len(block))
        labels = replica.load_labels(dataset.labels, block)
        replica.reduction_buffer[LOSS] = loss.forward_backward(output, labels, batch_size, doutput)
        replica.backward(doutput)


def compute_gradient_by(team: Team, dataset: Dataset, samples: Array, batch_size: int, loss: Loss) -> None:
    """A rank's part: each replica its piece, and the first one's message, the network's, becomes the sum."""
    team.run(lambda replica, some: compute_gradient(replica, dataset, some, batch_size, loss), samples)
    team.sum_reduction_buffers()


class FloatSum:
    """Sums of floating-point numbers."""

    def __init__(self, network: NetworkHandler, team: Team, dataset: Dataset, loss: Loss) -> None:
        self._network, self._team, self._dataset, self._loss = network, team, dataset, loss

    def compute(self, minibatch: Array, ranks: Ranks, *, leave: int) -> None:
        share = grain(minibatch, ranks.rank, ranks.size)
        compute_gradient_by(self._team, self._dataset, share, len(minibatch), self._loss)
        self._network.reduction_buffer[STOP] = leave
        ranks.sum_over_ranks(self._network.reduction_buffer)


class FixedPointSum:
    """Sums in fixed point over pieces of the minibatch, its grains.

    Args:
        grains: how many; it decides the bits of the result, and more of them than ranks times threads serve nobody.
    """

    def __init__(self, network: NetworkHandler, team: Team, dataset: Dataset, loss: Loss, grains: int) -> None:
        self._network, self._team, self._dataset, self._loss = network, team, dataset, loss
        self._grains = grains
        self._floats = FloatSum(network, team, dataset, loss)
        self._sums = {
            replica: _Sums(network.reduction_buffer.size - 2, _LARGEST_SUM / grains) for replica in team.replicas
        }

    def compute(self, minibatch: Array, ranks: Ranks, *, leave: int) -> None:
        def take(replica: Replica, grains: Array) -> None:
            sums = self._sums[replica]
            sums.begin()
            for number in grains:
                samples = grain(minibatch, number, self._grains)
                if len(samples) > 0:
                    compute_gradient(replica, self._dataset, samples, len(minibatch), self._loss)
                    sums.add(replica.reduction_buffer)
            sums.end()

        self._team.run(take, grain(np.arange(self._grains), ranks.rank, ranks.size))
        first, *others = (self._sums[replica] for replica in self._team.replicas)
        for other in others:
            np.add(first.numbers, other.numbers, out=first.numbers)
        first.leave[0] = leave
        ranks.sum_over_ranks(first.numbers)
        if first.left_out[0] > 0:
            self._compute_what_fits_no_integer(minibatch, ranks)
        else:
            first.write(self._network.reduction_buffer)

    def _compute_what_fits_no_integer(self, minibatch: Array, ranks: Ranks) -> None:
        """Leave what is infinite or NaN in the message, for whoever looks after divergence; raise if it is neither."""
        self._floats.compute(minibatch, ranks, leave=False)
        message = self._network.reduction_buffer
        if np.isfinite(message).all():
            largest = float(np.abs(message[:LOSS]).max(initial=0))
            raise DivergenceError(
                f"a gradient of {largest:.3g}, with a loss of {message[LOSS]:.3g}, is too large for reproducible sums, "
                f"which hold {_LARGEST_SUM / self._grains:g} for each of {self._grains} grains: training has diverged, "
                f"or wants a smaller learning rate or inputs of a smaller scale"
            ).together()


class _Sums:
    """A replica's sums: of gradients and losses, of wishes to leave, and how many terms were left out of them."""

    def __init__(self, size: int, largest: float) -> None:
        self.numbers = np.zeros(size + 3, np.int64)
        self._terms, self.leave, self.left_out = np.split(self.numbers, [size + 1, size + 2])
        self._largest = largest
        self._is_empty = True

    def begin(self) -> None:
        """Forget what was added."""
        self._is_empty = True

    def add(self, message: Array) -> None:
        """Add a grain's message, which is of no use afterwards."""
        message[LOSS] *= _LOSS_SCALE
        add_fixed_point(message[:STOP], self._largest, self._terms, self.left_out, self._is_empty)
        self._is_empty = False

    def end(self) -> None:
        """Make `numbers` the sum of what was added, of nothing too."""
        if self._is_empty:
            self.numbers[...] = 0
        self.leave[0] = 0

    def write(self, message: Array) -> None:
        """Make a message of the sums."""
        from_fixed_point(self._terms, message[:STOP])
        message[LOSS] /= _LOSS_SCALE
        message[STOP] = self.leave[0]


def check_grains(grains: int | None) -> None:
    """Raise InputError unless that is a number of grains, or None."""
    if grains is None:
        return
    if isinstance(grains, bool) or not isinstance(grains, int | np.integer) or not 1 <= grains <= _MOST_GRAINS:
        raise InputError(f"grains must be an integer from 1 to {_MOST_GRAINS:,}, got {grains!r}")


def summation_of(
    network: NetworkHandler, team: Team, dataset: Dataset, loss: Loss, grains: int | None = None
) -> Summation:
    """Sums in fixed point over so many grains; of floats, for None."""
    if grains is None:
        return FloatSum(network, team, dataset, loss)
    return FixedPointSum(network, team, dataset, loss, grains)
