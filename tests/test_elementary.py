"""exp, tanh, their relatives and the normal distribution, as loops compute them, against Python's in float64."""

import math

import numpy as np
import pytest

from parallelcnn.activations import ACTIVATIONS
from parallelcnn.kernels._elementary import (
    exp_of_negative,
    expm1_of_negative,
    hyperbolic_tangent,
    log1p_of_fraction,
)
from parallelcnn.kernels._jit import kernel
from parallelcnn.kernels._normal import cumulative, density
from parallelcnn.kernels.activations import builtin_kernels

ERF = np.vectorize(math.erf, otypes=[np.float64])
EXPECTED = {
    exp_of_negative: np.exp,
    expm1_of_negative: np.expm1,
    hyperbolic_tangent: np.tanh,
    cumulative: lambda x: 0.5 * (1 + ERF(x * math.sqrt(0.5))),
    density: lambda x: np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi),
}


def loop_of(function):
    @kernel
    def loop(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def applied(x):
        y = np.empty_like(x)
        loop(x, y)
        return y

    return applied


def in_float64(function, x):
    return EXPECTED[function](x.astype(np.float64))


def test_exp_is_nearly_as_exact_as_float32():
    x = np.linspace(-87, 0, 100_003, dtype=np.float32)
    y, expected = loop_of(exp_of_negative)(x), in_float64(exp_of_negative, x)
    assert np.abs(y / expected - 1).max() < 2e-7
    assert y[-1] == 1


@pytest.mark.parametrize(
    ("function", "expected", "signs"),
    [
        (expm1_of_negative, np.expm1, (-1,)),
        (hyperbolic_tangent, np.tanh, (-1, 1)),
        (log1p_of_fraction, np.log1p, (1,)),
    ],
)
def test_they_keep_their_digits_near_zero_as_well(function, expected, signs):
    highest = 1 if function is log1p_of_fraction else 88
    sizes = np.concatenate([np.linspace(0, highest, 100_003), np.linspace(0.2, 0.3, 10_001), 10.0 ** -np.arange(1, 38)])
    for sign in signs:
        x = np.unique(sizes[sizes <= highest].astype(np.float32)) * np.float32(sign)
        y, wanted = loop_of(function)(x), expected(x.astype(np.float64))
        some = x != 0
        assert np.abs(y[some] / wanted[some] - 1).max() < 2.5e-7
        assert (y[~some] == 0).all()


def test_tanh_is_odd_and_has_limits():
    x = np.array([math.inf, 100, 9.5, 0.25, 1e-30, math.nan], np.float32)
    y = loop_of(hyperbolic_tangent)(x)
    np.testing.assert_array_equal(y[:3], np.ones(3, np.float32))
    np.testing.assert_array_equal(loop_of(hyperbolic_tangent)(-x), -y)
    assert math.isnan(y[5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["elu", "selu", "mish", "sigmoid", "softplus", "swish", "tanh"])
def test_activations_of_large_numbers_and_nan_have_their_limits(name, dtype):
    activation = ACTIVATIONS[name]
    loop, slope = builtin_kernels(activation.function, activation.derivative)
    y = np.array([200, -200, math.nan] * 40, dtype)
    x = y.copy()
    with np.errstate(invalid="ignore"):
        loop(y)
        dy = np.ones_like(y)
        slope(y if activation.derivative_of_output else x, dy)
    limits = {"sigmoid": (1, 0), "tanh": (1, -1), "elu": (200, -1), "selu": (200 * 1.0507009873, -1.7580993408)}
    np.testing.assert_allclose(y[:3], [*limits.get(name, (200, 0)), math.nan], rtol=1e-6, atol=1e-30)
    slopes = {"sigmoid": 0, "tanh": 0, "selu": 1.0507009873}
    np.testing.assert_allclose(dy[:2], [slopes.get(name, 1), 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("function", "bound"), [(cumulative, 3e-7), (density, 1e-7)])
def test_the_normal_distribution_is_nearly_as_exact_as_float32(function, bound):
    x = np.linspace(-12, 12, 100_003, dtype=np.float32)
    assert np.abs(loop_of(function)(x) - in_float64(function, x)).max() < bound
    some = x[(x > -4) & (x < 0)]  # small probabilities keep their digits
    assert np.abs(loop_of(function)(some) / in_float64(function, some) - 1).max() < 1e-3


@pytest.mark.parametrize("function", EXPECTED)
def test_in_float64_they_are_those_of_python(function):
    x = -np.linspace(0, 12, 1_001)
    np.testing.assert_allclose(loop_of(function)(x), EXPECTED[function](x), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", EXPECTED)
def test_nan_remains_nan_and_large_numbers_have_limits(function, dtype):
    x = np.array([math.nan, -1000, -math.inf], dtype)
    limit = -1 if function in (expm1_of_negative, hyperbolic_tangent) else 0
    np.testing.assert_array_equal(loop_of(function)(x), np.array([math.nan, limit, limit], dtype))
