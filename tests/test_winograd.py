"""Winograd's kernels compute what the direct ones do, and are taken where they pay."""

import numpy as np
import pytest
import reference
from test_kernels import DTYPES, SAMPLES, TOLERANCE, run_layer, surrounded

from parallelcnn import Conv2D, MaxPool2D
from parallelcnn.fusions import PooledConv2D
from parallelcnn.kernels import winograd
from parallelcnn.layers.conv2d import windows_of
from parallelcnn.layers.conv_algorithms import Winograd, select

# (filters, channels), (rows, columns) of the image, zeros (above, left); below and on the right as many, or as many as
# keep the size
CASES = [
    ((1, 1), (3, 3), (0, 0)),
    ((5, 2), (4, 4), (1, 1)),
    ((9, 7), (5, 6), (1, 0)),  # squares partly outside the output
    ((17, 13), (4, 3), (2, 2)),  # filters in blocks that overlap, and not whole vectors
    ((33, 6), (1, 2), (1, 3)),  # 3 x 3 windows that see nothing but zeros
    ((9, 3), (4, 5), (5, 6)),  # the same for 5 x 5; the input gradient leaves out rows and columns of dy
    ((3, 9), (11, 18), (1, 0)),  # several squares along both axes
    ((4, 3), (9, 12), (8, 16)),  # with stride 2, two squares meet in the first row and column of the image
]


WINDOWS = pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 1)])


def check(weight, image, before, taps, stride, n, dtype, rng):
    (K, C), (H, W), (top, left) = weight, image, before
    bottom, right = max(top, taps - 1 - top), max(left, taps - 1 - left)
    x, weight = rng.normal(size=(C, H, W, n)).astype(dtype), rng.normal(size=(K, C, taps, taps)).astype(dtype)
    bias = rng.normal(size=K).astype(dtype)
    P, Q = (H + top + bottom - taps) // stride + 1, (W + left + right - taps) // stride + 1
    y = np.full((K, P, Q, n), 7, dtype)
    memory = np.full(winograd.memory_size(K, C, taps, stride), np.nan, dtype)
    winograd.forward_kernel(K, C, taps, stride)(x, weight, False, bias, memory, top, left, y)
    strides, padding = (stride, stride), (top, bottom, left, right)
    np.testing.assert_allclose(y, reference.conv2d_forward(x, weight, bias, strides, padding), **TOLERANCE[dtype])

    dy, dweight = rng.normal(size=y.shape).astype(dtype), np.full_like(weight, 7)
    memory[:] = np.nan
    winograd.weight_gradient_kernel(K, C, taps, stride)(x, dy, memory, top, left, dweight)
    wanted, _, wanted_dx = reference.conv2d_backward(x, weight, dy, strides, padding)
    np.testing.assert_allclose(dweight, wanted, **TOLERANCE[dtype])

    dx = np.full_like(x, 7)
    memory[:] = np.nan
    if stride == 2:
        winograd.backward_input_kernel(K, C)(dy, weight, memory, top, left, dx)
    else:
        no_bias = np.empty(0, dtype)
        zeros_before = taps - 1 - top, taps - 1 - left
        winograd.forward_kernel(C, K, taps, 1)(dy, weight, True, no_bias, memory, *zeros_before, dx)
    np.testing.assert_allclose(dx, wanted_dx, **TOLERANCE[dtype])


@pytest.mark.slow
@DTYPES
@SAMPLES
@WINDOWS
@pytest.mark.parametrize(("weight", "image", "before"), CASES)
def test_winograds_convolution_agrees_with_the_naive_loops(weight, image, before, taps, stride, n, dtype, rng):
    check(weight, image, before, taps, stride, n, dtype, rng)


@pytest.mark.slow
@WINDOWS
def test_the_last_block_of_a_group_may_overlap_the_one_before_it(taps, stride, rng):
    """In float64 only: the tolerance of float32 is too small for sums over so many channels."""
    filters, channels = 70, 158
    side = winograd.TRANSFORMS[taps, stride].side
    blocks = winograd._blocks(filters, channels, side)
    assert blocks.group > 1
    assert filters % blocks.KB
    assert channels % winograd._blocks(channels, filters, side).KB
    check((filters, channels), (9, 4), (1, 1), taps, stride, 5, np.float64, rng)


