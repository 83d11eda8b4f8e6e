"""Layers as values, their shapes, and their backward passes against differences of their forward passes."""

import math
import os
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
from cases import LAYERS, POOLED_CONVOLUTIONS, name_of
from numba import njit

import parallelcnn as pc
from parallelcnn import (
    Activation,
    ActivationFunction,
    AvgPool2D,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Frozen,
    GlobalAvgPool2D,
    GlobalMaxPool2D,
    Layer,
    MaxPool2D,
    Parameter,
    PReLU,
    Recompute,
    Reshape,
    Residual,
    Sequential,
    SpatialDropout,
    Upsample2D,
    ZeroPad2D,
    gradient_check,
    layers,
)
from parallelcnn.errors import GradientError, InputError, ShapeError


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("layer", "input_shape"), [*LAYERS, *POOLED_CONVOLUTIONS], ids=name_of)
def test_backward_is_the_derivative_of_forward(layer, input_shape, n):
    if n > 1 and "NUMBA_DISABLE_JIT" in os.environ:
        pytest.skip("one sample runs the same lines, and five took six minutes where nothing is compiled")
    check = gradient_check(layer, input_shape, n)
    assert check.largest_difference < 1e-6
    if n:
        assert check.compared >= n * np.prod(input_shape)


@pytest.mark.parametrize(("layer", "input_shape"), LAYERS, ids=name_of)
def test_a_layer_is_a_value_that_prints_as_its_constructor_call(layer, input_shape):
    again = eval(repr(layer), {**vars(layers)})
    assert again == layer
    assert hash(again) == hash(layer)
    with pytest.raises(FrozenInstanceError):
        layer.filters = 7


class Plain(Layer):
    """A layer without a constructor of its own."""

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, step, x):
        return x

    def backward(self, step, dy):
        return dy


