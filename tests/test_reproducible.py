"""Sums in fixed point: the same bits whoever adds, and no number that does not fit goes unnoticed."""

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import DivergenceError, InputError
from parallelcnn.kernels.finite import all_finite
from parallelcnn.kernels.fixed_point import add_fixed_point, from_fixed_point

UNIT = 2.0**-48


def fixed(*terms, largest=100.0, exponents=(0,), starts=None, dtype=np.float32):
    starts = np.array([0, len(terms[0])] if starts is None else starts)
    exponents = np.array(exponents)
    sums, counts = np.full(len(terms[0]), 7, np.int64), np.zeros((4, len(exponents)), np.int64)  # no 7 may remain
    for number, term in enumerate(terms):
        add_fixed_point(np.array(term, dtype), starts, exponents, largest, sums, counts, number == 0)
    numbers, bits = np.empty(len(sums), dtype), np.zeros_like(exponents)
    from_fixed_point(sums, starts, exponents, numbers, bits)
    return numbers, counts, bits


@pytest.mark.parametrize("exponent", [-60, 0, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_in_fixed_point_is_the_sum_to_within_a_unit_in_any_order(dtype, exponent, rng):
    terms = (rng.standard_normal((50, 300)) * 10.0 ** rng.integers(-9, 1, (50, 300))).astype(dtype)
    terms *= dtype(2.0**exponent)
    wanted = terms.astype(np.longdouble).sum(axis=0)
    sums = [fixed(*terms[rng.permutation(50)], exponents=[exponent], dtype=dtype)[0] for _ in range(5)]
    for one in sums[1:]:
        np.testing.assert_array_equal(one, sums[0])
    unit = 2.0**exponent * UNIT
    np.testing.assert_allclose(sums[0], wanted.astype(dtype), rtol=2 * np.finfo(dtype).eps, atol=51 * unit)


def test_what_does_not_fit_is_counted_and_left_out():
    bad = [np.nan, np.inf, -np.inf, 100.5, -101, 3e38]
    numbers, (infinite, large, exact, rounded), _ = fixed([*bad, 100, -100, 0], [1] * 9)
    assert (infinite[0], large[0], rounded[0]) == (3, 3, 0)
    assert exact[0] >= 2 + 9
    np.testing.assert_array_equal(numbers, [1] * len(bad) + [101, -99, 1])


def test_terms_are_counted_over_all_that_are_added_and_by_segment():
    _, (infinite, large, exact, rounded), bits = fixed(
        [np.nan, 1, 2.0**-30], [1, 1, 0], exponents=[0, 0], starts=[0, 2, 3]
    )
    assert infinite.tolist() == [1, 0]
    assert large.tolist() == [0, 0]
    assert exact.tolist() == [3, 0]
    assert rounded.tolist() == [0, 1]  # zero loses nothing
    assert bits.tolist() == [50, 19]  # 2 * 2**48 and 2**18


def test_as_many_of_the_largest_terms_as_there_are_shards_do_not_wrap():
    shards = 2**14
    term = np.array([2.0**14 / shards, -(2.0**14) / shards])
    numbers, counts, _ = fixed(*[term] * shards, largest=2.0**14 / shards, dtype=np.float64)
    assert counts[:2].sum() == 0
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


def train(network=None, threads=1, reproducible=None, optimizer=None, batch_size=25, n=211, **options):
    network = network or small.network()
    history = pc.train(
        network, small.dataset(n), small.dataset(97, seed=1), optimizer or pc.SGD(0.1, momentum=0.9), 2, batch_size,
        comm=pc.Serial(), threads=threads, reproducible=reproducible, **options,
    )  # fmt: skip
    return network, history


@pytest.mark.parametrize("reproducible", [1, 3, 8, 30])
@pytest.mark.parametrize("batch_size", [25, 2, 211])
@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_the_bits_are_the_same_on_any_number_of_threads(reproducible, batch_size):
    """30 shards are more than a minibatch has samples: some are empty."""
    runs = [
        train(threads=threads, reproducible=reproducible, batch_size=batch_size, evaluate_every=3)
        for threads in (1, 2, 3, 4)
    ]
    assert len({network.parameters_sha256() for network, _ in runs}) == 1
    assert len({tuple(history.losses) for _, history in runs}) == 1
    assert len({tuple(history.evaluations) for _, history in runs}) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reproducible_training_is_training_up_to_rounding(dtype):
    plain, _ = train(small.network(dtype=dtype))
    network, _ = train(small.network(dtype=dtype), reproducible=5)
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(network.params, plain.params, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1e-5, 1, 1e6, 1e12])
def test_values_of_any_size_are_summed_as_accurately_as_without(scale, threads, rng):
    """Targets, parameters, losses and gradients all are of that size."""
    inputs = rng.normal(size=(120, 6)).astype(np.float32)
    targets = (inputs @ rng.normal(size=(6, 2)) * scale).astype(np.float32)
    dataset = pc.Dataset(inputs, targets, None)

    def train(reproducible):
        network = pc.NetworkHandler((pc.Dense(4, activation="tanh"), pc.Dense(2)), (6,))
        network.params[28:] *= np.float32(scale)
        options = {"loss": pc.MeanSquaredError(), "comm": pc.Serial(), "threads": threads, "reproducible": reproducible}
        return network.params, pc.train(network, dataset, dataset, pc.SGD(0.05), 2, 30, **options)

    (plain, wanted), (params, history) = train(None), train(4)
    np.testing.assert_allclose(history.losses, wanted.losses, rtol=1e-5)
    np.testing.assert_allclose(params[28:], plain[28:], rtol=1e-5, atol=1e-6 * scale)


def test_a_gradient_that_is_infinite_is_divergence_and_changes_no_parameter():
    network = small.network()
    network.params *= 1e30
    before = network.params.copy()
    with pytest.raises(DivergenceError):
        train(network, reproducible=8, loss=pc.MeanSquaredError())
    np.testing.assert_array_equal(network.params, before)


@pytest.mark.parametrize("reproducible", [0, -1, 1.5, True, 2**20])
def test_a_number_of_shards_that_makes_no_sense_is_refused(reproducible):
    with pytest.raises(InputError, match="reproducible must be an integer from 1 to 16,384, got"):
        train(reproducible=reproducible)


def test_an_evaluation_has_the_same_bits_on_any_number_of_threads():
    network = small.network()
    for n in (1, 97, 1000):
        results = {
            pc.evaluate(network, small.dataset(n, seed=2), pc.Serial(), threads=threads) for threads in (1, 2, 3)
        }
        assert len(results) == 1
