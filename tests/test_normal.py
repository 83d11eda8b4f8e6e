"""exp and the normal distribution, as loops compute them, against Python's in float64."""

import math

import numpy as np
import pytest

from parallelcnn.kernels._jit import kernel
from parallelcnn.kernels._normal import cumulative, density, exp_of_negative

ERF = np.vectorize(math.erf, otypes=[np.float64])
EXPECTED = {
    exp_of_negative: np.exp,
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
    np.testing.assert_array_equal(loop_of(function)(x), np.array([math.nan, 0, 0], dtype))
