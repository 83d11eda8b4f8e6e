"""Every kernel agrees with its naive reference: both precisions, any number of samples."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from cases import CONVOLUTIONS, LARGE_CONVOLUTIONS, LARGE_POOLED_CONVOLUTIONS, POOLED_CONVOLUTIONS, POOLINGS, name_of
from recorded import run_layer

from parallelcnn import Conv2D, Dense
from parallelcnn.activations import ACTIVATIONS, find_activation
from parallelcnn.kernels import conv2d, dense, losses, maxpool2d, panels, pointwise, sgd
from parallelcnn.kernels.load import load
from parallelcnn.layers.conv2d import windows_of
from parallelcnn.layers.conv_algorithms import Direct, select
from parallelcnn.layers.maxpool2d import window_and_stride


def apply(name, y):
    """y = f(y)."""
    ACTIVATIONS[name].kernels()[0](y.reshape(y.size))


def apply_derivative(name, kept, dy):
    """dy = dy f'."""
    ACTIVATIONS[name].kernels()[1](np.ascontiguousarray(kept).reshape(dy.size), dy.reshape(dy.size))


TOLERANCE = {np.float32: {"rtol": 1e-4, "atol": 2e-4}, np.float64: {"rtol": 1e-12, "atol": 1e-12}}
DTYPES = pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)], ids=["float32", "float64"]
)
SAMPLES = pytest.mark.parametrize("n", [0, 1, 5, 37])  # 37: rows longer than a tile, and not whole vectors


class Recorded:
    """A step that runs each call at once."""

    def call(self, function, *arguments):
        function(*arguments)


@DTYPES
@pytest.mark.parametrize("n", [0, 1, 5, 2047, 2048, 4101])  # 2048 numbers are summed at a time
@pytest.mark.parametrize(
    "activation", ["identity", "relu", "gelu", lambda x: x * abs(x)], ids=["identity", "relu", "gelu", "own"]
)
def test_the_gradient_of_a_bias_is_the_sum_behind_the_derivative(activation, n, dtype, rng):
    function = find_activation(activation)
    kept, dy = rng.standard_normal((2, 3, 1, 1, n)).astype(dtype)
    wanted, dbias = dy.copy(), np.full(3, np.nan, dtype)
    function.record_backward(Recorded(), kept, wanted)
    function.record_backward(Recorded(), kept, dy, dbias)
    np.testing.assert_array_equal(dy, wanted)
    np.testing.assert_allclose(dbias, wanted.sum((1, 2, 3), np.float64), **TOLERANCE[dtype])


@DTYPES
@SAMPLES
@pytest.mark.parametrize(
    ("layer", "input_shape"), [*CONVOLUTIONS, *LARGE_CONVOLUTIONS, (Conv2D(16, 3), (6, 13, 13))], ids=name_of
)
def test_convolution_agrees_with_the_naive_loops(layer, input_shape, n, dtype, rng):
    ran = run_layer(layer, input_shape, n, dtype, rng)
    stride, padding = reference.stride_and_padding(layer, input_shape)
    weight = ran.params["weight"]
    bias = ran.params.get("bias", np.zeros(len(weight), dtype))
    wanted = reference.conv2d_forward(ran.x, weight, bias, stride, padding)
    dweight, dbias, dx = reference.conv2d_backward(ran.x, weight, ran.dy, stride, padding)
    np.testing.assert_allclose(ran.y, wanted, **TOLERANCE[dtype])
    np.testing.assert_allclose(ran.grads["weight"], dweight, **TOLERANCE[dtype])
    np.testing.assert_allclose(ran.dx, dx, **TOLERANCE[dtype])
    if layer.bias:
        np.testing.assert_allclose(ran.grads["bias"], dbias, **TOLERANCE[dtype])


