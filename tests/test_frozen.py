"""Frozen layers: training neither computes nor sends their gradients, and does not change them."""

import copy
from dataclasses import dataclass

import noisy
import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.fusions import PooledConv2D

# Layers before the first that is trained; one between others that takes part in the backward pass; one branch of two.
LAYERS = (
    pc.Frozen(pc.Conv2D(3, 3, activation="relu")),
    pc.MaxPool2D(2),
    pc.Conv2D(3, 3, padding="same", activation="tanh"),
    pc.Concat((pc.Frozen(pc.Sequential((pc.Conv2D(3, 1), pc.Activation("tanh")))), pc.Conv2D(3, 1))),
    pc.Flatten(),
    pc.Frozen(pc.Dense(9, activation="tanh")),
    pc.Dense(5),
)
TRAINED = ("2.weight", "2.bias", "3.1.0.weight", "3.1.0.bias", "6.weight", "6.bias")


def thawed():
    """The same layers, all of them trained."""
    inside = pc.Concat((LAYERS[3].branches[0].layer, LAYERS[3].branches[1]))
    return (LAYERS[0].layer, *LAYERS[1:3], inside, LAYERS[4], LAYERS[5].layer, LAYERS[6])


def network(layers=LAYERS, seed=0):
    return pc.NetworkHandler(layers, (1, 11, 9), seed)


def train(threads=1, found=None, **options):
    found = found or network()
    sets = small.dataset(83), small.dataset(20, seed=1)
    optimizer = pc.SGD(0.05, momentum=0.9, weight_decay=0.1, clip_norm=1.0)
    options = {"comm": pc.Serial(), "threads": threads, "verbose": 0, **options}
    pc.train(found, *sets, optimizer, 1, 25, **options)
    return found


def gradients(found, rng):
    x, dy = rng.random((1, 11, 9, 20)).astype(np.float32), rng.normal(size=(5, 20)).astype(np.float32)
    found.forward(x, training=True)
    found.gradients[...] = np.nan
    found.backward(dy)
    return {slot.key: found.gradients[slot.start : slot.stop] for slot in found.layout.trained.slots}


def test_the_gradients_of_the_other_layers_keep_their_bits_and_frozen_ones_have_no_place():
    some, all_of_them = network(), network(thawed())
    assert list(some.named_arrays)[: len(TRAINED)] == list(TRAINED)
    assert some.layout.size == all_of_them.layout.size == some.params.size
    for name, array in all_of_them.named_arrays.items():
        np.testing.assert_array_equal(some.named_arrays[name], array)
    found, wanted = (gradients(one, np.random.default_rng(0)) for one in (some, all_of_them))
    assert list(found) == list(TRAINED)
    for name, gradient in found.items():
        np.testing.assert_array_equal(gradient, wanted[name], err_msg=name)
    size = sum(gradient.size for gradient in found.values())
    assert some.gradients.size == some.trained_params.size == size < some.params.size
    assert some.reduction_buffer.size == size + 2


def test_the_backward_pass_ends_at_the_first_layer_that_is_trained_and_skips_frozen_gradients():
    tapes = [one.replica.tape(16, training=True) for one in (network(), network(thawed()))]
    found, wanted = ([len(part) for part in tape.backward_parts] for tape in tapes)
    first, convolution, concat, _, dense, last = range(6)  # the first convolution is fused with the pooling
    assert isinstance(network().fused_layers[0][0], PooledConv2D)
    assert found[::-1][first] == 0
    assert 0 < found[::-1][convolution] < wanted[::-1][convolution]  # nobody needs its input's gradient
    assert 0 < found[::-1][concat] < wanted[::-1][concat]
    assert 0 < found[::-1][dense] < wanted[::-1][dense]
    assert found[::-1][last] == wanted[::-1][last]
    nothing = network(tuple(pc.Frozen(layer) for layer in thawed())).replica.tape(16, training=True)
    assert nothing.backward == []


@pytest.mark.parametrize("reproducible", [None, 4])
def test_training_changes_all_other_parameters_on_any_number_of_threads(reproducible):
    before, found = network(), train(1, reproducible=reproducible)
    for name, array in found.named_arrays.items():
        assert np.array_equal(array, before.named_arrays[name]) == (name not in TRAINED), name
    if reproducible:
        ranks = on_ranks(2, lambda comm: train(comm=comm, timeout=0, reproducible=4).state_sha256())
        assert set(ranks) == {found.state_sha256()}
        assert {train(threads, reproducible=4).state_sha256() for threads in (2, 3)} == {found.state_sha256()}


