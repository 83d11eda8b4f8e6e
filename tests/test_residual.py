"""Residual: layers whose output is added to their input, against numpy and PyTorch, in training and in files."""

import copy
import os
import re
from dataclasses import dataclass

import cases
import numpy as np
import pytest
import small
from recorded import run_layer

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.errors import CheckpointError
from parallelcnn.kernels.random import uniform
from parallelcnn.tape import Recordable, plan_tape

INSIDE = (pc.Conv2D(5, 3, padding="same", activation="relu"), pc.Conv2D(3, 3, padding="same"))
LAYERS = (
    pc.Conv2D(3, 3, activation="relu"),
    pc.Residual(INSIDE),
    pc.Activation("relu"),
    pc.Residual((pc.Activation("tanh"), pc.Residual((pc.Conv2D(3, 1),)), pc.Conv2D(3, 3, padding="same"))),
    pc.MaxPool2D(2),
    pc.Flatten(),
    pc.Residual((pc.Dense(7, activation="tanh"), pc.Dense(36))),
    pc.Dense(5),
)


def network(seed=0, dtype=np.float32):
    return pc.NetworkHandler(LAYERS, (1, 11, 9), seed, dtype)


def train(threads=1, epochs=2, layers=LAYERS, batch_size=25, learning_rate=0.05, **options):
    found = pc.NetworkHandler(layers, (1, 11, 9))
    sets = small.dataset(211), small.dataset(97, seed=1)
    optimizer = pc.SGD(learning_rate, momentum=0.9)
    history = pc.train(found, *sets, optimizer, epochs, batch_size, comm=pc.Serial(), threads=threads, **options)
    return found, history


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 32])
def test_output_and_gradients_are_those_of_numpy(n, dtype, rng):
    """y = x + b tanh(a x): dx = dy + a^T (b^T dy (1 - tanh^2))."""
    layer = pc.Residual((pc.Dense(7, activation="tanh", bias=False), pc.Dense(5, bias=False)))
    ran = run_layer(layer, (5,), n, dtype, rng)
    a, b = ran.params["0.weight"].astype(np.float64), ran.params["1.weight"].astype(np.float64)
    hidden = np.tanh(a @ ran.x)
    dhidden = (b.T @ ran.dy) * (1 - hidden**2)
    bound = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(ran.y, ran.x + b @ hidden, **bound)
    np.testing.assert_allclose(ran.dx, ran.dy + a.T @ dhidden, **bound)
    np.testing.assert_allclose(ran.grads["1.weight"], ran.dy @ hidden.T, **bound)
    np.testing.assert_allclose(ran.grads["0.weight"], dhidden @ ran.x.T, **bound)


