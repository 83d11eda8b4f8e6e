"""Parameters by name, and outputs of layers inside a network."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import everything
import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError, ShapeError, UnknownNameError
from parallelcnn.fusions import FoldedConv2D, PooledConv2D

# Fused in prediction: a convolution with the normalisation and pooling after it, one with a pooling, and the same pairs
# inside a block. Layers that do nothing in prediction, and layers whose names inside are those of the next layer.
FUSED = (
    pc.Conv2D(4, 3, padding="same", bias=False),
    pc.BatchNorm(activation="relu"),
    pc.MaxPool2D(2),
    pc.Conv2D(3, 3, padding="same", activation="tanh"),
    pc.MaxPool2D(2),
    pc.Dropout(0.5),
    pc.Residual((pc.Conv2D(3, 1), pc.BatchNorm(), pc.Activation("swish"), pc.Frozen(pc.Conv2D(3, 1)))),
    pc.Sequential((pc.Flatten(), pc.Dense(7, activation="relu"))),
    pc.Frozen(pc.Dense(5)),
    pc.Dense(4),
)


def network(dtype=np.float32, layers=FUSED):
    found = pc.NetworkHandler(layers, (1, 11, 9), seed=3, dtype=dtype)
    rng = np.random.default_rng(5)
    found.params += rng.normal(0, 0.1, found.params.size)
    found.buffers += rng.uniform(0, 0.5, found.buffers.size)
    return found


def outputs_of_single_layers(whole, images):
    """Each layer as a network of its own, on the output of the one before."""
    x = images[:, np.newaxis] / np.float64(255) if images.ndim == 3 else images
    for i, layer in enumerate(whole.layers):
        single = pc.NetworkHandler((layer,), whole.shapes[i], dtype=whole.dtype.type)
        for name in single.named_arrays:
            single.named_arrays[name] = whole.named_arrays[f"{i}{name[1:]}"]
        x = np.moveaxis(single.forward(np.ascontiguousarray(np.moveaxis(x, 0, -1), whole.dtype)), -1, 0).copy()
        yield x


def test_parameters_are_views_under_pytorchs_names():
    found = small.network()
    assert list(found.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert len(found.parameters) == 6
    assert {name: array.shape for name, array in found.parameters.items()}["2.weight"] == (4, 3, 2, 2)
    assert "4.bias" in found.parameters
    assert "1.weight" not in found.parameters
    assert found.parameters.get("1.weight") is None
    assert sum(array.size for array in found.parameters.values()) == found.params.size
    found.parameters["4.bias"][1] = 17
    found.parameters["4.bias"] *= 2
    assert found.params[-5:].tolist() == [0, 34, 0, 0, 0]
    assert set(network().named_arrays) - set(network().parameters) == {
        f"{place}.running_{what}" for place in ("1", "6.1") for what in ("mean", "var")
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_assignment_copies_and_converts(dtype, rng):
    found = small.network(dtype=dtype)
    before, weight = found.params, rng.normal(size=(4, 3, 2, 2))
    found.parameters["2.weight"] = weight
    np.testing.assert_array_equal(found.parameters["2.weight"], weight.astype(dtype))
    found.parameters["2.weight"] = weight.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(found.parameters["2.weight"], weight.transpose(0, 1, 3, 2).astype(dtype))
    found.parameters["4.bias"] = [1, 2, 3, 4, 5]
    assert found.parameters["4.bias"].tolist() == [1, 2, 3, 4, 5]
    assert found.params is before
    weight[...] = 0
    assert found.parameters["2.weight"].all()
    square = pc.NetworkHandler((pc.Dense(3),), (3,), dtype=dtype)
    transposed = square.parameters["0.weight"].T.copy()
    square.parameters["0.weight"] = square.parameters["0.weight"].T
    np.testing.assert_array_equal(square.parameters["0.weight"], transposed)


def test_a_buffer_is_assigned_to_under_its_name():
    found = network()
    found.named_arrays["1.running_mean"] = range(4)
    assert found.buffers[:4].tolist() == [0, 1, 2, 3]
    assert "1.running_mean" not in found.parameters


def test_a_wrong_name_is_a_key_error_with_the_nearest_name():
    found = small.network()
    with pytest.raises(KeyError) as caught:
        found.parameters["4.wieght"]
    assert str(caught.value) == (
        "the network has no array '4.wieght': did you mean '4.weight'? "
        "(known: 0.weight, 0.bias, 2.weight, 2.bias, 4.weight, 4.bias)"
    )
    for wrong in ("1.weight", 0, ("0", "weight")):
        with pytest.raises(UnknownNameError, match="the network has no array"):
            found.parameters[wrong] = 0
    many = pc.NetworkHandler(pc.resnet20(), (3, 32, 32)).parameters
    with pytest.raises(InputError, match=r"\(known: (\S+, ){20}\.\.\.\)$"):
        many["3.0.wieght"]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (0.5, ShapeError, r"4.bias must have shape \(5,\), got \(\)"),
        (np.zeros((5, 1)), ShapeError, r"4.bias must have shape \(5,\), got \(5, 1\)"),
        (np.zeros(6), ShapeError, r"4.bias must have shape \(5,\), got \(6,\)"),
        ([0, 1, 2, 3, np.nan], InputError, "4.bias must hold finite numbers of float32"),
        ([0, 1, 2, 3, 1e39], InputError, "4.bias must hold finite numbers of float32"),
        (["0"] * 5, InputError, "4.bias must be an array of numbers"),
        (np.zeros(5, complex), InputError, "4.bias must be an array of numbers"),
        (None, InputError, "4.bias must be an array of numbers"),
    ],
)
def test_wrong_values_are_refused_and_change_nothing(values, error, message):
    found = small.network()
    before = found.params.copy()
    with pytest.raises(error, match=message):
        found.parameters["4.bias"] = values
    np.testing.assert_array_equal(found.params, before)


def test_parameters_print_with_their_shapes_and_cannot_be_replaced():
    found = pc.NetworkHandler((pc.Dense(3), pc.Dense(2)), (4,))
    assert repr(found.parameters).splitlines() == [
        "0.weight  (3, 4)",
        "0.bias    (3,)",
        "1.weight  (2, 3)",
        "1.bias    (2,)",
    ]
    assert repr(pc.NetworkHandler((pc.Flatten(),), (4,)).parameters) == "no arrays"
    with pytest.raises(AttributeError):
        found.parameters = {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_activations_are_those_of_the_layers_run_one_by_one(n, dtype, rng):
    found = network(dtype)
    kinds = [type(layer) for layer in found._predicting.values()]
    assert kinds[:2] == [FoldedConv2D, PooledConv2D]
    images = rng.integers(0, 256, (n, 11, 9), np.uint8)
    bound = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    every = found.activations(images)
    assert len(every) == len(FUSED)
    for i, wanted in enumerate(outputs_of_single_layers(found, images)):
        assert every[i].dtype == dtype
        assert every[i].shape == (n, *found.shapes[i + 1])
        np.testing.assert_allclose(every[i], wanted, **bound, err_msg=str(i))
        np.testing.assert_array_equal(found.activations(images, layer=i), every[i], err_msg=str(i))
        np.testing.assert_array_equal(found.activations(images, np.int64(i - len(FUSED))), every[i], err_msg=str(i))
    np.testing.assert_allclose(found.forward(found.load(images)).T, every[-1], **bound)


def test_activations_of_a_network_with_everything():
    found, images = everything.adapted_network(), small.dataset(9).images
    small_images = images / np.float64(255)
    wanted = outputs_of_single_layers(found, images)
    for one, other, again in zip(found.activations(images), wanted, found.activations(small_images), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one, again, rtol=1e-4, atol=1e-5)


def test_activations_leave_network_and_predictions_as_they_are():
    found, images = network(), small.dataset(40).images
    state, predicted = found.state_sha256(), found.predict(images)
    first = found.activations(images, 2)
    kept = first.copy()
    found.activations(images[::-1], 2)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(found.predict(images), predicted)
    assert found.state_sha256() == state
    changed = copy.deepcopy(found)
    changed.parameters["3.bias"] += 1
    np.testing.assert_array_equal(changed.activations(images, 2), kept)
    assert (changed.activations(images, 3) != found.activations(images, 3)).any()


def test_activations_in_several_threads_are_right():
    found, images = network(), small.dataset(100).images
    wanted = found.activations(images)

    def use(number):
        layer = number % len(FUSED)
        return np.array_equal(found.activations(images, layer), wanted[layer])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(40)))


@pytest.mark.parametrize("layer", [10, -11, 1.0, True, "conv", [1], np.array([1])])
def test_a_wrong_layer_is_refused(layer):
    with pytest.raises(InputError, match="layer must be None or an integer from -10 to 9, got "):
        network().activations(small.dataset(3).images, layer)


def test_wrong_images_are_refused_as_in_a_prediction():
    found = network()
    with pytest.raises(ShapeError, match=r"the network takes images of shape \(N, 1, 11, 9\)"):
        found.activations(np.zeros((2, 9, 11), np.uint8), 0)
    with pytest.raises(InputError, match="image 1 holds nan"):
        found.activations(np.array([np.zeros((11, 9)), np.full((11, 9), np.nan)]), 0)
    found.input_range = (0.0, 1.0)
    with pytest.warns(pc.TrainingWarning, match="the images hold numbers from 0 to 255") as warned:
        found.activations(small.dataset(3).images.astype(np.float32) // 100 * 127.5, 0)
    assert warned[0].filename == __file__


def test_while_one_thread_trains_others_get_no_activations():
    found, images, refused = network(), small.dataset(9).images, []

    def use():
        with pytest.raises(InputError, match="the network is being trained in another thread"):
            found.activations(images, 0)
        refused.append(1)

    with found.being_trained():
        found.activations(images, 0)
        other = threading.Thread(target=use)
        other.start()
        other.join()
    assert refused == [1]
