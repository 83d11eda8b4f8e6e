"""Convolutions and dense layers that multiply numbers rounded to bfloat16."""

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cases
import numpy as np
import pytest
import reference
from recorded import run_layer
from test_kernels import surrounded

import parallelcnn as pc
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.fusions import PooledConv2D
from parallelcnn.kernels import _amx, bfloat16
from parallelcnn.kernels._bfloat16_packing import rounded
from parallelcnn.layers.conv2d import windows_of
from parallelcnn.layers.conv_algorithms import Subsampled, select
from parallelcnn.layers.conv_bfloat16 import Amx, Rounded
from parallelcnn.training.compilation_shares import kernels_of
from parallelcnn.training.preparation import facts_of

pytestmark = pytest.mark.filterwarnings("ignore:precision 'bfloat16' is slower")

# Whether these kernels run here: as machine code, or as the plain code beside it.
needs_amx = pytest.mark.skipif(not bfloat16.is_fast(), reason="this processor has no AMX")

CONVOLUTIONS = [
    (pc.Conv2D(16, 3, padding="same"), (16, 5, 4)),
    (pc.Conv2D(33, 3, padding=1, bias=False), (17, 4, 5)),
    (pc.Conv2D(40, 3), (64, 3, 3)),
    (pc.Conv2D(20, 5, padding=2), (6, 5, 9)),
    (pc.Conv2D(16, (1, 3), padding=(0, 1)), (35, 2, 3)),
    (pc.Conv2D(16, 3, padding=3), (8, 2, 2)),
    (pc.Conv2D(33, 3, stride=2, padding=1), (31, 7, 6)),
    (pc.Conv2D(16, 3, stride=2, padding="same"), (6, 6, 6)),
    (pc.Conv2D(16, 7, stride=(2, 3), padding=3), (3, 9, 10)),
    (pc.Conv2D(16, 2, stride=3), (32, 8, 7)),
    (pc.Conv2D(70, 1), (66, 2, 3)),
    (pc.Conv2D(32, 1, stride=2, bias=False), (16, 5, 4)),
]
OTHERS = [
    (PooledConv2D(pc.Conv2D(20, 3), pc.MaxPool2D(2, activation="relu")), (16, 9, 7)),
    (PooledConv2D(pc.Conv2D(16, 3, padding=1), pc.MaxPool2D(3)), (16, 8, 7)),
    (PooledConv2D(pc.Conv2D(33, 3, stride=2), pc.MaxPool2D(2)), (17, 12, 9)),
    (pc.Dense(130), (77,)),
    (pc.Dense(40, bias=False), (64,)),
]


def as_float32(x):
    """The numbers rounded to bfloat16."""
    return rounded(x).view(np.float32)


