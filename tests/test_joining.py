"""Calls of kernels joined to one do what they do one after the other."""

import os
from functools import partial

import cases
import numpy as np
import pytest
import small
from numba import njit
from recorded import call_all, record
from test_kernels import DTYPES

import parallelcnn as pc
from parallelcnn import call_list
from parallelcnn.call_list import join
from parallelcnn.errors import TrainingWarning
from parallelcnn.kernels._jit import kernel_uncached

LARGE = [*cases.LARGE_CONVOLUTIONS, *cases.LARGE_POOLED_CONVOLUTIONS]

pytestmark = pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")


def passes(layer, input_shape, dtype, as_called, n=33):
    """What a layer writes in two forward and backward passes over other numbers each."""
    rng = np.random.default_rng(3)
    layer = record(layer, input_shape, n, dtype)
    layer.flat_params[...] = rng.normal(size=layer.flat_params.size)
    tape = layer.tape
    forward, backward = (
        as_called([call for part in parts for call in part]) for parts in (tape.forward_parts, tape.backward_parts)
    )
    written = []
    for _ in range(2):
        tape.x[...], tape.dy[...] = rng.normal(size=tape.x.shape), rng.normal(size=tape.dy.shape)
        layer.flat_grads[...] = 7
        call_all(forward)
        written.append(tape.y.tobytes())
        call_all(backward)
        written += [array.tobytes() for array in (tape.dx, layer.flat_grads)]
    return written


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [*cases.LAYERS, *cases.POOLED_CONVOLUTIONS, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)],
    ids=cases.name_of,
)
def test_the_joined_calls_of_a_layer_write_the_same_bits(layer, input_shape, dtype):
    assert passes(layer, input_shape, dtype, join) == passes(layer, input_shape, dtype, list)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_with_joined_calls_gives_the_same_bits(threads, monkeypatch):
    def parameters():
        network = small.network()
        pc.train(network, small.dataset(211), small.dataset(9), pc.SGD(0.1), 2, 25, comm=pc.Serial(), threads=threads)
        return network.parameters_sha256()

    joined = parameters()
    monkeypatch.setattr("parallelcnn.tape.join", list)
    assert parameters() == joined


@pytest.mark.parametrize("n", [50, 100])
def test_each_pass_of_the_papers_network_is_one_call(n):
    tape = pc.NetworkHandler(pc.paper(), (1, 28, 28)).replica.tape(n, training=True)
    assert (len(tape.forward), len(tape.backward)) == (1, 1)


def test_for_another_number_of_samples_nothing_is_translated(monkeypatch):
    layer, input_shape = cases.LAYERS[0]
    passes(layer, input_shape, np.float32, join)
    monkeypatch.setattr("parallelcnn.call_list._translate", None)
    passes(layer, input_shape, np.float32, join, n=34)


def test_all_that_is_missing_for_some_calls_is_translated_together(monkeypatch):
    modules, translate = [], call_list._translate
    monkeypatch.setattr(call_list, "_known_entries", {})
    monkeypatch.setattr(call_list, "_translate", lambda module: (modules.append(module), translate(module))[1])
    log, other = np.zeros(9), np.zeros(9, np.float32)
    call_all(join([partial(note, 1, log), partial(note, 2.5, log), partial(note, 3, other), partial(note, 4, log)]))
    assert log.tolist()[:4] == [3, 1, 2.5, 4]
    assert other.tolist()[:2] == [1, 3]
    kinds = [len(module.functions) for module in modules if "loop" not in module.globals]
    assert kinds == [3]  # the first and the last call have the same types of arguments


@kernel_uncached
def note(value, log):
    """Write a number behind those in log, whose first place says how many there are."""
    log[0] += 1
    log[int(log[0])] = value


def test_what_is_no_kernel_is_called_in_its_place():
    log = np.zeros(9)
    numbers = [partial(note, number, log) for number in (1, 2, 3, 4, 5)]
    calls = join([numbers[0], numbers[1], lambda: note.py_func(10 * log[0], log), *numbers[2:]])
    assert len(calls) == 3
    call_all(calls)
    assert log.tolist() == [6, 1, 2, 20, 3, 4, 5, 0, 0]


@kernel_uncached
def unpack(number, narrow, flag, nothing, shape, strided, to):
    to[0] = number
    to[1] = narrow * narrow
    to[2] = 1 if flag else 0
    to[3] = 1 if nothing is None else 0
    to[4] = shape[0] * 10 + shape[1][0]
    to[5:] = strided[::-1, 1]


def test_every_kind_of_argument_arrives():
    strided = np.arange(24.0).reshape(4, 6)[::2, ::3]
    arguments = -1.5, np.float32(0.1), True, None, (3, (4,)), strided
    joined, alone = np.zeros((2, 7)), np.zeros(7)
    (call,) = join([partial(unpack, *arguments, to) for to in joined])
    call()
    unpack(*arguments, alone)
    assert joined.tolist() == [alone.tolist()] * 2
    assert alone.tolist()[:1] + alone.tolist()[2:] == [-1.5, 1, 1, 34, 15, 3]


@kernel_uncached
def refuse(log):
    if log[0] == 2:
        raise ValueError("two are enough")


def test_what_a_kernel_raises_is_raised_and_ends_the_calls():
    log = np.zeros(9)
    (call,) = join([partial(note, 1, log), partial(note, 2, log), partial(refuse, log), partial(note, 3, log)])
    with pytest.raises(ValueError, match="two are enough"):
        call()
    assert log.tolist() == [2, 1, 2, 0, 0, 0, 0, 0, 0]


@njit
def locked(array):
    array[0] = 1


@njit(nogil=True)
def first(array):
    return array[0]


@njit(nogil=True)
def fill(array, value=2.0):
    array[0] = value


@pytest.mark.parametrize(
    ("function", "options"),
    [(locked, {}), (first, {}), (fill, {}), (fill, {"value": 3.0}), (np.negative, {})],
    ids=["takes the lock", "returns a number", "default argument", "named argument", "of numpy"],
)
def test_other_functions_are_left_as_they_are(function, options):
    calls = [partial(function, np.zeros(1), **options) for _ in range(2)]
    assert join(calls) == calls


def test_of_nothing_nothing_is_made():
    assert join([]) == []


def test_the_calls_of_frequent_predictions_are_joined_and_give_the_same_bits():
    network, images = small.network(), small.dataset(20).images
    wanted = network.predict(images)
    (replica,) = network._idle
    tape = replica.tape(20, training=False)
    separate = list(tape.forward)
    for _ in range(20):
        np.testing.assert_array_equal(network.predict(images), wanted)
    assert len(tape.forward) < len(separate)
    np.testing.assert_array_equal(network.predict(images[::-1]), wanted[::-1])


def test_with_a_numba_that_hands_over_arguments_otherwise_nothing_is_joined(monkeypatch):
    def train():
        network = small.network()
        pc.train(network, small.dataset(60), small.dataset(20), pc.SGD(0.1), 1, 20, comm=pc.Serial(), verbose=0)
        return network.parameters_sha256()

    wanted = train()
    monkeypatch.setattr("parallelcnn.call_list._words", lambda value: [0])
    with pytest.warns(TrainingWarning, match=r"^numba \S+ is not known to this version of parallelcnn: training on"):
        assert train() == wanted