class WithConstructor(Plain):
    def __init__(self, size, *others, scale=1, **options):
        self.kept = size, others, scale, options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (  # as PyTorch users write it
            lambda: Conv2D(3, 8, 3),
            "Conv2D takes filters, kernel_size by position and others by name, as stride=3, but not a number of input "
            "channels, got Conv2D(3, 8, 3)",
        ),
        (
            lambda: Conv2D(3, 8, 3, 1, "same"),
            "Conv2D takes filters, kernel_size by position and others by name, as stride=3, padding=1, "
            "activation='same', but not a number of input channels, got Conv2D(3, 8, 3, 1, 'same')",
        ),
        (
            lambda: DepthwiseConv2D(3, 2, bias=False),
            "DepthwiseConv2D takes kernel_size by position and others by name, as multiplier=2, but not a number of "
            "input channels, got DepthwiseConv2D(3, 2)",
        ),
        (
            lambda: MaxPool2D(2, 2, "relu", 1),
            "MaxPool2D takes pool_size, stride, activation by position and others by name, as padding=1, but not a "
            "number of input channels, got MaxPool2D(2, 2, 'relu', 1)",
        ),
        (lambda: Flatten(1), "Flatten takes no argument by position, got Flatten(1)"),
        (lambda: Plain(np.int64(7)), "Plain takes no argument by position, got Plain(7)"),
        (lambda: Plain(axis=1), "Plain has no argument 'axis': it takes none"),
        (lambda: Frozen(Flatten(), 1), "Frozen takes layer by position, got Frozen(Flatten(), 1)"),
        (  # as Keras users write it
            lambda: Conv2D(8, 3, strides=2),
            "Conv2D has no argument 'strides': did you mean 'stride'? (known: filters, kernel_size, stride, padding, "
            "activation, bias, groups, dilation)",
        ),
        (lambda: Dropout(p=0.5), "Dropout has no argument 'p': known: rate"),
    ],
)
def test_arguments_that_a_layer_does_not_take_are_refused_in_our_own_words(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_a_constructor_of_the_users_own_takes_what_it_takes():
    assert WithConstructor(1, 2, 3, scale=4, other=5).kept == (1, (2, 3), 4, {"other": 5})
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        WithConstructor()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'kernel_size'"):
        Conv2D(8)


@pytest.mark.parametrize(
    ("layer", "input_shape", "output_shape"),
    [
        (Conv2D(6, 3), (1, 28, 28), (6, 26, 26)),
        (Conv2D(6, 5, padding="same"), (1, 28, 28), (6, 28, 28)),
        (Conv2D(6, 3, stride=2, padding="same"), (1, 7, 8), (6, 4, 4)),
        (Conv2D(6, 3, stride=2), (1, 7, 8), (6, 3, 3)),
        (Conv2D(4, (2, 3), stride=(3, 1), padding=(1, 2)), (2, 5, 4), (4, 2, 6)),
        (MaxPool2D(), (6, 13, 13), (6, 6, 6)),
        (MaxPool2D(3, stride=1), (6, 13, 12), (6, 11, 10)),
        (MaxPool2D(3, stride=2, padding=1), (6, 112, 111), (6, 56, 56)),
        (AvgPool2D(3, stride=2, padding=1), (6, 112, 111), (6, 56, 56)),
        (GlobalAvgPool2D(), (6, 13, 12), (6,)),
        (GlobalMaxPool2D(), (6, 13, 12), (6,)),
        (ZeroPad2D(((1, 2), (3, 4))), (6, 13, 12), (6, 16, 19)),
        (ZeroPad2D((1, 2)), (6, 13, 12), (6, 15, 16)),
        (Upsample2D((2, 3)), (6, 13, 12), (6, 26, 36)),
        (Reshape((5, 80)), (16, 5, 5), (5, 80)),
        (Dropout(), (16, 5), (16, 5)),
        (SpatialDropout(), (16, 5, 5), (16, 5, 5)),
        (Flatten(), (16, 5, 5), (400,)),
        (Dense(10), (400,), (10,)),
        (Activation("relu"), (3, 4, 5), (3, 4, 5)),
        (Sequential((Conv2D(6, 3), MaxPool2D(2))), (1, 8, 8), (6, 3, 3)),
        (Residual((Conv2D(6, 3),), shortcut=Conv2D(6, 3)), (1, 8, 8), (6, 6, 6)),
        (Concat((Conv2D(6, 1), (), MaxPool2D(1))), (2, 8, 7), (10, 8, 7)),
        (PReLU(), (3, 4, 5), (3, 4, 5)),
    ],
    ids=name_of,
)
def test_output_shapes_are_those_of_keras(layer, input_shape, output_shape):
    assert layer.output_shape(input_shape) == output_shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2D(-3, 3), r"Conv2D\(-3, 3\): filters must be a positive integer, got -3"),
        (lambda: Conv2D(0, 3), "filters must be a positive integer, got 0"),
        (lambda: Conv2D(2.5, 3), "filters must be a positive integer, got 2.5"),
        (lambda: Conv2D(True, 3), "filters must be a positive integer, got True"),
        (lambda: Conv2D(2, 0), "kernel_size must be a positive integer, got 0"),
        (lambda: Conv2D(2, (3, -1)), "kernel_size must be a positive integer, got -1"),
        (lambda: Conv2D(2, (3, 3, 3)), r"kernel_size must be a positive integer, got \(3, 3, 3\)"),
        (lambda: Conv2D(2, 3, stride=0), "stride must be a positive integer, got 0"),
        (lambda: Conv2D(2, 3, padding=-1), "padding must be an integer of at least 0, got -1"),
        (lambda: Conv2D(2, 3, padding="full"), "padding must be 'valid', 'same' or a number, got 'full'"),
        (lambda: MaxPool2D(0), "pool_size must be a positive integer, got 0"),
        (lambda: MaxPool2D(2, stride=-2), "stride must be a positive integer, got -2"),
        (lambda: MaxPool2D(2, stride=2**70), "stride must be a positive integer, got 1180591620717411303424"),
        (
            lambda: MaxPool2D(3, padding=2),
            r"MaxPool2D\(pool_size=3, padding=2\): padding must be at most half the window, which is 3 x 3",
        ),
        (lambda: MaxPool2D((4, 1), padding=1), "padding must be at most half the window, which is 4 x 1, got 1"),
        (lambda: MaxPool2D(2, padding=-1), "padding must be an integer of at least 0, got -1"),
        (lambda: MaxPool2D(2, padding="same"), "padding must be an integer of at least 0, got 'same'"),
        (lambda: AvgPool2D(1, padding=1), "padding must be at most half the window, which is 1 x 1, got 1"),
        (lambda: AvgPool2D(3, padding=(0, 2)), r"padding must be at most half the window, .* got \(0, 2\)"),
        (lambda: AvgPool2D(0), "pool_size must be a positive integer, got 0"),
        (lambda: Dropout(1), r"Dropout\(rate=1\): rate must be a number in \[0, 1\), got 1"),
        (lambda: Dropout(-0.1), r"rate must be a number in \[0, 1\), got -0.1"),
        (lambda: Dropout(math.nan), r"rate must be a number in \[0, 1\), got nan"),
        (lambda: Dropout(True), r"rate must be a number in \[0, 1\), got True"),
        (lambda: SpatialDropout("half"), r"SpatialDropout\(rate='half'\): rate must be a number in .*, got 'half'"),
        (
            lambda: ZeroPad2D((1, 2, 3, 4)),
            r"\(rows, columns\) or \(\(top, bottom\), \(left, right\)\), got \(1, 2, 3, 4\)",
        ),
        (lambda: ZeroPad2D(((1, 2), -3)), "padding must be an integer of at least 0, got -3"),
        (lambda: ZeroPad2D("same"), "padding must be an integer of at least 0, got 'same'"),
        (lambda: Upsample2D(0), "size must be a positive integer, got 0"),
        (lambda: Upsample2D(1.5), "size must be a positive integer, got 1.5"),
        (lambda: Reshape(12), r"shape must be a tuple of positive integers, got 12"),
        (lambda: Reshape(()), r"shape must be a tuple of positive integers, got \(\)"),
        (lambda: Reshape((3, -1)), "shape must be a positive integer, got -1"),
        (lambda: Dense(3, activation=["relu"]), r"no activation \['relu'\]: "),
        (lambda: Dense("ten"), "units must be a positive integer, got 'ten'"),
        (lambda: Dense(3, activation="rleu"), "no activation 'rleu': did you mean 'relu'?"),
        (lambda: Activation(7), "no activation 7: known: identity"),
        (lambda: Residual(()), r"Residual takes a tuple of at least one layer, got \(\)"),
        (lambda: Residual(Dense(3)), r"Residual takes a tuple of at least one layer, got Dense\(3\)"),
        (lambda: Residual("relu"), "Residual takes a tuple of at least one layer, got 'relu'"),
        (lambda: Residual((Dense(3), "relu")), r"takes a tuple of at least one layer, got \(Dense\(3\), 'relu'\)"),
        (
            lambda: Residual((Dense(3),), shortcut="none"),
            "Residual takes None, a layer or a tuple of layers as its shortcut, got 'none'",
        ),
        (lambda: Residual((Dense(3),), activation="rleu"), "no activation 'rleu': did you mean 'relu'?"),
        (lambda: Sequential(Dense(3)), r"Sequential takes a tuple of layers, got Dense\(3\)"),
        (lambda: Sequential((Dense(3), 5)), r"Sequential takes a tuple of layers, got \(Dense\(3\), 5\)"),
        (
            lambda: Frozen((Dense(3),)),
            r"Frozen takes a layer, got \(Dense\(3\),\): to freeze several, map\(Frozen, layers\)",
        ),
        (lambda: Recompute(None), "Recompute takes a tuple of layers, got None"),
        (lambda: Concat(()), r"Concat takes a tuple of at least one branch, .* got \(\)"),
        (lambda: Concat(Dense(3)), r"Concat takes a tuple of at least one branch, .* got Dense\(3\)"),
        (lambda: Concat((Dense(3), None)), "Concat takes .*, each a layer or a tuple of layers, got None"),
        (lambda: Concat((Dense(3), ((Dense(3),),))), r"a layer or a tuple of layers, got \(\(Dense\(3\),\),\)"),
    ],
)
def test_a_wrong_hyperparameter_is_named_with_its_rule_and_value(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "input_shape", "message"),
    [
        (Conv2D(2, 3), (28, 28), r"Conv2D\(2, 3\) takes images \(C, H, W\), got \(28, 28\)"),
        (Conv2D(2, (7, 3)), (1, 5, 9), "a window of 7 x 3 is larger than the image, 5 x 9"),
        (Conv2D(2, 9, padding=1), (1, 5, 5), "a window of 9 x 9 is larger than the image, 5 x 5 with 1 zeros"),
        (MaxPool2D(3), (1, 2, 8), "a window of 3 x 3 is larger than the image, 2 x 8"),
        (
            MaxPool2D(4, padding=1),
            (1, 5, 1),
            "a window of 4 x 4 is larger than the image, 5 x 1 with a padding of 1 x 1",
        ),
        (AvgPool2D(3), (1, 8, 2), "a window of 3 x 3 is larger than the image, 8 x 2; it takes"),
        (AvgPool2D(), (10,), r"AvgPool2D\(\) takes images \(C, H, W\), got \(10,\)"),
        (GlobalAvgPool2D(), (10,), r"GlobalAvgPool2D\(\) takes images \(C, H, W\), got \(10,\)"),
        (GlobalMaxPool2D(), (10,), r"GlobalMaxPool2D\(\) takes images \(C, H, W\), got \(10,\)"),
        (SpatialDropout(), (10,), r"SpatialDropout\(\) takes images \(C, H, W\), got \(10,\)"),
        (ZeroPad2D(), (10,), r"ZeroPad2D\(\) takes images \(C, H, W\), got \(10,\)"),
        (Upsample2D(), (10,), r"Upsample2D\(\) takes images \(C, H, W\), got \(10,\)"),
        (Reshape((3, 4)), (2, 5), r"Reshape\(\(3, 4\)\) takes inputs of 12 numbers, got \(2, 5\), which are 10"),
        (MaxPool2D(), (10,), r"MaxPool2D\(\) takes images \(C, H, W\), got \(10,\)"),
        (Dense(10), (6, 13, 13), r"Dense\(10\) takes \(features,\), got \(6, 13, 13\): is a Flatten\(\) missing"),
        (
            Residual((Conv2D(2, 3), Activation("relu"))),
            (2, 5, 5),
            r"Residual\(\(Conv2D\(2, 3\), .*: the layers inside must keep the shape \(2, 5, 5\), got \(2, 3, 3\)",
        ),
        (Residual((Flatten(), Dense(8))), (2, 2, 2), r"must keep the shape \(2, 2, 2\), got \(8,\)"),
        (Residual((Flatten(), MaxPool2D())), (2, 2, 2), r"layer 2 of 2 in a Residual: MaxPool2D\(\) takes images"),
        (
            Residual((Dense(3),), shortcut=Dense(4)),
            (5,),
            r"the shortcut must give the shape of the layers' output, \(3,\), got \(4,\)",
        ),
        (
            Residual((Dense(3),), shortcut=(Dense(3), MaxPool2D())),
            (3,),
            r"the shortcut of a Residual: layer 2 of 2 in a Sequential: MaxPool2D\(\) takes images",
        ),
        (
            Concat((Conv2D(3, 1), Sequential((Conv2D(2, 1), MaxPool2D(2))))),
            (1, 4, 6),
            r"outputs of branches must agree in all axes but the first, got \(3, 4, 6\), \(2, 2, 3\)",
        ),
        (
            Concat((Conv2D(3, 1), (Conv2D(2, 1), Dense(3)))),
            (1, 4, 6),
            r"branch 2 of 2 in a Concat: layer 2 of 2 in a Sequential: Dense\(3\) takes \(features,\)",
        ),
    ],
)
def test_an_input_that_a_layer_does_not_take_is_named(layer, input_shape, message):
    with pytest.raises(ShapeError, match=message):
        layer.output_shape(input_shape)


