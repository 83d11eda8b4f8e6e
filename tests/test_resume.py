"""Training that is resumed: from a checkpoint, after being asked to stop, after a repair."""

import warnings

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, DivergenceError, InputError, TrainingWarning

SGD = pc.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def train(epochs=3, batch_size=25, network=None, n=211, optimizer=SGD, seed=0, test_seed=1, **options):
    network = network or small.network()
    sets = small.dataset(n), small.dataset(97, seed=test_seed)
    history = pc.train(network, *sets, optimizer, epochs, batch_size, seed, pc.Serial(), **options)
    return network, history


def stop_after(steps):
    answers = iter([False] * (steps - 1))
    return lambda: next(answers, True)


def told(history):
    return history.losses, history.evaluations, history.samples_seen


@pytest.mark.parametrize("reproducible", [None, 4])
@pytest.mark.parametrize("steps", [1, 4, 9, 13, 18, 26])
def test_a_training_that_left_and_was_resumed_is_an_undisturbed_one_to_the_bit(steps, reproducible, tmp_path):
    """In the middle of an epoch, at its end, twice."""
    whole, history_whole = train(reproducible=reproducible, evaluate_every=4)
    folder = pc.CheckpointFolder(tmp_path)
    _, history = train(reproducible=reproducible, evaluate_every=4, checkpoints=folder, stop=stop_after(steps))
    assert history.stopped
    assert history.steps == steps
    resume = pc.CheckpointFolder(tmp_path).newest()
    _, history = train(
        reproducible=reproducible,
        evaluate_every=4,
        checkpoints=folder,
        resume=resume,
        stop=stop_after(1),
        network=small.network(5),
    )
    assert history.steps == steps + 1
    resume = pc.CheckpointFolder(tmp_path).newest()
    network, history = train(reproducible=reproducible, evaluate_every=4, resume=resume, network=small.network(6))
    assert not history.stopped
    assert network.parameters_sha256() == whole.parameters_sha256()
    assert told(history) == told(history_whole)
    assert resume.history.steps == steps + 1  # the training has a history of its own


def test_checkpoints_come_when_asked_for_and_at_the_end_of_every_epoch(tmp_path):
    train(epochs=2, checkpoints=pc.CheckpointFolder(tmp_path, every_steps=4, keep_last=100))
    assert [int(file.stem[5:]) for file in sorted(tmp_path.iterdir())] == [4, 8, 9, 12, 16, 18]
    train(epochs=1, checkpoints=pc.CheckpointFolder(tmp_path / "often", every_seconds=1e-9, keep_last=100))
    assert [int(file.stem[5:]) for file in sorted((tmp_path / "often").iterdir())] == list(range(1, 10))


def test_a_training_resumed_at_its_end_is_over_and_says_what_it_was(tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    whole, history_whole = train(checkpoints=folder)
    network, history = train(resume=folder.newest(), network=small.network(7))
    assert network.parameters_sha256() == whole.parameters_sha256()
    assert told(history) == told(history_whole)


def test_another_training_is_refused_and_named(tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=1, checkpoints=folder)
    shorter = pc.NetworkHandler((*small.LAYERS[:3], pc.Flatten()), (1, 11, 9))
    other = pc.NetworkHandler((*small.LAYERS[:2], pc.Conv2D(4, 3), *small.LAYERS[3:]), (1, 11, 9))
    for arguments, message in (
        ({"network": other}, r"its layer 3 is Conv2D\(4, 2, padding='same', activation='tanh'\), not Conv2D\(4, 3\)$"),
        ({"network": shorter}, r"its layer 5 is Dense\(5\), not missing \(5 layers, not 4\)$"),
        ({"n": 210}, "its train_set is uint8 of shape"),
        ({"test_seed": 2}, "its test_set is"),
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"network": small.network(dtype=np.float64)}, "its dtype is float32, not float64"),
    ):
        network = arguments.get("network") or small.network()
        before = network.parameters_sha256()
        with pytest.raises(CheckpointError, match=message):
            train(epochs=1, resume=folder.newest(), **{**arguments, "network": network})
        assert network.parameters_sha256() == before


def test_layers_that_print_alike_but_hold_other_values_are_another_training(tmp_path):
    def network(factor):
        return pc.NetworkHandler((pc.Flatten(), small.Scaled(5, factor)), (1, 11, 9))

    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=1, checkpoints=folder, network=network(1.0))
    newest = folder.newest()
    with pytest.raises(CheckpointError, match="the checkpoint is of another training: its layer 2 holds other values"):
        train(resume=newest, network=network(2.0))
    newest.facts["fingerprints"] = [1]
    with pytest.raises(CheckpointError, match="its layer 1 holds other values"):
        train(resume=newest, network=network(1.0))
    del newest.facts["fingerprints"]  # as older versions wrote it
    train(epochs=1, resume=newest, network=network(2.0))


def test_other_epochs_and_another_learning_rate_go_on_and_are_said(tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=1, checkpoints=folder)
    with pytest.warns(TrainingWarning) as warned:
        _, history = train(epochs=2, optimizer=pc.SGD(0.01), batch_size=50, resume=folder.newest())
    said = [str(one.message) for one in warned]
    assert "resumed with epochs 2 instead of 1" in said
    assert any(one.startswith("resumed with optimizer SGD(learning_rate=0.01") for one in said)
    assert "resumed with batch_size 50 instead of 25" in said
    assert history.steps == 9 + 5


