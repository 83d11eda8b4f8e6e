"""Fingerprints: equal for equal values, different for values that differ anywhere, in another process too."""

import copy
import datetime
import enum
import functools
import math
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.files.fingerprint import fingerprint, matches, stored_fingerprint


class Scale(pc.Layer):
    """No dataclass: its factor is in no `repr`."""

    def __init__(self, factor):
        object.__setattr__(self, "factor", factor)

    def output_shape(self, shape):
        return shape

    def forward(self, params, x, y, cache, *, training):
        y[...] = self.factor * x

    def backward(self, params, grads, x, y, cache, dy, dx):
        dx[...] = self.factor * dy


@dataclass(frozen=True, repr=False)
class Table(Scale):
    factor: np.ndarray = field(default=None, compare=False)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


class Lazy:
    def __init__(self, n):
        self.n = n

    @functools.cached_property
    def square(self):
        return self.n**2


class Pair(tuple):
    pass


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def bent(x, slope=0.5):
    """Its documentation is not what it does."""
    return x if x > 0 else slope * x


def power(n):
    return lambda x: x**n


def activation(function):
    return pc.ActivationFunction("mine", function, lambda y: 1.0, derivative_of_output=True)


def filled(a):
    slotted = Slotted(a)
    slotted.b = 7
    return slotted


def with_rest(array, at, value):
    array = array.copy()
    array.reshape(-1)[at] = value
    return array


ARRAY = np.arange(5000.0)
# Values that all differ, of which many look alike.
VALUES = [
    *(0, 1, -1, 10**5000, False, True, None, 0.0, -0.0, 0.1, math.nan, math.inf, 1j, "", "a", b"a", "\udc80"),
    *((), [], (1,), [1], (1, 2), (2, 1), ((1,), 2), (1, (2,)), {}, {"a": 1}, {"a": 2}, {1: "a"}, set(), {1}, {(1,)}),
    *(ARRAY, with_rest(ARRAY, 2500, 0), ARRAY.reshape(50, 100), ARRAY.astype(np.float32), ARRAY.astype(">f8")),
    *(np.array([1, "a", None], object), np.array(["a"]), np.longdouble(1) / 3),
    *(Scale(1), Scale(5), Scale(ARRAY), Scale(with_rest(ARRAY, 2500, 0)), Table(ARRAY), Table(None)),
    *(Scale(np.sin), Scale(math.sin), Scale(power(2)), Scale(power(3)), Scale(bent), Scale(functools.partial(bent, 2))),
    *(Slotted(1), Slotted(2), filled(1), Lazy(2), Lazy(3), Pair((1,)), Pair((2,)), Colour.RED, Colour.BLUE, Colour),
    *(datetime.date(2020, 1, 1), datetime.date(2020, 1, 2), Path("/a"), Path("/b")),
    *(np.random.default_rng(0), np.random.default_rng(1), threading.Lock(), sys, math, int, np.float32, Scale, Table),
    *(pc.Conv2D(3, 3), pc.Conv2D(4, 3), pc.Conv2D(3, 3, activation="relu"), pc.Dense(3), pc.SGD(0.1), pc.SGD(0.2)),
    *(pc.SoftmaxCrossEntropy(), pc.MeanSquaredError(), activation(lambda x: x), activation(lambda x: 2 * x)),
    *(activation(bent), activation(power(2)), activation(power(3)), activation(math.tanh), activation(math.sinh)),
    *(Scale(1).forward, Scale(2).forward, Lazy.square, property(lambda self: 1)),
]


def test_values_that_differ_have_different_fingerprints():
    found = {}
    for value in VALUES:
        found.setdefault(fingerprint(value), []).append(value)
    assert [alike for alike in found.values() if len(alike) > 1] == []


