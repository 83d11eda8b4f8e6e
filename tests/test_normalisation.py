"""Batch, layer and group normalisation: PyTorch's numbers, large means, running statistics, ranks, files, folding."""

import contextlib
import json
from pathlib import Path

import launch
import numpy as np
import pytest
import small
import traced
from recorded import call_all, record

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.data.sampler import shard, shuffle
from parallelcnn.errors import ShapeError
from parallelcnn.fusions import fuse

HERE = Path(__file__).parent

LAYERS = (
    pc.Conv2D(3, 3, bias=False),
    pc.BatchNorm(activation="relu"),
    pc.MaxPool2D(2),
    pc.Residual((pc.Conv2D(3, 3, padding="same"), pc.BatchNorm(0.3), pc.GroupNorm(3))),
    pc.Flatten(),
    pc.LayerNorm(),
    pc.Dense(5),
)


def new_network(seed=0):
    return pc.NetworkHandler(LAYERS, (1, 11, 9), seed)


def train(comm=None, threads=1, seed=0, **options):
    network = new_network(seed)
    sets = small.dataset(211), small.dataset(97, seed=1)
    options = {"reproducible": 6, "verbose": 0, "threads": threads, **options}
    pc.train(network, *sets, pc.SGD(0.05, momentum=0.9), 2, 25, comm=comm or pc.Serial(), **options)
    return network


def as_torch(torch, layer, shape):
    if isinstance(layer, pc.BatchNorm):
        kind = torch.nn.BatchNorm2d if len(shape) == 3 else torch.nn.BatchNorm1d
        return kind(shape[0], layer.epsilon, layer.momentum, dtype=torch.float64)
    if isinstance(layer, pc.LayerNorm):
        return torch.nn.LayerNorm(shape, layer.epsilon, dtype=torch.float64)
    return torch.nn.GroupNorm(layer.groups, shape[0], layer.epsilon, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 3, 5), (6,)], ids=str)
@pytest.mark.parametrize("layer", [pc.BatchNorm(0.3, 1e-3), pc.LayerNorm(1e-2), pc.GroupNorm(3)], ids=repr)
def test_outputs_gradients_and_running_statistics_are_pytorchs(layer, shape, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    twin, ours = as_torch(torch, layer, shape), record(layer, shape, n=7)
    ours.flat_params[...] = rng.normal(size=ours.flat_params.size)
    with torch.no_grad():
        twin.weight.copy_(torch.from_numpy(ours.params["weight"]))
        twin.bias.copy_(torch.from_numpy(ours.params["bias"]))
    for _ in range(2):
        x, dy = 3 + 2 * rng.normal(size=(2, 7, *shape))
        ours.tape.x[...], ours.tape.dy[...] = np.moveaxis(x, 0, -1), np.moveaxis(dy, 0, -1)
        call_all(ours.tape.forward)
        theirs_x = torch.from_numpy(x).requires_grad_()
        theirs = twin(theirs_x)
        twin.zero_grad()
        theirs.backward(torch.from_numpy(dy))
        np.testing.assert_allclose(np.moveaxis(ours.tape.y, -1, 0), theirs.detach().numpy(), rtol=1e-12, atol=1e-12)
        call_all(ours.tape.backward)
        np.testing.assert_allclose(np.moveaxis(ours.tape.dx, -1, 0), theirs_x.grad.numpy(), rtol=1e-11, atol=1e-12)
        for name, gradient in ours.grads.items():
            np.testing.assert_allclose(gradient, getattr(twin, name).grad.numpy(), rtol=1e-11, atol=1e-12)
        for name, buffer in ours.buffers.items():
            momentum = layer.buffers(shape)[name].momentum
            buffer += momentum * (ours.statistics[name] / 7 - buffer)
            np.testing.assert_allclose(buffer, getattr(twin, name).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*ACTIVATIONS, "a lambda"])
