"""Optimisers: the steps of PyTorch's, weight decay, clipping, schedules, and exact resumes."""

import threading
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import small
from launch import refused

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.optimizers.base import clip_by_norm
from parallelcnn.parameters import MOST_IN_A_ROW, decay_parts
from parallelcnn.training.config import OPTIMIZERS, TrainConfig, settings
from parallelcnn.training.thread_pool import ThreadPool

ALL = (pc.SGD, pc.Adam, pc.AdamW, pc.RMSprop, pc.Lion)
SIZE, STEPS = 500, 100

# Our class, and the arguments of both, of which PyTorch calls the first lr. Our other defaults are PyTorch's.
SETTINGS = [
    (pc.SGD, {"learning_rate": 0.1, "weight_decay": 0.1}),
    (pc.SGD, {"learning_rate": 0.05, "momentum": 0.5, "weight_decay": 0.03}),
    (pc.SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (pc.Adam, {}),
    (pc.Adam, {"learning_rate": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}),
    (pc.AdamW, {}),
    (pc.AdamW, {"learning_rate": 0.05, "betas": (0.0, 0.5), "weight_decay": 0.3}),
    (pc.AdamW, {"learning_rate": 0.01, "betas": (0.5, 0.75), "eps": 0.1, "weight_decay": 0.0}),
    (pc.RMSprop, {}),
    (pc.RMSprop, {"learning_rate": 0.003, "alpha": 0.5, "eps": 0.1, "weight_decay": 0.3}),
    (pc.RMSprop, {"alpha": 0.9, "eps": 1e-6, "momentum": 0.9, "weight_decay": 0.1}),
]


def some_gradients(rng, dtype, size=SIZE, steps=STEPS):
    """Gradients of four orders of magnitude, with zeros among them."""
    scales = 10.0 ** rng.integers(-4, 1, (steps, size)) * (rng.random((steps, size)) < 0.9)
    return (rng.normal(size=(steps, size)) * scales).astype(dtype)


def params_after(optimizer, params, gradients, **options):
    """The parameters after a step along each row of `gradients`."""
    params, state = params.copy(), {}
    for step, row in enumerate(gradients):
        optimizer.update(params, row.copy(), state, step, len(gradients), **options)
    return params


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "arguments"), SETTINGS)
def test_a_hundred_steps_are_pytorchs(kind, arguments, dtype, rng):
    """Up to two roundings a step: PyTorch rounds 1 - learning_rate * weight_decay, so AdamW drifts by that much."""
    torch = pytest.importorskip("torch")
    params, gradients = rng.normal(size=SIZE).astype(dtype), some_gradients(rng, dtype)
    theirs = torch.nn.Parameter(torch.from_numpy(params.copy()))
    renamed = {"lr" if name == "learning_rate" else name: value for name, value in arguments.items()}
    their_optimizer = getattr(torch.optim, kind.__name__)([theirs], **renamed)
    for row in gradients:
        theirs.grad = torch.from_numpy(row.copy())
        their_optimizer.step()
    ours = params_after(kind(**arguments), params, gradients)
    wanted = theirs.detach().numpy()
    assert np.abs(wanted - params).max() > 0.01
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2 * STEPS * np.finfo(dtype).eps * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("arguments", [{}, {"learning_rate": 0.01, "betas": (0.5, 0.75), "weight_decay": 0.3}])
def test_a_hundred_steps_of_lion_are_those_of_algorithm_2(arguments, dtype, rng):
    """Chen et al. 2023, arXiv:2302.06675. Where rounding decides a sign, a parameter is two learning rates away."""
    params, gradients = rng.normal(size=SIZE).astype(dtype), some_gradients(rng, dtype)
    lion = pc.Lion(**arguments)
    ours = params_after(lion, params, gradients)
    wanted, mean = params.astype(np.float64), np.zeros(SIZE)
    (beta1, beta2), rate = lion.betas, lion.learning_rate
    for g in gradients.astype(np.float64):
        direction = np.sign(beta1 * mean + (1 - beta1) * g)
        wanted -= rate * (direction + lion.weight_decay * wanted)
        mean = beta2 * mean + (1 - beta2) * g
    difference = np.abs(ours - wanted)
    assert (difference > 2 * STEPS * np.finfo(dtype).eps * np.abs(wanted).max()).sum() <= SIZE // 100
    assert difference.max() < 2.1 * rate


