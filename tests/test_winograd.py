"""Winograd's kernels compute what the direct ones do, and are taken where they pay."""

import numpy as np
import pytest
import reference
from test_kernels import DTYPES, SAMPLES, TOLERANCE, run_layer, surrounded

from parallelcnn import Conv2D, MaxPool2D
from parallelcnn.fusions import PooledConv2D
from parallelcnn.kernels import conv2d, winograd
from parallelcnn.layers.conv2d import windows_of
from parallelcnn.layers.conv_algorithms import Winograd, select

# (filters, channels), (rows, columns) of the image, zeros (above, left); below and on the right one more, or less
CASES = [
    ((1, 1), (3, 3), (0, 0)),
    ((5, 2), (4, 4), (1, 1)),
    ((9, 7), (5, 6), (1, 0)),  # squares partly outside the output
    ((17, 13), (4, 3), (2, 2)),  # filters in blocks that overlap, and not whole vectors
    ((33, 6), (1, 2), (1, 3)),  # windows that see nothing but zeros
]


@pytest.mark.slow
@DTYPES
@SAMPLES
@pytest.mark.parametrize(("weight", "image", "before"), CASES)
def test_winograds_convolution_agrees_with_the_naive_loops(weight, image, before, n, dtype, rng):
    (K, C), (H, W), (top, left) = weight, image, before
    bottom, right = max(top, 2 - top), max(left, 2 - left)
    x, weight = rng.normal(size=(C, H, W, n)).astype(dtype), rng.normal(size=(K, C, 3, 3)).astype(dtype)
    bias = rng.normal(size=K).astype(dtype)
    y = np.full((K, H + top + bottom - 2, W + left + right - 2, n), 7, dtype)
    memory = np.full(winograd.memory_size(K, C), np.nan, dtype)
    winograd.forward_kernel(K)(x, weight, bias, memory, top, left, y)
    padding = (top, bottom, left, right)
    np.testing.assert_allclose(y, reference.conv2d_forward(x, weight, bias, (1, 1), padding), **TOLERANCE[dtype])

    dy, dweight = rng.normal(size=y.shape).astype(dtype), np.full_like(weight, 7)
    memory[:] = np.nan
    winograd.weight_gradient_kernel(K, C)(x, dy, memory, top, left, dweight)
    wanted, _, _ = reference.conv2d_backward(x, weight, dy, (1, 1), padding)
    np.testing.assert_allclose(dweight, wanted, **TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("n", [1, 7, 50])
def test_winograds_convolution_neither_reads_nor_writes_beside_its_arrays(n, dtype, rng):
    K, C, P, Q, beside = 9, 7, 5, 7, 2000
    x, y, dy = (surrounded(shape, beside, dtype) for shape in ((C, P, Q, n), (K, P, Q, n), (K, P, Q, n)))
    x.inside[...], dy.inside[...] = rng.normal(size=x.inside.shape), rng.normal(size=dy.inside.shape)
    weight, no_bias = rng.normal(size=(K, C, 3, 3)).astype(dtype), np.empty(0, dtype)
    memory = surrounded((winograd.memory_size(K, C),), beside, dtype)
    winograd.forward_kernel(K)(x.inside, weight, no_bias, memory.inside, 1, 1, y.inside)
    assert np.isfinite(y.inside).all()  # a number from beside x would have made it NaN
    assert np.isnan(y.outside).all()
    dweight = np.empty_like(weight)
    winograd.weight_gradient_kernel(K, C)(x.inside, dy.inside, memory.inside, 1, 1, dweight)
    assert np.isfinite(dweight).all()
    assert np.isnan(memory.outside).all()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 32, 256])
