"""Pooling, padding, upsampling and reshaping, against PyTorch and numpy, and in networks and files."""

import math

import cases
import numpy as np
import pytest
import small
import traced
from recorded import record, run_layer

import parallelcnn as pc
from parallelcnn.errors import ShapeError
from parallelcnn.fusions import PooledConv2D, fuse

LAYERS = [*cases.PADDED_POOLINGS, *cases.AVERAGE_POOLINGS, *cases.RESHAPING]


def in_pytorch(layer):
    """The same layer in PyTorch, a function of (n, *input_shape)."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functions = torch.nn.functional
    if isinstance(layer, pc.MaxPool2D):
        pool = torch.nn.MaxPool2d(layer.pool_size, layer.stride, layer.padding)
        return (lambda x: torch.tanh(pool(x))) if layer.activation == "tanh" else pool
    if isinstance(layer, pc.AvgPool2D):
        return torch.nn.AvgPool2d(
            layer.pool_size, layer.stride, layer.padding, count_include_pad=layer.count_include_pad
        )
    if isinstance(layer, pc.ZeroPad2D):
        rows, columns = np.broadcast_to(
            np.array(layer.padding).reshape(-1, 1 if np.ndim(layer.padding) < 2 else 2), (2, 2)
        )
        return lambda x: functions.pad(x, (*columns.tolist(), *rows.tolist()))
    if isinstance(layer, pc.Upsample2D):
        return torch.nn.Upsample(scale_factor=layer.size)
    if isinstance(layer, pc.Reshape):
        return lambda x: x.reshape(-1, *layer.shape)
    return {
        pc.GlobalAvgPool2D: lambda x: functions.adaptive_avg_pool2d(x, 1).flatten(1),
        pc.GlobalMaxPool2D: lambda x: functions.adaptive_max_pool2d(x, 1).flatten(1),
    }[type(layer)]


def output_and_gradient(layer, x, dy):
    """PyTorch's y and dx, samples last."""
    import torch

    def first(array):
        return torch.tensor(np.moveaxis(array, -1, 0).copy())

    x = first(x).requires_grad_()
    y = in_pytorch(layer)(x)
    y.backward(first(dy))
    return np.moveaxis(y.detach().numpy(), 0, -1), np.moveaxis(x.grad.numpy(), 0, -1)


@pytest.mark.parametrize(("layer", "input_shape"), LAYERS, ids=cases.name_of)
def test_output_and_gradient_are_those_of_pytorch(layer, input_shape, rng):
    in_pytorch(layer)
    ran = run_layer(layer, input_shape, 5, np.float64, rng)
    y, dx = output_and_gradient(layer, ran.x, ran.dy)
    np.testing.assert_allclose(ran.y, y, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ran.dx, dx, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (pc.MaxPool2D(3, stride=2, padding=1), (3, 13, 12)),
        (pc.AvgPool2D(3, stride=2, padding=1, count_include_pad=False), (3, 13, 12)),
        (pc.GlobalAvgPool2D(), (3, 13, 12)),
        (pc.GlobalMaxPool2D(), (3, 13, 12)),
        (pc.ZeroPad2D(((1, 2), (3, 0))), (3, 4, 5)),
        (pc.Upsample2D(3), (3, 4, 5)),
    ],
    ids=cases.name_of,
)
@pytest.mark.parametrize("n", [1, 37])
def test_the_same_holds_in_float32_for_any_number_of_samples(layer, input_shape, n, rng):
    in_pytorch(layer)
    ran = run_layer(layer, input_shape, n, np.float32, rng)
    y, dx = output_and_gradient(layer, ran.x, ran.dy)
    np.testing.assert_allclose(ran.y, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ran.dx, dx, rtol=1e-5, atol=1e-6)


