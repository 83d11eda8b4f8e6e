#!/usr/bin/env python3
"""Train in parallelcnn itself; under mpirun on all ranks.

Only the public interface is used, so that with PYTHONPATH=FOLDER it runs the version in another checkout.

Variant bfloat16: training multiplies numbers rounded to bfloat16.
"""

import inspect
from typing import Any

import contract

import parallelcnn as pc


class Ours(contract.Trainer):
    """A network in parallelcnn, on all ranks that were started together."""

    def __init__(self, task: contract.Task) -> None:
        self._comm = pc.world()
        self.rank, self.ranks = self._comm.rank, self._comm.size
        self.versions = {"parallelcnn": pc.__version__}
        self.task = task
        self._quiet = {"verbose": 0} if "verbose" in inspect.signature(pc.train).parameters else {}
        self.reset()

    def reset(self) -> None:
        options = self.task.options
        # Older checkouts know no precision.
        how = {"precision": "bfloat16"} if options.variant == "bfloat16" else {}
        self._network = pc.NetworkHandler(self.task.layers, self.task.input_shape, seed=options.seed, **how)

    def train(self, samples: int, epochs: int) -> tuple[float, list[float]]:
        images, labels = self.task.train_set
        some, one = (pc.Dataset(images[:n], labels[:n], 10) for n in (samples, 1))
        options = self.task.options
        history = pc.train(
            self._network,
            some,
            one,
            pc.SGD(options.learning_rate),
            epochs=epochs,
            batch_size=min(options.batch_size, samples),
            seed=options.seed,
            threads=options.threads,
            **self._quiet,
        )
        return history.train_seconds, history.losses

    def evaluate(self) -> dict[str, float]:
        sets = (pc.Dataset(images, labels, 10) for images, labels in (self.task.train_set, self.task.test_set))
        on_train_set, on_test_set = (pc.evaluate(self._network, one) for one in sets)
        return {
            "train_accuracy": on_train_set.accuracy or 0.0,
            "test_accuracy": on_test_set.accuracy or 0.0,
            "test_loss": on_test_set.loss,
        }

    def gather(self, value: Any) -> list[Any]:
        if self.ranks == 1:
            return [value]
        from mpi4py import MPI

        return MPI.COMM_WORLD.allgather(value)


if __name__ == "__main__":
    contract.main("parallelcnn", ("train", "bfloat16"), Ours)