def test_output_and_gradients_are_those_of_pytorch(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    n, convolution = 13, torch.nn.Conv2d
    modules = torch.nn.Sequential(convolution(3, 5, 3, padding=1), torch.nn.ReLU(), convolution(5, 3, 3, padding=1))
    ran = run_layer(pc.Residual(INSIDE), (3, 7, 9), n, np.float32, rng)
    twins = {"0": modules[0], "1": modules[2]}
    for name, value in ran.params.items():
        place, kind = name.split(".")
        getattr(twins[place], kind).data.copy_(torch.from_numpy(value))
    x = torch.tensor(np.moveaxis(ran.x, -1, 0).copy(), requires_grad=True)
    y = x + modules(x)
    y.backward(torch.from_numpy(np.moveaxis(ran.dy, -1, 0).copy()))
    bound = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(np.moveaxis(ran.y, -1, 0), y.detach(), **bound)
    np.testing.assert_allclose(np.moveaxis(ran.dx, -1, 0), x.grad, **bound)
    for name, value in ran.grads.items():
        place, kind = name.split(".")
        np.testing.assert_allclose(value, getattr(twins[place], kind).grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("layer", "input_shape"), cases.RESIDUALS, ids=cases.name_of)
def test_it_is_the_sum_of_its_input_and_of_the_layers_inside_as_a_network(layer, input_shape, rng):
    inside = pc.NetworkHandler(layer.layers, input_shape, seed=3, dtype=np.float64)
    whole = pc.NetworkHandler((layer,), input_shape, seed=3, dtype=np.float64)
    np.testing.assert_array_equal(inside.params, whole.params)
    x = rng.normal(size=(*input_shape, 5))
    y = whole.forward(x, training=True).copy()
    np.testing.assert_allclose(y, x + inside.forward(x, training=True), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(whole.forward(x), y)
    dy = rng.normal(size=y.shape)
    for one in (inside, whole):
        one.forward(x, training=True)
        one.backward(dy.copy())
    np.testing.assert_allclose(whole.gradients, inside.gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "identity"])
def test_an_activation_of_the_sum_does_what_a_layer_after_it_does(name, dtype):
    """Most share a pass over memory with the sum. Rounding may differ: a compiler joins a product and a sum."""
    bound = {"rtol": 64 * np.finfo(dtype).eps, "atol": 64 * np.finfo(dtype).eps}
    layers = pc.Dense(7, activation="tanh"), pc.Dense(5)
    for shortcut in (None, pc.Dense(5)):
        ways = (
            pc.Residual(layers, shortcut, name),
            pc.Sequential((pc.Residual(layers, shortcut), pc.Activation(name))),
        )
        for n in (0, 1, 7):
            for wants_dx in (True, False):
                fused, apart = (
                    run_layer(way, (5,), n, dtype, np.random.default_rng(1), wants_dx=wants_dx) for way in ways
                )
                np.testing.assert_allclose(fused.y, apart.y, **bound)
                if wants_dx:
                    np.testing.assert_allclose(fused.dx, apart.dx, **bound)
                for one, other in zip(fused.grads.values(), apart.grads.values(), strict=True):
                    np.testing.assert_allclose(one, other, **bound)


def test_the_gradient_of_a_network_with_a_residual_first_is_the_derivative_of_its_loss(rng):
    """Nobody needs the gradient of the network's input, nor that of what stands before the first parameters inside."""
    layers = (pc.Residual((pc.Activation("tanh"), pc.Dense(4, activation="swish"), pc.Dense(5))), pc.Dense(3))
    network = pc.NetworkHandler(layers, (5,), dtype=np.float64)
    assert len(network.replica.tape(6, training=True).backward_parts[0]) < len(
        pc.NetworkHandler((pc.Dense(5), *layers), (5,)).replica.tape(6, training=True).backward_parts[1]
    )
    x, dy = rng.normal(size=(5, 6)), rng.normal(size=(3, 6))
    network.forward(x, training=True)
    network.gradients[...] = np.nan
    network.backward(dy.copy())
    for i in range(network.params.size):
        values = []
        for step in (1e-6, -2e-6):
            network.params[i] += step
            values.append(np.sum(dy * network.forward(x, training=True)))
        network.params[i] += 1e-6
        assert network.gradients[i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-8)


def test_what_the_input_is_needed_for_is_not_overwritten_where_arrays_share_memory(rng):
    """x is read by the first layer inside, by the sum, and by both backward passes."""
    layer = pc.Residual((pc.Dense(6, activation="tanh"), pc.Residual((pc.Dense(6),))))
    replica = pc.NetworkHandler((pc.Dense(6), layer, layer, pc.Dense(6)), (6,)).replica
    what = replica._recordable
    assert isinstance(what, Recordable)
    together, apart = (plan_tape(what, 32, training=True, shared=shared).size for shared in (True, False))
    assert together < 0.7 * apart
    for deep in (layer, pc.Residual((layer, layer))):
        pc.gradient_check(deep, (6,), n=4)


@pytest.mark.parametrize("batch_size", [25, 2, 211])
def test_training_is_the_same_on_any_number_of_threads(batch_size):
    """Of two samples, one of three threads gets none."""
    options = {"batch_size": batch_size, "epochs": 1, "learning_rate": 0.002}
    runs = [train(threads, **options) for threads in (1, 2, 3)]
    for found, history in runs[1:]:
        np.testing.assert_allclose(found.params, runs[0][0].params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(history.losses, runs[0][1].losses, rtol=1e-4, atol=1e-5)
    exact = {train(threads, reproducible=4, **options)[0].parameters_sha256() for threads in (1, 2, 3)}
    assert len(exact) == 1


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")
def test_joined_calls_give_the_same_bits_and_a_pass_is_one_call(monkeypatch):
    found, _ = train(2)
    tape = found.replica.tape(50, training=True)
    assert (len(tape.forward), len(tape.backward)) == (1, 1)
    monkeypatch.setattr("parallelcnn.tape.join", list)
    assert train(2)[0].parameters_sha256() == found.parameters_sha256()


def test_an_inner_layer_alone_is_trained():
    found, history = train(epochs=8, layers=(pc.Flatten(), pc.Residual((pc.Dense(99),)), pc.Dense(5)))
    assert history.losses[-1] < 0.7 * history.losses[0]
    before = pc.NetworkHandler(found.layers, (1, 11, 9))
    for name in ("1.0.weight", "1.0.bias"):
        assert np.abs(found.named_arrays[name] - before.named_arrays[name]).max() > 1e-3


def test_the_summary_lists_what_is_inside_and_counts_each_parameter_once():
    found = network()
    lines = str(found).splitlines()
    assert str(found) == found.summary()
    assert len({len(line) for line in lines[:-1]}) == 1
    rows = [re.split(r"  +", line.strip()) for line in lines[3:-2]]
    assert ["Residual", "(None, 3, 9, 7)"] in rows
    assert ["Conv2D(3, 1)", "(None, 3, 9, 7)", "12"] in rows
    assert "\n    Conv2D(3, 1) " in str(found)  # in a Residual in a Residual
    counts = [int(row[2].replace(",", "")) for row in rows if len(row) == 3]
    assert sum(counts) == found.params.size
    assert lines[-1].startswith(f"{found.params.size:,} parameters")


def test_a_model_file_a_checkpoint_and_a_copy_hold_what_is_inside(tmp_path):
    folder = pc.CheckpointFolder(tmp_path / "checkpoints", every_steps=7, keep_last=9)
    found, _ = train(reproducible=4, checkpoints=folder)
    images = small.dataset(20, seed=3).images
    pc.save_model(tmp_path / "model.npz", found)
    with np.load(tmp_path / "model.npz") as file:
        np.testing.assert_array_equal(file["1.0.weight"], found.named_arrays["1.0.weight"])
        assert file["3.1.0.weight"].shape == (3, 3, 1, 1)
    for path in (tmp_path / "model.npz", tmp_path / "checkpoints" / "step-000000018.npz"):
        again = pc.load_model(path)
        assert again.layers == LAYERS
        np.testing.assert_array_equal(again.predict(images), found.predict(images))
    twin = copy.deepcopy(found)
    np.testing.assert_array_equal(twin.predict(images), found.predict(images))
    middle = pc.load_checkpoint(tmp_path / "checkpoints" / "step-000000014.npz")
    resumed, _ = train(reproducible=4, threads=2, resume=middle)
    assert resumed.state_sha256() == found.state_sha256()


def test_a_model_file_of_other_layers_inside_does_not_fit(tmp_path):
    pc.save_model(tmp_path / "model.npz", network())
    others = tuple(pc.Residual((pc.Dense(36),)) if i == 6 else layer for i, layer in enumerate(LAYERS))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        pc.load_model(tmp_path / "model.npz", others)


def test_layers_of_the_users_own_inside_are_asked_for_and_taken(tmp_path):
    squared = pc.ActivationFunction("squared", lambda x: x * x, lambda x: 2 * x)
    for own in (pc.Dense(3, activation=squared), Mask()):
        layers = (pc.Residual((pc.Dense(3), own)),)
        found = pc.NetworkHandler(layers, (3,), seed=2)
        pc.save_model(tmp_path / "model.npz", found)
        with pytest.raises(CheckpointError, match=r"holds Residual\(\(Dense\(3\), .*, which is not this library's own"):
            pc.load_model(tmp_path / "model.npz")
        assert pc.load_model(tmp_path / "model.npz", layers).parameters_sha256() == found.parameters_sha256()


@dataclass(frozen=True, repr=False)
class Mask(pc.Layer):
    """y = a random number for each number of x; with a buffer that holds the mean of the last minibatch's."""

    mixes_samples = True
    mistake: str = "none"

    def output_shape(self, input_shape):
        return input_shape

    def buffers(self, input_shape):
        return {"mean": pc.Buffer(input_shape, momentum=1)}

    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.call(uniform, step.keys, step.number, y)
        if step.training:
            step.call(np.sum, y, axis=-1, out=step.statistics["mean"])
        return y[:-1] if self.mistake == "forward" else y

    def backward(self, step, dy):
        step.call(dy.fill, 0)
        return None if self.mistake == "backward" else dy


def test_layers_inside_have_buffers_and_random_numbers_of_their_own():
    """Also those inside the first layer, and those of the network itself."""
    layers = (
        pc.Residual((Mask(), Mask(), pc.Residual((Mask(), Mask())))),
        Mask(),
        Mask(),
        pc.Residual((Mask(), Mask())),
    )
    found = pc.NetworkHandler((*layers, pc.Dense(2)), (50,))
    assert found.mixes_samples
    assert layers[0].mixes_samples
    assert not pc.Residual((pc.Dense(3),)).mixes_samples
    rng = np.random.default_rng(0)
    dataset = pc.Dataset(rng.random((4, 50), np.float32), rng.integers(0, 2, 4), 2)
    pc.train(found, dataset, dataset, pc.SGD(0.1), 1, 4, comm=pc.Serial(), verbose=0)
    means = [array for name, array in found.named_arrays.items() if name.endswith("mean")]
    assert len(means) == 8
    assert all(0.1 < mean.mean() < 0.9 for mean in means)
    assert len({mean.tobytes() for mean in means}) == 8


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_layer_inside_that_returns_another_array_than_it_said_is_named(method):
    layer = pc.Residual((pc.Dense(3), Mask(method)))
    with pytest.raises(pc.ShapeError, match=rf"Mask\(mistake='{method}'\): {method} must return an array of shape"):
        pc.gradient_check(layer, (3,))
