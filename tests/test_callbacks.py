"""Callbacks: which methods are called when, with which values, and how they end a training."""

import math

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError, TrainingWarning


def train(callbacks, epochs=3, network=None, **options):
    sets = small.dataset(211), small.dataset(97, seed=1)
    network = network or small.network()
    return pc.train(
        network, *sets, pc.SGD(0.1), epochs, 25, comm=pc.Serial(), threads=1, callbacks=callbacks, verbose=0, **options
    )


class Noted(pc.Callback):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        method = super().__getattribute__(name)
        if not name.startswith("on_"):
            return method
        return lambda *arguments: self.calls.append((name, *arguments[:-1], dict(arguments[-1])))

    def on_train_begin(self, logs): ...
    def on_batch_end(self, step, logs): ...
    def on_test_end(self, logs): ...
    def on_epoch_end(self, epoch, logs): ...
    def on_train_end(self, logs): ...


def test_callbacks_are_called_in_order_with_the_values_of_the_history():
    noted = Noted()
    history = train([noted], epochs=2, evaluate_every=4)
    names = [name for name, *_ in noted.calls]
    four = ["on_batch_end"] * 4
    epoch = [*four, "on_test_end", *four, "on_test_end", "on_batch_end", "on_test_end", "on_epoch_end"]
    second = ["on_batch_end"] * 3 + ["on_test_end", *four, "on_test_end", *["on_batch_end"] * 2]
    assert names == ["on_train_begin", *epoch, *second, "on_test_end", "on_epoch_end", "on_train_end"]
    steps = [(step, logs["loss"]) for name, step, logs in (call for call in noted.calls if call[0] == "on_batch_end")]
    assert steps == list(enumerate(history.losses, start=1))
    (_, _, first), (_, _, last) = (call for call in noted.calls if call[0] == "on_epoch_end")
    weights = np.array([25] * 8 + [11]) / 211
    assert first["loss"] == pytest.approx(np.dot(history.losses[:9], weights))
    assert last["test_loss"] == history.evaluations[-1][2].loss
    assert last["test_accuracy"] == history.evaluations[-1][2].accuracy
    assert noted.training.history is history


def test_a_callback_need_not_be_derived_and_may_predict():
    class Predicts:
        found = None

        def on_epoch_end(self, epoch, logs):
            self.found = self.training.network.predict(small.dataset(3).images)

    callback = Predicts()
    train([callback], epochs=1)
    assert callback.found.shape == (3, 5)


def test_a_callback_sees_and_changes_the_parameters_that_the_minibatch_has_updated():
    network, seen = small.network(), []

    class Clips(pc.Callback):
        def on_batch_end(self, step, logs):
            params = self.training.network.params
            seen.append(np.abs(params).max())
            np.clip(params, -0.01, 0.01, out=params)

    history = train([Clips()], epochs=1, network=network)
    assert len(seen) == history.steps
    assert min(seen) > 0.01
    assert np.abs(network.params).max() <= np.float32(0.01)  # also after the last minibatch


@pytest.mark.parametrize("at", [3, 9])
def test_a_callback_stops_the_training_which_saves_and_can_be_resumed(at, tmp_path):
    class Stops(pc.Callback):
        def on_batch_end(self, step, logs):
            if step == at:
                self.training.stop()

    folder = pc.CheckpointFolder(tmp_path)
    history = train([Stops()], checkpoints=folder)
    assert history.stopped
    assert history.steps == (4 if at == 3 else 9)  # asked at the end of an epoch, training stops there
    assert folder.newest().history.steps == history.steps
    whole, resumed = small.network(), small.network()
    train([], network=whole)
    train([], network=resumed, resume=folder.newest())
    assert resumed.parameters_sha256() == whole.parameters_sha256()


