"""Derivatives of scalar functions by dual numbers: rules, kinks, what is refused, activations and losses from them."""

import copy
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS, find_activation
from parallelcnn.autodiff.dual import check_derivative
from parallelcnn.errors import CheckpointError, InputError
from parallelcnn.files.fingerprint import fingerprint
from parallelcnn.kernels import prelu
from parallelcnn.kernels._dual import slope, variable
from parallelcnn.kernels._rebinding import for_python
from parallelcnn.kernels.activations import user_kernels

compiled_only = pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")

FACTOR = 3


def half_square(x):
    return square(x) / 2


def square(x):
    return x * x


def twice(x, factor=2):
    return factor * x


def power_by_loop(x):
    y = 1.0
    for _ in range(3):
        y *= x
        y += 0.5
    return y


def staircase(x):
    if x < -2:
        return -2
    elif x < 0:
        return x / 2
    return x * x if x < 1 else 2 * x - 1


def closure(n):
    return lambda x: x**n + n


def in_python(function, xs):
    """Slopes by Python's dual numbers."""
    with np.errstate(all="ignore"):
        return np.array([float(slope(for_python(function)(variable(x)))) for x in xs])


def compiled(function, xs, dtype=np.float64):
    """Slopes by the compiled loop."""
    dy = np.ones(len(xs), dtype)
    user_kernels(function, None)[1](np.array(xs, dtype), dy)
    return dy


SMOOTH = [-2.7, -1.3, -0.4, 0.3, 0.9, 1.7, 3.3]
FUNCTIONS = {
    "arithmetic": lambda x: (1 - x) * 3 / (x * x + 2) - x / 4 + 2 / (5 + x) - (-x) * (+x),
    "powers": lambda x: x**3 - 2 * x**2 + 1.5 ** (x / 3) + abs(x) ** 1.5 + (x * x + 1) ** x + pow(x, 2),
    "math": lambda x: math.exp(x / 3) + math.log(x * x + 1) + math.sqrt(x * x + 1) + math.erf(x) + math.tanh(x),
    "numpy": lambda x: np.exp(x / 3) + np.log1p(x * x) + np.sqrt(np.square(x) + 1) + np.sin(x) * np.cos(x) + np.tanh(x),
    "more": lambda x: math.expm1(x) + math.atan(x) + math.asinh(x) + math.sinh(x) - math.cosh(x) + math.erfc(x),
    "logarithms": lambda x: math.log2(x * x + 1) + np.log10(x * x + 1) + math.fabs(x) + float(x),
    "numbers at the left": lambda x: 1 + x - (2 - x) + 3 * x + 4 / (7 + x) + 2**x,
    "two variables": lambda x: (
        max(x, 1 - x) + min(x * x, 1 - x) + np.maximum(x / 2, -x) + x // 3 + x % 1.5 + 5 % (x * x)
    ),
    "a helper that calls one": half_square,
    "a helper with a default": lambda x: twice(x) + twice(x, 5) + twice(x, factor=0.5),
    "a global number": lambda x: FACTOR * x + FACTOR**2,
    "a closure": closure(3),
    "a loop with augmented assignments": power_by_loop,
    "branches that return integers": staircase,
    "conditions": lambda x: (x if x > 1 or x < -1 else x * x) if -3 < x <= 2 and x != 0 else 0,
    "a local function": lambda x: (lambda z: z * z)(x) + x,
    "a constant": lambda x: 3,
    "a compiled function": njit(lambda x: x * x),
}


