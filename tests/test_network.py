"""The NetworkHandler: shapes, forward, backward, update, predict, summary."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.training.reduction import compute_shard

SMALL = (
    pc.Conv2D(3, 3, activation="tanh"),
    pc.MaxPool2D(2),
    pc.Conv2D(4, 2, padding="same", activation="gelu"),
    pc.Flatten(),
    pc.Dense(6, activation="softplus"),
    pc.Dense(3),
)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_the_gradient_of_a_whole_network_is_the_derivative_of_its_loss(n, rng):
    network = pc.NetworkHandler(SMALL, (2, 8, 9), seed=1, dtype=np.float64)
    x, labels, loss = rng.normal(size=(2, 8, 9, n)), rng.integers(0, 3, n), SoftmaxCrossEntropy()

    def value():
        return loss.forward_backward(network.forward(x, training=True), labels, 7, network.output_gradient(n))

    value()
    network.gradients[:] = np.nan
    network.backward(network.output_gradient(n))
    found = network.gradients.copy()
    wanted = np.empty_like(found)
    for i, number in enumerate(network.params.copy()):
        network.params[i] = number + 1e-6
        above = value()
        network.params[i] = number - 1e-6
        wanted[i] = (above - value()) / 2e-6
        network.params[i] = number
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_papers_network_has_35474_parameters_and_its_summary_says_so():
    summary = pc.NetworkHandler(pc.paper(), (1, 28, 28)).summary()
    assert "35,474 parameters" in summary
    for shape, count in (("6, 26, 26", "60"), ("16, 11, 11", "880"), ("84", "33,684"), ("10", "850")):
        assert re.search(rf"\(None, {shape}\) +{count}\n", summary)
    assert len({len(line) for line in summary.splitlines()[:-1]}) == 1


def test_lenet5_has_61706_parameters():
    assert pc.NetworkHandler(pc.lenet5(), (1, 28, 28)).params.size == 61706


def test_the_same_seed_gives_the_same_start_values_and_another_seed_others():
    a, b, c = (pc.NetworkHandler(SMALL, (2, 8, 9), seed=seed).parameters_sha256() for seed in (3, 3, 4))
    assert a == b
    assert a != c


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
@pytest.mark.parametrize("pool", [pc.MaxPool2D(2), pc.MaxPool2D(3, stride=1), pc.MaxPool2D(2, activation="tanh")])
def test_an_activation_that_moves_behind_a_pooling_changes_no_number(activation, pool, rng):
    """Written as a layer of its own the activation stays where it is: the network to compare with."""
    moved = pc.NetworkHandler((pc.Conv2D(3, 3, activation=activation), pool), (2, 8, 9), dtype=np.float64)
    stays = pc.NetworkHandler((pc.Conv2D(3, 3), pc.Activation(activation), pool), (2, 8, 9), dtype=np.float64)
    stays.params[:] = moved.params
    x, results = rng.normal(size=(2, 8, 9, 5)), []
    dy = None
    for network in (moved, stays):
        y = network.forward(x, training=True).copy()
        dy = rng.normal(size=y.shape) if dy is None else dy
        network.backward(dy.copy())
        results.append((y, network.gradients.copy()))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("samples", [0, 1, 16, 17, 33, 70])
def test_a_gradient_summed_over_blocks_of_samples_is_that_of_all_at_once(samples, rng):
    dataset = pc.Dataset(rng.integers(0, 256, (90, 9, 9), dtype=np.uint8), rng.integers(0, 10, 90), 10)
    messages = []
    for block_size in (16, 32, 128):
        network = pc.NetworkHandler((pc.Conv2D(3, 3), pc.MaxPool2D(2), pc.Flatten(), pc.Dense(10)), (1, 9, 9))
        network.replica.block_size = block_size
        blocks = list(network.replica.blocks(np.arange(samples)))
        assert [index for block in blocks for index in block] == list(range(samples))
        assert all(len(block) <= block_size for block in blocks)
        compute_shard(network.replica, dataset, rng.permutation(90)[:0], 90, pc.SoftmaxCrossEntropy())
        compute_shard(network.replica, dataset, np.arange(samples), 90, pc.SoftmaxCrossEntropy())
        messages.append(network.reduction_buffer.copy())
    np.testing.assert_allclose(messages[0], messages[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(messages[1], messages[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "float32", "bfloat16"),
    [
        (0, [], []),
        (3, [3], [3]),
        (47, [47], [47]),
        (48, [48], [48]),
        (49, [48, 1], [49]),
        (63, [48, 15], [63]),
        (64, [64], [64]),
        (100, [96, 4], [100]),
        (128, [128], [128]),
        (200, [128, 64, 8], [128, 72]),
        (260, [128, 128, 4], [128, 128, 4]),
    ],
)
def test_the_samples_that_fill_no_vector_are_a_block_of_their_own(samples, float32, bfloat16):
    """But not in bfloat16, and not if the network is small, where another block costs more."""
    for layers, precision, sizes in [
        ((pc.Dense(500), pc.Dense(500)), "float32", float32),
        ((pc.Dense(500), pc.Dense(500)), "bfloat16", bfloat16),
        ((pc.Dense(500),), "float32", bfloat16),
    ]:
        network = pc.NetworkHandler(layers, (8,), precision=precision)
        network.replica.block_size = 128
        assert [len(block) for block in network.replica.blocks(np.arange(samples))] == sizes


def test_a_block_is_small_where_images_are_large_and_never_less_than_fills_vectors():
    def block_size(*input_shape, precision="float32"):
        layers = pc.Conv2D(4, 3), pc.Flatten(), pc.Dense(2)
        return pc.NetworkHandler(layers, input_shape, precision=precision).replica.block_size

    assert block_size(1, 8, 8) == 128
    assert block_size(1, 28, 28) == 48
    assert block_size(8, 100, 100) == 48
    assert block_size(8, 100, 100, precision="bfloat16") == 32


@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 5])
def test_gradients_of_pieces_are_added_in_their_order(pieces, rng):
    replica = pc.NetworkHandler((pc.Dense(3),), (4,)).replica
    gradients = rng.normal(size=(pieces, replica.reduction_buffer.size)).astype(np.float32)
    replica.reduction_buffer[...] = 7  # what was computed before
    for gradient in replica.summed(iter(gradients)):
        replica.reduction_buffer[...] = gradient
    wanted = np.zeros_like(replica.reduction_buffer)
    for gradient in gradients:
        wanted += gradient
    np.testing.assert_array_equal(replica.reduction_buffer, wanted)


def test_huge_logits_still_give_probabilities():
    network = pc.NetworkHandler((pc.Dense(2),), (1,))
    network.params[:] = 3e4, -3e4, 0, 0
    np.testing.assert_array_equal(network.predict(np.ones((1, 1), np.float32)), [[1, 0]])


def test_a_network_refuses_a_type_or_seed_that_is_none():
    for arguments, message in (
        ({"dtype": np.float16}, "dtype must be float32 or float64, got float16"),
        ({"dtype": int}, "dtype must be float32 or float64, got int64"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            pc.NetworkHandler(pc.paper(), (1, 28, 28), **arguments)


def test_a_subclass_of_a_layer_before_a_pooling_is_left_as_it_is():
    class Conv5(pc.Conv2D):
        def __init__(self, filters):
            super().__init__(filters, 5, activation="relu")

    assert pc.NetworkHandler((Conv5(3), pc.MaxPool2D()), (1, 9, 9)).output_shape == (3, 2, 2)


@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 250])
def test_predict_gives_probabilities_for_any_number_of_images(n, rng):
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    probabilities = network.predict(images)
    assert probabilities.shape == (n, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    with_channel = network.predict(images[:, np.newaxis])
    as_floats = network.predict(images.astype(np.float32) * np.float32(1 / 255))
    np.testing.assert_array_equal(probabilities, with_channel)
    np.testing.assert_array_equal(probabilities, as_floats)
    np.testing.assert_allclose(network.predict((images / 255)[::-1])[::-1], probabilities, rtol=1e-4, atol=1e-6)


def test_an_image_is_classified_alike_alone_and_among_others(rng):
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    images = rng.integers(0, 256, (123, 28, 28), dtype=np.uint8)
    together = network.predict(images)
    alone = np.concatenate([network.predict(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)


def test_predict_does_not_change_what_training_computes(rng):
    network = pc.NetworkHandler(SMALL, (2, 8, 9), seed=1)
    before = network.parameters_sha256()
    network.predict(rng.random((300, 2, 8, 9), np.float32))
    assert network.parameters_sha256() == before


def test_a_step_after_the_first_allocates_no_arrays(rng):
    import tracemalloc

    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    images, labels = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8), rng.integers(0, 10, 50)
    everything = np.arange(50)

    def step():
        output = network.forward(network.load(images, everything, training=True), training=True)
        doutput = network.output_gradient(50)
        SoftmaxCrossEntropy().forward_backward(output, labels, 50, doutput)
        network.backward(doutput)
        network.update(pc.SGD(0.1))

    step()
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000  # bytes: views and small objects; the smallest image in there, conv2's pooled, is 80,000


@dataclass(frozen=True, repr=False)
class Liar(pc.Layer):
    """A user's layer whose output shape is none."""

    shape: object

    def output_shape(self, input_shape):
        return self.shape

    def forward(self, step, x):
        return x

    def backward(self, step, dy):
        return dy


