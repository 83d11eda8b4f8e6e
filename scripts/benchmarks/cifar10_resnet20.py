"""ResNet-20 on CIFAR-10. The parts of the recipe are published ones:

* SGD with Nesterov momentum 0.9, minibatches of 128, images that are cropped at random after padding with 4 zeros on
  each side, and flipped at random; weights drawn by He initialisation: He et al. 2016, arXiv:1512.03385, section 4.2.
* Weight decay 5e-4 (Zagoruyko & Komodakis 2016, arXiv:1605.07146, section 3), here not of biases and normalisation.
* One cycle of the learning rate over few epochs (Smith & Topin 2018, arXiv:1708.07120).
"""

import argparse
from collections.abc import Iterator
from typing import Any

import cifar10_recipe as recipe  # it makes the modules of systems importable
import numpy as np
from train_pytorch import build

import parallelcnn as pc
from parallelcnn.data.sampler import Sampler

Array = np.ndarray

TITLE = "ResNet-20 on CIFAR-10"
NOTES = "parallelcnn's statistics of batch normalisation are those of about 32 samples."
BORDER = 4
BATCH_SIZE = 128
RATES = pc.OneCycle(0.2, rise=0.25)
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


def initial_network(mean: Array, deviation: Array, seed: int, precision: str = "float32") -> pc.NetworkHandler:
    """ResNet-20 with its initial weights, after the layers that prepare the images."""
    prepare = pc.RandomFlip(), pc.RandomCrop(BORDER), pc.Normalize(mean, deviation)
    shape = 3, recipe.SIZE, recipe.SIZE
    network = pc.NetworkHandler((*prepare, *pc.resnet20()), shape, seed, precision=precision)
    rng = np.random.default_rng(seed)
    for weight in network.named_arrays.values():
        if weight.ndim == 4:  # parallelcnn's own choice for a convolution without relu is Glorot's
            weight[...] = rng.normal(0, np.sqrt(2 / weight[0].size), weight.shape)
    return network


class Ours(recipe.Recipe):
    """The recipe in parallelcnn, in one process."""

    BATCH_SIZE = BATCH_SIZE

    def __init__(self, options: argparse.Namespace, sets: recipe.Sets, precision: str = "float32") -> None:
        super().__init__(options, sets, precision)
        self.versions = {"parallelcnn": pc.__version__}
        self.reset()

    def reset(self) -> None:
        self._network = initial_network(self.mean, self.deviation, self.options.seed, self.precision)

    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        images, labels = self.train_set
        some, one = (pc.Dataset(images[:n], labels[:n], 10) for n in (samples, 1))
        optimizer = pc.SGD(RATES, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
        say = pc.LambdaCallback(on_epoch_end=lambda epoch, logs: recipe.say_loss(epoch, logs["loss"]))
        how = {"seed": self.options.seed, "threads": self.options.threads, "callbacks": [say], "verbose": 0}
        history = pc.train(self._network, some, one, optimizer, epochs, BATCH_SIZE, **how)
        return history.train_seconds, np.array(history.losses).reshape(epochs, -1).mean(1).tolist()

    def evaluate(self) -> dict[str, float]:
        result = pc.evaluate(self._network, pc.Dataset(*self.test_set, 10), threads=self.options.threads)
        return {"test_accuracy": float(result["accuracy"]), "test_loss": result.loss}


class PyTorch(recipe.PyTorch):
    """The recipe in PyTorch."""

    BATCH_SIZE, BORDER, PADDING = BATCH_SIZE, BORDER, "constant"

    def module(self) -> Any:
        return build(pc.resnet20(), (3, recipe.SIZE, recipe.SIZE))

    def initial_network(self) -> pc.NetworkHandler:
        return initial_network(self.mean, self.deviation, self.options.seed)

    def optimizer(self) -> Any:
        decayed = [parameter for parameter in self._network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self._network.parameters() if parameter.ndim == 1]
        groups = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY, "factor": 1},
            {"params": others, "factor": 1},
        ]
        return self._torch.optim.SGD(groups, lr=0.1, momentum=MOMENTUM, nesterov=True, fused=True)

    def rate(self, step: int, steps: int) -> float:
        return RATES.at(step, steps)

    def minibatches(self, samples: int, epochs: int) -> Iterator[tuple[int, Array, Any]]:
        for epoch, minibatch in recipe.epochs_of(Sampler(samples, BATCH_SIZE, self.options.seed), samples, epochs):
            yield epoch, minibatch, self._torch.rand(len(minibatch)) < 0.5

    def evaluate(self) -> dict[str, float]:
        torch = self._torch
        logits = torch.from_numpy(self.test_logits(BORDER, BORDER))
        loss = torch.nn.functional.cross_entropy(logits, self._test_labels)
        accuracy = (logits.argmax(1) == self._test_labels).double().mean()
        return {"test_accuracy": float(accuracy), "test_loss": float(loss)}


SYSTEMS = recipe.systems_of(Ours, PyTorch)
