"""Layers from plain numpy functions: what is refused, layers as values, in files, in other layers, in training."""

import copy
import math
import pickle
import re
import threading

import numpy as np
import pytest
import small
import traced
from conftest import ROOT
from thread_ranks import on_ranks
from traced_layers import layer_norm, polynomial, squeeze_excitation

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, InputError, ShapeError
from parallelcnn.files.fingerprint import fingerprint

LAYERS = (
    pc.Conv2D(4, 3, activation="relu"),
    layer_norm(),
    pc.Residual((squeeze_excitation(2), pc.Recompute((polynomial(), pc.Conv2D(4, 3, padding="same"))))),
    pc.Frozen(polynomial(2)),
    pc.MaxPool2D(2),
    pc.Flatten(),
    pc.Dense(5),
)


def network(seed=0, layers=LAYERS, dtype=np.float32):
    return pc.NetworkHandler(layers, (1, 11, 9), seed, dtype)


def train(threads=1, **options):
    found = network()
    sets = small.dataset(211), small.dataset(20, seed=1)
    options = {"comm": pc.Serial(), "threads": threads, "verbose": 0, **options}
    history = pc.train(found, *sets, pc.SGD(0.05, momentum=0.9), 2, 25, **options)
    return found, history


# Functions that do what is not possible, each in its second line, and the message.


def branch(x):
    return x if x > 0 else -x


def chained(x):
    return np.where(0 < x < 1, x, 0)


def builtin_max(x):
    return max(x, 0)


def assignment(x):
    x[0] = 0
    return x


def in_place(x):
    x += 1
    return x


def with_out(x):
    return np.exp(x, out=x)


def in_place_on_constant(x):
    total = np.zeros(3)
    total += x
    return total


def of_math(x):
    return math.exp(x)


def as_integer(x):
    return x * int(x.sum())


def new_array(x):
    return np.array([x, x])


def unknown(x):
    return np.cumsum(x)


def unknown_of_linalg(x):
    return np.linalg.norm(x)


def unknown_ufunc(x):
    return np.arcsin(x)


def unknown_method(x):
    return x.cumsum()


def reduction_by_ufunc(x):
    return np.add.reduce(x)


def with_option(x):
    return np.sum(x, where=x > 0)


def mask(x):
    return x[x > 0]


def list_of_indices(x):
    return x[[0, 1]]


def too_many_indices(x):
    return x[0, 0, 0, 0]


def samples_axis(x):
    return x.mean(3)


def samples_axis_from_behind(x):
    return np.sum(x, axis=(0, -4))


def other_shape(x):
    return x + np.ones(7)


def other_matrix(x):
    return x @ np.ones((4, 3))


def other_size(x):
    return x.reshape(7, -1)


def objects(x):
    return x * np.array([1, None, 2], object)


def complex_numbers(x):
    return x * 1j


def wrong_axes(x):
    return x.transpose(0, 0, 1)


def numbers_as_conditions(x):
    return x & 1


def condition_only(x):
    return np.where(x > 0)


def other_lengths(x):
    return np.concatenate([x, np.ones((2, 2))])


def unknown_label(x):
    return np.einsum("iij->j", x)


def three_in_einsum(x):
    return np.einsum("abc,abc,abc->a", x, x, x)


def negative_width(x):
    return np.pad(x, -1)


def axis_twice(x):
    return np.tensordot(x, np.ones((2, 2, 3)), ([0, -3], [0, 1]))


def sum_of_conditions(x):
    return x * ((x > 0) + (x > 1))


def minus_a_condition(x):
    return -(x > 0)


def ones_own_error(x):
    return {}["a"] * x


