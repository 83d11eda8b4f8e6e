"""Networks in which convolutions compute the batch normalisation after them."""

import everything
import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.folding import folded

ROWS = (
    pc.BatchNorm(),
    pc.Conv2D(4, 3, padding="same", bias=False),
    pc.BatchNorm(epsilon=0.01, activation="relu"),
    pc.MaxPool2D(2),
    pc.Frozen(pc.Conv2D(4, 3, padding="same")),
    pc.BatchNorm(activation="tanh"),
    pc.BatchNorm(),
    pc.Conv2D(4, 1, activation="relu"),
    pc.Frozen(pc.BatchNorm()),
    pc.Concat(((pc.DepthwiseConv2D(3, padding=1), pc.BatchNorm()), pc.Conv2D(2, 1), ())),
    pc.Frozen(pc.Residual((pc.Sequential((pc.Conv2D(10, 1), pc.BatchNorm())), pc.Recompute((pc.BatchNorm(),))))),
    pc.Residual(
        (pc.Conv2D(3, 1), pc.Frozen(pc.BatchNorm())), shortcut=(pc.Conv2D(3, 1, bias=False), pc.BatchNorm(0.5))
    ),
    pc.Flatten(),
    pc.Dense(5),
    pc.BatchNorm(),
)
MODELS = {
    "rows": (lambda: ROWS, (1, 11, 9), 5),
    "everything": (lambda: everything.adapted_network().layers, (1, 11, 9), 0),
    "resnet8": (pc.resnet8, (3, 16, 17), 0),
    "mobilenet": (pc.mobilenet_small, (3, 16, 16), 0),
    "none": (lambda: small.LAYERS, (1, 11, 9), 0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("make", "input_shape", "kept"), MODELS.values(), ids=MODELS)
def test_the_predictions_are_the_same_and_the_given_network_stays(make, input_shape, kept, dtype, rng):
    network = pc.NetworkHandler(make(), input_shape, seed=1, dtype=dtype)
    network.params += rng.normal(0, 0.05, network.params.size)
    network.buffers += rng.uniform(0, 0.5, network.buffers.size)
    network.prediction = "output"
    state, images = network.state_sha256(), rng.integers(0, 256, (7, *input_shape), np.uint8)
    found = folded(network)
    assert network.state_sha256() == state
    assert found.prediction == "output"
    assert found.shapes == network.shapes
    assert found.dtype == dtype
    wanted, atol = network.predict(images), 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found.predict(images), wanted, rtol=atol, atol=atol * np.abs(wanted).max())
    assert repr(found.layers).count("BatchNorm") == kept
    if kept == 0:
        assert found.buffers.size == 0
    new_names = found.parameters.keys() - network.parameters.keys()
    assert all(name.endswith(".bias") for name in new_names)
    again = folded(found)
    assert again.layers == found.layers
    assert again.parameters_sha256() == found.parameters_sha256()


def test_a_folded_network_is_saved_and_loaded(tmp_path):
    found = folded(pc.NetworkHandler(pc.resnet8(), (3, 16, 16)))
    pc.save_model(tmp_path / "model.npz", found)
    again = pc.load_model(tmp_path / "model.npz")
    images = np.ones((5, 3, 16, 16), np.uint8)
    np.testing.assert_array_equal(again.predict(images), found.predict(images))
