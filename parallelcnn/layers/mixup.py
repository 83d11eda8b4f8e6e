"""MixUp: mixtures of pairs of samples and of their labels."""

import math
from dataclasses import dataclass

from parallelcnn.kernels import mixup as kernels

from .augmentation import Augmentation
from .base import Array, Shape, Step, check_number


@dataclass(frozen=True, repr=False)
class MixUp(Augmentation):
    """In training, replaces each sample by a mixture of it and the next one of its shard, with both their labels.

    Sample i becomes s * x[i] + (1 - s) * x[i + 1], with a random share s for each sample, from the beta distribution
    with parameters (alpha, alpha). Its loss is s times that for the label of i, plus 1 - s times that for the label of
    i + 1 (Zhang et al. 2018, "mixup: beyond empirical risk minimization", arXiv:1710.09412). So the training loss is
    larger than without it. It works with every loss that takes sample weights, as all of this library do.

    Samples are mixed within a shard, whose size does not depend on ranks and threads; see `BatchNorm`. The order of the
    samples is random in each epoch, and so are the pairs.

    Args:
        alpha: a small number gives shares near 0 and 1, 1 all shares equally likely; above 0.

    Shapes: any -> the same.

    Raises:
        ShapeError: if alpha is not a finite number above 0.
        InputError: in training, if the network has another MixUp, or the loss takes no sample weights.

    Example:
        >>> layers = (RandomFlip(), RandomCrop(4), MixUp(0.2), Conv2D(16, 3, activation="relu"), Flatten(), Dense(10))
    """

    alpha: float = 0.2

    mixes_samples = True

    def __post_init__(self) -> None:
        check_number(self, "alpha", self.alpha)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    @property
    def is_active(self) -> bool:
        return True

    def record(self, step: Step, x: Array) -> Array:
        shares, y = step.array(()), step.array(x.shape[:-1])
        size = math.prod(x.shape[:-1]), step.n
        step.call(kernels.draw_shares, step.keys, step.number, float(self.alpha), shares)
        step.call(kernels.mix_samples, x.reshape(size), shares, y.reshape(size))
        step.mix_labels(shares)
        step.save(shares)
        return y

    def record_backward(self, step: Step, dy: Array) -> Array:
        (shares,) = step.saved
        dx, size = step.array(dy.shape[:-1]), (math.prod(dy.shape[:-1]), step.n)
        step.call(kernels.mix_samples_backward, dy.reshape(size), shares, dx.reshape(size))
        return dx