def test_winograds_convolution_is_nearly_as_exact_as_the_direct_one(channels, rng):
    """The bounds are those in the documentation. With the usual points of interpolation, both are exceeded."""
    K, C, size, n = 32, channels, 8, 16
    x, weight = rng.normal(size=(C, size, size, n)), rng.normal(size=(K, C, 3, 3))
    dy, bias = rng.normal(size=(K, size, size, n)), np.zeros(K)
    errors = {}
    for name in ("direct", "winograd"):
        results = []
        for dtype in (np.float64, np.float32):
            x_, weight_, dy_, bias_ = (array.astype(dtype) for array in (x, weight, dy, bias))
            y, dweight = np.empty_like(dy_), np.empty_like(weight_)
            if name == "winograd":
                memory = np.empty(winograd.memory_size(K, C), dtype)
                winograd.forward_kernel(K)(x_, weight_, bias_, memory, 1, 1, y)
                winograd.weight_gradient_kernel(K, C)(x_, dy_, memory, 1, 1, dweight)
            else:
                x_, dy_, y_ = (array.reshape(len(array), size, size * n) for array in (x_, dy_, y))
                memory, steps = np.empty(conv2d.packed_size(K, C, 3, 3), dtype), (1, 1, n, 0, n)
                conv2d.forward_kernel(3, 1, K)(x_, weight_, bias_, memory, *steps, y_)
                zeros = np.empty(size * n, dtype)
                conv2d.weight_gradient_kernel(3, 3, 1, K, C)(x_, dy_, zeros, *steps, dweight)
            results.append((y, dweight))
        errors[name] = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(*results, strict=True)]
    assert errors["winograd"][0] < 2.5 * errors["direct"][0]
    assert max(errors["winograd"]) < 1.8e-6


@pytest.mark.parametrize(
    ("layer", "input_shape", "n", "pays"),
    [
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 32, True),
        (Conv2D(64, 3), (32, 9, 9), 48, True),
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 1, False),  # vectors nearly empty
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 0, False),
        (Conv2D(64, 3), (64, 3, 3), 32, False),  # squares mostly outside the output
        (Conv2D(16, 3, padding="same"), (16, 32, 32), 32, True),
        (Conv2D(16, 3, padding="same"), (16, 9, 9), 32, False),
        (Conv2D(16, 3), (6, 13, 13), 50, False),  # the paper's network: transforms cost more than they save
        (Conv2D(64, 3, padding="same"), (3, 32, 32), 32, False),
        (Conv2D(64, 3, padding="same", stride=2), (64, 8, 8), 32, False),
        (Conv2D(64, 5, padding="same"), (64, 8, 8), 32, False),
        (Conv2D(64, (3, 1), padding="same"), (64, 8, 8), 32, False),
    ],
)
def test_a_convolution_of_many_channels_takes_winograds_way(layer, input_shape, n, pays):
    x, y = (*input_shape, n), (*layer.output_shape(input_shape), n)
    if winograd.VECTOR_BYTES == 64:  # in narrower vectors fewer samples waste less
        weight = layer.parameters(input_shape)["weight"].shape
        algorithm = select(windows_of(layer, input_shape), weight, x, y, computed=y)
        assert isinstance(algorithm, Winograd) == pays


@DTYPES
@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(33, 3, padding="same", activation="softplus"),
        Conv2D(32, 3, padding=2, bias=False),
        PooledConv2D(Conv2D(33, 3, padding="same"), MaxPool2D(2, activation="relu")),
        PooledConv2D(Conv2D(33, 3), MaxPool2D(2)),
    ],
    ids=str,
)
def test_a_layer_gives_the_same_whichever_way_it_takes(layer, dtype, monkeypatch):
    def run():
        return run_layer(layer, (32, 7, 8), 47, dtype, np.random.default_rng(0))

    calls = []
    kernel = winograd.forward_kernel
    monkeypatch.setattr(winograd, "forward_kernel", lambda filters: calls.append(filters) or kernel(filters))
    taken = run()
    assert calls == 2 * [len(taken.params["weight"]), 32]  # forward and input gradient, recorded twice
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    direct = run()
    tolerance = TOLERANCE[dtype] if dtype == np.float64 else {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(taken.y, direct.y, **tolerance)
    np.testing.assert_allclose(taken.dx, direct.dx, **tolerance)
    for name, gradient in direct.grads.items():
        np.testing.assert_allclose(taken.grads[name], gradient, **tolerance)