def test_a_schedule_sets_the_rate_of_each_step(rng):
    @dataclass(frozen=True)
    class Two(pc.Schedule):
        def at(self, step, steps):
            return 0.1 if step < steps // 2 else 0.02

    params, gradients = rng.normal(size=SIZE), some_gradients(rng, np.float64, steps=10)
    for kind in ALL:
        wanted, state = params.copy(), {}
        for step, row in enumerate(gradients):
            kind(0.1 if step < 5 else 0.02).update(wanted, row.copy(), state, step, 10)
        np.testing.assert_array_equal(params_after(kind(Two()), params, gradients), wanted)


NESTED = (
    pc.Conv2D(2, 3),
    pc.Flatten(),
    pc.Dense(4, bias=False),
    pc.Residual((pc.Dense(4), pc.Dense(4, bias=False))),
    pc.Dense(2),
)


@pytest.mark.parametrize("kind", ALL)
def test_weights_decay_and_biases_do_not(kind, rng):
    network = pc.NetworkHandler(NESTED, (1, 5, 5))
    network.params = rng.uniform(1, 2, network.params.size)
    before = {name: array.copy() for name, array in network.named_arrays.items()}
    network.gradients[:] = 0
    network.update(kind(0.1, weight_decay=0.5))
    assert {name.rpartition(".")[2] for name in before} == {"weight", "bias"}
    for name, array in network.named_arrays.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        else:
            assert (array < before[name]).all(), name


@pytest.mark.parametrize("kind", ALL)
def test_parts_that_decay_and_parts_that_do_not_take_the_steps_of_two_optimisers(kind, rng):
    params, gradients = rng.normal(size=50), some_gradients(rng, np.float64, 50, 5)
    parts = np.array([[0, 7, 0], [7, 30, 1], [30, 31, 0], [31, 50, 1]])
    decayed, free = (params_after(kind(0.1, weight_decay=decay), params, gradients) for decay in (0.3, 0.0))
    wanted = np.where(np.repeat(parts[:, 2], parts[:, 1] - parts[:, 0]), decayed, free)
    ours = params_after(kind(0.1, weight_decay=0.3), params, gradients, parts=parts)
    np.testing.assert_allclose(ours, wanted, rtol=1e-14)
    assert (decayed != free).all()


def test_the_parts_cover_the_vector_and_neighbours_are_joined():
    weight, bias = pc.Parameter((2, 3)), pc.Parameter((4,), weight_decay=False)
    assert decay_parts([weight, bias, bias, weight, weight]).tolist() == [[0, 6, 1], [6, 14, 0], [14, 26, 1]]
    assert decay_parts([bias]).tolist() == [[0, 4, 0]]
    assert decay_parts([]).shape == (0, 3)


@pytest.mark.parametrize("kind", ALL)
def test_threads_that_share_the_update_of_a_large_network_change_no_bit(kind, rng):
    layers = (pc.Dense(500, bias=True), pc.Dense(300))
    one, three = (pc.NetworkHandler(layers, (700,), seed=3) for _ in range(2))
    optimizer = pc.EMA(kind(0.01, weight_decay=0.1, clip_norm=1.0))
    shares = []

    with ThreadPool(three.replicas(3)) as pool:

        def share(work, rows):
            pool.share(lambda own: (shares.append((threading.get_ident(), len(own))), work(own)), rows)

        for step in range(3):
            one.gradients[:] = three.gradients[:] = rng.normal(size=one.params.size)
            one.update(optimizer, step=step)
            three.update(optimizer, step=step, share=share)
    assert len({thread for thread, _ in shares}) == 3
    assert min(rows for _, rows in shares) >= one.params.size / 3 // MOST_IN_A_ROW
    assert one.state.keys() == three.state.keys()
    for name, vector in one.state.items():
        np.testing.assert_array_equal(vector, three.state[name], err_msg=name)


def test_threads_do_not_share_the_update_of_a_small_network():
    network = pc.NetworkHandler((pc.Dense(500),), (300,))
    network.update(pc.Adam(), share=lambda *_: pytest.fail("shared"))


def test_long_parts_are_cut_into_rows():
    parts = decay_parts([pc.Parameter((2, MOST_IN_A_ROW)), pc.Parameter((5,), weight_decay=False)])
    ends = [0, MOST_IN_A_ROW, 2 * MOST_IN_A_ROW, 2 * MOST_IN_A_ROW + 5]
    assert parts.tolist() == [[*ends[0:2], 1], [*ends[1:3], 1], [*ends[2:4], 0]]