@dataclass(frozen=True, repr=False)
class Scale(Layer):
    """A user's own layer: y = weight * x, element by element."""

    mistake: str = "none"

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return {"weight": Parameter(input_shape, initial=1.0)}

    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.save(x)
        step.call(np.multiply, step.params["weight"][..., np.newaxis], x, out=y)
        return y

    def backward(self, step, dy):
        (x,) = step.saved
        dx = step.array(x.shape[:-1]) if step.needs_input_gradient else None
        step.call(self._differentiate, step.params["weight"], x, dy, step.grads["weight"], dx)
        return dx

    def _differentiate(self, weight, x, dy, dweight, dx):
        if self.mistake == "accumulates":
            dweight += (dy * x).sum(-1)
        else:
            dweight[...] = (dy * x).sum(-1)
        if self.mistake == "changes x":
            x *= 2
        if self.mistake == "changes parameters":
            weight *= 2
        if dx is not None:
            dx[...] = weight[..., np.newaxis] * dy
            if self.mistake == "one number" and x.size:
                dx[0, 1, 0] *= 1.001
        elif self.mistake == "needs dx":
            dweight[...] = 0


def test_a_users_own_layer_passes_the_gradient_check():
    assert gradient_check(Scale(), (2, 3), n=4).compared == 6 + 24


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("one number", r"d loss / d x\[0, 1, 0\] is .* but backward says .* \(1 of 24 numbers of x are wrong\)"),
        ("accumulates", "weight"),
        ("changes x", "changes x"),
        ("changes parameters", "changes the parameters"),
        ("needs dx", "the gradients differ where nobody needs dx"),
    ],
)
def test_the_gradient_check_finds_a_layers_mistake_and_names_it(mistake, message):
    with pytest.raises(GradientError, match=message):
        gradient_check(Scale(mistake), (2, 3), n=4)