@WINDOWS
@pytest.mark.parametrize("n", [2, 4, 6, 20, 50])
def test_samples_left_over_of_several_squares_share_a_vector(taps, stride, n, rng):
    outputs = winograd.TRANSFORMS[taps, stride].outputs
    for rows, columns in ((5 * stride, 7 * stride), (3, 6)):  # squares in groups of several sizes
        check((5, 3), (rows * outputs, columns * outputs + 1), (1, 1), taps, stride, n, np.float32, rng)


@DTYPES
@WINDOWS
@pytest.mark.parametrize("n", [1, 7, 50])
def test_winograds_convolution_neither_reads_nor_writes_beside_its_arrays(n, taps, stride, dtype, rng):
    K, C, H, W, beside = 9, 7, 5, 7, 2000
    P, Q = -(-H // stride), -(-W // stride)
    x, dx, y, dy = (surrounded(shape, beside, dtype) for shape in 2 * [(C, H, W, n)] + 2 * [(K, P, Q, n)])
    x.inside[...], dy.inside[...] = rng.normal(size=x.inside.shape), rng.normal(size=dy.inside.shape)
    weight, no_bias = rng.normal(size=(K, C, taps, taps)).astype(dtype), np.empty(0, dtype)
    memory, before = surrounded((winograd.memory_size(K, C, taps, stride),), beside, dtype), 2 * [taps // 2]
    winograd.forward_kernel(K, C, taps, stride)(x.inside, weight, False, no_bias, memory.inside, *before, y.inside)
    assert np.isfinite(y.inside).all()  # a number from beside x would have made it NaN
    assert np.isnan(y.outside).all()
    dweight = np.empty_like(weight)
    winograd.weight_gradient_kernel(K, C, taps, stride)(x.inside, dy.inside, memory.inside, *before, dweight)
    assert np.isfinite(dweight).all()
    if stride == 2:
        winograd.backward_input_kernel(K, C)(dy.inside, weight, memory.inside, 1, 1, dx.inside)
        assert np.isfinite(dx.inside).all()
        assert np.isnan(dx.outside).all()
    assert np.isnan(memory.outside).all()


@pytest.mark.slow
@WINDOWS
@pytest.mark.parametrize("channels", [16, 32, 256])
def test_winograds_convolution_is_nearly_as_exact_as_the_direct_one(channels, taps, stride, monkeypatch):
    """The bounds are those in the documentation. With the usual points of interpolation, both are exceeded."""
    K, C, size, n = 32, channels, 8, 16
    layer = Conv2D(K, taps, stride=stride, padding=taps // 2, bias=False)
    errors = {}
    for way in (True, False):
        monkeypatch.setattr(winograd, "pays", lambda *_, way=way: way)
        runs = [
            run_layer(layer, (C, size, size), n, dtype, np.random.default_rng(0)) for dtype in (np.float32, np.float64)
        ]
        errors[way] = [
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(*((run.y, run.dx, run.grads["weight"]) for run in runs), strict=True)
        ]
    for ours, direct in zip(errors[True][:2], errors[False][:2], strict=True):
        assert ours < 3 * direct
    assert max(errors[True]) < 1.8e-6


@pytest.mark.parametrize(
    ("layer", "input_shape", "n", "pays"),
    [
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 32, True),
        (Conv2D(64, 3), (32, 9, 9), 48, True),
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 1, False),  # vectors nearly empty
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 4, False),  # one vector, where a panel has three
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 8, True),
        (Conv2D(64, 3, padding="same"), (64, 32, 32), 2, True),  # eight squares fill a vector
        (Conv2D(64, 3, padding="same"), (64, 8, 8), 0, False),
        (Conv2D(64, 3), (64, 3, 3), 32, False),  # squares mostly outside the output
        (Conv2D(16, 3, padding="same"), (16, 32, 32), 32, True),
        (Conv2D(16, 3, padding="same"), (16, 9, 9), 32, False),
        (Conv2D(16, 3), (6, 13, 13), 50, False),  # the paper's network: transforms cost more than they save
        (Conv2D(64, 3, padding="same"), (3, 32, 32), 32, False),
        (Conv2D(64, 3, padding="same", stride=2), (64, 16, 16), 32, True),
        (Conv2D(64, 3, padding="same", stride=2), (64, 10, 10), 32, False),
        (Conv2D(32, 3, padding="same", stride=2), (16, 32, 32), 32, True),
        (Conv2D(32, 3, padding="same", stride=2), (16, 32, 32), 50, False),  # a fifth of the vectors' lanes is empty
        (Conv2D(64, 3, padding="same", stride=(2, 1)), (64, 16, 16), 32, False),
        (Conv2D(32, 5, padding="same"), (32, 16, 16), 32, True),
        (Conv2D(16, 5), (6, 14, 14), 50, False),  # of LeNet-5
        (Conv2D(64, 5, padding="same", stride=2), (64, 16, 16), 32, False),
        (Conv2D(64, 7, padding="same"), (64, 8, 8), 32, False),
        (Conv2D(64, (3, 1), padding="same"), (64, 8, 8), 32, False),
    ],
)
def test_a_convolution_of_many_channels_takes_winograds_way(layer, input_shape, n, pays):
    x, y = (*input_shape, n), (*layer.output_shape(input_shape), n)
    if winograd.VECTOR_BYTES == 64:  # in narrower vectors fewer samples waste less
        weight = layer.parameters(input_shape)["weight"].shape
        algorithm = select(windows_of(layer, input_shape), weight, x, y, computed=y)
        assert isinstance(algorithm, Winograd) == pays