@pytest.mark.parametrize("kind", ["numbers", "ties", "tiny", "special"])
def test_a_number_becomes_the_nearest_bfloat16(kind, rng):
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    if kind == "ties":
        bits = bits & 0xFFFF0000 | 0x8000
    elif kind == "tiny":
        bits &= 0x80FFFFFF
    elif kind == "special":
        bits = np.array([0, 0x80000000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFF800001], np.uint32)
    x = bits.view(np.float32)
    found = as_float32(x)
    assert ((rounded(x) & 0xFFFF) == 0).all()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    some = np.isfinite(x)
    below = (bits & 0xFFFF0000).view(np.float32)[some].astype(np.float64)
    # The next bfloat16 away from zero; beyond the largest one, what it would be without a limit.
    above = np.where(
        (bits[some] & 0x7FFF0000) == 0x7F7F0000,
        np.copysign(2.0**128, below),
        ((bits[some] & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32),
    )
    x, found = x[some].astype(np.float64), np.clip(found[some].astype(np.float64), -(2.0**128), 2.0**128)
    nearer = np.where(abs(x - below) < abs(above - x), below, above)
    tie = abs(x - below) == abs(above - x)
    even = np.where((bits[some] >> 16) & 1 == 0, below, above)
    np.testing.assert_array_equal(found, np.where(tie, even, nearer))


@needs_amx
def test_the_copies_in_pairs_hold_the_nearest_numbers(rng):
    bits = rng.integers(0, 1 << 32, (2, 1, 1, 32), dtype=np.uint32)
    bits[0, 0, 0, :4] = 0x7FFFFFFF, 0x7F800000, 0x00018000, 0x3F808000
    x = bits.view(np.float32)
    image = np.zeros(bfloat16.image_shape(2, 1, 1, 32), np.uint32)
    bfloat16.bfloat16_image(x, 0, 0, image)
    np.testing.assert_array_equal(_amx.unpacked(image[0, 0, 0]).T, as_float32(x[:, 0, 0]))
    rows = np.zeros(bfloat16.samples_shape(2, 1, 1, 32), np.uint32)
    bfloat16.bfloat16_samples(x, rows)
    np.testing.assert_array_equal(_amx.unpacked(rows[0, 0, 0, 0, :2]).reshape(2, 32), as_float32(x[:, 0, 0]))
    columns = np.zeros(bfloat16.transposed_shape(2, 1, 1, 32), np.uint32)
    bfloat16.bfloat16_transposed(x, 0, 0, columns)
    np.testing.assert_array_equal(_amx.unpacked(columns[0, 0, :, :2].T).reshape(2, 32), as_float32(x[:, 0, 0]))


def exactly(ran, layer, input_shape):
    """y, dweight, dbias and dx of a convolution, by naive loops over the rounded numbers, in float64."""
    stride, padding = reference.stride_and_padding(layer, input_shape)
    weight = ran.params["weight"]
    bias = ran.params.get("bias", np.zeros(len(weight))).astype(np.float64)
    x, weight, dy = (as_float32(one).astype(np.float64) for one in (ran.x, weight, ran.dy))
    y = reference.conv2d_forward(x, weight, bias, stride, padding)
    dweight, _, dx = reference.conv2d_backward(x, weight, dy, stride, padding)
    return y, dweight, ran.dy.sum(axis=(1, 2, 3)), dx


@needs_amx
@pytest.mark.parametrize("n", [0, 1, 7, 33])
@pytest.mark.parametrize(("layer", "input_shape"), CONVOLUTIONS, ids=cases.name_of)
def test_a_convolution_with_amx_agrees_with_the_naive_loops(layer, input_shape, n, rng):
    shapes = layer.parameters(input_shape)["weight"].shape, (*input_shape, n), (*layer.output_shape(input_shape), n)
    algorithm = select(windows_of(layer, input_shape), *shapes, shapes[2], rounds=True)
    assert isinstance(algorithm.convolution if isinstance(algorithm, Subsampled) else algorithm, Amx)
    ran = run_layer(layer, input_shape, n, np.float32, rng, bfloat16=True)
    y, dweight, dbias, dx = exactly(ran, layer, input_shape)
    close = {"rtol": 1e-5, "atol": 2e-4}  # sums of float32
    np.testing.assert_allclose(ran.y, y, **close)
    np.testing.assert_allclose(ran.grads["weight"], dweight, **close)
    np.testing.assert_allclose(ran.dx, dx, **close)
    if layer.bias:
        np.testing.assert_allclose(ran.grads["bias"], dbias, **close)


@pytest.mark.parametrize("n", [0, 1, 33])
@pytest.mark.parametrize(("layer", "input_shape"), CONVOLUTIONS, ids=cases.name_of)
def test_without_amx_it_is_the_layer_of_float32_for_rounded_numbers(layer, input_shape, n, monkeypatch):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: False)
    layer = replace(layer, bias=False)
    ran = run_layer(layer, input_shape, n, np.float32, np.random.default_rng(1), bfloat16=True)

    class RoundedNumbers:
        """The same random numbers, rounded."""

        def __init__(self):
            self._rng = np.random.default_rng(1)

        def normal(self, size):
            return as_float32(self._rng.normal(size=size).astype(np.float32))

    on_rounded = run_layer(layer, input_shape, n, np.float32, RoundedNumbers())
    np.testing.assert_array_equal(ran.y, on_rounded.y)
    np.testing.assert_array_equal(ran.grads["weight"], on_rounded.grads["weight"])
    np.testing.assert_array_equal(ran.dx, on_rounded.dx)