@DTYPES
@SAMPLES
@pytest.mark.parametrize(("layer", "input_shape"), [*POOLED_CONVOLUTIONS, *LARGE_POOLED_CONVOLUTIONS], ids=name_of)
def test_a_convolution_with_its_pooling_in_one_pass_agrees_with_the_two_layers(layer, input_shape, n, dtype, rng):
    ran = run_layer(layer, input_shape, n, dtype, rng)
    convolution, pooling = layer.convolution, replace(layer.pooling, activation="identity")
    stride, padding = reference.stride_and_padding(convolution, input_shape)
    window, _ = window_and_stride(pooling)
    weight, bias = ran.params["weight"], ran.params.get("bias", np.zeros(convolution.filters, dtype))
    between = reference.conv2d_forward(ran.x, weight, bias, stride, padding)
    before, winner = reference.maxpool2d_forward(between, window, window)
    name = layer.pooling.activation
    np.testing.assert_allclose(ran.y, reference.activation(name, before), **TOLERANCE[dtype])

    dy = ran.dy.copy()
    apply_derivative(name, before if ACTIVATIONS[name].keeps_input else ran.y, dy)
    dbetween = reference.maxpool2d_backward(between.shape, dy, winner, window, window)
    dweight, dbias, dx = reference.conv2d_backward(ran.x, weight, dbetween, stride, padding)
    np.testing.assert_allclose(ran.dx, dx, **TOLERANCE[dtype])
    np.testing.assert_allclose(ran.grads["weight"], dweight, **TOLERANCE[dtype])
    if convolution.bias:
        np.testing.assert_allclose(ran.grads["bias"], dbias, **TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("layer", "input_shape", "padded"),
    [
        (Conv2D(32, 3, padding="same"), (3, 32, 32), True),
        (Conv2D(32, (3, 7), stride=(2, 1), padding=3), (3, 9, 32), True),
        (Conv2D(31, 3, padding="same"), (3, 32, 32), False),  # a forward pass would be slower
        (Conv2D(32, 3, padding="same"), (3, 32, 4), False),  # a fifth more products
        (Conv2D(32, 3), (3, 32, 32), False),
        (Conv2D(32, 3, padding=2, dilation=2), (3, 32, 32), False),
    ],
    ids=str,
)
def test_many_filters_take_an_image_with_zeros_around_its_columns(layer, input_shape, padded):
    x, y = (*input_shape, 8), (*layer.output_shape(input_shape), 8)
    weight = layer.parameters(input_shape)["weight"].shape
    algorithm = select(windows_of(layer, input_shape), weight, x, y, computed=y)
    assert isinstance(algorithm, Direct)
    assert algorithm.padded == padded


@DTYPES
@SAMPLES
def test_the_weight_gradient_of_a_first_layer_is_that_of_any_layer(n, dtype, rng):
    for layer, input_shape in [*POOLED_CONVOLUTIONS, *LARGE_POOLED_CONVOLUTIONS]:
        with_dx = run_layer(layer, input_shape, n, dtype, np.random.default_rng(1))
        without = run_layer(layer, input_shape, n, dtype, np.random.default_rng(1), wants_dx=False)
        for name, gradient in with_dx.grads.items():
            np.testing.assert_allclose(without.grads[name], gradient, **TOLERANCE[dtype], err_msg=str(layer))


@DTYPES
@pytest.mark.parametrize(("S", "stride", "top", "left"), [(3, 1, 0, 0), (3, 1, 1, 1), (5, 1, 4, 4), (3, 2, 1, 0)])
@pytest.mark.parametrize("n", [1, 7, 50])
def test_convolution_neither_reads_nor_writes_beside_its_arrays(S, stride, top, left, n, dtype, rng):
    C, K, H, W = 2, 9, 6, 8
    P, Q = (H + 2 * top - 3) // stride + 1, W + 2 * left - S + 1
    beside = 128
    x, y, dy = (surrounded(shape, beside, dtype) for shape in ((C, H, W * n), (K, P, Q * n), (K, P, Q * n)))
    x.inside[...], dy.inside[...] = rng.normal(size=x.inside.shape), rng.normal(size=dy.inside.shape)
    weight, bias = rng.normal(size=(K, C, 3, S)).astype(dtype), np.zeros(K, dtype)
    steps = (stride, top, left * n, W * n, n)
    packed = np.empty(conv2d.scratch_size(K, C, 3, S), dtype)
    conv2d.forward_kernel(S, 1, K)(x.inside, weight, bias, packed, *steps, y.inside)
    assert np.isfinite(y.inside).all()  # a number from beside x would have made it NaN
    assert np.isnan(y.outside).all()
    dweight = np.empty_like(weight)
    conv2d.weight_gradient_kernel(3, S, 1, K, C)(x.inside, dy.inside, np.empty(W * n, dtype), *steps, dweight)
    assert np.isfinite(dweight).all()