def test_an_activation_inside_computes_what_a_layer_behind_computes(name, rng):
    activation = (lambda x: x * abs(x)) if name == "a lambda" else name
    parted = pc.Sequential((pc.BatchNorm(), pc.Activation(activation)))
    one, two = (record(layer, (3, 5, 2), n=7) for layer in (pc.BatchNorm(activation=activation), parted))
    one.flat_params[...] = two.flat_params[...] = rng.normal(size=one.flat_params.size)
    x, dy = rng.normal(size=(2, *one.tape.x.shape))
    for recorded in (one, two):
        recorded.tape.x[...] = x
        call_all(recorded.tape.forward)
    np.testing.assert_allclose(one.tape.y, two.tape.y, rtol=1e-13)
    for recorded in (one, two):
        recorded.tape.dy[...] = dy
        call_all(recorded.tape.backward)
    np.testing.assert_allclose(one.tape.dx, two.tape.dx, rtol=1e-11, atol=1e-13)
    for mine, other in zip(one.grads.values(), two.grads.values(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-11, atol=1e-13)
    for mine, other in zip(one.statistics.values(), two.statistics.values(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-13)


def test_a_network_trained_beside_pytorchs_predicts_as_its_eval_mode(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    nn = torch.nn
    layers = (pc.Conv2D(3, 3), pc.BatchNorm(activation="relu"), pc.Flatten(), pc.BatchNorm(0.2), pc.Dense(5))
    network = pc.NetworkHandler(layers, (1, 11, 9), seed=3)
    twin = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
        nn.Flatten(),
        nn.BatchNorm1d(3 * 9 * 7, momentum=0.2),
        nn.Linear(3 * 9 * 7, 5),
    )
    names = [name.replace("1.0.", "1.") for name, _ in twin.named_parameters()]
    for name, parameter in zip(names, twin.parameters(), strict=True):
        parameter.data.copy_(torch.from_numpy(network.named_arrays[name]))
    train_set, velocities = small.dataset(40), [torch.zeros_like(parameter) for parameter in twin.parameters()]
    for _ in range(6):  # the order within a minibatch that is the data set does not matter
        twin.zero_grad()
        images = torch.from_numpy(train_set.images[:, np.newaxis] / np.float32(255))
        nn.functional.cross_entropy(twin(images), torch.from_numpy(train_set.labels.astype(np.int64))).backward()
        for parameter, velocity in zip(twin.parameters(), velocities, strict=True):
            velocity.mul_(0.9).add_(parameter.grad)
            parameter.data.sub_(0.05 * velocity)
    options = {"comm": pc.Serial(), "reproducible": 1, "verbose": 0}
    pc.train(network, train_set, train_set, pc.SGD(0.05, momentum=0.9), 6, 40, **options)
    images = rng.integers(0, 256, (30, 1, 11, 9), dtype=np.uint8)
    wanted = twin.eval()(torch.from_numpy(images / np.float32(255))).softmax(1).detach().numpy()
    np.testing.assert_allclose(network.predict(images), wanted, atol=1e-4)
    for name in ("1.running_mean", "1.running_var", "3.running_mean", "3.running_var"):
        theirs = twin.state_dict()[name.replace("1.", "1.0.", 1)].numpy()
        np.testing.assert_allclose(network.named_arrays[name], theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mean", [1e3, -1e5])
@pytest.mark.parametrize("layer", [pc.BatchNorm(1.0), pc.LayerNorm(), pc.GroupNorm(2)], ids=repr)
def test_a_mean_much_larger_than_the_deviation_costs_no_digits(layer, mean, rng):
    """Of float32 numbers, within 1e-5 of float64 arithmetic: a variance from a float32 sum of squares would have an
    error of 0.1 for a mean of 1e3 and be worthless for 1e5."""
    shape, n = (4, 5, 6), 9
    single, double = record(layer, shape, n, np.float32), record(layer, shape, n, np.float64)
    values = (mean + rng.normal(size=(*shape, n))).astype(np.float32)
    dy = rng.normal(size=(*shape, n)).astype(np.float32)
    params = rng.normal(size=single.flat_params.size).astype(np.float32)
    for one in (single, double):
        one.flat_params[...], one.tape.x[...], one.tape.dy[...] = params, values, dy
        call_all(one.tape.forward)
        call_all(one.tape.backward)
    np.testing.assert_allclose(single.tape.y, double.tape.y, atol=1e-5)
    np.testing.assert_allclose(single.tape.dx, double.tape.dx, atol=1e-5)
    np.testing.assert_allclose(single.flat_grads, double.flat_grads, rtol=1e-5, atol=1e-4)
    if isinstance(layer, pc.BatchNorm):
        rows = values.astype(np.float64).reshape(4, -1)
        np.testing.assert_allclose(double.tape.y.reshape(4, -1).std(1), np.abs(params[:4]), rtol=1e-4)
        np.testing.assert_allclose(single.statistics["running_mean"], n * rows.mean(1), rtol=1e-6)
        np.testing.assert_allclose(single.statistics["running_var"], n * rows.var(1, ddof=1), rtol=1e-6)


def test_running_statistics_are_means_over_shards_weighted_by_their_samples():
    """40 samples in 3 shards, of 13 and 14: by hand."""
    train_set = small.dataset(40)
    network = pc.NetworkHandler((pc.BatchNorm(0.25), pc.Flatten(), pc.Dense(5)), (1, 11, 9))
    options = {"comm": pc.Serial(), "reproducible": 3, "verbose": 0}
    pc.train(network, train_set, train_set, pc.SGD(0.0), 1, 40, seed=0, **options)
    shards = [(train_set.images[shard(shuffle(40, 0, 1), i, 3)] / 255).ravel() for i in range(3)]
    mean = sum(one.mean() * one.size for one in shards) / 40 / 99
    variance = sum(one.var(ddof=1) * one.size for one in shards) / 40 / 99
    np.testing.assert_allclose(network.buffers, [0.25 * mean, 0.75 + 0.25 * variance], rtol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "reproducible", "message"),
    [
        (
            1,
            None,
            r"^batch_size should be at least 2 for layers that mix samples, such as .*MixUp, got 1: each shard",
        ),
        (7, 4, r"^with reproducible=4, batch_size should be at least 8 for layers .*, got 7: each shard"),
    ],
)
def test_shards_of_one_sample_are_warned_of(batch_size, reproducible, message):
    sets, options = (small.dataset(8), small.dataset(8)), {"comm": pc.Serial(), "verbose": 0}
    for layers, warns in (((pc.BatchNorm(),), True), ((pc.LayerNorm(),), False)):
        network = pc.NetworkHandler((pc.Flatten(), *layers, pc.Dense(5)), (1, 11, 9))
        with pytest.warns(pc.TrainingWarning, match=message) if warns else contextlib.nullcontext() as found:
            pc.train(network, *sets, pc.SGD(0.1), 1, batch_size, reproducible=reproducible, **options)
        assert not warns or found[0].filename == __file__


@pytest.mark.parametrize("n", [0, 1])
def test_a_shard_with_less_than_two_values_gives_no_nan_and_leaves_the_running_variance(n):
    ours = record(pc.BatchNorm(), (3,), n)
    ours.buffers["running_var"][...] = (2, 3, 4)
    ours.tape.x[...], ours.tape.dy[...] = 5, 6
    call_all(ours.tape.forward)
    call_all(ours.tape.backward)
    np.testing.assert_array_equal(ours.statistics["running_mean"], np.full(3, 5 * n))
    np.testing.assert_array_equal(ours.statistics["running_var"], n * np.array([2, 3, 4]))
    np.testing.assert_array_equal(ours.tape.y, np.full((3, n), 7))  # the bias
    np.testing.assert_array_equal(ours.tape.dx, np.zeros((3, n)))
    np.testing.assert_array_equal(ours.grads["weight"], np.zeros(3))
    np.testing.assert_array_equal(ours.grads["bias"], np.full(3, 6 * n))


def test_a_nan_or_an_infinity_is_not_hidden():
    for layer in (pc.BatchNorm(), pc.LayerNorm(), pc.GroupNorm(1)):
        for value in (np.nan, np.inf):
            ours = record(layer, (2, 2, 2), n=3)
            ours.tape.x[...] = 1
            ours.tape.x[1, 1, 1, 2] = value
            with np.errstate(invalid="ignore"):
                call_all(ours.tape.forward)
            assert np.isnan(ours.tape.y[1, 1, 1, 2])


def test_training_with_batches_that_leave_a_last_minibatch_of_one_sample_works():
    network = pc.NetworkHandler((pc.Flatten(), pc.BatchNorm(), pc.Dense(5)), (1, 11, 9))
    pc.train(network, small.dataset(21), small.dataset(9), pc.SGD(0.1), 1, 20, comm=pc.Serial(), verbose=0)
    assert np.isfinite(network.params).all()
    assert (network.named_arrays["1.running_var"] > 0).all()


@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_training_gives_the_same_bits_on_any_number_of_threads_and_without_reproducible_sums_agrees_to_rounding():
    """Within 1e-4 after 18 steps."""
    wanted, rounded = train(), train(reproducible=None)
    for threads in (2, 3):
        assert train(threads=threads).state_sha256() == wanted.state_sha256()
        found = train(threads=threads, reproducible=None)
        np.testing.assert_allclose(found.params, rounded.params, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.buffers, rounded.buffers, rtol=1e-4, atol=1e-4)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    whole = train(checkpoints=pc.CheckpointFolder(tmp_path, every_steps=7, keep_last=9))
    middle = pc.load_checkpoint(tmp_path / "step-000000014.npz")
    resumed = train(threads=2, resume=middle)
    assert resumed.state_sha256() == whole.state_sha256()


_TRAINS = """
import json, sys
import test_normalisation
from parallelcnn.resilience.world import world

comm = world()
found = [test_normalisation.train(comm, threads, seed=comm.rank).state_sha256() for threads in (1, 2)]
everyone = comm.allgather(found)
if comm.rank == 0:
    print(json.dumps(everyone), flush=True)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_training_gives_the_same_bits_on_any_number_of_ranks_and_threads(ranks):
    ran = launch.run_ranks(ranks, ["-c", _TRAINS], PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == [[train().state_sha256()] * 2] * ranks


def test_a_model_file_keeps_layers_parameters_and_running_statistics(tmp_path):
    network, images = train(), small.dataset(20, seed=3).images
    pc.save_model(tmp_path / "model.npz", network)
    again = pc.load_model(tmp_path / "model.npz")
    assert again.layers == LAYERS
    np.testing.assert_array_equal(again.predict(images), network.predict(images))
    with np.load(tmp_path / "model.npz") as file:
        for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "3.1.running_var"):
            np.testing.assert_array_equal(file[name], network.named_arrays[name])


def test_prediction_depends_on_no_other_sample_and_changes_no_running_statistics():
    network, images = train(), small.dataset(60, seed=4).images
    buffers = network.buffers.copy()
    together = network.predict(images)
    alone = np.concatenate([network.predict(images[i : i + 1]) for i in range(60)])
    np.testing.assert_allclose(alone, together, atol=1e-6)
    np.testing.assert_array_equal(network.buffers, buffers)
    assert (buffers != new_network().buffers).all()


def test_weights_do_not_decay_and_start_at_one():
    for layer in (pc.BatchNorm(), pc.LayerNorm(), pc.GroupNorm(3)):
        network = pc.NetworkHandler((layer,), (3, 2, 4))
        assert not any(parameter.weight_decay for parameter in layer.parameters((3, 2, 4)).values())
        assert (network.named_arrays["0.weight"] == 1).all()
        assert (network.named_arrays["0.bias"] == 0).all()


def test_a_step_with_batch_normalisation_allocates_no_memory_for_numbers():
    """Each shard is the whole minibatch, so that an array with two bytes for each sample would be seen."""
    steps, layers = traced.TracedSteps(), (pc.Conv2D(3, 3), pc.BatchNorm(activation="relu"), pc.Flatten(), pc.Dense(5))
    network = pc.NetworkHandler(layers, (1, 11, 9))
    sets = small.dataset(3 * 4097), small.dataset(9)
    pc.train(network, *sets, pc.SGD(0.1), 2, 4097, comm=pc.Serial(), callbacks=[steps], verbose=0, reproducible=1)
    assert steps.steps == 2
    assert steps.peak <= 4096


class Unfolded(pc.BatchNorm):
    """Not folded: a subclass may behave differently."""


FOLDED = {
    "alone": (pc.Conv2D(3, 3, padding="same"), pc.BatchNorm(epsilon=0.01, activation="relu"), pc.Flatten()),
    "pooled": (pc.Conv2D(3, 3, bias=False), pc.BatchNorm(activation="relu"), pc.MaxPool2D(2), pc.BatchNorm()),
    "not pooled": (pc.Conv2D(3, 3), pc.BatchNorm(activation="relu"), pc.MaxPool2D(2, activation="relu")),
    "twice": (pc.BatchNorm(), pc.Conv2D(3, 3), pc.BatchNorm(), pc.BatchNorm(0.5), pc.Conv2D(3, 3), pc.BatchNorm()),
}


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [*((name, np.float32, 1e-5) for name in FOLDED), ("twice", np.float64, 1e-12)],
)
def test_a_convolution_with_folded_weights_predicts_as_two_layers(name, dtype, bound, rng):
    """Also after the parameters and statistics have changed."""
    layers = FOLDED[name]
    apart = tuple(Unfolded(*vars(one).values()) if isinstance(one, pc.BatchNorm) else one for one in layers)
    network, other = (pc.NetworkHandler(some, (3, 9, 8), seed=1, dtype=dtype) for some in (layers, apart))
    x = rng.normal(size=(3, 9, 8, 7)).astype(dtype)
    for _ in range(2):
        network.params += rng.normal(scale=0.3, size=network.params.size).astype(dtype)
        network.buffers += rng.random(network.buffers.size).astype(dtype)
        other.params, other.buffers = network.params, network.buffers
        np.testing.assert_allclose(network.forward(x), other.forward(x), rtol=bound, atol=bound)


def test_only_predictions_fold_and_pool_and_only_convolutions_without_an_activation():
    def running(*layers):
        return [len(fuse(layers, training=training)) for training in (True, False)]

    norm, pool = pc.BatchNorm(activation="relu"), pc.MaxPool2D(2)
    assert running(pc.Conv2D(2, 3), norm) == [2, 1]
    assert running(pc.Conv2D(2, 3), norm, pool) == [3, 1]
    assert running(pc.Conv2D(2, 3), pc.BatchNorm(activation="gelu"), pool) == [3, 2]
    assert running(pc.Conv2D(2, 3, activation="relu"), pool, norm) == [2, 2]
    assert running(pc.Conv2D(2, 3, activation="relu"), norm) == [2, 2]
    assert running(norm, pc.Conv2D(2, 3)) == [2, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.BatchNorm(0), r"BatchNorm\(momentum=0\): momentum must be a number above 0 and at most 1, got 0"),
        (lambda: pc.BatchNorm(1.5), "momentum must be a number above 0 and at most 1, got 1.5"),
        (lambda: pc.BatchNorm(None), "momentum must be a number above 0 and at most 1, got None"),
        (lambda: pc.BatchNorm(epsilon=0), "epsilon must be a finite number above 0, got 0"),
        (lambda: pc.LayerNorm(float("nan")), "epsilon must be a finite number above 0, got nan"),
        (lambda: pc.GroupNorm(0), r"GroupNorm\(0\): groups must be a positive integer, got 0"),
        (lambda: pc.GroupNorm(2, True), "epsilon must be a finite number above 0, got True"),
        (lambda: pc.GroupNorm(4).output_shape((6, 2, 2)), "groups must divide the number of channels, 6"),
    ],
)
def test_a_wrong_hyperparameter_is_named_with_its_rule_and_value(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