def test_products_outside_the_image_are_not_counted_for_the_tiles_over_rows():
    """16 -> 16 channels, 3 x 3, no padding: the gradient of 13 x 13 places has as many products as 11 x 11 have."""
    weight = 16, 16, 3, 3
    large, small = (16, 13, 13, 32), (16, 11, 11, 32)
    assert winograd.pays(weight, (1, 1), large, large)
    assert not winograd.pays(weight, (1, 1), large, small)


@DTYPES
@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(33, 3, padding="same", activation="softplus"),
        Conv2D(32, 3, padding=2, bias=False),
        Conv2D(65, 3, padding=1, stride=2, activation="softplus"),
        Conv2D(64, 3, padding="same", stride=2),
        Conv2D(33, 5, padding=1, activation="softplus"),
        PooledConv2D(Conv2D(33, 3, padding="same"), MaxPool2D(2, activation="relu")),
        PooledConv2D(Conv2D(33, 3), MaxPool2D(2)),
    ],
    ids=str,
)
def test_a_layer_gives_the_same_whichever_way_it_takes(layer, dtype, monkeypatch):
    shape = (64, 15, 16) if getattr(layer, "stride", 1) == 2 else (32, 7, 8)

    def run():
        return run_layer(layer, shape, 47, dtype, np.random.default_rng(0))

    calls = []
    kernel = winograd.forward_kernel
    monkeypatch.setattr(winograd, "forward_kernel", lambda *sizes: calls.append(sizes) or kernel(*sizes))
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    taken = run()
    filters, _, taps, _ = taken.params["weight"].shape
    # Forward and, with stride 1, input gradient, recorded twice.
    assert calls == 2 * (
        [(filters, 64, taps, 2)] if shape[0] == 64 else [(filters, 32, taps, 1), (32, filters, taps, 1)]
    )
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    direct = run()
    tolerance = TOLERANCE[dtype] if dtype == np.float64 else {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(taken.y, direct.y, **tolerance)
    np.testing.assert_allclose(taken.dx, direct.dx, **tolerance)
    for name, gradient in direct.grads.items():
        np.testing.assert_allclose(taken.grads[name], gradient, **tolerance)