def differences(function, xs):
    return np.array([(function(np.float64(x + 1e-6)) - function(np.float64(x - 1e-6))) / 2e-6 for x in xs])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_are_differences_in_python_and_compiled(name):
    function = FUNCTIONS[name]
    wanted = differences(getattr(function, "py_func", function), SMOOTH)
    np.testing.assert_allclose(in_python(function, SMOOTH), wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(compiled(function, SMOOTH), wanted, rtol=1e-6, atol=1e-7)


def test_float32_arrays_are_differentiated_to_their_resolution():
    function = FUNCTIONS["math"]
    found = compiled(function, SMOOTH, np.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, differences(function, SMOOTH), rtol=1e-5)


# (function, x, slope)
CONVENTIONS = {
    "|0|": (abs, 0, 0),
    "numpy's |0|": (lambda x: np.abs(x), 0, 0),
    "max(x, 0) at 0": (lambda x: max(x, 0), 0, 0),
    "max(0.0, x) at 0": (lambda x: max(0.0, x), 0, 0),
    "min(x, 6) at 6": (lambda x: min(x, 6), 6, 0),
    "np.minimum(6, x) at 6": (lambda x: np.minimum(6, x), 6, 0),
    "the first of two equal variables, max": (lambda x: max(2 * x, 3 * x), 0, 2),
    "the first of two equal variables, min": (lambda x: min(2 * x, 3 * x), 0, 2),
    "relu by branch": (lambda x: x if x > 0 else 0.0, 0, 0),
    "x**0": (lambda x: x**0, 0, 0),
    "x**0 elsewhere": (lambda x: x**0, -2.5, 0),
    "x**1 at 0": (lambda x: x**1, 0, 1),
    "x**2 at 0": (lambda x: x**2, 0, 0),
    "x**2.0 of a negative number": (lambda x: x**2.0, -3, -6),
    "x**-1": (lambda x: x**-1, 2, -0.25),
    "0**x": (lambda x: 0**x, 2, 0),
    "math.floor": (lambda x: math.floor(x), 1.5, 0),
    "np.ceil": (lambda x: np.ceil(x), 1.5, 0),
    "round": (lambda x: round(x), 1.2, 0),
    "np.sign": (lambda x: np.sign(x), -1, 0),
    "np.rint": (lambda x: x - np.rint(x), 0.2, 1),
    "floor division": (lambda x: x // 2, 1.5, 0),
    "x % 2": (lambda x: x % 2, 3.5, 1),
    "a constant": (lambda x: 1, 2, 0),
    "a branch not taken": (lambda x: math.log(x) if x > 0 else 0.0, -1, 0),
    "sigmoid where exp overflows": (lambda x: 1 / (1 + math.exp(-x)), -800, 0),
    "swish where exp overflows": (lambda x: x / (1 + math.exp(-x)), -800, 0),
}


def test_kinks_ties_and_steps_have_the_slopes_of_the_conventions():
    for name, (function, x, wanted) in CONVENTIONS.items():
        assert in_python(function, [x]) == wanted, name


@compiled_only
@pytest.mark.parametrize(
    "name",
    [
        *(
            "numpy's |0|",
            "max(x, 0) at 0",
            "min(x, 6) at 6",
            "the first of two equal variables, max",
            "x**0",
            "x**2 at 0",
        ),
        *("round", "np.sign", "a constant", "a branch not taken", "swish where exp overflows"),
    ],
)
def test_compiled_kinks_have_the_same_slopes(name):
    function, x, wanted = CONVENTIONS[name]
    assert compiled(function, [x], np.float32) == wanted


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_textbook_sigmoid_has_the_right_slope_everywhere_although_exp_overflows(dtype):
    """1 / (1 + exp(-x)) has the derivative 0 * infinity at x = -800, unless the slope of exp stays finite."""
    xs = np.array([0.0, *(sign * size for size in np.geomspace(1e-3, 1e3, 200) for sign in (-1, 1))], dtype)
    e = np.exp(-np.abs(xs.astype(np.float64)))
    wanted = e / (1 + e) ** 2
    tiny = 1e-150 if dtype == np.float64 else 1e-37  # where the square of exp overflows
    np.testing.assert_allclose(compiled(sigmoid, xs, dtype), wanted, rtol=8 * np.finfo(dtype).eps, atol=tiny)
    np.testing.assert_allclose(in_python(sigmoid, xs), wanted, rtol=2e-15, atol=1e-150)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def refused(function, message, derivative=None, **options):
    with pytest.raises(InputError, match=message):
        check_derivative("activation 'f'", function, derivative, **options)


def recursive(x):
    return x if x < 1 else recursive(x / 2)


def test_an_unstable_formula_is_refused_and_the_error_names_x():
    refused(
        lambda x: 1 / math.cosh(x), r"^activation 'f': its derivative must be finite .* is nan at x = 754\.312: write"
    )
    refused(
        lambda x: math.log(1 + math.exp(x)),
        r"it must be finite for x from -1000 to 1000, also as float32, and is inf at x = 754",
    )
    refused(lambda x: math.exp(x) / (1 + math.exp(x)), r"it must be finite .* nan at x = 754")
    refused(lambda x: math.sqrt(abs(x)), r"its derivative must be finite .* nan at x = 0:")
    refused(lambda x: math.log(x), "it must be finite .* -inf at x = 0")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x - int(x), r"int\(x\)"),
        (lambda x: math.gamma(x), r"math.gamma\(x\)"),
        (lambda x: np.clip(x, 0, 1), r"numpy.clip\(x\)"),
        (lambda x: max(x, 0, 1), "max with 3 arguments"),
        (lambda x: round(x, 1), "round with 2 arguments"),
        (lambda x: 1.0 if x else 0.0, r"bool\(x\)"),
        (recursive, r"recursive\(x\), which calls itself,"),
    ],
)
def test_a_call_without_a_rule_is_refused_by_name_when_the_network_is_built(function, name):
    with pytest.raises(InputError, match=f"^activation '.*': {name} cannot be differentiated: write .* give a deriv"):
        pc.NetworkHandler((pc.Residual((pc.Dense(2, activation=function),)),), (2,))