@DTYPES
@SAMPLES
@pytest.mark.parametrize(("units", "features"), [(1, 1), (5, 3), (6, 64), (10, 84), (13, 65), (84, 400), (131, 9000)])
def test_a_dense_layer_agrees_with_the_products_of_numpy(units, features, n, dtype, rng):
    for bias in (True, False):
        ran = run_layer(Dense(units, bias=bias), (features,), n, dtype, rng)
        weight = ran.params["weight"]
        np.testing.assert_allclose(
            ran.y, weight @ ran.x + (ran.params["bias"][:, np.newaxis] if bias else 0), **TOLERANCE[dtype]
        )
        np.testing.assert_allclose(ran.grads["weight"], ran.dy @ ran.x.T, **TOLERANCE[dtype])
        np.testing.assert_allclose(ran.dx, weight.T @ ran.dy, **TOLERANCE[dtype])
        if bias:
            np.testing.assert_allclose(ran.grads["bias"], ran.dy.sum(axis=1), **TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_dense_layer_neither_reads_nor_writes_beside_its_arrays(n, dtype, rng):
    units, features, beside = 7, 70, 128
    weight, x, y = (surrounded(shape, beside, dtype) for shape in ((units, features), (features, n), (units, n)))
    dweight, dy, dx = (surrounded(array.inside.shape, beside, dtype) for array in (weight, y, x))
    bias, dbias = surrounded((units,), beside, dtype), surrounded((units,), beside, dtype)
    panel = surrounded((n, dense.PANEL), beside, dtype)
    for read in (weight, x, dy, bias):
        read.inside[...] = rng.normal(size=read.inside.shape)
    dense.dense_forward(weight.inside, x.inside, bias.inside, False, y.inside)
    dense.dense_backward_params(dy.inside, x.inside, panel.inside, dweight.inside, dbias.inside)
    dense.dense_backward_input(weight.inside, dy.inside, panel.inside, dx.inside)
    for written in (y, dweight, dbias, dx):
        assert np.isfinite(written.inside).all()  # a number from beside what it reads would have made it NaN
    for array in (y, dweight, dbias, dx, panel):
        assert np.isnan(array.outside).all()


@DTYPES
@pytest.mark.parametrize("at_once", [0, 8, 16], ids=lambda at_once: f"{at_once} copied")
@pytest.mark.parametrize("length", [1, 7, 300])
def test_a_pointwise_convolution_neither_reads_nor_writes_beside_its_arrays(length, at_once, dtype, rng):
    C, K, beside = 5, 7, 128
    x, dx, y, dy = (surrounded((channels, length), beside, dtype) for channels in (C, C, K, K))
    weight, dweight, turned, sums = (surrounded(shape, beside, dtype) for shape in ((K, C), (K, C), (C, K), (2, K, C)))
    bias = surrounded((K,), beside, dtype)
    panel = surrounded(pointwise.panel_shape(np.dtype(dtype).itemsize), beside, dtype)
    columns, dcolumns = (surrounded((rows, at_once), beside, dtype) for rows in (C, K))
    for read in (x, dy, weight, bias):
        read.inside[...] = rng.normal(size=read.inside.shape)
    pointwise.pointwise_forward(x.inside, weight.inside, bias.inside, columns.inside, y.inside)
    pointwise.pointwise_weight_gradient(x.inside, dy.inside, panel.inside, sums.inside, dweight.inside)
    pointwise.pointwise_backward_input(dy.inside, weight.inside, turned.inside, dcolumns.inside, dx.inside)
    np.testing.assert_allclose(y.inside, weight.inside @ x.inside + bias.inside[:, np.newaxis], **TOLERANCE[dtype])
    np.testing.assert_allclose(dweight.inside, dy.inside @ x.inside.T, **TOLERANCE[dtype])
    np.testing.assert_allclose(dx.inside, weight.inside.T @ dy.inside, **TOLERANCE[dtype])
    for array in (y, dweight, dx, panel, sums, turned, columns, dcolumns):
        assert np.isnan(array.outside).all()


@DTYPES
@pytest.mark.parametrize(("size", "stride", "top", "left"), [(3, 2, 1, 1), (1, 3, 0, 0), (2, 2, 0, 1)])
@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_convolution_by_panels_neither_reads_nor_writes_beside_its_arrays(size, stride, top, left, n, dtype, rng):
    C, K, H, W, beside = 3, 5, 7, 6, 128
    P, Q = (H + 2 * top - size) // stride + 1, (W + 2 * left - size) // stride + 1
    x, dx = (surrounded((C, H, W, n), beside, dtype) for _ in range(2))
    y, dy = (surrounded((K, P, Q, n), beside, dtype) for _ in range(2))
    weight, dweight = (surrounded((K, C, size, size), beside, dtype) for _ in range(2))
    shapes = panels.scratch_shapes(weight.inside.shape, np.dtype(dtype).itemsize)
    scratch = {name: surrounded(shape, beside, dtype) for name, shape in shapes.items()}
    packed, panel, dy_panel, turned, sums = (
        scratch[name].inside for name in ("packed", "panel", "dy_panel", "dy_turned", "sums")
    )
    for read in (x, dy, weight):
        read.inside[...] = rng.normal(size=read.inside.shape)
    bias, windows = rng.normal(size=K).astype(dtype), (stride, top, stride, left)
    panels.forward_kernel(size, K)(x.inside, weight.inside, bias, packed, panel, windows, y.inside)
    panels.panels_weight_gradient(x.inside, dy.inside, panel, turned, sums, windows, dweight.inside)
    no_bias, kernel = np.empty(0, dtype), panels.backward_input_kernel(C * size * size)
    kernel(dy.inside, weight.inside, no_bias, packed, panel, dy_panel, windows, dx.inside)
    for written in (y, dweight, dx):
        assert np.isfinite(written.inside).all()  # a number from beside another array would have made it NaN
    for array in (y, dweight, dx, *scratch.values()):
        assert np.isnan(array.outside).all()


def surrounded(shape, beside, dtype):
    """An array of zeros with NaN before and behind it."""
    memory = np.full(np.prod(shape) + 2 * beside, np.nan, dtype)
    inside = memory[beside:-beside].reshape(shape)
    inside[...] = 0
    return SimpleNamespace(inside=inside, outside=np.r_[memory[:beside], memory[-beside:]])


@DTYPES
@SAMPLES
@pytest.mark.parametrize(("layer", "input_shape"), POOLINGS, ids=name_of)
def test_max_pooling_agrees_with_the_naive_loops(layer, input_shape, n, dtype, rng):
    ties = rng.integers(0, 3, size=(*input_shape, n))  # many equal numbers: the first must win
    for x in (None, ties):
        ran = run_layer(layer, input_shape, n, dtype, rng, x)
        window, stride = window_and_stride(layer)
        y, winner = reference.maxpool2d_forward(ran.x, window, stride)
        np.testing.assert_array_equal(ran.y, y)
        dx = reference.maxpool2d_backward(ran.x.shape, ran.dy, winner, window, stride)
        np.testing.assert_allclose(ran.dx, dx, **TOLERANCE[dtype])


@DTYPES
def test_max_pooling_does_not_lose_a_nan(dtype):
    for place in range(4):
        x = np.array([1, 2, 3, 4], dtype)
        x[place] = np.nan
        y, winner = np.empty((1, 1, 1, 1), dtype), np.empty((1, 1, 1, 1), np.uint8)
        maxpool2d.forward_kernel(2, 2)(x.reshape(1, 2, 2, 1), 2, 2, y, winner)
        assert np.isnan(y).all()


@DTYPES
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_agrees_with_its_definition_and_survives_large_inputs(name, dtype):
    moderate = np.linspace(-8, 8, 101, dtype=dtype)
    y = moderate.copy()
    apply(name, y)
    np.testing.assert_allclose(y, reference.activation(name, moderate), rtol=1e-5, atol=1e-6)

    large = np.array([-3e4, -200, 200, 3e4], dtype)
    y, dy = large.copy(), np.ones_like(large)
    apply(name, y)
    apply_derivative(name, large if ACTIVATIONS[name].keeps_input else y, dy)
    assert np.isfinite(y).all()
    assert np.isfinite(dy).all()
    slope = {"relu6": 0, "selu": 1.0507009873554805}.get(name, 1 if y[3] > 1 else 0)
    np.testing.assert_allclose(dy[2:], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "identity"])
