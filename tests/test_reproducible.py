"""Sums in fixed point: the same bits whoever adds, and no number that does not fit goes unnoticed."""

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import DivergenceError, InputError
from parallelcnn.kernels.finite import all_finite
from parallelcnn.kernels.fixed_point import add_fixed_point, from_fixed_point

UNIT = 2.0**-48


def fixed(*terms, largest=100.0, dtype=np.float32):
    sums, left_out = np.full(len(terms[0]), 7, np.int64), np.full(1, 7, np.int64)  # of which nothing may remain
    for number, term in enumerate(terms):
        add_fixed_point(np.array(term, dtype), largest, sums, left_out, number == 0)
    numbers = np.empty(len(sums), dtype)
    from_fixed_point(sums, numbers)
    return numbers, left_out[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_in_fixed_point_is_the_sum_to_within_a_unit_in_any_order(dtype, rng):
    terms = (rng.standard_normal((50, 300)) * 10.0 ** rng.integers(-9, 1, (50, 300))).astype(dtype)
    wanted = terms.astype(np.longdouble).sum(axis=0)
    sums = [fixed(*terms[rng.permutation(50)], dtype=dtype)[0] for _ in range(5)]
    for one in sums[1:]:
        np.testing.assert_array_equal(one, sums[0])
    np.testing.assert_allclose(sums[0], wanted.astype(dtype), rtol=2 * np.finfo(dtype).eps, atol=51 * UNIT)


def test_what_does_not_fit_is_counted_and_left_out():
    bad = [np.nan, np.inf, -np.inf, 100.5, -101, 3e38]
    numbers, left_out = fixed([*bad, 100, -100, 0], [1] * 9)
    assert left_out == len(bad)
    np.testing.assert_array_equal(numbers, [1] * len(bad) + [101, -99, 1])


def test_what_does_not_fit_is_counted_over_all_terms():
    assert fixed([np.nan, 1], [1, 1], [1, np.inf])[1] == 2


def test_as_many_of_the_largest_terms_as_there_are_grains_do_not_wrap():
    grains = 2**14
    term = np.array([2.0**14 / grains, -(2.0**14) / grains])
    numbers, left_out = fixed(*[term] * grains, largest=2.0**14 / grains, dtype=np.float64)
    assert left_out == 0
    np.testing.assert_array_equal(numbers, [2.0**14, -(2.0**14)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_that_is_none_is_found_wherever_it_stands(dtype, rng):
    numbers = (rng.standard_normal(1000) * 1e30).astype(dtype)
    assert all_finite(numbers)
    assert all_finite(numbers[:0])
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 1, 500, 998, 999):
            numbers[place], kept = bad, numbers[place]
            assert not all_finite(numbers)
            numbers[place] = kept
    assert all_finite(np.full(9, np.finfo(dtype).max))


def train(network=None, threads=1, grains=None, optimizer=None, batch_size=25, n=211, **options):
    network = network or small.network()
    history = pc.train(
        network, small.dataset(n), small.dataset(97, seed=1), optimizer or pc.SGD(0.1, momentum=0.9), 2, batch_size,
        comm=pc.Serial(), threads=threads, grains=grains, **options,
    )  # fmt: skip
    return network, history


@pytest.mark.parametrize("grains", [1, 3, 8, 30])
@pytest.mark.parametrize("batch_size", [25, 2, 211])
def test_the_bits_are_the_same_on_any_number_of_threads(grains, batch_size):
    """30 grains are more than a minibatch has samples: some are empty."""
    runs = [train(threads=threads, grains=grains, batch_size=batch_size, evaluate_every=3) for threads in (1, 2, 3, 4)]
    assert len({network.parameters_sha256() for network, _ in runs}) == 1
    assert len({tuple(history.losses) for _, history in runs}) == 1
    assert len({tuple(history.evaluations) for _, history in runs}) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reproducible_training_is_training_up_to_rounding(dtype):
    plain, _ = train(small.network(dtype=dtype))
    network, _ = train(small.network(dtype=dtype), grains=5)
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(network.params, plain.params, rtol=tolerance, atol=tolerance)


def test_a_gradient_too_large_for_fixed_point_is_an_error_and_never_wrapped():
    network = small.network()
    network.params *= 1e6
    before = network.params.copy()
    with pytest.raises(
        DivergenceError, match="is too large for reproducible sums, which hold 2048 for each of 8 grains"
    ):
        train(network, grains=8, loss=pc.MeanSquaredError())
    np.testing.assert_array_equal(network.params, before)


@pytest.mark.parametrize("grains", [0, -1, 1.5, True, 2**20])
def test_a_number_of_grains_that_makes_no_sense_is_refused(grains):
    with pytest.raises(InputError, match="grains must be an integer from 1 to 16,384, got"):
        train(grains=grains)


def test_an_evaluation_has_the_same_bits_on_any_number_of_threads():
    network = small.network()
    for n in (1, 97, 1000):
        results = {
            pc.evaluate(network, small.dataset(n, seed=2), pc.Serial(), threads=threads) for threads in (1, 2, 3)
        }
        assert len(results) == 1