@needs_amx
@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize(
    ("layer", "input_shape", "tolerance"),
    [
        *((*case, 1e-4) for case in (*CONVOLUTIONS, *OTHERS)),
        (pc.Dense(16, activation="tanh"), (16,), 3e-2),  # dy is rounded after the derivative, which differs a little
    ],
    ids=cases.name_of,
)
def test_with_and_without_amx_the_numbers_agree(layer, input_shape, tolerance, n, monkeypatch):
    runs = []
    for fast in (True, False):
        monkeypatch.setattr(bfloat16, "is_fast", lambda fast=fast: fast)
        runs.append(run_layer(layer, input_shape, n, np.float32, np.random.default_rng(1), bfloat16=True))
    with_amx, without = runs
    close = {"rtol": tolerance, "atol": 10 * tolerance}
    np.testing.assert_allclose(with_amx.y, without.y, **close)
    np.testing.assert_allclose(with_amx.dx, without.dx, **close)
    for name, gradient in without.grads.items():
        np.testing.assert_allclose(with_amx.grads[name], gradient, **close)


@pytest.mark.parametrize("amx", [pytest.param(True, marks=needs_amx), False])
@pytest.mark.parametrize(("layer", "input_shape"), [*CONVOLUTIONS, *OTHERS], ids=cases.name_of)
def test_arrays_that_share_memory_change_no_bit(layer, input_shape, amx, monkeypatch):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: amx)
    alone, shared = (
        run_layer(layer, input_shape, 7, np.float32, np.random.default_rng(1), bfloat16=True, shared=shares)
        for shares in (False, True)
    )
    np.testing.assert_array_equal(alone.y, shared.y)
    np.testing.assert_array_equal(alone.dx, shared.dx)
    for name, gradient in alone.grads.items():
        np.testing.assert_array_equal(gradient, shared.grads[name])


@pytest.mark.parametrize("amx", [pytest.param(True, marks=needs_amx), False])
@pytest.mark.parametrize(("units", "features"), [(16, 16), (33, 70), (130, 300)])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_a_dense_layer_multiplies_rounded_numbers(units, features, n, amx, rng, monkeypatch):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: amx)
    ran = run_layer(pc.Dense(units), (features,), n, np.float32, rng, bfloat16=True)
    x, weight, dy = (as_float32(one).astype(np.float64) for one in (ran.x, ran.params["weight"], ran.dy))
    close = {"rtol": 1e-5, "atol": 2e-4}
    np.testing.assert_allclose(ran.y, weight @ x + ran.params["bias"][:, None], **close)
    np.testing.assert_allclose(ran.grads["weight"], dy @ x.T, **close)
    np.testing.assert_allclose(ran.grads["bias"], ran.dy.sum(axis=1), **close)
    np.testing.assert_allclose(ran.dx, weight.T @ dy, **close)