def test_functions_that_are_in_order_pass_the_check():
    functions = (
        *(lambda x: x / (1 + math.exp(-x)), lambda x: 1 / (1 + math.exp(-x)), lambda x: max(x, 0.1 * x)),
        *(lambda x: x * math.tanh(math.log1p(math.exp(x))), lambda x: math.sin(50 * x), lambda x: x - math.floor(x)),
        *(staircase, math.tanh, np.tanh, np.sign, lambda x: 2, lambda x: x * min(max(x + 3, 0), 6) / 6),
    )
    for function in functions:
        check_derivative("activation 'f'", function, None)


def test_a_hand_written_derivative_is_checked():
    check_derivative("activation 'f'", np.tanh, lambda y: 1 - y * y, of_output=True)
    check_derivative("activation 'f'", abs, lambda x: 1.0 if x >= 0 else -1.0)  # another number at the kink
    check_derivative("activation 'f'", lambda x: math.lgamma(x * x + 1), lambda x: 0.0 if x == 0 else _digamma_like(x))
    # The dual number of this one is NaN from x = 711 on, and so no judge.
    check_derivative("activation 'f'", lambda x: 1 / math.cosh(x), lambda x: -math.tanh(x) / math.cosh(x))
    wrong = (
        r"its derivative must be the slope of the function: at x = 0\.0\d+ it is 3\.5\d+e-06, but differences give 5"
    )
    refused(lambda x: x**3, wrong, lambda x: 2 * x * x)
    refused(lambda x: x * x, r"at x = 0\.001 it is 1\.002, but", lambda x: 2 * x + 1)
    refused(np.tanh, r"its derivative must be .* at x = -?\d.* but", lambda y: 1 - y, of_output=True)
    refused(np.tanh, r"its derivative must be finite .* inf at x = 0:", lambda y: 1 / y, of_output=True)
    refused(lambda x: math.lgamma(x * x + 1), r"at x = 0\.001 it is 1, but differences give", lambda x: 1.0)
    half = pc.ActivationFunction("half", lambda x: x / 2, lambda x: 1.0)
    with pytest.raises(InputError, match="activation 'half': its derivative must be the slope"):
        pc.NetworkHandler((pc.Flatten(), pc.Activation(half)), (2,))


def _digamma_like(x):
    h = 1e-5 * abs(x)
    return (math.lgamma((x + h) ** 2 + 1) - math.lgamma((x - h) ** 2 + 1)) / (2 * h)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivatives_of_the_built_in_activations_pass_the_check(name):
    one = ACTIVATIONS[name]
    check_derivative(name, one.function, one.derivative, one.derivative_of_output)


def test_lambdas_made_in_a_loop_keep_their_own_values():
    functions = [lambda x, n=n: n * x for n in (1, 2)] + [closure(n) for n in (1, 3)]
    assert [in_python(function, [2.0]) for function in functions] == [1, 2, 1, 12]
    assert compiled(functions[1], [2.0]) == 2
    assert compiled(functions[3], [2.0]) == 12


def swish(x):
    return x / (1 + math.exp(-x))


def test_a_plain_function_is_an_activation_of_a_layer():
    for layer, shape in ((pc.Dense(3, activation=swish), (4,)), (pc.Activation(swish), (3,))):
        assert pc.gradient_check(layer, shape, n=3).largest_difference < 1e-8
    assert find_activation(swish) == pc.ActivationFunction("swish", swish)


def test_a_layer_with_a_function_is_a_value_as_others_are():
    layer, lambda_layer = pc.Dense(3, activation=swish), pc.Dense(3, activation=lambda x: x * x)
    assert repr(layer) == "Dense(3, activation=<swish>)"
    assert repr(lambda_layer) == "Dense(3, activation=<lambda>)"
    assert repr(pc.Activation(njit(swish))) == "Activation(<swish>)"
    assert repr(pc.Activation(np.tanh)) == "Activation(<tanh>)"
    assert layer == pc.Dense(3, activation=swish) == copy.deepcopy(layer)
    assert hash(layer) == hash(pc.Dense(3, activation=swish))
    assert layer != lambda_layer
    assert fingerprint(closure_layer(2)) == fingerprint(closure_layer(2)) != fingerprint(closure_layer(3))


