"""Learning-rate schedules, and clipping: pure functions of the step."""

import math
import re
import sys

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.optimizers.base import clip_by_norm


def rates(schedule, steps):
    return [schedule.at(step, steps) for step in range(steps)]


def test_a_cosine_rises_in_equal_parts_and_falls_to_its_final_rate():
    found = rates(pc.Cosine(0.8, warmup=3, final=0.2), 13)
    np.testing.assert_allclose(found[:4], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(found[8], 0.5)  # half way
    assert found[3:] == sorted(found[3:], reverse=True)
    np.testing.assert_allclose(pc.Cosine(0.8, warmup=3, final=0.2).at(13, 13), 0.2)


def test_one_cycle_rises_to_its_rate_and_falls_to_zero():
    found = rates(pc.OneCycle(0.4, rise=0.25), 1000)
    assert max(found) == pytest.approx(0.4, rel=0.01)
    assert found.index(max(found)) in (249, 250)
    assert found[0] < 0.001
    assert found[-1] < 0.001


@pytest.mark.parametrize(
    "schedule", [pc.OneCycle(0.4), pc.Cosine(0.4), pc.Polynomial(0.4, power=0.5), pc.Cosine(0.4, warmup=3, final=0.1)]
)
def test_no_rate_is_negative_after_the_last_step(schedule):
    """A training that resumes with larger minibatches has fewer steps, and may be past its end."""
    found = [schedule.at(step, 1000) for step in (999, 1000, 1001, 5000)]
    assert found == sorted(found, reverse=True)
    assert min(found) == pytest.approx(getattr(schedule, "final", 0), abs=1e-12)


def test_a_constant_rate_may_have_a_warm_up():
    assert rates(pc.Constant(0.3), 3) == [0.3, 0.3, 0.3]
    np.testing.assert_allclose(rates(pc.Constant(0.4, warmup=3), 5), [0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.Cosine(-1), "Cosine: learning_rate must be a finite number of at least 0, got -1"),
        (lambda: pc.Cosine(1, warmup=1.5), "Cosine: warmup must be an integer of at least 0, got 1.5"),
        (lambda: pc.Cosine(1, final=math.nan), "Cosine: final must be a finite number of at least 0, got nan"),
        (lambda: pc.Constant("fast"), "Constant: learning_rate must be a finite number of at least 0, got 'fast'"),
        (lambda: pc.OneCycle(1, rise=1), "OneCycle: rise must be a number between 0 and 1, got 1"),
        (lambda: pc.Step(1, 0), "Step: step_size must be an integer of at least 1, got 0"),
        (lambda: pc.Step(1, 2, gamma=-1), "Step: gamma must be a finite number of at least 0, got -1"),
        (lambda: pc.MultiStep(1, 5), "MultiStep: milestones must be a tuple of integers, got 5"),
        (lambda: pc.MultiStep(1, (5, 0.5)), "MultiStep: each milestone must be an integer of at least 1, got 0.5"),
        (lambda: pc.MultiStep(1, (5, 5)), "MultiStep: milestones must be in increasing order, got (5, 5)"),
        (lambda: pc.Exponential(1, math.inf), "Exponential: gamma must be a finite number of at least 0, got inf"),
        (lambda: pc.Polynomial(1, power="2"), "Polynomial: power must be a finite number of at least 0, got '2'"),
        (lambda: pc.Cosine(1).plot(0), "steps must be an integer of at least 1, got 0"),
        (lambda: pc.SGD(0.1, clip_norm=-2), "SGD: clip_norm must be a finite number of at least 0, got -2"),
    ],
)
def test_numbers_outside_their_range_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def train(optimizer, epochs=2, **options):
    network = small.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    pc.train(network, *sets, optimizer, epochs, 25, comm=pc.Serial(), threads=1, **options)
    return network