def test_an_activation_does_not_lose_a_nan(name):
    y = np.array([np.nan, 1.0], np.float32)
    with np.errstate(invalid="ignore"):
        apply(name, y)
    assert np.isnan(y[0])
    assert not np.isnan(y[1])


@DTYPES
@SAMPLES
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_softmax_cross_entropy_agrees_with_its_definition(classes, n, dtype, rng):
    logits = (10 * rng.normal(size=(classes, n))).astype(dtype)
    labels = rng.integers(0, classes, n)
    dlogits = np.full_like(logits, 7)
    total = losses.softmax_cross_entropy(logits, labels, 11, dlogits, None)
    wanted, dwanted = reference.softmax_cross_entropy(logits.astype(np.float64), labels, 11)
    np.testing.assert_allclose(total, wanted, **TOLERANCE[dtype])
    np.testing.assert_allclose(dlogits, dwanted, **TOLERANCE[dtype])

    probabilities = np.empty((n, classes), dtype)
    losses.softmax(logits, probabilities)
    np.testing.assert_allclose(probabilities.T, reference.softmax(logits), **TOLERANCE[dtype])
    assert losses.count_correct(logits, labels) == np.sum(logits.argmax(0) == labels)


@DTYPES
def test_softmax_cross_entropy_of_huge_logits_is_finite(dtype):
    logits = np.array([[3e4], [-3e4]], dtype)
    dlogits = np.empty_like(logits)
    assert losses.softmax_cross_entropy(logits, np.array([1]), 1, dlogits, None) == pytest.approx(6e4)
    np.testing.assert_allclose(dlogits, [[1], [-1]])


