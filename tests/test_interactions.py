"""Features of training that meet: averages and early stopping, buffers and ranks, matrices and checkpoints."""

from dataclasses import dataclass

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, InputError, ReplicaMismatchError

SETS = small.dataset(60), small.dataset(40, seed=1)
LAYERS = (pc.Flatten(), pc.Dense(6), pc.BatchNorm(activation="tanh"), pc.Dense(5))


def new(seed=0, layers=LAYERS):
    return pc.NetworkHandler(layers, (1, 11, 9), seed)


def train(network, optimizer=None, epochs=2, **options):
    options = {"comm": pc.Serial(), "threads": 1, "verbose": 0, **options}
    return pc.train(network, *SETS, optimizer or pc.SGD(0.1), epochs, 20, **options)


def test_with_an_average_early_stopping_restores_the_average_that_was_evaluated():
    network, stopping = new(), pc.EarlyStopping(patience=2, restore_best=True)
    wrong = pc.Dataset(SETS[1].images, (SETS[1].labels + 1) % 5, 5)  # the more the network learns, the larger the loss
    optimizer, options = pc.EMA(pc.SGD(0.1), decay=0.9), {"comm": pc.Serial(), "threads": 1, "verbose": 0}
    losses = pc.train(network, SETS[0], wrong, optimizer, 9, 20, callbacks=[stopping], **options)["test_loss"]
    assert losses.argmin() < len(losses) - 1
    assert pc.evaluate(network, wrong, pc.Serial()).loss == losses.min()


def test_rank_0s_buffers_count_as_its_parameters_do():
    trained = new()
    train(trained)
    networks = [trained, new(seed=1)]
    alone = new()
    alone.set_state({name: trained.state[name].copy() for name in ("params", "buffers")})
    train(alone, reproducible=2)

    def work(comm):
        train(networks[comm.rank], comm=comm, reproducible=2, timeout=0)
        return networks[comm.rank].state_sha256()

    assert set(on_ranks(2, work)) == {alone.state_sha256()}


def test_ranks_that_evaluate_with_other_buffers_are_refused():
    networks = [new(), new()]
    networks[1].buffers += 1

    with pytest.raises(ReplicaMismatchError, match="buffers"):
        on_ranks(2, lambda comm: pc.evaluate(networks[comm.rank], SETS[1], comm))


def test_a_checkpoint_holds_the_newest_confusion_matrix_and_the_numbers_of_all_evaluations(tmp_path):
    """The matrices of hundreds of evaluations made its description too large to be read back."""
    network, metrics = new(layers=(pc.Flatten(), pc.Dense(300))), [pc.Accuracy(), pc.ConfusionMatrix(300)]
    data = pc.Dataset(SETS[0].images, np.arange(60) * 5 % 300, classes=300)
    folder = pc.CheckpointFolder(tmp_path)
    options = {"comm": pc.Serial(), "threads": 1, "verbose": 0, "metrics": metrics, "checkpoints": folder}
    history = pc.train(network, data, data, pc.SGD(0.1), 3, 20, evaluate_every=1, **options)
    assert len(history.evaluations) == 9
    again = folder.newest().history
    assert again.evaluations[-1] == history.evaluations[-1]
    assert again.evaluations[-1][2]["confusion_matrix"].sum() == 60
    np.testing.assert_array_equal(again["test_accuracy"], history["test_accuracy"])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2_000_000


@dataclass(frozen=True, repr=False)
class Ordered(pc.Layer):
    """Two parameters of one shape, in an order that is no hyperparameter."""

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return {name: pc.Parameter(input_shape, 1.0) for name in NAMES}

    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.save(x)
        step.call(np.multiply, x, step.params["scale"][..., None], out=y)
        step.call(np.add, y, step.params["shift"][..., None], out=y)
        return y

    def backward(self, step, dy):
        (x,) = step.saved
        step.call(np.einsum, "...n,...n->...", dy, x, out=step.grads["scale"])
        step.call(np.sum, dy, axis=-1, out=step.grads["shift"])
        return dy


NAMES = ["scale", "shift"]


def test_a_checkpoint_whose_parameters_are_in_another_order_is_refused(tmp_path, monkeypatch):
    layers = (pc.Flatten(), pc.Dense(5), Ordered())
    train(new(layers=layers), checkpoints=pc.CheckpointFolder(tmp_path, every_steps=2, keep_last=9))
    checkpoint = pc.load_checkpoint(tmp_path / "step-000000002.npz")
    train(new(layers=layers), resume=checkpoint)
    monkeypatch.setattr("test_interactions.NAMES", ["shift", "scale"])
    with pytest.raises(CheckpointError, match=r"its parameters are .*2.scale \(5,\), 2.shift .*, not .*2.shift"):
        train(new(layers=layers), resume=checkpoint)


@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_restore_best_goes_on_after_a_rank_is_lost_in_the_evaluation_that_ends_an_epoch():
    def work(comm):
        network, stopping = new(seed=comm.rank), pc.EarlyStopping(patience=9, restore_best=True)

        class Dies:
            def on_batch_end(self, step, logs):
                self.steps = step

            def on_test_end(self, logs):
                if comm.number == 1 and logs["step"] == 2:  # the next evaluation, at step 3, ends the epoch
                    allreduce = comm.allreduce
                    comm.allreduce = lambda array: comm.die() if self.steps == 3 else allreduce(array)

        callbacks = [stopping, Dies()]
        history = train(network, comm=comm, epochs=2, evaluate_every=2, callbacks=callbacks, timeout=0)
        return history.steps, history.lost_ranks

    with pytest.warns(pc.TrainingWarning, match="1 of 2 ranks lost"):
        assert on_ranks(2, work)[0] == (6, 1)


@dataclass(frozen=True)
class Halving(pc.Optimizer):
    """An optimiser with a field `weight_decay` that decays all parameters alike."""

    weight_decay: float = 0.5

    def update(self, params, gradients, state, step=0, steps=1):
        params *= self.weight_decay


def test_an_optimizer_of_ones_own_need_not_take_parts():
    network = new()
    before = network.params.copy()
    train(network, Halving(), epochs=1)
    np.testing.assert_allclose(network.params, before / 8)


def test_an_average_of_an_average_is_refused():
    with pytest.raises(InputError, match="EMA: optimizer must not be an EMA itself, got EMA"):
        pc.EMA(pc.EMA(pc.SGD(0.1)))


@dataclass
class Squared:
    factor: float = 1.0

    def __call__(self, output, target):
        return self.factor * (output - target) ** 2


def test_a_loss_function_that_is_not_hashable_is_refused():
    with pytest.raises(InputError, match="which is not hashable: a dataclass is with frozen=True"):
        pc.PointwiseLoss(Squared())


def test_numbers_of_numpy_as_arguments_of_layers_are_stored_as_numbers(tmp_path):
    layers = (
        pc.Flatten(),
        pc.Dense(np.int64(5), bias=np.True_),
        pc.BatchNorm(np.float32(0.5)),
        pc.Dropout(np.float32(0.25)),
    )
    pc.save_model(tmp_path / "model.npz", new(layers=layers))
    assert pc.load_model(tmp_path / "model.npz").layers == (
        *(pc.Flatten(), pc.Dense(5), pc.BatchNorm(0.5), pc.Dropout(0.25)),
    )
