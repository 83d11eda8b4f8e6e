"""The derivatives of traced functions: against differences, numpy, HIPS/autograd and PyTorch."""

from types import FunctionType

import numpy as np
import pytest
from recorded import call_all, record, run_layer
from traced_layers import layer_norm, polynomial, squeeze_excitation

import parallelcnn as pc

SHAPE = (3, 5, 4)
KERNEL = np.random.default_rng(1).normal(size=(5, 4))


def matrix(rows, columns):
    return pc.Parameter((rows, columns), lambda rng, shape: rng.normal(size=shape))


def of_shape(*shape):
    return lambda _: np.full(shape, 0.5)


def case(function, shape=SHAPE, **parameters):
    return function, parameters, shape


FUNCTIONS = {
    "arithmetic": case(lambda x, w: (1 - x) * 3 / (x * x + 2) - w / 4 + 2 / (5 + x * x) - (-x) * (+w), w=np.ones),
    "powers": case(lambda x: x**3 - 2 * x**2 + abs(x) ** 1.5 + x**1 + x**0 + (x * x + 1) ** -2 + (x / 3) ** 7),
    "roots": case(lambda x: (x * x + 1) ** 0.5 + np.sqrt(x * x + 2) + (x * x + 1) ** -1 + np.power(x, 2)),
    "variable exponents": case(lambda x, w: (x * x + 1) ** w + 1.5**x + 2 ** (w * x), w=of_shape(4)),
    "exponentials": case(lambda x: np.exp(x) + np.expm1(x / 2) + np.sinh(x) - np.cosh(x)),
    "logarithms": case(lambda x: np.log(x * x + 1) + np.log1p(x * x) + np.log2(x * x + 2) + np.log10(x * x + 2)),
    "circular": case(lambda x: np.sin(x) * np.cos(x) + np.tanh(x) + np.arctan(x) + np.arcsinh(x)),
    "more of elements": case(
        lambda x, w: np.logaddexp(x, w) + np.logaddexp(0, x) + np.reciprocal(x * x + 1) + np.fabs(x) + np.positive(x),
        w=of_shape(5, 1),
    ),
    "extrema of two": case(
        lambda x, w: np.maximum(x, w) + np.minimum(x * x, w) + np.maximum(x, 0.1) + np.minimum(0.2, x),
        w=of_shape(3, 1, 4),
    ),
    "clip": case(lambda x: np.clip(x, -1, 1) + x.clip(-0.5) + np.clip(x * x, None, 0.7)),
    "steps": case(
        lambda x: x * (np.sign(x) + np.floor(x) + np.ceil(x) + np.trunc(x) + np.rint(x) + np.round(x) + x // 2)
    ),
    "remainders": case(lambda x, w: x % 1.5 + (x * x) % w + 5 % (x * x + 1), w=of_shape(4)),
    "conditions": case(
        lambda x: np.where((x > 0) & ~(x >= 2) | (x < -1), x * x, 3 * x) + (x <= 1) * x + (x != 0) * np.where(x, x, 1)
    ),
    "a constant mask": case(lambda x: np.where(KERNEL > 0, x, 0) + np.where(KERNEL > 0, 1, x * x)),
    "sums": case(
        lambda x, w: (
            x.sum() * x
            + x.sum(0)
            + np.sum(x, axis=(1, 2), keepdims=True) * x.sum(-1, keepdims=True)
            + w.sum(0) * w.mean()
        ),
        w=of_shape(2, 4),
    ),
    "means": case(lambda x: x.mean() * x + x.mean((0, -1))[:, None] * np.mean(x, 1, keepdims=True)),
    "variances": case(
        lambda x: x * x.var() + np.std(x, (1, 2), keepdims=True) * x + x.var(0, ddof=1) + x.std(axis=-1)[..., None]
    ),
    "maxima": case(lambda x: x * x.max() + x.max((1, 2), keepdims=True) * np.min(x, 0) + x.min(-1)[..., None]),
    "maxima by their other names": case(
        lambda x: x * np.amax(x, 0) - np.amin(x, axis=1, keepdims=True) + np.around(x) * x
    ),
    "softmax": case(lambda x: (e := np.exp(x - x.max(0))) / e.sum(0)),
    "a product with a matrix": case(lambda x, w: x @ w, w=of_shape(4, 3)),
    "a matrix times it": case(lambda x, w: w @ x, w=of_shape(2, 5)),
    "a dense layer": case(lambda x, w, b: np.tanh(w @ x + b), w=lambda s: matrix(3, 7), b=of_shape(3), shape=(7,)),
    "a vector times a matrix": case(lambda x, w: x @ w, w=lambda s: matrix(7, 3), shape=(7,)),
    "products of vectors": case(
        lambda x, w: x * (w @ x) + x * np.dot(x, x) + x * np.dot(2, w) @ w, w=of_shape(7), shape=(7,)
    ),
    "a vector times it": case(lambda x, w: w @ x * (w[:3] @ (x @ w[:4])).sum(), w=of_shape(5)),
    "products of samples": case(lambda x: x @ x.transpose(0, 2, 1) @ x + x[0].dot(KERNEL.T) @ x[0]),
    "products with one matrix": case(lambda x: (x[0].T @ x) @ x[:1].swapaxes(1, 2)),
    "a product of parameters": case(lambda x, v, w: x * (v @ w), v=of_shape(5, 2), w=of_shape(2, 4)),
    "a constant matrix": case(
        lambda x: x @ KERNEL.T + KERNEL @ x.sum((0, 1)) + (x.sum(-1) @ KERNEL @ KERNEL.T @ np.ones(5))[:, None, None]
    ),
    "products per channel": case(lambda x, w: w @ x, w=of_shape(3, 2, 5)),
    "products per channel from the right": case(lambda x, w: x @ w, w=of_shape(3, 4, 2)),
    "attention": case(
        lambda x, q, k, v: np.einsum(
            "ij,fj->fi",
            (e := np.exp((q @ x.reshape(3, -1)).T @ (k @ x.reshape(3, -1)))) / e.sum(1)[:, None],
            v @ x.reshape(3, -1),
        ),
        q=of_shape(2, 3),
        k=of_shape(2, 3),
        v=of_shape(4, 3),
    ),
    "einsum": case(
        lambda x, w: (
            np.einsum("chw,ck->khw", x, w)
            + np.einsum("chw,chw->hw", x, x)
            + np.einsum("chw->h", x)[:, None]
            + np.einsum("ij,kl -> il", w, x[:, 0])[0]
        ),
        w=of_shape(3, 2),
    ),
    "an outer product": case(
        lambda x, w: np.einsum("i,j->ji", x, w) + np.einsum("i,j->ji", x, x[:3]), w=of_shape(3), shape=(4,)
    ),
    "tensordot": case(
        lambda x, w: np.tensordot(w, x, 1).sum(0) + np.tensordot(x, w, axes=((0, 2), (1, 0)))[:, None],
        w=of_shape(5, 3),
        shape=(3, 4, 5),
    ),
    "reshape": case(
        lambda x: (
            np.reshape(x, (15, -1)).T.reshape(4, 3, 5) * 2 + x.transpose((2, 0, 1)) + x.ravel()[7] + x.flatten()[-1]
        )
    ),
    "transpose": case(
        lambda x: (
            np.transpose(x, (1, 0, 2)) * np.swapaxes(x, 0, 1) * np.moveaxis(x, 0, 1) + np.moveaxis(x, (0, 1), (1, 0))
        )
    ),
    "slices": case(
        lambda x: x[1] * x[-1, ::-1] + x[0, ..., 1:2] * x[1, 2, :] + x[2, 1:2, None, 0] + sum(row for row in x[0])
    ),
    "axes": case(
        lambda x: (
            np.expand_dims(x, 1) * x[:, None]
            + np.squeeze(x[:1], 0) * x[:1].squeeze()
            + np.expand_dims(x[0], (0, -1))[..., 0]
        )
    ),
    "concatenate": case(
        lambda x, w: np.concatenate([x[1:], x * 2, np.broadcast_to(w, x.shape), np.ones((1, 5, 4))]), w=of_shape(4)
    ),
    "concatenate along the last axis": case(lambda x, w: np.concatenate((x, w), axis=-1), w=of_shape(3, 5, 1)),
    "stack": case(lambda x, w: np.stack([x[0], w, x[1] * x[2]]) * np.stack((x[0], w, w), 0), w=of_shape(5, 4)),
    "stack along the last axis": case(lambda x: np.stack([x, x * x], -1)),
    "pad": case(lambda x: np.pad(x, ((0, 0), (1, 2), (0, 1))) * 2 + np.pad(x * x, 1)[1:-1, :-1, 1:].mean()),
    "broadcasting": case(lambda x, w: np.broadcast_to(w * 2, x.shape) * x + x[:1] * x.sum((0, 1)), w=of_shape(5, 1)),
    "one of all samples": case(lambda x, w: np.exp(w) * 2 - w.sum(), w=np.ones),
    "a constant": case(lambda x: np.ones(3) + 0 * np.zeros_like(x)[0, 0, 0]),
    "x itself": case(lambda x: x),
    "a view": case(lambda x: x[1:].T),
    "unused": case(lambda x, v, w: v * x, v=2.0, w=np.ones),
    "numbers": case(lambda x, v, w: v * x + np.exp(w), v=2, w=np.float64(0.5)),
    "shapes": case(
        lambda x: x * len(x) / np.size(x) + np.ndim(x) / np.shape(x)[1] + x.size / 60 - x.ndim + np.ones_like(x)
    ),
}


def as_layer(function, parameters):
    named = FunctionType(function.__code__, function.__globals__, "traced", function.__defaults__, function.__closure__)
    return pc.layer(**parameters)(named)()


def one_by_one(function, arguments, x):
    """The function in plain numpy, applied to each sample."""
    samples = [np.asarray(function(x[..., i], **arguments), float) for i in range(x.shape[-1])]
    return np.stack(samples, -1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradients_of_a_function_are_differences(name):
    function, parameters, shape = FUNCTIONS[name]
    layer = as_layer(function, parameters)
    for n in (0, 1, 5):
        assert pc.gradient_check(layer, shape, n, seed=3).largest_difference < 1e-6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_traced_function_computes_what_numpy_computes_for_each_sample(name, rng):
    function, parameters, shape = FUNCTIONS[name]
    layer = as_layer(function, parameters)
    for n in (1, 5):
        ran = run_layer(layer, shape, n, np.float64, rng, x=np.abs(rng.normal(size=(*shape, n))) + 0.1)
        np.testing.assert_allclose(ran.y, one_by_one(function, ran.params, ran.x), rtol=1e-12, atol=1e-12)


# HIPS/autograd has no rule for something in these.
_NOT_IN_AUTOGRAD = {
    *("a constant", "arithmetic", "broadcasting", "clip", "concatenate", "more of elements", "pad", "steps"),
    "products of samples",
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - _NOT_IN_AUTOGRAD))
def test_gradients_are_those_of_autograd(name, rng):
    autograd = pytest.importorskip("autograd", reason="HIPS/autograd is not installed")
    theirs_np = pytest.importorskip("autograd.numpy")
    function, parameters, shape = FUNCTIONS[name]
    names = {**function.__globals__, "np": theirs_np}
    theirs = FunctionType(function.__code__, names, "theirs", function.__defaults__, function.__closure__)
    ran = run_layer(as_layer(function, parameters), shape, 5, np.float64, rng)

    def loss(x, params):
        return sum(theirs_np.sum(ran.dy[..., i] * theirs(x[..., i], **params)) for i in range(5))

    dx, gradients = autograd.grad(loss, (0, 1))(ran.x, {name: one.copy() for name, one in ran.params.items()})
    np.testing.assert_allclose(ran.dx, dx, rtol=1e-10, atol=1e-11)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(ran.grads[name], gradient, rtol=1e-10, atol=1e-11)


# (function, x, slopes)
CONVENTIONS = {
    "|0|": (lambda x: abs(x), [-2, 0, 3], [-1, 0, 1]),
    "maximum(x, 0) at 0": (lambda x: np.maximum(x, 0), [-1, 0, 2], [0, 0, 1]),
    "maximum(0, x) at 0": (lambda x: np.maximum(0.0, x), [-1, 0, 2], [0, 0, 1]),
    "minimum(x, 6) at 6": (lambda x: np.minimum(x, 6), [5, 6, 7], [1, 0, 0]),
    "minimum(6, x) at 6": (lambda x: np.minimum(6, x), [5, 6, 7], [1, 0, 0]),
    "the first of two equal variables, maximum": (lambda x: np.maximum(2 * x, 3 * x), [0, 1], [2, 3]),
    "the first of two equal variables, minimum": (lambda x: np.minimum(2 * x, 3 * x), [0, 1], [2, 2]),
    "clip at its bounds": (lambda x: np.clip(x, -1, 1), [-1, 0, 1], [0, 1, 0]),
    "equal maxima": (lambda x: x * 0 + x.max(), [1, 3, 3], [0, 1.5, 1.5]),
    "equal minima": (lambda x: x * 0 + np.min(x), [1, 1, 1], [1, 1, 1]),
    "x**0": (lambda x: x**0, [-2, 0, 3], [0, 0, 0]),
    "x**1": (lambda x: x**1, [-2, 0, 3], [1, 1, 1]),
    "x**2 at 0": (lambda x: x**2, [0, -3], [0, -6]),
    "x**2.0": (lambda x: x**2.0, [0, -3], [0, -6]),
    "x**1.5 at 0": (lambda x: x**1.5, [0, 4], [0, 3]),
    "x**-1": (lambda x: x**-1, [2, -2], [-0.25, -0.25]),
    "0**x": (lambda x: 0**x, [1, 2], [0, 0]),
    "steps": (lambda x: np.floor(x) + np.sign(x) + np.rint(x) + x // 2, [0.2, -1.6], [0, 0]),
    "x % 2": (lambda x: x % 2, [3.5, -0.5], [1, 1]),
    "a condition": (lambda x: (x > 0) * x, [-1, 0, 2], [0, 0, 1]),
    "a constant": (lambda x: np.ones(2), [1, 2], [0, 0]),
    "sigmoid where exp overflows": (lambda x: 1 / (1 + np.exp(-x)), [-800, 800], [0, 0]),
    "swish where exp overflows": (lambda x: x / (1 + np.exp(-x)), [-800, 800], [0, 1]),
    "the branch of np.where that is not taken": (
        lambda x: np.where(x > 0, np.log(np.where(x > 0, x, 1)), 0),
        [-1, 0, 2],
        [0, 0, 0.5],
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_kinks_ties_and_steps_have_the_slopes_of_the_conventions(name):
    function, x, wanted = CONVENTIONS[name]
    layer = record(as_layer(function, {}), (len(x),), 1)
    layer.tape.x[...], layer.tape.dy[...] = np.reshape(x, (-1, 1)), 1
    call_all(layer.tape.forward + layer.tape.backward)
    assert layer.tape.dx.ravel() == pytest.approx(wanted)


def test_np_where_gives_nan_if_the_branch_not_taken_has_an_infinite_slope():
    """As in PyTorch and JAX; the guide says so. Scalar functions do not, since they have real branches."""
    layer = record(as_layer(lambda x: np.where(x > 0, np.sqrt(x), 0), {}), (2,), 1)
    layer.tape.x[...], layer.tape.dy[...] = [[0], [4]], 1
    call_all(layer.tape.forward + layer.tape.backward)
    np.testing.assert_array_equal(layer.tape.y, [[0], [2]])
    np.testing.assert_array_equal(layer.tape.dx, [[np.nan], [0.25]])


def attention(x, q, k, v):
    scores = (q @ x).T @ (k @ x)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return v @ x @ (weights / weights.sum(1, keepdims=True)).T


def pytorchs(torch):
    """For each layer, its function of PyTorch's, with the samples first."""
    f = torch.nn.functional

    def excite(x, weights):
        gate = torch.sigmoid(torch.relu(x.mean((2, 3)) @ weights[0].T) @ weights[1])
        return x * gate[:, :, None, None]

    def attend(x, q, k, v):
        columns = x.transpose(1, 2)
        found = f.scaled_dot_product_attention(columns @ q.T, columns @ k.T, columns @ v.T, scale=1)
        return found.transpose(1, 2)

    return {
        "layer norm": (layer_norm(), (4, 3, 5), lambda x, scale, shift: f.layer_norm(x, x.shape[1:], scale, shift)),
        "excitation": (squeeze_excitation(2), (4, 3, 5), excite),
        "polynomial": (polynomial(), (7,), lambda x, w: w[0] + w[1] * x + w[2] * x**2 + w[3] * x**3),
        "attention": (as_layer(attention, dict.fromkeys("qkv", np.ones((3, 4)))), (4, 7), attend),
        "maxima": (as_layer(lambda x: x - x.max((0, 1)), {}), (3, 3, 2), lambda x: x - x.amax((1, 2), keepdim=True)),
    }


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("name", ["layer norm", "excitation", "polynomial", "attention", "maxima"])
def test_outputs_and_gradients_are_those_of_pytorch(name, n, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer, shape, theirs = pytorchs(torch)[name]
    x = np.round(rng.normal(size=(*shape, n))) if name == "maxima" else None  # with ties
    ran = run_layer(layer, shape, n, np.float64, rng, x)
    x = torch.tensor(np.moveaxis(ran.x, -1, 0).copy(), requires_grad=True)
    params = [torch.tensor(one, requires_grad=True) for one in ran.params.values()]
    y = theirs(x, *params)
    y.backward(torch.tensor(np.moveaxis(ran.dy, -1, 0).copy()))
    np.testing.assert_allclose(np.moveaxis(ran.y, -1, 0), y.detach(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(np.moveaxis(ran.dx, -1, 0), x.grad, rtol=1e-10, atol=1e-11)
    for gradient, one in zip(ran.grads.values(), params, strict=True):
        np.testing.assert_allclose(gradient, one.grad, rtol=1e-10, atol=1e-11)