def test_a_nan_logit_makes_the_loss_nan_and_no_answer_right():
    logits = np.array([[np.nan, 2.0], [1.0, 1.0]], np.float32)
    labels = np.array([0, 0])
    with np.errstate(invalid="ignore"):
        assert np.isnan(losses.softmax_cross_entropy(logits, labels, 1, np.empty_like(logits), None))
        assert losses.count_correct(logits, labels) == 1


@DTYPES
@SAMPLES
def test_mean_squared_error_agrees_with_its_definition(n, dtype, rng):
    outputs = rng.normal(size=(3, n)).astype(dtype)
    targets = rng.normal(size=(n, 3)).astype(dtype)
    labels = rng.integers(0, 3, n)
    for kernel, given, onehot in (
        (losses.mean_squared_error, targets, targets),
        (losses.mean_squared_error_onehot, labels, np.eye(3, dtype=dtype)[labels]),
    ):
        doutputs = np.full_like(outputs, 7)
        total = kernel(outputs, given, 11, doutputs, None)
        wanted, dwanted = reference.mean_squared_error(outputs, onehot, 11)
        np.testing.assert_allclose(total, wanted, **TOLERANCE[dtype])
        np.testing.assert_allclose(doutputs, dwanted, **TOLERANCE[dtype])


@SAMPLES
@pytest.mark.parametrize("features", [1, 15, 16, 17, 50])
def test_load_gathers_scales_and_transposes(features, n, rng):
    indices = rng.integers(0, 9, n)
    for dtype in (np.uint8, np.float32):
        images = rng.integers(0, 256, size=(9, features)).astype(dtype)
        x = np.full((features, n), 7, np.float32)
        load(images, indices, np.float32(1 / 255), x)
        np.testing.assert_array_equal(x, reference.load(images, indices, np.float32(1 / 255)))