@pytest.mark.parametrize(
    ("layers", "input_shape", "message"),
    [
        ((), (1, 8, 8), "at least one layer"),
        ((pc.Dense(3), "relu"), (4,), "layer 2 of the network must be a Layer, got 'relu'"),
        ((pc.Conv2D(2, 3), pc.Dense(3)), (1, 8, 8), r"layer 2 of 2: Dense\(3\) takes \(features,\), got \(2, 6, 6\)"),
        ((pc.MaxPool2D(4), pc.Conv2D(2, 3)), (1, 8, 8), "layer 2 of 2: .* larger than the image, 2 x 2"),
        ((pc.Dense(3),), (-4,), r"input_shape must be .* positive integers, got \(-4,\)"),
        ((pc.Dense(3),), (4, 4), "input_shape must be"),
        ((pc.Dense(3),), "many", "input_shape must be"),
        ((pc.Dense(2**31 - 1),), (1000,), "more than the .* MiB of "),
        ((pc.Conv2D(10**7, 1), pc.MaxPool2D(4)), (1, 4000, 4000), "more than the .* MiB of "),
        (pc.Dense(3), (4,), r"takes a tuple of layers, got Dense\(3\)"),
        ((Liar(None),), (4,), r"layer 1 of 1: Liar\(None\) says that its output has shape None"),
        ((Liar((2.5,)),), (4,), r"says that its output has shape \(2.5,\)"),
        ((Liar((-1,)),), (4,), r"says that its output has shape \(-1,\)"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(layers, input_shape, message):
    with pytest.raises(ShapeError, match=message):
        pc.NetworkHandler(layers, input_shape).check_memory()


def test_images_of_another_shape_or_type_and_indices_outside_are_refused():
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    for dtype in (np.int64, np.uint16, bool, object):
        with pytest.raises(InputError, match="images must be uint8, or floats taken as they are, got"):
            network.predict(np.zeros((3, 28, 28), dtype))
    for wrong in (-1, 3):
        with pytest.raises(InputError, match=r"indices must lie in \[0, 3\), got"):
            network.load(np.zeros((3, 28, 28), np.uint8), np.array([0, wrong]))
    with pytest.raises(ShapeError, match=r"takes images of shape \(N, 1, 28, 28\), got .*, shape \(3, 27, 28\)"):
        network.predict(np.zeros((3, 27, 28), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1}, "learning_rate must be a finite number of at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"learning_rate": "fast"}, "got 'fast'"),
        ({"momentum": 1.0}, "momentum must be less than 1, got 1.0"),
        ({"nesterov": True}, "nesterov=True takes a momentum above 0"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number"),
    ],
)
def test_sgd_refuses_numbers_outside_their_range(arguments, message):
    with pytest.raises(InputError, match=message):
        pc.SGD(**arguments)


def test_momentum_is_kept_from_step_to_step_also_when_the_rate_changes_until_it_is_put_to_rest():
    network = pc.NetworkHandler((pc.Dense(1, bias=False),), (1,))
    network.params[:], network.gradients[:] = 0, 1
    network.update(pc.SGD(1, momentum=0.5))
    assert network.params[0] == -1
    network.update(pc.SGD(2, momentum=0.5))
    assert network.params[0] == -1 - 2 * 1.5
    network.reset_optimizer()
    network.update(pc.SGD(1, momentum=0.5))
    assert network.params[0] == -1 - 2 * 1.5 - 1


class _Scaled(pc.Layer):
    """y = weight x, with a weight of this shape and these initial values."""

    def __init__(self, shape, initial):
        self._parameter = shape, initial

    def __repr__(self):
        return "Scaled()"

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return {"weight": pc.Parameter(*self._parameter)}

    def forward(self, step, x):
        return x

    def backward(self, step, dy):
        return dy


@pytest.mark.parametrize(
    ("shape", "initial", "message"),
    [
        (4, 0.0, "Parameter: shape must be a tuple of integers of at least 0, got 4"),
        ((4.0,), 0.0, r"Parameter: shape must be a tuple of integers of at least 0, got \(4.0,\)"),
        ((-4,), 0.0, r"Parameter: shape must be a tuple of integers of at least 0, got \(-4,\)"),
        ((4,), "a", "Scaled\\(\\): the initial value of 'weight' must be an array of numbers"),
        ((4,), np.nan, "Scaled\\(\\): the initial value of 'weight' must hold finite numbers of float32"),
        ((4,), 1e300, "Scaled\\(\\): the initial value of 'weight' must hold finite numbers of float32"),
        ((4,), lambda rng, shape: np.ones(3), r"the initial value of 'weight' must have shape \(4,\), got \(3,\)"),
    ],
    ids=repr,
)
def test_initial_values_that_do_not_fit_are_refused(shape, initial, message):
    with pytest.raises((pc.InputError, pc.ShapeError), match=message):
        pc.NetworkHandler((_Scaled(shape, initial),), (4,))
