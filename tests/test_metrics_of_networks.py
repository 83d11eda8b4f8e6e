"""Metrics, losses and optimisers of the user's own: exact over threads, in histories and checkpoints."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError, ShapeError


def regression(n, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.random((n, 4), np.float32)
    return pc.Dataset(inputs, np.stack([inputs.sum(1), inputs[:, 0]], 1), None)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [1, 50, 333])
def test_the_mean_absolute_error_is_that_of_the_definition(n, threads):
    network, dataset = pc.NetworkHandler((pc.Dense(2),), (4,)), regression(n)
    options = {"loss": pc.MeanSquaredError(), "metrics": [pc.MeanAbsoluteError()], "threads": threads}
    result = pc.evaluate(network, dataset, pc.Serial(), **options)
    network.prediction = "output"
    wanted = np.abs(network.predict(dataset.images) - dataset.labels).mean()
    assert result["mean_absolute_error"] == pytest.approx(wanted, rel=1e-5)
    assert result.accuracy is None
    with pytest.raises(InputError, match="no metric 'mean_absolut_error' was measured: did you mean"):
        result["mean_absolut_error"]


@dataclass(frozen=True)
class ErrorsByClass(pc.Metric):
    """A user's own: the largest share of errors of any class."""

    classes: int
    name = "worst_class"

    @property
    def terms(self):
        return 2 * self.classes

    def add(self, outputs, labels, sums):
        np.add.at(sums, labels, 1)
        wrong = outputs.argmax(0) != labels
        np.add.at(sums, self.classes + labels[wrong], 1)

    def result(self, sums, samples):
        counts, errors = sums.reshape(2, self.classes)
        return float((errors / np.maximum(counts, 1)).max())


@dataclass(frozen=True)
class LogCosh:
    """A user's own loss: log cosh of the differences from the one-hot label."""

    prediction: ClassVar[str] = "output"

    def check(self, output_shape, labels, classes):
        pass

    def forward_backward(self, outputs, labels, batch_size, doutputs):
        difference = outputs - (np.arange(len(outputs))[:, None] == labels)
        doutputs[...] = np.tanh(difference) / batch_size
        return float(np.log(np.cosh(difference)).sum()) / batch_size


@dataclass(frozen=True)
class SignDescent(pc.Optimizer):
    """A user's own optimiser, with a state vector and a step number."""

    learning_rate: float = 0.01

    def update(self, params, gradients, state, step=0, steps=1):
        if "mean" not in state:
            state["mean"] = np.zeros_like(params)
        state["mean"][...] = 0.9 * state["mean"] + 0.1 * gradients
        params -= np.float32(self.learning_rate / (1 + step / steps)) * np.sign(state["mean"])


def train(threads=1, **options):
    network = small.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    metrics = [pc.Accuracy(), ErrorsByClass(5)]
    history = pc.train(
        network, *sets, SignDescent(), 2, 25, comm=pc.Serial(), threads=threads, loss=LogCosh(), metrics=metrics,
        reproducible=4, **options,
    )  # fmt: skip
    return network, history


def test_metric_loss_and_optimiser_of_the_users_own_work_together_on_any_number_of_threads(tmp_path):
    whole, history = train(checkpoints=pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9))
    assert history.losses[-1] < history.losses[0]
    result = history.evaluations[-1][2]
    assert 0 < result["worst_class"] <= 1
    assert result["accuracy"] == result.accuracy
    again, other = train(threads=3)
    assert again.state_sha256() == whole.state_sha256()
    assert other.evaluations == history.evaluations
    middle = pc.load_checkpoint(tmp_path / "step-000000014.npz")
    assert middle.history.evaluations == history.evaluations[:1]
    assert set(middle.state) == {"params", "mean"}
    assert train(resume=middle)[0].state_sha256() == whole.state_sha256()


def test_a_metric_that_cannot_judge_is_refused_before_training():
    network, dataset = pc.NetworkHandler((pc.Dense(2),), (4,)), regression(9)
    options = {"loss": pc.MeanSquaredError(), "comm": pc.Serial()}
    with pytest.raises(ShapeError, match=r"Accuracy\(\) takes integer labels and a network that ends in \(classes,\)"):
        pc.train(network, dataset, dataset, pc.SGD(), 1, 3, metrics=[pc.Accuracy()], **options)
    with pytest.raises(InputError, match=r"metrics must be a sequence of Metric, such as .*, got 'accuracy'"):
        pc.evaluate(network, dataset, metrics=["accuracy"], **options)