@DTYPES
def test_sgd_takes_the_step_of_its_formula(dtype, rng):
    p, g, v = (rng.normal(size=7).astype(dtype) for _ in range(3))
    rate, decay, momentum = dtype(0.1), dtype(0.01), dtype(0.9)
    parts = np.array([[0, 3, 1], [3, 4, 0], [4, 7, 1]])
    params, decays = p.copy(), np.array([1, 1, 1, 0, 1, 1, 1], dtype)
    sgd.sgd(params, g, parts, rate, decay)
    np.testing.assert_allclose(params, p - rate * (g + decay * decays * p), rtol=1e-6)
    for nesterov in (False, True):
        params, velocity = p.copy(), v.copy()
        sgd.sgd_momentum(params, g, velocity, parts, rate, decay, momentum, nesterov)
        gradient = g + decay * decays * p
        wanted = momentum * v + gradient
        np.testing.assert_allclose(velocity, wanted, rtol=1e-6)
        step = gradient + momentum * wanted if nesterov else wanted
        np.testing.assert_allclose(params, p - rate * step, rtol=1e-5)


_COUNT_SIGNATURES = """
import numpy as np
import parallelcnn as pc
from parallelcnn.kernels import _activation_functions as functions
from parallelcnn.kernels import activations, conv2d, dense, losses, maxpool2d, sgd
from parallelcnn.kernels.load import load

rng = np.random.default_rng(0)
dataset = pc.Dataset(rng.integers(0, 256, (30, 11, 11), dtype=np.uint8), rng.integers(0, 10, 30), 10)
layers = (
    pc.Conv2D(3, 3, activation="relu"),
    pc.MaxPool2D(2),
    pc.Conv2D(4, 3, padding="same", activation="relu"),
    pc.Flatten(),
    pc.Dense(10),
)
network = pc.NetworkHandler(layers, (1, 11, 11))
pc.train(network, dataset, dataset, pc.SGD(0.1, momentum=0.5), 2, 7)
pc.evaluate(network, dataset)
for kernel in (
    conv2d.forward_kernel(3, 1, 4),
    conv2d.weight_gradient_kernel(3, 3, 1, 4, 3),
    conv2d.pooled_forward_kernel(3, 1, 3, 2, 2),
    conv2d.pooled_weight_gradient_kernel(3, 3, 1, 3, 2, 2),
    dense.dense_forward,
    dense.dense_backward_params,
    dense.dense_backward_input,
    losses.softmax_cross_entropy,
    losses.count_correct,
    load,
    sgd.sgd_momentum,
    activations.builtin_kernels(functions.relu, functions.relu_derivative_of_output)[0],
    activations.backward_sums_kernel(functions.relu, functions.relu_derivative_of_output),
):
    assert len(kernel.signatures) == 1, (kernel, kernel.signatures)
"""


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")
def test_training_compiles_each_kernel_for_one_kind_of_array_only():
    """A second kind would be an array that is not contiguous, or of the wrong type, on a slow path."""
    subprocess.run([sys.executable, "-c", _COUNT_SIGNATURES], check=True, timeout=120)