def test_the_fingerprint_of_a_function_covers_the_functions_that_it_calls():
    def with_helper(factor):
        names = {"__name__": "users"}
        exec(f"def helper(x): return {factor} * x\ndef function(x): return helper(x) + x", names)
        return names["function"]

    assert fingerprint(with_helper(2)) == fingerprint(with_helper(2)) != fingerprint(with_helper(3))
    assert fingerprint(recursive) != fingerprint(square)


def closure_layer(n):
    return pc.Dense(3, activation=closure(n))


def test_a_model_with_a_function_is_saved_and_needs_its_layers_again(tmp_path):
    path, layers = tmp_path / "model.npz", (pc.Dense(3, activation=closure(2)),)
    network = pc.NetworkHandler(layers, (4,))
    pc.save_model(path, network)
    with np.load(path) as arrays:
        assert " at 0x" not in str(arrays["description"])
    assert pc.load_model(path, layers).parameters_sha256() == network.parameters_sha256()
    with pytest.raises(CheckpointError, match=r"holds Dense\(3, activation=<lambda>\), which is not .* --model FILE"):
        pc.load_model(path)
    with pytest.raises(CheckpointError, match="other values"):
        pc.load_model(path, (pc.Dense(3, activation=closure(3)),))


def test_what_is_no_function_is_refused():
    with pytest.raises(InputError, match=r"must be a name, a function of one number or .* got <class 'float'>"):
        pc.Dense(3, activation=float)
    with pytest.raises(InputError, match="function must be hashable"):
        pc.Dense(3, activation=Unhashable())


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


_WITHOUT_NUMBA = """
import math
import numpy as np
import parallelcnn as pc
assert pc.gradient_check(pc.Dense(2, activation=lambda x: x / (1 + math.exp(-x))), (3,)).largest_difference < 1e-8
assert pc.gradient_check(pc.Activation(lambda x: max(np.tanh(x), 0.1 * x)), (4,)).largest_difference < 1e-8
@pc.layer(scale=np.ones)
def scaled(x, scale):
    return scale * np.maximum(x, 0.1 * x) / np.sqrt(x.var() + 1)
assert pc.gradient_check(scaled(), (3, 2)).largest_difference < 1e-8
network = pc.NetworkHandler((pc.Dense(2, activation=lambda x: abs(x) + x**3),), (3,))
network.forward(network.load(np.ones((2, 3), np.float32)), training=True)
network.output_gradient(2)[...] = 1
network.backward(network.output_gradient(2))
assert np.isfinite(network.gradients).all() and network.gradients.any()
"""


def test_functions_are_differentiated_without_numba():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", _WITHOUT_NUMBA], check=True, timeout=60, env=environment)