def test_a_users_own_activation_works_in_every_layer_that_takes_one():
    squared = ActivationFunction("squared", lambda x: x * x, lambda x: 2 * x)
    halved = ActivationFunction("halved", lambda x: x / 2, lambda y: 0.5, derivative_of_output=True)
    for own in (squared, halved):
        gradient_check(Activation(own), (2, 3, 3), n=3)
        gradient_check(Conv2D(2, 2, activation=own), (1, 3, 3), n=3)
        gradient_check(Dense(2, activation=own), (3,), n=3)


def test_a_users_own_activation_with_the_wrong_derivative_is_found():
    wrong = ActivationFunction("cubed", lambda x: x * x * x, lambda x: 2 * x * x)
    with pytest.raises(GradientError, match=r"Dense\(2, activation=<cubed>\): backward is not the derivative"):
        gradient_check(Dense(2, activation=wrong), (3,))


def test_compiled_and_builtin_functions_are_activations_too():
    for function in (np.tanh, math.tanh, njit(lambda x: math.tanh(x))):
        own = ActivationFunction("own", function, lambda y: 1 - y * y, derivative_of_output=True)
        gradient_check(Dense(2, activation=own), (3,))


def test_an_activation_without_functions_is_refused():
    with pytest.raises(InputError, match=r"activation 'none': derivative must be a function, got 1\.0"):
        ActivationFunction("none", lambda x: x, 1.0)
    with pytest.raises(InputError, match="activation 'none': derivative_of_output=True needs a derivative, got None"):
        ActivationFunction("none", lambda x: x, derivative_of_output=True)