def test_an_average_of_an_optimiser_without_optional_arguments_gives_it_none():
    @dataclass(frozen=True)
    class Plain(pc.Optimizer):
        weight_decay: float = 0.1

        def update(self, params, gradients, state, step=0, steps=1):
            params -= gradients

    network = pc.NetworkHandler((pc.Dense(3),), (2,))
    network.update(pc.EMA(Plain()), share=lambda *_: pytest.fail("shared"))


def test_an_optimiser_of_the_users_own_gets_the_parts_only_if_it_has_weight_decay():
    got = []

    @dataclass(frozen=True)
    class Shrinking(pc.Optimizer):
        weight_decay: float = 0.0

        def update(self, params, gradients, state, step=0, steps=1, **options):
            for start, stop, decays in options.get("parts", ()):
                params[start:stop] *= 1 - self.weight_decay * decays
            got.append(list(options))

    network = pc.NetworkHandler((pc.Dense(3),), (2,))
    network.params = np.ones(9)
    network.update(Shrinking())
    network.update(Shrinking(0.5))
    assert got == [[], ["parts"]]
    np.testing.assert_array_equal(network.params, [0.5] * 6 + [1] * 3)


def test_a_network_without_parameters_can_be_updated():
    for kind in ALL:
        pc.NetworkHandler((pc.Flatten(),), (2,)).update(kind(0.1, weight_decay=0.1))


def test_clipping_is_pytorchs(rng):
    torch = pytest.importorskip("torch")
    gradients = some_gradients(rng, np.float32, steps=1)[0]
    norm = float(np.linalg.norm(gradients))
    for largest in (0.5 * norm, 2 * norm):
        theirs = torch.nn.Parameter(torch.zeros(SIZE))
        theirs.grad = torch.from_numpy(gradients.copy())
        torch.nn.utils.clip_grad_norm_([theirs], largest)
        ours = gradients.copy()
        clip_by_norm(ours, largest)
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-6)
    theirs.grad = torch.from_numpy(gradients.copy())
    torch.nn.utils.clip_grad_value_([theirs], 0.3)
    ours = np.zeros(SIZE, np.float32)
    pc.SGD(1.0, clip_value=0.3).update(ours, gradients.copy(), {})
    np.testing.assert_array_equal(-ours, theirs.grad.numpy())


@pytest.mark.parametrize("kind", ALL)
def test_every_optimiser_clips_values_first_and_then_their_norm(kind, rng):
    params, gradients = rng.normal(size=SIZE), some_gradients(rng, np.float64, steps=5)
    clipped = np.clip(gradients, -0.2, 0.2)
    norms = np.linalg.norm(clipped, axis=1, keepdims=True)
    assert (norms > 0.5).all()
    ours = params_after(kind(0.1, clip_value=0.2, clip_norm=0.5), params, gradients)
    np.testing.assert_allclose(ours, params_after(kind(0.1), params, clipped * 0.5 / norms), rtol=1e-9)
    assert (ours != params_after(kind(0.1), params, gradients)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.Adam(-1), "Adam: learning_rate must be a finite number of at least 0, got -1"),
        (lambda: pc.AdamW(weight_decay=-1), "AdamW: weight_decay must be a finite number of at least 0, got -1"),
        (lambda: pc.Adam(betas=(0.9, 1.0)), "Adam: betas must be a tuple of two numbers of at least 0 and below 1"),
        (lambda: pc.AdamW(betas=0.9), r"AdamW: betas must be .*, got 0.9"),
        (lambda: pc.Lion(betas=(0.9,)), r"Lion: betas must be .*, got \(0.9,\)"),
        (lambda: pc.Lion(betas=(0.9, float("nan"))), r"Lion: betas must be .*, got \(0.9, nan\)"),
        (lambda: pc.Adam(eps=-1e-8), "Adam: eps must be a finite number of at least 0, got -1e-08"),
        (lambda: pc.RMSprop(alpha=1), "RMSprop: alpha must be less than 1, got 1"),
        (lambda: pc.RMSprop(momentum=1.5), "RMSprop: momentum must be less than 1, got 1.5"),
        (lambda: pc.RMSprop(eps="small"), "RMSprop: eps must be a finite number of at least 0, got 'small'"),
        (lambda: pc.Lion(clip_value=-1), "Lion: clip_value must be a finite number of at least 0, got -1"),
        (lambda: pc.Adam(clip_norm=float("inf")), "Adam: clip_norm must be a finite number of at least 0, got inf"),
    ],
)
def test_numbers_outside_their_range_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_adam_refuses_a_second_step_0_whose_bias_correction_would_be_wrong():
    network = pc.NetworkHandler((pc.Dense(1),), (1,))
    network.update(pc.Adam())
    network.update(pc.Adam(), step=1)
    with pytest.raises(InputError, match="Adam: step must be the number of steps done before, got 0 again"):
        network.update(pc.Adam())
    network.reset_optimizer()
    network.update(pc.AdamW())