LOSSES = {
    "half the squared error": lambda y, t: 0.5 * (y - t) ** 2,
    "huber": lambda y, t: 0.5 * (y - t) ** 2 if abs(y - t) < 1 else abs(y - t) - 0.5,
    "binary cross-entropy": lambda y, t: max(y, 0) - y * t + math.log1p(math.exp(-abs(y))),
}


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_a_pointwise_loss_agrees_with_the_mean_squared_error(kind, n, rng):
    pointwise, squared = pc.PointwiseLoss(square_error), pc.MeanSquaredError()
    outputs = rng.normal(size=(4, n))
    labels = rng.integers(0, 4, n) if kind == "labels" else rng.normal(size=(n, 4)).astype(np.float32)
    found, wanted = np.full((4, n), np.nan), np.empty((4, n))
    total = pointwise.forward_backward(outputs, labels, 7, found)
    assert total == pytest.approx(squared.forward_backward(outputs, labels, 7, wanted), rel=1e-12)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def square_error(output, target):
    return (output - target) ** 2


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_pointwise_loss_is_the_difference_of_its_values(name, rng):
    loss, targets = pc.PointwiseLoss(LOSSES[name]), rng.random((5, 3))
    outputs, found, unused = 2 * rng.normal(size=(3, 5)), np.empty((3, 5)), np.empty((3, 5))
    loss.forward_backward(outputs, targets, 5, found)
    for place in np.ndindex(outputs.shape):
        before, values = outputs[place], []
        for step in (1e-6, -1e-6):
            outputs[place] = before + step
            values.append(loss.forward_backward(outputs, targets, 5, unused))
        outputs[place] = before
        assert found[place] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_training_with_a_pointwise_loss_is_training_with_the_mean_squared_error(rng):
    inputs = rng.random((40, 3), np.float32)
    dataset, losses = pc.Dataset(inputs, inputs[:, :2] - 0.5, None), []
    for loss in (pc.PointwiseLoss(square_error), pc.MeanSquaredError()):
        network = pc.NetworkHandler((pc.Dense(4, activation="mish"), pc.PReLU(), pc.Dense(2)), (3,))
        losses.append(pc.train(network, dataset, dataset, pc.SGD(0.1), 2, 10, loss=loss, verbose=0).losses)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_pointwise_loss_prints_and_compares_as_a_value_and_refuses_what_it_cannot_do():
    loss = pc.PointwiseLoss(square_error)
    assert repr(loss) == "PointwiseLoss(<square_error>)"
    assert repr(pc.PointwiseLoss(LOSSES["huber"])) == "PointwiseLoss(<lambda>)"
    assert loss == pc.PointwiseLoss(square_error) != pc.PointwiseLoss(LOSSES["huber"])
    assert fingerprint(loss) != fingerprint(pc.PointwiseLoss(LOSSES["huber"]))
    for wrong in ("mse", lambda y: y, lambda y, t, weight: y):
        with pytest.raises(InputError, match=r"PointwiseLoss takes a function of two numbers, \(output, target\), got"):
            pc.PointwiseLoss(wrong)
    labels = np.zeros((3, 2), np.float32)
    with pytest.raises(InputError, match=r"PointwiseLoss\(<square_error>\) of these labels takes .* ends in \(2,\)"):
        loss.check((3,), labels, None)
    with pytest.raises(InputError, match=r"PointwiseLoss\(<lambda>\): math.gamma\(x\) cannot be differentiated: write"):
        pc.PointwiseLoss(lambda y, t: math.gamma(y) * t).check((2,), labels, None)


def test_new_activations_and_prelu_agree_with_pytorch(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = 3 * rng.normal(size=(4, 45)).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    x[0, :3] = 0, -3, 6  # kinks

    def run_in_torch(module):
        given = torch.from_numpy(x.T.copy()).requires_grad_()
        y = module(given)
        y.backward(torch.from_numpy(dy.T.copy()))
        return y.detach().numpy().T, given.grad.numpy().T

    modules = {
        "mish": torch.nn.Mish(),
        "relu6": torch.nn.ReLU6(),
        "elu": torch.nn.ELU(),
        "selu": torch.nn.SELU(),
        "hard_sigmoid": torch.nn.Hardsigmoid(),
        "hard_swish": torch.nn.Hardswish(),
    }
    for name, module in modules.items():
        activation, y, dx = ACTIVATIONS[name], x.copy(), dy.copy()
        forward, backward = activation.kernels()
        forward(y.reshape(y.size))
        backward((x if activation.keeps_input else y).reshape(x.size), dx.reshape(x.size))
        for found, wanted in zip((y, dx), run_in_torch(module), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=name)

    module, weight, dweight = torch.nn.PReLU(4, init=0.3), np.full(4, 0.3, np.float32), np.empty(4, np.float32)
    y, dx = np.empty_like(x), dy.copy()
    prelu.prelu_forward(x, weight, y)
    prelu.prelu_backward(x, weight, dx, dweight)
    for found, wanted in zip((y, dx), run_in_torch(module), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(dweight, module.weight.grad, rtol=1e-5)


# Runs both loops of a built-in activation that dual numbers differentiate, and prints how often numba compiled.
_BUILT_IN = """
import numpy as np
from numba.core import event
from parallelcnn.activations import ACTIVATIONS

compiled = event.RecordingListener()
event.register("numba:compile", compiled)
forward, backward = ACTIVATIONS["mish"].kernels()
y, dy = np.ones(3, np.float32), np.ones(3, np.float32)
forward(y.copy()), backward(y, dy)
assert abs(dy[0] - 1.0490363) < 1e-6
print(sum(record.is_start for _, record in compiled.buffer))
"""


@compiled_only
def test_a_second_process_compiles_no_derivative_of_a_built_in_activation(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def compilations():
        command = [sys.executable, "-c", _BUILT_IN]
        return int(subprocess.run(command, check=True, timeout=60, env=environment, capture_output=True).stdout)

    assert compilations() > 2
    assert compilations() == 0
