"""The schedule that depends on the history: PyTorch's rates, exact resumes, lost ranks."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import InputError


def history_of(values, every=1):
    """A history with an evaluation after every so many minibatches."""
    tests = [((i + 1) * every, i + 1, pc.Evaluation(loss, 1 - loss / 10, 9)) for i, loss in enumerate(values)]
    return pc.History(evaluations=tests)


def rates_after(schedule, values):
    """The rate after each evaluation, each from the history up to there."""
    return [schedule.after(history_of(values[: i + 1])).at(i + 1, 99) for i in range(len(values))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factor": 0.5, "patience": 2},
        {"factor": 0.5, "patience": 0, "min_delta": 0.3},
        {"factor": 0.7, "patience": 1, "cooldown": 3},
        {"factor": 0.5, "patience": 0, "cooldown": 1, "min_learning_rate": 0.01},
        {"factor": 0.0, "patience": 5},
        {"factor": 0.5, "patience": 2, "mode": "max", "min_delta": 0.0},
    ],
)
def test_the_rates_are_those_of_pytorch(options, rng):
    torch = pytest.importorskip("torch")
    noise = rng.normal(size=60)
    for values in (noise, noise / 5 + np.linspace(3, 1, 60), np.ones(60), np.repeat([3.0, 1.0, 2.0], 20)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        renamed = {"min_delta": "threshold", "min_learning_rate": "min_lr"}
        theirs = {renamed.get(name, name): value for name, value in options.items()}
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, threshold_mode="abs", **theirs)
        wanted = []
        for value in values:
            scheduler.step(value)
            wanted.append(optimizer.param_groups[0]["lr"])
        found = rates_after(pc.Plateau(0.3, **options), values.tolist())
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=2e-8)  # PyTorch makes no change by less than 1e-8


def test_a_plateau_given_a_history_is_a_function_of_the_step_and_can_be_plotted():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    plateau = pc.Plateau(0.4, factor=0.5, patience=1, warmup=3)
    message = "Plateau: the learning rate depends on the evaluations of a training: after it, write schedule.after("
    with pytest.raises(InputError, match=re.escape(message)):
        plateau.plot(20)
    given = plateau.after(history_of([1.0, 2.0, 2.0, 2.0, 2.0], every=4))
    wanted = [0.1, 0.2, 0.3, *[0.4] * 9, *[0.2] * 8, 0.1, 0.1]
    np.testing.assert_allclose([given.at(step, 22) for step in range(22)], wanted)
    assert given.after(history_of([1.0])).at(50, 99) == 0.4  # training has gone back
    axes = given.plot(22)
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), wanted)
    pyplot.close(axes.figure)
    assert plateau.after(history_of([])).at(2, 22) == pytest.approx(0.3)
    assert repr(given) == repr(plateau)  # as checkpoints describe it


def test_what_is_monitored_and_which_values_are_better():
    values = [0.5, 0.4, 0.3, 0.2]  # as an accuracy: 0.95, 0.96, ...
    options = {"factor": 0.5, "patience": 0}
    assert rates_after(pc.Plateau(1, monitor="test_accuracy", **options), values) == [1, 1, 1, 1]
    assert rates_after(pc.Plateau(1, monitor="test_accuracy", mode="min", **options), values) == [1, 0.5, 0.25, 0.125]
    assert rates_after(pc.Plateau(1, monitor="test_loss", mode="max", **options), values) == [1, 0.5, 0.25, 0.125]
    on_validation = pc.History(evaluations=[(1, 1, pc.Evaluation(1.0, None, 9, role="val"))])
    assert pc.Plateau(1).after(on_validation).at(1, 9) == 1
    with pytest.raises(InputError, match=r"^Plateau: no value 'test_loss' to monitor: known: val_loss$"):
        pc.Plateau(1, monitor="test_loss").after(on_validation)


OPTIMIZERS = [
    pc.SGD(pc.Plateau(0.1, 0.3, 0, min_delta=0.1, warmup=5), momentum=0.9),
    pc.EMA(pc.AdamW(pc.Plateau(0.01, 0.3, 0, min_delta=0.2)), decay=0.5),
]


def train(network, optimizer, comm=None, threads=1, epochs=4, **options):
    sets = small.dataset(211), small.dataset(97, seed=1)
    options = {"reproducible": 6, "evaluate_every": 4, "verbose": 0, "timeout": 0, **options}
    comm = comm or pc.Serial()
    history = pc.train(network, *sets, optimizer, epochs, 25, comm=comm, threads=threads, **options)
    return history, network.state_sha256()


def rates_of(optimizer, history):
    return [optimizer.after(history).rate(step, 36) for step in range(history.steps)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_takes_its_steps_with_the_rates_of_its_history(optimizer):
    """The same as with a schedule of exactly these rates, none of which depends on a history."""
    history, found = train(small.network(), optimizer)
    rates = rates_of(optimizer, history)
    assert len(set(rates[8:])) > 3

    @dataclass(frozen=True)
    class Recorded(pc.Schedule):
        def at(self, step, steps):
            return rates[step]

    same = pc.SGD(Recorded(), momentum=0.9) if isinstance(optimizer, pc.SGD) else pc.EMA(pc.AdamW(Recorded()), 0.5)
    assert train(small.network(), same)[1] == found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resume_in_the_middle_of_an_epoch_and_other_layouts_have_the_same_bits(optimizer, tmp_path):
    folder = pc.CheckpointFolder(tmp_path, every_steps=1, keep_last=99)
    whole, wanted = train(small.network(), optimizer, checkpoints=folder)
    changes = [step for step in range(1, 36) if len(set(rates_of(optimizer, whole)[step - 1 : step + 1])) == 2]
    for step in {changes[-1], changes[-1] - 1, 14, 30}:  # as well at and before a change
        checkpoint = pc.load_checkpoint(tmp_path / f"step-{step:09}.npz")
        history, found = train(small.network(5), optimizer, resume=checkpoint)
        assert (found, history.losses) == (wanted, whole.losses)
    assert {found for _, found in on_ranks(3, lambda comm: train(small.network(), optimizer, comm))} == {wanted}
    assert train(small.network(), optimizer, threads=2)[1] == wanted


class _Dies:
    def __init__(self, comm, when):
        self.comm, self.when = comm, when

    def on_batch_end(self, step, logs):
        if self.comm.number == 1 and step == self.when:
            self.comm.die()

    def on_test_end(self, logs):
        if self.comm.number == 1 and -logs["step"] == self.when:
            self.comm.die()


@pytest.mark.filterwarnings("ignore:1 of 3 ranks lost")
@pytest.mark.parametrize("when", [13, 16, 17, -16, -18])
def test_a_lost_rank_changes_no_rate(when):
    optimizer = OPTIMIZERS[0]
    _, wanted = train(small.network(), optimizer)

    def work(comm):
        return train(small.network(), optimizer, comm, callbacks=[_Dies(comm, when)])

    results = on_ranks(3, work)
    assert [one and one[1] for one in results] == [wanted, None, wanted]


def test_an_optimiser_of_the_users_own_follows_the_history_as_well():
    seen = []

    class Own(pc.Optimizer):
        def __init__(self, learning_rate):
            self.learning_rate = learning_rate

        def update(self, params, gradients, state, step=0, steps=1):
            seen.append(self.rate(step, steps))

    train(small.network(), Own(pc.Plateau(1.0, 0.5, 0, min_delta=9.0)), epochs=1, evaluate_every=3)
    assert seen[-9:] == [1.0] * 6 + [0.5] * 3  # the first evaluation is an improvement
    fixed = pc.Adam(pc.Cosine(0.1))
    assert fixed.after(history_of([1.0])) is fixed
    assert pc.EMA(fixed).after(history_of([1.0])).optimizer is fixed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.Plateau(-1), "Plateau: learning_rate must be a finite number of at least 0, got -1"),
        (lambda: pc.Plateau(1, factor=1), "Plateau: factor must be less than 1, got 1"),
        (lambda: pc.Plateau(1, patience=0.5), "Plateau: patience must be an integer of at least 0, got 0.5"),
        (lambda: pc.Plateau(1, cooldown=-1), "Plateau: cooldown must be an integer of at least 0, got -1"),
        (lambda: pc.Plateau(1, mode="best"), "Plateau: mode must be auto, min or max, got 'best'"),
        (lambda: pc.Plateau(1, monitor=3), 'Plateau: monitor must be a name such as "test_accuracy" or None, got 3'),
        (lambda: pc.Plateau(1, min_delta="a"), "Plateau: min_delta must be a finite number of at least 0, got 'a'"),
    ],
)
def test_numbers_outside_their_range_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()