def with_test_losses(monkeypatch, losses):
    results = iter(losses)
    monkeypatch.setattr(
        "parallelcnn.training.loop.evaluate_by", lambda *_: pc.Evaluation(next(results), 1 - 0.1 * losses[0], 97)
    )


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"patience": 0}, 4),
        ({"patience": 1}, 6),
        ({"patience": 2}, 8),
        ({"patience": 1, "min_delta": 0.3}, 4),
        ({"patience": 7, "mode": "max"}, 8),
        ({"patience": 2, "monitor": "test_accuracy"}, 4),
    ],
)
def test_early_stopping_waits_for_as_many_epochs_as_it_is_told(options, epochs, monkeypatch):
    with_test_losses(monkeypatch, [3.0, 2.0, 1.9, 1.95, 1.7, 1.8, 1.75, 1.6])
    history = train([pc.EarlyStopping(**options)], epochs=8)
    if options == {"patience": 1}:
        epochs = 7  # 1.8 and 1.75 are no improvements on 1.7
    assert len(history.evaluations) == epochs
    assert history.stopped == (epochs < 8)


def test_early_stopping_counts_on_after_a_resume(monkeypatch, tmp_path):
    losses = [1.0, 2.0, 3.0, 4.0, 5.0]
    with_test_losses(monkeypatch, losses)
    folder = pc.CheckpointFolder(tmp_path)
    train([], epochs=2, checkpoints=folder)
    with pytest.warns(TrainingWarning, match="resumed with epochs 5 instead of 2"):
        history = train([pc.EarlyStopping(patience=2)], epochs=5, resume=folder.newest())
    assert len(history.evaluations) == 4


def test_a_training_that_early_stopping_has_ended_takes_no_step_when_it_resumes(monkeypatch, tmp_path):
    with_test_losses(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0])
    folder = pc.CheckpointFolder(tmp_path)
    stopped, resumed = small.network(), small.network()
    train([pc.EarlyStopping(patience=1)], epochs=5, checkpoints=folder, network=stopped)
    history = train([pc.EarlyStopping(patience=1)], epochs=5, resume=folder.newest(), network=resumed)
    assert history.stopped
    assert len(history.evaluations) == 3
    assert resumed.parameters_sha256() == stopped.parameters_sha256()
    history = train([pc.EarlyStopping(patience=2)], epochs=5, resume=folder.newest())
    assert len(history.evaluations) == 4  # more patience


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train("print"), "callbacks must be a list, got 'print'"),
        (lambda: train([print]), "callbacks must have at least one of on_train_begin, .*, got <built-in"),
        (lambda: train([type("Own", (), {"on_batch_ends": print})()]), "no on_batch_ends: did you mean 'on_batch_end'"),
        (lambda: pc.EarlyStopping(patience=-1), "patience must be an integer of at least 0, got -1"),
        (
            lambda: pc.EarlyStopping(min_delta="a"),
            "EarlyStopping: min_delta must be a finite number of at least 0, got 'a",
        ),
        (
            lambda: pc.EarlyStopping(min_delta=float("nan")),
            "EarlyStopping: min_delta must be a finite number of .* nan",
        ),
        (lambda: pc.EarlyStopping(3), 'EarlyStopping: monitor must be a name such as "test_accuracy" or None, got 3'),
        (lambda: pc.EarlyStopping(mode="best"), "mode must be auto, min or max, got 'best'"),
        (lambda: train([pc.EarlyStopping("val_loss")]), "EarlyStopping: no value 'val_loss' to monitor: "),
    ],
)
def test_what_cannot_be_called_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_without_samples_seen_the_loss_of_an_epoch_is_unknown(tmp_path):
    seen = []

    class Keeps(pc.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(logs["loss"])

    train([Keeps()], epochs=1)
    assert math.isfinite(seen[0])


@pytest.mark.parametrize("name", ["val_loss", "test_los", "test_f1"])
def test_a_value_that_is_not_there_is_refused_before_the_first_step(name):
    steps = []
    counting = pc.LambdaCallback(on_batch_end=lambda step, logs: steps.append(step))
    with pytest.raises(InputError, match=f"EarlyStopping: no value '{name}' to monitor: "):
        train([pc.EarlyStopping(name), counting])
    data, network = small.dataset(20), pc.NetworkHandler((pc.Flatten(), pc.Dense(5)), (1, 11, 9))
    for optimizer in (pc.SGD(pc.Plateau(0.1, monitor=name)), pc.EMA(pc.SGD(pc.Plateau(0.1, monitor=name)))):
        with pytest.raises(InputError, match=f"Plateau: no value '{name}' to monitor: "):
            pc.train(network, data, data, optimizer, 1, 5, callbacks=[counting], verbose=0)
    assert steps == []