def test_files_and_copies_hold_frozen_parameters_and_training_resumes(tmp_path):
    folder = pc.CheckpointFolder(tmp_path / "checkpoints", every_steps=3, keep_last=9)
    found = train(found=network(seed=1), checkpoints=folder)
    pc.save_model(tmp_path / "model.npz", found)
    for again in (
        pc.load_model(tmp_path / "model.npz"),
        pc.load_model(tmp_path / "checkpoints" / "step-000000004.npz"),
        copy.deepcopy(found),
    ):
        assert again.layers == LAYERS
        assert again.parameters_sha256() == found.parameters_sha256()
    middle = pc.load_checkpoint(tmp_path / "checkpoints" / "step-000000003.npz")
    assert train(2, resume=middle).state_sha256() != train().state_sha256()
    assert train(1, resume=middle).state_sha256() == found.state_sha256()
    with pytest.raises(pc.CheckpointError, match=r"of another training: its layer 1 is .*, not "):
        train(found=network(thawed()), resume=middle)


def test_a_vector_of_the_optimiser_is_as_long_as_the_trained_parameters():
    found = train()
    assert found.state["velocity"].size == found.trained_params.size
    with pytest.raises(pc.ShapeError, match="velocity must be float32 of shape"):
        found.set_state({**found.state, "velocity": np.zeros_like(found.params)})


def test_a_layer_of_the_users_own_is_frozen_without_knowing_of_it(rng):
    """Noisy writes to step.grads["weight"] in every backward pass."""
    assert pc.gradient_check(pc.Frozen(noisy.Noisy()), (3, 4), n=5).compared == 5 * 12
    layers = (pc.Dense(6), pc.Frozen(noisy.Noisy()), pc.Dense(2))
    found = pc.NetworkHandler(layers, (5,))
    x = found.load(rng.random((7, 5), np.float32), training=True)
    found.forward(x, training=True)
    found.backward(rng.normal(size=(2, 7)).astype(np.float32))
    assert found.gradients.size == 6 * 5 + 6 + 2 * 6 + 2
    assert np.abs(found.gradients).min() > 0


@dataclass(frozen=True, repr=False)
class Scale(pc.Layer):
    """y = weight * x; skips a gradient that nobody reads, or computes it."""

    skips: bool

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return {"weight": pc.Parameter(input_shape, 1.5)}

    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.save(x)
        step.call(np.multiply, x, step.params["weight"][..., np.newaxis], out=y)
        return y

    def backward(self, step, dy):
        (x,) = step.saved
        if "weight" in step.grads or not self.skips:
            product = step.array(dy.shape[:-1])
            step.call(np.multiply, dy, x, out=product)
            step.call(np.sum, product, axis=-1, out=step.grads["weight"])
            assert ("weight" in step.grads) == bool(step.grads)  # also after the access
        step.call(np.multiply, dy, step.params["weight"][..., np.newaxis], out=dy)
        return dy


def test_a_layer_may_skip_gradients_of_frozen_parameters_which_saves_calls_and_memory():
    found, calls, memory = [], [], []
    for skips in (True, False):
        one = network((pc.Flatten(), pc.Dense(6), pc.Frozen(Scale(skips)), pc.Dense(5)))
        calls.append([len(part) for part in one.replica.tape(32, training=True).backward_parts])
        memory.append(one.replica.plan_size())
        found.append(train(found=one).parameters_sha256())
        assert (one.parameters["2.weight"] == 1.5).all()
    assert found[0] == found[1]
    assert [more - fewer for fewer, more in zip(*calls, strict=True)] == [0, 2, 0, 0]  # last layer first
    assert memory[0] < memory[1]
    for skips in (True, False):
        assert pc.gradient_check(Scale(skips), (3, 2)).largest_difference < 1e-6


def test_a_network_of_frozen_layers_only_does_not_change():
    layers = tuple(map(pc.Frozen, small.LAYERS))
    assert train(found=network(layers)).parameters_sha256() == network(layers).parameters_sha256()


def test_the_summary_says_how_many_parameters_are_trained():
    lines = network().summary().splitlines()
    assert any(line.startswith("Frozen(Dense(9, activation='tanh'))") for line in lines)
    assert lines[-1].startswith(f"{network().params.size:,} parameters, ")
    assert lines[-1].endswith(f" KiB, {network().trained_params.size:,} of them trained")
    assert network(thawed()).summary().endswith(" KiB")


def test_the_first_layers_of_a_model_are_frozen_and_the_last_is_replaced():
    """The example in Frozen's docstring."""
    old = pc.NetworkHandler((pc.Conv2D(8, 3, activation="relu"), pc.Flatten(), pc.Dense(10)), (1, 8, 8), seed=4)
    new = pc.NetworkHandler((*map(pc.Frozen, old.layers[:-1]), pc.Dense(3)), old.input_shape)
    for name in new.parameters:
        if not name.startswith("2."):
            new.parameters[name] = old.parameters[name]
    assert new.trained_params.size == 3 * 8 * 6 * 6 + 3 == 867
    np.testing.assert_array_equal(new.params[867:], old.params[: 8 * 9 + 8])