@needs_amx
@pytest.mark.parametrize(("C", "K", "R", "stride", "top"), [(6, 33, 3, 1, 1), (17, 19, 1, 1, 0), (5, 16, 3, 2, 1)])
@pytest.mark.parametrize("n", [1, 17, 40])
def test_the_kernels_neither_read_nor_write_beside_their_arrays(C, K, R, stride, top, n, rng):
    H = W = 5
    P = Q = (H + 2 * top - R) // stride + 1
    seen = (P - 1) * stride + R

    def array(*shape):
        found = surrounded(shape, 128, np.float32)
        found.inside[...] = np.nan  # what other calls have left there
        return found

    def pairs(shape):
        found = array(*shape)
        return found, found.inside.view(np.uint32)

    x, weight, dy = array(C, H, W, n), array(K, C, R, R), array(K, P, Q, n)
    for read in (x, weight, dy):
        read.inside[...] = rng.normal(size=read.inside.shape)
    written = y, dx, dweight = array(K, P, Q, n), array(C, P, Q, n), array(K, C, R, R)
    scratch = sums, window_sums = array(bfloat16.PLACES, 32, 32), array(R, R, 32, 32)
    bias, no_bias = np.zeros(K, np.float32), np.zeros(0, np.float32)
    around_image, image = pairs(bfloat16.image_shape(C, seen, seen, n))
    around_filters, packed = pairs(bfloat16.weights_shape(K, C, R, R))
    bfloat16.bfloat16_image(x.inside, top, top, image)
    bfloat16.bfloat16_forward(image, weight.inside, bias, packed, sums.inside, (0, 0, stride, stride), y.inside)
    around_dy, dy_pairs = pairs(bfloat16.samples_shape(K, P, Q, n))
    around_x, x_pairs = pairs(bfloat16.transposed_shape(C, seen, seen, n))
    bfloat16.bfloat16_samples(dy.inside, dy_pairs)
    bfloat16.bfloat16_transposed(x.inside, top, top, x_pairs)
    bfloat16.bfloat16_weight_gradient(dy_pairs, x_pairs, window_sums.inside, (stride, stride), dweight.inside)
    around_image_of_dy, image_of_dy = pairs(bfloat16.image_shape(K, P + R - 1, Q + R - 1, n))
    around_turned, turned = pairs(bfloat16.weights_shape(C, K, R, R))
    bfloat16.bfloat16_image(dy.inside, R // 2, R // 2, image_of_dy)
    rotated = weight.inside[:, :, ::-1, ::-1].swapaxes(0, 1)
    bfloat16.bfloat16_forward(image_of_dy, rotated, no_bias, turned, sums.inside, (0, 0, 1, 1), dx.inside)
    for one in written:
        assert np.isfinite(one.inside).all()  # a number from beside another array would have made it NaN
    around = around_image, around_filters, around_dy, around_x, around_image_of_dy, around_turned
    for one in (*written, *scratch, *around):
        assert np.isnan(one.outside).all()


@pytest.mark.parametrize("amx", [pytest.param(True, marks=needs_amx), False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_not_lost_and_stays_in_its_sample(bad, amx, rng, monkeypatch):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: amx)
    layer, shape = pc.Conv2D(16, 3, padding=1), (17, 4, 4)
    x = rng.normal(size=(*shape, 3))
    x[5, 1, 1, 2] = bad
    ran = run_layer(layer, shape, 3, np.float32, rng, x=x, bfloat16=True)
    assert not np.isfinite(ran.y[:, :3, :3, 2]).any()
    assert np.isfinite(ran.y[..., :2]).all()
    assert not np.isfinite(ran.grads["weight"][:, 5]).all()


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (pc.Conv2D(15, 3), (16, 4, 4)),  # few filters
        (pc.Conv2D(32, 3), (3, 8, 8)),  # windows whose rows see few numbers
        (pc.Conv2D(32, 3, groups=2), (32, 4, 4)),
        (pc.Conv2D(16, 3, dilation=2), (16, 6, 6)),
        (pc.Dense(10), (64,)),
        (pc.BatchNorm(), (16, 4, 4)),
        (pc.AvgPool2D(2), (16, 4, 4)),
    ],
    ids=cases.name_of,
)
def test_small_and_other_layers_stay_float32(layer, input_shape):
    runs = [
        run_layer(layer, input_shape, 9, np.float32, np.random.default_rng(1), bfloat16=rounds)
        for rounds in (False, True)
    ]
    for one, other in zip(vars(runs[0]).values(), vars(runs[1]).values(), strict=True):
        for a, b in zip(*(x.values() if isinstance(x, dict) else [x] for x in (one, other)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def machine(monkeypatch):
    """A machine with AMX; `asked` holds the system calls."""
    features, asked = {"amx-bf16": True}, []

    class Library:
        answer = 0

        def __init__(self, name):
            pass

        def syscall(self, *arguments):
            asked.append(arguments)
            return self.answer

    for name, value in {"CPU_NAME": None, "CPU_FEATURES": None}.items():
        monkeypatch.setattr(_amx.config, name, value)
    monkeypatch.setattr(_amx, "VECTOR_BYTES", 64)
    monkeypatch.setattr(_amx.platform, "system", lambda: "Linux")
    monkeypatch.setattr(_amx.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(_amx.llvm, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(_amx.ctypes, "CDLL", Library)
    return SimpleNamespace(features=features, asked=asked, library=Library)


def test_linux_is_asked_for_the_tiles(machine):
    assert _amx.has_amx.__wrapped__()
    assert machine.asked == [(158, 0x1023, 18)]
    machine.library.answer = -1
    assert not _amx.has_amx.__wrapped__()


def test_where_something_is_missing_amx_is_not_used(machine, monkeypatch):
    for place, name, value in (
        (_amx.config, "CPU_NAME", "x86-64-v3"),
        (_amx.config, "CPU_FEATURES", "+avx2,+fma"),
        (_amx, "VECTOR_BYTES", 32),
        (_amx.platform, "system", lambda: "Darwin"),
        (_amx.platform, "machine", lambda: "aarch64"),
        (_amx.llvm, "get_host_cpu_features", lambda: {"avx512f": True}),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value)
            assert not _amx.has_amx.__wrapped__(), name
    assert machine.asked == []
    assert _amx.has_amx.__wrapped__()


def test_without_amx_a_convolution_is_rounded(monkeypatch):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: False)
    layer, shape = CONVOLUTIONS[0]
    weight, x, y = layer.parameters(shape)["weight"].shape, (*shape, 8), (*layer.output_shape(shape), 8)
    assert isinstance(select(windows_of(layer, shape), weight, x, y, y, rounds=True), Rounded)


# ---- networks


def network(precision="bfloat16", seed=0):
    layers = pc.Conv2D(16, 5, activation="relu"), pc.MaxPool2D(2), pc.Conv2D(16, 3, activation="relu"), pc.Flatten()
    return pc.NetworkHandler(
        (*layers, pc.Dense(32, activation="relu"), pc.Dense(10)), (4, 12, 12), seed, precision=precision
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 10, 300)
    images = rng.normal(size=(300, 4, 12, 12)).astype(np.float32)
    images[np.arange(300), :, labels] += 4
    return pc.Dataset(images[:250], labels[:250], 10), pc.Dataset(images[250:], labels[250:], 10)


def trained(data, net=None, **how):
    if "NUMBA_DISABLE_JIT" in os.environ:
        pytest.skip("takes minutes where nothing is compiled")
    net = net or network()
    pc.train(net, *data, pc.Adam(0.01), 6, 50, comm=pc.Serial(), verbose=0, **how)
    return net


def test_training_learns_and_predictions_are_of_float32(data):
    net = trained(data)
    assert pc.evaluate(net, data[1], pc.Serial()).accuracy > 0.5
    other = network("float32")
    other.set_state(net.state)
    np.testing.assert_array_equal(net.predict(data[1].images), other.predict(data[1].images))
    assert trained(data, network("float32")).parameters_sha256() != net.parameters_sha256()


def test_any_number_of_threads_gives_the_same_bits(data):
    hashes = {trained(data, threads=threads, reproducible=4).parameters_sha256() for threads in (1, 2, 3)}
    assert len(hashes) == 1


def test_a_copy_keeps_the_precision(data):
    for other in (copy.deepcopy(network()), pickle.loads(pickle.dumps(network()))):
        assert other.precision == "bfloat16"


def test_the_precision_of_a_network_can_be_set(data, tmp_path):
    pc.save_model(tmp_path / "model.npz", network())
    net = pc.load_model(tmp_path / "model.npz")
    assert net.precision == "float32"
    net.precision = "bfloat16"
    assert trained(data, net).parameters_sha256() == trained(data).parameters_sha256()
    with pytest.raises(InputError, match="precision must be one of"):
        net.precision = "float16"
    assert net.precision == "bfloat16"


def test_a_network_pickled_by_an_older_version_is_float32():
    rebuild, values = network().__reduce__()
    assert rebuild(*values[:-1]).precision == "float32"


def test_a_nested_network_gives_the_same_bits_with_and_without_recomputation(data):
    def parameters(wrap):
        inner = pc.Conv2D(16, 3, padding=1, activation="relu"), pc.Conv2D(16, 3, padding=1)
        first = pc.Frozen(pc.Conv2D(16, 5, padding=2)), pc.Conv2D(16, 3, stride=2, padding=1, activation="relu")
        layers = *first, pc.Residual(inner), wrap(inner), pc.Flatten(), pc.Dense(10)
        return trained(data, pc.NetworkHandler(layers, (4, 12, 12), precision="bfloat16")).parameters_sha256()

    assert parameters(pc.Sequential) == parameters(pc.Recompute)


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")
def test_its_kernels_are_known_before_they_run():
    names = {kernel.function.__name__ for kernel in kernels_of(network(), training=True)}
    expected = "bfloat16_forward" if bfloat16.is_fast() else "bfloat16_rounded"
    assert expected in names
    assert not any("bfloat16" in kernel.function.__name__ for kernel in kernels_of(network(), training=False))


def test_a_precision_that_is_not_known_is_refused():
    with pytest.raises(InputError, match=r"precision must be one of float32, bfloat16, got 'half'"):
        network("half")
    with pytest.raises(InputError, match=r"precision 'bfloat16' takes a network of float32, got float64"):
        pc.NetworkHandler((pc.Dense(3),), (2,), dtype=np.float64, precision="bfloat16")


@pytest.mark.filterwarnings("default:precision 'bfloat16' is slower")
def test_a_machine_on_which_it_is_slower_is_named(data, monkeypatch):
    monkeypatch.setattr("parallelcnn.training.preparation.is_fast", lambda: False)
    with pytest.warns(TrainingWarning, match="slower than 'float32' here, without AMX: it takes a processor"):
        trained(data)


def test_a_resumed_training_goes_on_with_the_same_bits_and_names_another_precision(data, tmp_path):
    whole = trained(data).parameters_sha256()
    net = network()
    trained(data, net, checkpoints=pc.CheckpointFolder(tmp_path, every_steps=7), stop=lambda: net.history.steps == 7)
    checkpoint = pc.load_checkpoint(max(tmp_path.glob("*.npz")))
    assert checkpoint.history.steps < 30
    assert trained(data, network(seed=1), resume=checkpoint).parameters_sha256() == whole
    with pytest.warns(TrainingWarning, match="resumed with precision float32 instead of bfloat16"):
        trained(data, network("float32"), resume=checkpoint)


def test_an_older_checkpoint_is_of_float32(data, tmp_path, monkeypatch):
    def facts_without(*arguments, **named):
        facts = facts_of(*arguments, **named)
        del facts["precision"]
        return facts

    net = network("float32")
    with monkeypatch.context() as older:
        older.setattr("parallelcnn.trainer.facts_of", facts_without)
        trained(data, net, checkpoints=pc.CheckpointFolder(tmp_path), stop=lambda: net.history.steps == 7)
    checkpoint = pc.load_checkpoint(max(tmp_path.glob("*.npz")))
    trained(data, network("float32"), resume=checkpoint)  # warnings are errors
    with pytest.warns(TrainingWarning, match="resumed with precision bfloat16 instead of float32"):
        trained(data, network(), resume=checkpoint)


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="takes hours where nothing is compiled")
def test_the_command_trains_with_it_and_writes_it_down(tmp_path):
    small_run = ["--epochs", "1", "--batch-size", "50", "--precision", "bfloat16", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "parallelcnn", "train", "--threads", "1", *small_run]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "precision  bfloat16" in ran.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["precision"] == "bfloat16"
    refused = subprocess.run([*command[:-3], "half"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "float32, bfloat16" in refused.stderr