@pytest.mark.parametrize("kind", [*ALL, lambda *rate, **options: pc.EMA(pc.Adam(*rate, **options))])
def test_a_step_allocates_no_memory_for_numbers(kind):
    network = pc.NetworkHandler((pc.Dense(50),), (100,))
    network.gradients[:] = 0.1
    optimizer = kind(pc.Cosine(0.1), weight_decay=0.1, clip_norm=1.0, clip_value=0.5)
    network.update(optimizer, step=0, steps=20)
    network.update(optimizer, step=1, steps=20)
    tracemalloc.start()
    try:
        for step in range(2, 20):
            network.update(optimizer, step=step, steps=20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4096 < network.params.nbytes


def train(network, optimizer, threads=1, **options):
    sets = small.dataset(60), small.dataset(9, seed=1)
    return pc.train(network, *sets, optimizer, 2, 20, comm=pc.Serial(), threads=threads, verbose=0, **options)


@pytest.mark.parametrize(
    "optimizer", [pc.Adam(0.01), pc.AdamW(pc.Cosine(0.01, warmup=2), clip_norm=1.0), pc.Lion(0.01)]
)
def test_a_training_resumed_in_the_middle_of_an_epoch_has_the_same_bits(optimizer, tmp_path):
    whole, again = small.network(), small.network(5)
    train(whole, optimizer)
    stop = iter([False, True])
    folder = pc.CheckpointFolder(tmp_path)
    assert train(small.network(), optimizer, checkpoints=folder, stop=lambda: next(stop)).steps == 2
    train(again, optimizer, resume=folder.newest())
    assert again.state_sha256() == whole.state_sha256()
    assert set(again.state) == {"params", "mean", *(["square"] if isinstance(optimizer, pc.Adam) else [])}


@pytest.mark.parametrize("optimizer", [pc.AdamW(0.01), pc.RMSprop(momentum=0.5, weight_decay=0.1), pc.Lion(0.01)])
def test_three_threads_reach_the_state_of_one_with_reproducible_sums(optimizer):
    """tests/mpi/test_replicas.py does the same with ranks."""
    networks = [small.network(), small.network()]
    for network, threads in zip(networks, (1, 3), strict=True):
        train(network, optimizer, reproducible=6, threads=threads)
    assert networks[0].state_sha256() == networks[1].state_sha256()


def test_the_optimiser_of_a_run_is_a_setting():
    for name, kind in OPTIMIZERS.items():
        assert TrainConfig(optimizer=name).build_optimizer() == getattr(pc, kind)()
    config = TrainConfig(optimizer="adamw", schedule="cosine", warmup=5, weight_decay=0.1, clip_value=2.0)
    assert config.build_optimizer() == pc.AdamW(pc.Cosine(0.001, 5), weight_decay=0.1, clip_value=2.0)
    assert TrainConfig(optimizer="rmsprop", momentum=0.5).build_optimizer() == pc.RMSprop(momentum=0.5)
    assert "learning_rate" not in TrainConfig(optimizer="adam").to_toml()  # a file's rate would be another optimiser's


def test_the_help_names_the_defaults_of_each_optimiser():
    helps = {one.name: setting.help for one, setting in settings()}
    for kind in ALL:
        assert f"{kind.learning_rate:g} with" in helps["learning_rate"]
        assert kind.__name__.lower() in helps["learning_rate"]
    assert [kind.__name__ for kind in ALL if kind.weight_decay] == ["AdamW"]
    assert f"with adamw {pc.AdamW.weight_decay:g}" in helps["weight_decay"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adam", "--momentum", "0.9"], "momentum is for the optimizer sgd or rmsprop, got adam"),
        (["--optimizer", "rmsprop", "--nesterov"], "nesterov is for the optimizer sgd, got rmsprop"),
        (["--optimizer", "adma"], "optimizer must be one of sgd, adam, adamw, rmsprop, lion, got 'adma'"),
        (["--clip-value", "-1"], "clip_value must be a finite number of at least 0, got -1.0"),
    ],
)
def test_what_an_optimiser_does_not_have_is_refused_with_code_2(arguments, message, here):
    refused(here("train", *arguments), message)