REFUSED = {
    branch: "if, and, or, not, max, min and bool.x. are not possible, since x stands for all samples: write np.where",
    chained: r"if, and, or, .* write np.where\(condition, a, b\), np.maximum\(a, b\) or np.minimum\(a, b\)$",
    builtin_max: "if, and, or, not, max, min and bool.x. are not possible",
    assignment: "x.i. = y is not possible: write np.where, np.concatenate or np.stack, which make new arrays",
    in_place: "x .= y and out=x are not possible: write x = x . y, which makes a new array",
    with_out: "x .= y and out=x are not possible",
    of_math: r"float\(x\), int\(x\), round\(x\) and functions of math are not possible, .* such as np.exp\(x\)$",
    as_integer: r"float\(x\), int\(x\), .* are not possible",
    new_array: "np.array, np.asarray and functions that call them are not possible: write np.stack",
    unknown: "np.cumsum cannot be differentiated here: see `parallelcnn guide differentiation`",
    unknown_of_linalg: "np.linalg.norm cannot be differentiated here",
    unknown_ufunc: "np.arcsin cannot be differentiated here",
    unknown_method: "AttributeError: x.cumsum is not possible for an array x of a traced function",
    reduction_by_ufunc: r"np.add is possible without options only, as np.add\(x, ...\)",
    with_option: "TypeError: .*sum.. got an unexpected keyword argument 'where'",
    mask: r"x\[i\] takes integers and slices, got Traced: np.where takes conditions",
    list_of_indices: r"x\[i\] takes integers and slices, got list",
    too_many_indices: r"x\[i\] with 4 indices does not fit \(2, 3, 3\), the shape of one sample",
    samples_axis: r"there is no axis 3 in \(2, 3, 3\), the shape of one sample: it has no axis of samples",
    samples_axis_from_behind: r"there is no axis -4 in \(2, 3, 3\), the shape of one sample",
    other_shape: r"shapes \(2, 3, 3\) and \(7,\) of one sample do not fit together",
    other_matrix: r"shapes \(2, 3, 3\) and \(4, 3\) do not fit together in a product of matrices",
    other_size: r"\(2, 3, 3\), the shape of one sample, cannot become \(7, -1\)",
    objects: "an array must hold real numbers, got object from ndarray",
    complex_numbers: "an array must hold real numbers, got complex128 from complex",
    wrong_axes: r"axes must name each axis of \(2, 3, 3\), the shape of one sample, got \(0, 0, 1\)",
    numbers_as_conditions: "np.logical_and takes conditions, such as x > 0",
    condition_only: r"np.where takes three arguments here: np.where\(condition, a, b\)",
    other_lengths: r"arrays of shapes \(2, 3, 3\) and \(2, 2\) cannot be joined along axis 0",
    unknown_label: "np.einsum takes one or two arrays, '->' and no label twice in an array here, got 'iij->j'",
    three_in_einsum: "np.einsum takes one or two arrays",
    negative_width: "np.pad takes widths of at least 0, got -1",
    axis_twice: r"np.tensordot takes each axis of an array once, got axes \(\[0, -3\], \[0, 1\]\)",
    sum_of_conditions: r"\+ and - take no conditions only",
    minus_a_condition: r"\+ and - take no conditions only",
    ones_own_error: "KeyError: 'a'",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_what_is_not_possible_is_refused_with_its_line_when_the_network_is_built(function):
    number = function.__code__.co_firstlineno + 1
    place = rf"{function.__name__}\(\): line {number} of test_traced_layers.py, `.*`: "
    with pytest.raises(InputError, match=f"^(layer 1 of 2: )?{place}{REFUSED[function]}"):
        pc.NetworkHandler((pc.layer(function)(), pc.Flatten()), (2, 3, 3))


def helper(x):
    return x.foo


def test_the_line_is_that_of_a_function_that_the_function_calls():
    @pc.layer
    def calls(x):
        return helper(x)

    number = helper.__code__.co_firstlineno + 1
    with pytest.raises(InputError, match=rf"calls\(\): line {number} of test_traced_layers.py, `return x.foo`: "):
        pc.NetworkHandler((calls(),), (3,))


def refused(message, function, shape=(3,), error=InputError, **parameters):
    with pytest.raises(error, match=message):
        pc.NetworkHandler((pc.layer(**parameters)(function)(),), shape)


def named(function, name="named"):
    function.__name__ = name
    return function


def test_a_result_that_is_no_array_is_refused():
    refused(r"named\(\): the result must be one array, got a tuple", named(lambda x: (x, x)))
    refused(r"named\(\): an array must hold real numbers, got object from NoneType", named(lambda x: None))
    refused(
        "the result must be an array, with at least one axis, got shape", named(lambda x: x.mean()), error=ShapeError
    )
    refused("must be an array, with at least one axis, got shape", named(lambda x: 3.0), error=ShapeError)
    refused(r"got shape \(0,\)", named(lambda x: x[:0]), error=ShapeError)


def test_a_function_that_does_not_do_the_same_in_each_call_is_refused():
    seen, kept = Seen(), []
    message = "the function uses other numbers in each call, such as random ones: it must not"
    refused(message, named(lambda x: x * np.random.default_rng().normal(size=3)))
    refused(message, named(lambda x: x * 2 if seen.again() else x * 1))
    refused(
        r"the function must do the same in each call, got results of shapes \(1,\) and \(2,\)",
        named(lambda x: x[: 2 - seen.again()]),
    )
    refused(
        "an array of an earlier call of the function cannot be used", named(lambda x: kept.append(x) or kept[0] + x)
    )


class Seen:
    """Hashable, and different in each call."""

    calls = 0

    def again(self):
        self.calls += 1
        return self.calls % 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.layer(lambda x: x), "pc.layer takes a function that is defined with `def`, got <function"),
        (lambda: pc.layer(np.tanh), "pc.layer takes a function that is defined with `def`, got <ufunc 'tanh'>"),
        (lambda: pc.layer(scale=1)(helper), r"pc.layer: helper has no argument 'scale': known: $"),
        (lambda: pc.layer(scalee=1)(layer_norm.definition.function), "'scalee': did you mean 'scale'. .known: scale, "),
        (lambda: pc.layer(named(lambda: 0)), r"pc.layer: named must have the arguments \(x, ...\), without"),
        (lambda: pc.layer(named(lambda x, *more: 0)), r"without \*args and \*\*kwargs"),
        (lambda: pc.layer(named(lambda x, **more: 0)), r"without \*args and \*\*kwargs"),
        (lambda: pc.layer(named(lambda x, forward: 0)), "no hyperparameter can be called 'forward'"),
        (lambda: pc.layer(named(lambda x, some=[]: 0)), r"some must be a number, a text or a tuple, got \[\]"),
        (lambda: polynomial([3]), r"polynomial: degree must be a number, a text or a tuple of these, got \[3\]"),
        (
            lambda: pc.NetworkHandler((squeeze_excitation(0),), (4, 3, 3)),
            r"layer 1 of 1: squeeze_excitation\(ratio=0\): parameter 'weights' cannot be made for an input of shape "
            r"\(4, 3, 3\): ZeroDivisionError",
        ),
        (
            lambda: pc.NetworkHandler((pc.layer(w="ones")(named(lambda x, w: x))(),), (4,)),
            r"named\(\): parameter 'w' must be a number, an array, a Parameter or a function of the inp.* got 'ones'",
        ),
        (
            lambda: pc.NetworkHandler((pc.layer(w=[[1], [1, 2]])(named(lambda x, w: x))(),), (4,)),
            r"named\(\): parameter 'w' must all have the same shape, got \(1,\) at place 0 and \(2,\) at 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_layer_without_its_hyperparameter_is_pythons_error():
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'units'"):
        pc.layer(named(lambda x, units: x))()


def test_traced_layers_are_values_as_others_are():
    assert [repr(one) for one in LAYERS[1:4]] == [
        "layer_norm()",
        "Residual((squeeze_excitation(ratio=2), Recompute((polynomial(), Conv2D(4, 3, padding='same')))))",
        "Frozen(polynomial(degree=2))",
    ]
    assert layer_norm(epsilon=0.1) == layer_norm(0.1) == copy.deepcopy(layer_norm(0.1)) != layer_norm()
    assert hash(layer_norm(0.1)) == hash(layer_norm(0.1))
    assert len({layer_norm(), layer_norm(1e-5), layer_norm(1e-4), polynomial(3), polynomial()}) == 3
    assert pickle.loads(pickle.dumps(polynomial(5))) == polynomial(5)
    assert (layer_norm.__name__, layer_norm.__doc__) == ("layer_norm", "Normalise each sample.")
    with pytest.raises(AttributeError, match="cannot assign to field 'degree'"):
        polynomial().degree = 2
    assert layer_norm().output_shape((3, 4, 5)) == (3, 4, 5)
    assert polynomial().multiply_adds((7,)) == 0
    assert squeeze_excitation(2).multiply_adds((4, 3, 3)) == 2 * 4 + 4 * 2


def test_parameters_are_declared_as_numbers_arrays_functions_and_parameters():
    rows = np.arange(6.0).reshape(2, 3)
    parameters = {
        "a": 2,
        "b": rows,
        "c": lambda shape: shape[0],
        "d": pc.Parameter((2, 2), initial=0.5),
        "e": lambda shape, units: pc.Parameter((units,), lambda rng, shape: rng.normal(size=shape)),
        "f": lambda shape, *, units=3: np.full(units, 7),
    }

    @pc.layer(**parameters)
    def many(x, a, *, b, c, units, d, e, f):
        return a * x + b.sum() + c + d.sum() + e.sum() + f.sum()

    layer = many(units=4)
    assert repr(layer) == "many(4)"
    found = pc.NetworkHandler((layer,), (5,), seed=3).named_arrays
    assert {name: one.shape for name, one in found.items()} == {
        "0.a": (), "0.b": (2, 3), "0.c": (), "0.d": (2, 2), "0.e": (4,), "0.f": (3,),
    }  # fmt: skip
    np.testing.assert_array_equal(found["0.b"], rows)
    assert (found["0.a"], found["0.c"], found["0.d"][0, 0], found["0.f"][2]) == (2, 5, 0.5, 7)
    np.testing.assert_array_equal(found["0.e"], np.random.default_rng(3).normal(size=4).astype(np.float32))
    decays = {name: one.weight_decay for name, one in layer.parameters((5,)).items()}
    assert decays == {"a": False, "b": False, "c": False, "d": True, "e": True, "f": False}
    assert pc.gradient_check(layer, (5,), 3).largest_difference < 1e-7


def scaled_by(factor):
    @pc.layer
    def scaled(x):
        return factor * x

    return scaled()


def test_the_fingerprint_of_a_traced_layer_covers_its_function_and_what_it_uses():
    assert fingerprint(scaled_by(2)) == fingerprint(scaled_by(2)) != fingerprint(scaled_by(3))
    assert fingerprint(polynomial(2)) != fingerprint(polynomial(3))


def test_a_model_is_saved_and_needs_its_layers_again(tmp_path):
    path, found = tmp_path / "model.npz", network()
    pc.save_model(path, found)
    images = small.dataset(7).images
    same = pc.load_model(path, LAYERS)
    assert same.parameters_sha256() == found.parameters_sha256()
    np.testing.assert_array_equal(same.predict(images), found.predict(images))
    with pytest.raises(
        CheckpointError, match=r"holds layer_norm\(\), which is not this library's own: say where it is"
    ):
        pc.load_model(path)
    pc.save_model(path, network(layers=(pc.Flatten(), scaled_by(2))))
    pc.load_model(path, (pc.Flatten(), scaled_by(2)))
    with pytest.raises(CheckpointError, match=r"holds a scaled\(\) with other values"):
        pc.load_model(path, (pc.Flatten(), scaled_by(3)))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_traced_layers_are_differentiated_inside_other_layers(n):
    for layer in (
        pc.Residual((layer_norm(), squeeze_excitation(2)), shortcut=polynomial(), activation="tanh"),
        pc.Sequential((pc.Recompute((layer_norm(), pc.Conv2D(3, 2), polynomial(2))), pc.Flatten())),
        pc.Concat((layer_norm(), (pc.Frozen(polynomial()), squeeze_excitation(2)), ())),
        pc.Frozen(layer_norm()),
    ):
        assert pc.gradient_check(layer, (4, 3, 5), n).largest_difference < 1e-6


def test_recomputing_and_freezing_change_no_bit(rng):
    x, dy = rng.random((1, 11, 9, 20)).astype(np.float32), rng.normal(size=(5, 20)).astype(np.float32)

    def gradients(layers):
        found = network(layers=layers)
        found.forward(x, training=True)
        found.backward(dy)
        return {slot.key: found.gradients[slot.start : slot.stop] for slot in found.layout.trained.slots}

    kept = (*LAYERS[:2], pc.Residual((squeeze_excitation(2), pc.Sequential(LAYERS[2].layers[1].layers))), *LAYERS[3:])
    thawed = (*LAYERS[:3], LAYERS[3].layer, *LAYERS[4:])
    wanted = gradients(thawed)
    for found in (gradients(LAYERS), gradients(kept)):
        assert wanted.keys() - found.keys() == {"3.weights"}
        for name in found:
            np.testing.assert_array_equal(found[name].ravel(), wanted[name].ravel(), name)


@pytest.mark.parametrize("reproducible", [3, 6])
def test_the_bits_are_the_same_on_any_number_of_threads(reproducible):
    runs = [train(threads, reproducible=reproducible) for threads in (1, 2, 3)]
    assert len({found.parameters_sha256() for found, _ in runs}) == 1
    assert len({tuple(history.losses) for _, history in runs}) == 1


def test_training_is_that_of_the_librarys_own_layers():
    def train(layers):
        found, data = network(layers=layers, dtype=np.float64), small.dataset(100)
        pc.train(found, data, data, pc.SGD(0.1), 2, 25, comm=pc.Serial(), verbose=0)
        return found.params

    @pc.layer(weight=np.ones, bias=np.zeros)
    def norm(x, weight, bias):
        return weight * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + bias

    ours, theirs = (train((pc.Conv2D(3, 3), one, pc.Flatten(), pc.Dense(5))) for one in (norm(), pc.LayerNorm()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_ranks_and_threads_give_the_same_bits_as_one():
    def on_rank(comm, threads=1):
        return train(threads, reproducible=6, comm=comm, timeout=0)[0].parameters_sha256()

    wanted = on_rank(pc.Serial())
    assert set(on_ranks(3, on_rank)) == {wanted}


def test_predictions_of_several_threads_at_once_are_right():
    found, images = network(), [small.dataset(n, seed=n).images for n in (1, 5, 33, 64)]
    wanted, wrong = [found.predict(one) for one in images], []

    def predict():
        for _ in range(20):
            for one, y in zip(images, wanted, strict=True):
                if not np.array_equal(found.predict(one), y):
                    wrong.append(len(one))

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_a_step_allocates_no_memory_for_numbers():
    peak = 8192  # bytes; an array with one byte for each sample would be larger
    samples = peak + 1

    @pc.layer(weights=np.ones((4, 3, 3)))
    def many(x, weights):
        y = np.where(x > 0, np.pad(weights @ x[:, 1:, ::-1][:, :3], ((0, 0), (0, 6), (0, 0))), x[:, :9, :3])
        return np.concatenate([x.max(1, keepdims=True) + y[:, :3], y * (y > 1) - x[:, :9, :3].T.transpose(2, 1, 0)], 1)

    layers = (
        pc.Conv2D(4, (3, 7)),
        layer_norm(),
        squeeze_excitation(2),
        many(),
        polynomial(2),
        pc.Flatten(),
        pc.Dense(5),
    )
    steps, found = traced.TracedSteps(), network(layers=layers)
    found.replica.block_size = samples
    pc.train(found, small.dataset(3 * samples), small.dataset(9), pc.SGD(0.1), 3, samples, callbacks=[steps], verbose=0)
    assert steps.steps == 4
    assert steps.peak <= peak


def test_passes_do_not_warn_where_exp_overflows():
    @pc.layer
    def sigmoid(x):
        return 1 / (1 + np.exp(-x)) + np.log(x * 0)

    found = pc.NetworkHandler((sigmoid(), pc.Dense(2)), (3,))
    found.forward(np.full((3, 2), -1e4, np.float32), training=True)
    found.backward(np.ones((2, 2), np.float32))


def test_numbers_stay_float32():
    @pc.layer(w=np.ones)
    def mixed(x, w):
        return np.float64(2) * x + np.arange(3) * w + np.ones(3) - 1e-300 + 10**20 * (x > 2)

    found = pc.NetworkHandler((mixed(),), (3,))
    assert found.forward(np.ones((3, 2), np.float32), training=True).dtype == np.float32
    tape = found.replica.tape(2, training=True)
    arrays = [one for call in tape.forward + tape.backward for one in (*call.args, *call.keywords.values())]
    assert {one.dtype.str for one in arrays if isinstance(one, np.ndarray)} <= {"<f4", "|b1"}


def test_each_layer_of_the_guide_has_at_most_eight_lines():
    page = (ROOT / "parallelcnn" / "guide" / "differentiation.md").read_text()
    layers = re.findall(r"^@pc.layer.*?(?=^```$|\n\n)", page, re.M | re.S)
    assert [re.search(r"^def (\w+)", one, re.M)[1] for one in layers] == [
        "layer_norm", "squeeze_excitation", "polynomial", "root"
    ]  # fmt: skip
    assert max(len(one.strip().splitlines()) for one in layers) <= 8