@dataclass(frozen=True, repr=False)
class Forgetful(Layer):
    """y = x, with a mistake."""

    mistake: str

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, step, x):
        y, total, hidden = (step.array(x.shape[:-1]) for _ in range(3))
        step.call(self._sum, x, total, y)
        if self.mistake == "hidden use":
            step.call(self._keep, [x, hidden])
            step.call(np.copyto, hidden, x)
        elif self.mistake == "hidden array":
            step.call(HiddenArray(y))
        step.save(y)
        if self.mistake == "not contiguous":
            return y[::-1]
        return y[:-1] if self.mistake == "wrong shape" else y

    def backward(self, step, dy):
        if self.mistake == "no samples":
            step.call(lambda: dy.size // dy.size)
        return None if self.mistake == "no gradient" else dy

    def _sum(self, x, total, y):
        if self.mistake == "reads what it has not written":
            total *= 0
        else:
            total[...] = 0
        total += x
        y[...] = total

    def _keep(self, arrays):
        pass


class HiddenArray:
    """A call whose array no tape can see."""

    def __init__(self, array):
        self._array = array

    def __call__(self):
        self._array *= 1


def test_the_gradient_check_finds_what_a_layer_forgot():
    for mistake in ("nothing", "hidden use", "hidden array"):
        gradient_check(Forgetful(mistake), (3,))
    with pytest.raises(GradientError, match="x"):
        gradient_check(Forgetful("reads what it has not written"), (3,))
    with pytest.raises(ZeroDivisionError):
        gradient_check(Forgetful("no samples"), (3,))
    with pytest.raises(ShapeError, match=r"forward must return an array of shape \(3, 0\), samples last, got an array"):
        gradient_check(Forgetful("wrong shape"), (3,))
    with pytest.raises(ShapeError, match=r"backward must return an array of shape \(3, 0\), samples last, got None"):
        gradient_check(Forgetful("no gradient"), (3,))


def test_a_view_that_is_not_contiguous_is_refused():
    """An activation after it used to read a copy from when the tape was recorded."""
    for layer in (Forgetful("not contiguous"), Residual((Forgetful("not contiguous"),))):
        with pytest.raises(ShapeError, match=r"Forgetful\('not contiguous'\): forward must return a contiguous array"):
            gradient_check(layer, (3,))


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")
def test_an_activation_that_numba_cannot_compile_is_named():
    strange = ActivationFunction("strange", lambda x: x.upper(), lambda x: x)
    with pytest.raises(InputError, match=r"activation 'strange': numba cannot compile its function: "):
        gradient_check(Dense(2, activation=strange), (3,))


@pytest.mark.parametrize(("activation", "variance"), [("relu", 2 / 54), ("gelu", 2 / 54), ("tanh", 2 / (54 + 9 * 400))])
def test_start_values_have_the_variance_of_he_or_glorot(activation, variance, rng):
    weight = Conv2D(400, 3, activation=activation).parameters((6, 8, 8))["weight"].initial(rng, (400, 6, 3, 3))
    assert weight.var() == pytest.approx(variance, rel=0.05)
    assert weight.mean() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
def test_small_integers_of_numpy_do_not_overflow(kind):
    layers = (pc.Conv2D(kind(100), 3, groups=kind(1)), pc.Flatten(), pc.Dense(kind(10)))
    plain = (pc.Conv2D(100, 3), pc.Flatten(), pc.Dense(10))
    assert layers == plain
    networks = [pc.NetworkHandler(some, (kind(3), 8, 8)) for some in (layers, plain)]
    assert networks[0].parameters_sha256() == networks[1].parameters_sha256()
    for schedule in (pc.Cosine, pc.Polynomial, pc.Constant):
        rates = [schedule(0.1, warmup=some).at(300, 1000) for some in (kind(100), 100)]
        assert rates[0] == rates[1]
    assert pc.Step(0.1, kind(100)).at(300, 1000) == pc.Step(0.1, 100).at(300, 1000)
    assert pc.MultiStep(0.1, (kind(100), 299)).at(300, 1000) == pc.MultiStep(0.1, (100, 299)).at(300, 1000)


def test_a_users_own_activation_is_checked_inside_a_frozen_layer_too():
    wrong = pc.ActivationFunction("wrong", lambda x: x * 2, lambda x: 1.0)
    layers = (pc.Dense(8), pc.Frozen(pc.Dense(8, activation=wrong)), pc.Dense(2))
    with pytest.raises(InputError, match="activation 'wrong'"):
        pc.NetworkHandler(layers, (4,))


def test_an_activation_that_is_said_to_be_monotonic_must_be():
    square = pc.ActivationFunction("square", lambda x: x * x, monotonic=True)
    with pytest.raises(InputError, match="activation 'square': monotonic=True, but it decreases to"):
        pc.NetworkHandler((pc.Conv2D(4, 3, activation=square), pc.MaxPool2D(2)), (1, 9, 9))
    bent = pc.ActivationFunction("bent", lambda x: x + abs(x) / 2, monotonic=True)
    pc.NetworkHandler((pc.Conv2D(4, 3, activation=bent), pc.MaxPool2D(2)), (1, 9, 9))


def test_an_activation_must_fit_into_float32():
    large = pc.ActivationFunction("large", lambda x: math.exp(min(x, 100.0)))
    with pytest.raises(InputError, match=r"finite for x from -1000 to 1000, also as float32, and is 2\.68812e\+43"):
        pc.NetworkHandler((pc.Dense(4, activation=large),), (3,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.5}, "momentum must be a number above 0 and at most 1, got 1.5"),
        ({"momentum": math.nan}, "momentum must be a number above 0 and at most 1, got nan"),
        ({"initial": math.nan}, "initial must be a finite number, got nan"),
        ({"shape": 3}, "shape must be a tuple of integers of at least 0, got 3"),
    ],
)
def test_a_buffer_outside_its_range_is_refused(arguments, message):
    with pytest.raises(ShapeError, match=f"Buffer: {message}"):
        pc.Buffer(**{"shape": (3,), **arguments})