def test_equal_values_have_equal_fingerprints():
    cached = Lazy(2)
    assert cached.square == 4
    unordered = ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({3, 1, 2}, {2, 3, 1}), (frozenset([1]), {1})
    as_numpy = (3, np.int64(3)), (0.5, np.float32(0.5)), (True, np.True_), (ARRAY, ARRAY[::-1][::-1])
    alike = (Scale(1), Scale(np.int64(1))), (power(2), power(2)), (cached, Lazy(2)), (filled(1), filled(1))
    for one, other in (*unordered, *as_numpy, *alike, (np.random.default_rng(0), np.random.default_rng(0))):
        assert fingerprint(one) == fingerprint(other), (one, other)
    for value in VALUES:
        if not isinstance(value, property | type(threading.Lock()) | type(sys) | functools.cached_property):
            assert fingerprint(copy.deepcopy(value)) == fingerprint(value), value


def test_what_a_value_shares_with_itself_makes_no_difference_but_a_cycle_has_an_end():
    one = Slotted([1])
    assert fingerprint((one, one)) == fingerprint((one, copy.deepcopy(one)))
    shared = [1]
    for _ in range(200):  # 2**200 of them, if each were described as often as it is met
        shared = [shared, shared]
    fingerprint(shared)

    def ring(last):
        first = Slotted(1)
        first.b = [first, {"again": first}, last]
        return first

    assert fingerprint(ring(3)) == fingerprint(ring(3)) != fingerprint(ring(4))
    first = ring(3)
    assert fingerprint((first, first.b)) == fingerprint((first, first.b))
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InputError, match="list is nested too deeply to be compared"):
        fingerprint(deep)


def variants(source):
    """What the function `f` of a text is, for each variant of the text."""
    for text in source:
        names = {"__name__": "mine"}
        exec(text, names)
        yield names["f"]


def test_functions_are_told_by_their_code_and_not_by_where_or_how_it_is_written():
    same = (
        "def f(x): return x + 1",
        "\n\ndef f(x):\n    # said\n    return x + 1",
        "def f(x):\n    'doc'\n    return x + 1",
    )
    other = (
        "def f(x): return x + 2",
        "def f(x): return x - 1",
        "def f(x, y=1): return x + y",
        "def f(x, y=2): return x + y",
        "def f(x): return x.a",
        "def f(x): return x.b",
        "n = 1\ndef f(x): return x + n",
        "n = 2\ndef f(x): return x + n",
        "def f(x): return (lambda y: y + 1)(x)",
        "def f(x): return (lambda y: y + 2)(x)",
    )
    assert len(set(map(fingerprint, variants(same)))) == 1
    assert len(set(map(fingerprint, variants([same[0], *other])))) == 1 + len(other)


def test_of_classes_the_methods_count_for_ranks_and_the_values_for_files():
    text = "class A:\n    factor = {}\n    def forward(self): return {}\nf = A()"
    original, other_value, other_method = variants([text.format(1, 2), text.format(3, 2), text.format(1, 4)])
    assert len({fingerprint(one) for one in (original, other_value, other_method)}) == 3
    stored = stored_fingerprint(original)
    assert matches(stored, stored_fingerprint(original))
    assert matches(stored, stored_fingerprint(other_method))
    assert not matches(stored, stored_fingerprint(other_value))


def test_what_a_file_keeps_of_functions_is_compared_by_the_python_that_wrote_it():
    stored = stored_fingerprint(activation(lambda x: x))
    assert not matches(stored, stored_fingerprint(activation(lambda x: 2 * x)))
    assert matches(
        {**stored, "python": "3.10", "functions": "what it compiled"}, stored_fingerprint(activation(lambda x: x))
    )
    assert not matches({**stored, "python": "3.10"}, stored_fingerprint(activation(bent)))


def test_numba_compiles_a_function_that_is_the_same_as_before():
    import numba

    assert fingerprint(numba.njit(bent)) == fingerprint(bent)
    assert fingerprint(numba.njit(power(2))) != fingerprint(numba.njit(power(3)))


def test_another_process_finds_the_same():
    """Also one with another hash seed, and where the class is defined in another module."""
    script = Path(__file__).read_text() + "\nprint(*(fingerprint(value) for value in VALUES))"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}, cwd=Path.cwd()
    )
    assert ran.stdout.split() == [fingerprint(value) for value in VALUES], ran.stderr