def naive_max(layer, x, dy):
    """(y, dx) of a padded max-pooling; the first of equals wins."""
    window, stride, padding = (np.broadcast_to(one, 2) for one in (layer.pool_size, layer.stride, layer.padding))
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for c, p, q, i in np.ndindex(y.shape):
        top, left = np.array((p, q)) * stride - padding
        rows = range(max(top, 0), min(top + window[0], x.shape[1]))
        places = [(h, w) for h in rows for w in range(max(left, 0), min(left + window[1], x.shape[2]))]
        h, w = max(places, key=lambda place: x[c, *place, i])
        y[c, p, q, i] = x[c, h, w, i]
        dx[c, h, w, i] += dy[c, p, q, i]
    return y, dx


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (pc.MaxPool2D(3, stride=2, padding=1), (2, 7, 8)),
        (pc.MaxPool2D(3, stride=1, padding=1), (2, 4, 5)),
        (pc.MaxPool2D(2, stride=2, padding=1), (2, 5, 4)),
        (pc.MaxPool2D(9, stride=4, padding=4), (1, 8, 6)),
    ],
    ids=cases.name_of,
)
@pytest.mark.parametrize("values", [(-3, -2, -1), (-np.inf, -1), (-np.inf,)], ids=str)
def test_padding_never_wins_and_of_equal_numbers_the_first_does(layer, input_shape, values, rng):
    x = rng.choice(np.array(values, float), size=(*input_shape, 5))
    ran = run_layer(layer, input_shape, 5, np.float64, rng, x)
    y, dx = naive_max(layer, ran.x, ran.dy)
    np.testing.assert_array_equal(ran.y, y)
    np.testing.assert_allclose(ran.dx, dx, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 2), (4, 4), (4, 1)], ids=str)
def test_padded_max_pooling_does_not_lose_a_nan(place, rng):
    x = rng.normal(size=(1, 5, 5, 3))
    x[0, *place, 1] = np.nan
    ran = run_layer(pc.MaxPool2D(3, stride=1, padding=1), (1, 5, 5), 3, np.float64, rng, x)
    near = [[abs(p - place[0]) <= 1 and abs(q - place[1]) <= 1 for q in range(5)] for p in range(5)]
    np.testing.assert_array_equal(np.isnan(ran.y[0, ..., 1]), near)
    assert not np.isnan(ran.y[..., [0, 2]]).any()
    assert ran.dx[0, *place, 1] == pytest.approx(ran.dy[0, ..., 1][near].sum())


@pytest.mark.parametrize("place", [(0, 0), (3, 8), (8, 8)], ids=str)
def test_global_max_pooling_does_not_lose_a_nan(place, rng):
    x = rng.normal(size=(2, 9, 9, 3))
    x[1, *place, 2] = np.nan
    ran = run_layer(pc.GlobalMaxPool2D(), (2, 9, 9), 3, np.float64, rng, x)
    assert np.argwhere(np.isnan(ran.y)).tolist() == [[1, 2]]
    assert ran.dx[1, *place, 2] == ran.dy[1, 2]


def test_global_max_pooling_gives_the_gradient_to_the_first_of_equal_numbers(rng):
    for shape in ((2, 3), (9, 9)):
        ran = run_layer(pc.GlobalMaxPool2D(), (2, *shape), 3, np.float64, rng, np.ones((2, *shape, 3)))
        np.testing.assert_array_equal(ran.dx[:, 0, 0], ran.dy)
        assert np.count_nonzero(ran.dx) == ran.dy.size


def test_a_mean_of_many_numbers_is_rounded_little(rng):
    """One sum after the other would be wrong by about 1e-5 here."""
    x = (1000 + rng.normal(size=(1, 300, 200, 3))).astype(np.float32)
    for layer in (pc.GlobalAvgPool2D(), pc.AvgPool2D((300, 200))):
        ran = run_layer(layer, (1, 300, 200), 3, np.float32, rng, x)
        np.testing.assert_allclose(ran.y.reshape(3), x.mean((0, 1, 2), dtype=np.float64), rtol=2e-6)


def test_a_mean_counts_the_zeros_of_the_padding_or_not():
    for counts, corner in ((True, 4 / 9), (False, 1)):
        layer = pc.AvgPool2D(3, padding=1, count_include_pad=counts)
        ran = run_layer(layer, (1, 3, 3), 1, np.float64, np.random.default_rng(0), np.ones((1, 3, 3, 1)))
        assert ran.y.item() == pytest.approx(corner)


def test_padded_pooling_is_not_fused_with_a_convolution():
    convolution = pc.Conv2D(3, 3, activation="relu")
    for padding in (1, (0, 1)):
        assert len(fuse((convolution, pc.MaxPool2D(2, padding=padding)), training=True)) == 2
        with pytest.raises(ShapeError, match=r"windows side by side, without padding"):
            PooledConv2D(pc.Conv2D(3, 3), pc.MaxPool2D(2, padding=padding))
    for padding in (0, (0, 0)):
        assert len(fuse((convolution, pc.MaxPool2D(2, padding=padding)), training=True)) == 1