def test_a_schedule_gives_the_rate_of_each_step_also_after_a_resume(tmp_path):
    seen = []

    class Noted(pc.Schedule):
        def at(self, step, steps):
            seen.append((step, steps))
            return pc.Cosine(0.1, warmup=4).at(step, steps)

        def __repr__(self):
            return "Noted()"

    folder = pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9)
    whole = train(pc.SGD(Noted(), momentum=0.9), checkpoints=folder)
    assert seen[-18:] == [(step, 18) for step in range(18)]
    resumed = train(pc.SGD(Noted(), momentum=0.9), resume=pc.load_checkpoint(tmp_path / "step-000000014.npz"))
    assert seen[-4:] == [(step, 18) for step in range(14, 18)]
    assert resumed.parameters_sha256() == whole.parameters_sha256()


def test_a_constant_schedule_is_the_number():
    assert train(pc.SGD(pc.Constant(0.1))).parameters_sha256() == train(pc.SGD(0.1)).parameters_sha256()


def test_clipping_shortens_what_is_too_long_and_nothing_else(rng):
    gradients = rng.normal(size=1000).astype(np.float32)
    before = gradients.copy()
    clip_by_norm(gradients, 1000.0)
    np.testing.assert_array_equal(gradients, before)
    clip_by_norm(gradients, 0.5)
    assert np.linalg.norm(gradients) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(gradients / np.linalg.norm(gradients), before / np.linalg.norm(before), rtol=1e-4)
    assert train(pc.SGD(0.1, clip_norm=1e9)).parameters_sha256() == train(pc.SGD(0.1)).parameters_sha256()
    assert train(pc.SGD(0.1, clip_norm=0.01)).parameters_sha256() != train(pc.SGD(0.1)).parameters_sha256()


def test_schedules_have_the_rates_of_pytorch_with_steps_in_place_of_epochs():
    torch = pytest.importorskip("torch")
    for schedule, name, arguments in (
        (pc.Step(0.3, 4, 0.5), "StepLR", {"step_size": 4, "gamma": 0.5}),
        (pc.MultiStep(0.3, [2, 3, 9], 0.2), "MultiStepLR", {"milestones": [2, 3, 9], "gamma": 0.2}),
        (pc.Exponential(0.3, 0.8), "ExponentialLR", {"gamma": 0.8}),
        (pc.Polynomial(0.3), "PolynomialLR", {"total_iters": 12, "power": 1}),
        (pc.Polynomial(0.3, power=2.5), "PolynomialLR", {"total_iters": 12, "power": 2.5}),
        (pc.Cosine(0.3, final=0.1), "CosineAnnealingLR", {"T_max": 12, "eta_min": 0.1}),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
        wanted = []
        for _ in range(12):
            wanted.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        np.testing.assert_allclose(rates(schedule, 12), wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (pc.Step(0.4, 4, 0.5, warmup=3), [0.1, 0.2, 0.3, 0.4, 0.2, 0.2]),
        (pc.MultiStep(0.4, (4, 5), 0.5, warmup=3), [0.1, 0.2, 0.3, 0.4, 0.2, 0.1]),
        (pc.Exponential(0.4, 0.5, warmup=3), [0.1, 0.2, 0.3, 0.4, 0.2, 0.1]),
        (pc.Polynomial(0.4, warmup=3, final=0.1), [0.1, 0.2, 0.3, 0.4, 0.3, 0.2]),
    ],
)
def test_every_schedule_rises_in_equal_parts_to_its_rate(schedule, wanted):
    np.testing.assert_allclose(rates(schedule, 6), wanted)


def test_after_the_end_of_training_a_polynomial_stays_and_no_rate_overflows():
    assert pc.Polynomial(0.4, final=0.1).at(20, 10) == pytest.approx(0.1)
    assert pc.Exponential(0.1, 1e-300).at(10**9, 1) == 0
    assert math.isfinite(pc.Exponential(1e-9, 1e30).at(10**9, 1))


def test_schedules_are_plotted_with_matplotlib_and_without_it_one_sentence_says_so(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = pc.Step(0.4, 4, 0.5).plot(6)
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), range(6))
    np.testing.assert_allclose(line.get_ydata(), [0.4] * 4 + [0.2] * 2)
    assert pc.Cosine(1).plot(1_000_000, axes) is axes
    assert len(axes.get_lines()[1].get_xdata()) <= 1000
    pyplot.close(axes.figure)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"^schedule.plot needs matplotlib: pip install matplotlib$"):
        pc.Cosine(1).plot(10)