def test_what_another_training_has_saved_later_is_not_the_newest_of_this_one(tmp_path):
    """A second training in the folder, and one that resumes from an earlier checkpoint."""
    folder = pc.CheckpointFolder(tmp_path, every_steps=4, keep_last=9)
    train(epochs=2, checkpoints=folder)
    steps = [4, 8, 9, 12, 16, 18]
    assert sorted(int(file.stem[5:]) for file in folder.files()) == steps
    early = pc.load_checkpoint(tmp_path / "step-000000008.npz")
    with pytest.warns(
        TrainingWarning, match="held checkpoints of later minibatches .*, up to step-000000018.npz: they are"
    ):
        train(epochs=2, checkpoints=folder, resume=early, stop=stop_after(1), network=small.network(5))
    assert folder.newest().history.steps == 9
    (aside,) = tmp_path.glob("before-*")
    assert sorted(int(file.stem[5:]) for file in aside.iterdir()) == steps[2:]

    class Ends(pc.Callback):
        def on_batch_end(self, step, logs):
            raise RuntimeError("a power cut")

    with pytest.warns(TrainingWarning, match="held checkpoints"), pytest.raises(RuntimeError, match="a power cut"):
        train(epochs=2, checkpoints=folder, callbacks=[Ends()])
    assert folder.newest() is None  # a program that passes resume=folder.newest() starts again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(epochs=2, checkpoints=folder, stop=stop_after(3))
        _, history = train(epochs=2, checkpoints=folder, resume=folder.newest(), network=small.network(5))
    assert folder.newest().history.steps == history.steps == 18


def test_numpy_s_integers_are_the_settings_that_python_s_are(tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=np.int64(2), batch_size=np.int32(25), seed=np.uint8(0), checkpoints=folder, stop=stop_after(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = train(epochs=2, resume=folder.newest(), network=small.network(5))
    assert history.steps == 18


def test_fewer_epochs_than_were_trained_already_are_refused(tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=2, checkpoints=folder)
    with pytest.raises(CheckpointError, match="has seen 422 samples already: epochs must be more, they end after 211"):
        train(epochs=1, resume=folder.newest())


class Blows:
    """A callback after whose minibatch the parameters are no numbers any more."""

    def __init__(self, network, at):
        self.network, self.at = network, at

    def on_batch_end(self, step, logs):
        if step == self.at:
            self.network.params[-3] = np.inf


@pytest.mark.parametrize("reproducible", [None, 3])
def test_a_loss_that_is_no_number_stops_before_it_gets_into_the_parameters_or_a_checkpoint(reproducible, tmp_path):
    network = small.network()
    folder = pc.CheckpointFolder(tmp_path, every_steps=1)
    with (
        pytest.raises(DivergenceError, match=r"of minibatch 12 .epoch 2. is .*, first in the bias gradient of layer 5"),
        warnings.catch_warnings(record=True, action="always") as said,
    ):
        train(network=network, callbacks=[Blows(network, 11)], checkpoints=folder, reproducible=reproducible)
    assert "no checkpoint after minibatch 11 (parameters that are not finite)" in str(said[0].message)
    assert folder.newest().history.steps == 10
    whole, _ = train(reproducible=reproducible, stop=stop_after(10))
    ten = pc.load_checkpoint(tmp_path / "step-000000010.npz")
    np.testing.assert_array_equal(ten.state["params"], whole.params)


def test_the_layer_whose_gradient_went_first_is_named():
    class Breaks(pc.Dense):
        def backward(self, step, dy):
            dx = super().backward(step, dy)
            step.call(np.copyto, step.grads["weight"][0, :1], np.nan)
            return dx

    layers = (pc.Flatten(), pc.Dense(7), Breaks(6, activation="relu"), pc.Dense(5))
    network = pc.NetworkHandler(layers, (1, 11, 9))
    start = network.params.copy()
    with pytest.raises(
        DivergenceError, match=r"gradient of minibatch 1 .epoch 1. is not finite.*weight gradient of layer 3"
    ):
        train(network=network)
    np.testing.assert_array_equal(network.params, start)


def test_what_repair_takes_is_checked():
    with pytest.raises(InputError, match="repair must be one of stop, majority, checkpoint, got 'pray'"):
        train(repair="pray")
    with pytest.raises(InputError, match="repair='checkpoint' takes checkpoints"):
        train(repair="checkpoint")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (pc.RMSprop(0.001, momentum=0.9), SGD, "of a training with RMSprop, whose state SGD cannot use"),
        (SGD, pc.Adam(), "of a training with SGD, whose state Adam cannot use: resume with SGD, or start a new"),
        (pc.EMA(pc.Adam()), pc.EMA(pc.AdamW()), "of a training with Adam, whose state AdamW cannot use"),
    ],
)
def test_the_state_of_another_optimiser_is_refused(before, now, message, tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=1, optimizer=before, checkpoints=folder)
    with pytest.raises(CheckpointError, match=message):
        train(epochs=2, optimizer=now, resume=folder.newest())


@pytest.mark.parametrize(("before", "now"), [(SGD, pc.EMA(SGD)), (pc.EMA(SGD), SGD)])
def test_an_average_may_be_added_and_left_out(before, now, tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(epochs=2, optimizer=before, checkpoints=folder, stop=stop_after(5))
    with pytest.warns(TrainingWarning, match="resumed with optimizer"):
        assert train(epochs=2, optimizer=now, resume=folder.newest())[1].steps == 18