def test_without_padding_max_pooling_runs_as_it_did():
    """One kernel for all windows, on contiguous arrays."""
    arrays = []
    for padding, calls in ((0, 1), (1, 2)):
        tape = record(pc.MaxPool2D(2, padding=padding), (2, 4, 4), 3).tape
        assert [len(tape.forward_parts[0]), len(tape.backward_parts[0])] == [calls, calls]
        parts = (*tape.forward_parts[0], *tape.backward_parts[0])
        arrays.append([value for call in parts for value in call.args if isinstance(value, np.ndarray)])
    assert all(array.flags.c_contiguous for array in arrays[0])
    assert not all(array.flags.c_contiguous for array in arrays[1])


def test_reshape_copies_nothing():
    for layer, shape in ((pc.Reshape((6, 4)), (2, 3, 4)), (pc.Reshape([2, 3, 4]), (24,))):
        tape = record(layer, shape, 3).tape
        assert not [call for part in (*tape.forward_parts, *tape.backward_parts) for call in part]
        assert tape.y.ctypes.data == tape.x.ctypes.data
        assert tape.dx.ctypes.data == tape.dy.ctypes.data


EVERYTHING = (
    pc.Dense(99),
    pc.Reshape((3, 11, 3)),
    pc.ZeroPad2D(((0, 1), (2, 0))),
    pc.MaxPool2D(3, stride=2, padding=(1, 0), activation="relu"),
    pc.Dropout(0.25),
    pc.MaxPool2D(2, padding=1),
    pc.SpatialDropout(0.5),
    pc.Upsample2D((2, 1)),
    pc.AvgPool2D(3, stride=1, padding=1, count_include_pad=False),
    pc.Residual((pc.GlobalMaxPool2D(), pc.Dense(48), pc.Reshape((3, 8, 2)), pc.Dropout(0.1))),
    pc.GlobalAvgPool2D(),
    pc.Dense(5),
)


def test_a_model_file_keeps_every_argument(tmp_path, rng):
    network = pc.NetworkHandler(EVERYTHING, (7,), dtype=np.float64)
    pc.save_model(tmp_path / "model.npz", network)
    again = pc.load_model(tmp_path / "model.npz")
    assert again.layers == EVERYTHING
    images = rng.random((9, 7))
    np.testing.assert_array_equal(again.predict(images), network.predict(images))


def test_the_gradient_of_a_network_of_all_of_them_is_the_derivative_of_its_loss(rng):
    """Neighbouring layers overwrite each other's arrays where a layer names an array in no call."""
    network = pc.NetworkHandler(EVERYTHING, (7,), dtype=np.float64)
    x, dy = rng.normal(size=(7, 6)), rng.normal(size=(5, 6))
    network.forward(x, training=True)
    network.gradients[...] = math.nan
    network.backward(dy.copy())
    for i in rng.choice(network.params.size, 60, replace=False):
        values = []
        for step in (1e-6, -2e-6):
            network.params[i] += step
            values.append(np.sum(dy * network.forward(x, training=True)))
        network.params[i] += 1e-6
        assert network.gradients[i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_a_step_allocates_no_memory_for_numbers():
    """As in test_allocations, where an array with one byte for each sample would be seen."""
    samples = 4097
    layers = (
        pc.ZeroPad2D(1),
        pc.Dropout(0.1),
        pc.MaxPool2D(3, stride=2, padding=1),
        pc.Residual((pc.AvgPool2D(3, stride=1, padding=1), pc.SpatialDropout(0.5))),
        pc.Upsample2D((1, 2)),
        pc.GlobalAvgPool2D(),
        pc.Dense(5),
    )
    network = pc.NetworkHandler((pc.Flatten(), pc.Dense(99), pc.Reshape((1, 11, 9)), *layers), (1, 11, 9))
    network.replica.block_size = samples
    steps = traced.TracedSteps()
    sets = small.dataset(3 * samples), small.dataset(9)
    pc.train(network, *sets, pc.SGD(0.1), 2, samples, comm=pc.Serial(), callbacks=[steps], verbose=0)
    assert steps.steps == 2
    assert steps.peak <= 4096


@pytest.mark.parametrize(
    ("good", "make", "name"),
    [
        (pc.MaxPool2D(2), lambda: pc.MaxPool2D(2.0), "pool_size"),
        (pc.AvgPool2D(3, 1), lambda: pc.AvgPool2D(3, True), "stride"),
        (pc.DepthwiseConv2D(3), lambda: pc.DepthwiseConv2D(3.0), "kernel_size"),
    ],
)
def test_a_layer_that_equals_one_that_was_checked_is_checked_too(good, make, name):
    """2.0 == 2: a file with such a layer could not be loaded in another process."""
    good.output_shape((2, 9, 9))
    with pytest.raises(ShapeError, match=f"{name} must be a positive integer, got"):
        make()
