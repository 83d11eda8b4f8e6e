"""The networks by name: their sizes are the documented ones, and they train."""

import inspect
import re

import numpy as np
import pytest
from conftest import ROOT

import parallelcnn as pc
from parallelcnn.models import MODELS
from parallelcnn.training.config import settings


def image_shape(model):
    """The images for which the docstring gives the number of parameters."""
    return (1, 28, 28) if "28 x 28 grey images" in inspect.getdoc(MODELS[model]) else (3, 32, 32)


@pytest.mark.parametrize("model", MODELS)
def test_docstring_and_guide_tell_the_number_of_parameters(model):
    network = pc.NetworkHandler(MODELS[model](10), image_shape(model))
    assert network.output_shape == (10,)
    (told,) = re.findall(r"([\d,]+) parameters for ", inspect.getdoc(MODELS[model]))
    assert int(told.replace(",", "")) == network.layout.size
    page = (ROOT / "parallelcnn" / "guide" / "layers.md").read_text()
    assert f"| `{model}` | {told} (" in page


def test_the_help_names_every_model():
    (text,) = (setting.help for field, setting in settings() if field.name == "model")
    assert all(f"{model}," in text for model in MODELS)
    assert all(getattr(pc, model.replace("-", "_")) is make for model, make in MODELS.items())


@pytest.mark.parametrize("model", MODELS)
def test_a_model_takes_other_images_and_numbers_of_classes(model):
    network = pc.NetworkHandler(MODELS[model](7), (2, 24, 36))
    assert network.output_shape == (7,)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet8", "mobilenet-small", "vgg-small"])
def test_a_model_learns_two_classes(model):
    rng = np.random.default_rng(0)
    labels = np.arange(192) % 2
    images = rng.normal(size=(192, 3, 16, 16)).astype(np.float32)
    images[labels == 1, :, 4:12, 4:12] += 1
    data = pc.Dataset(images, labels, classes=2)
    network = pc.NetworkHandler(MODELS[model](2), (3, 16, 16), seed=1)
    optimizer = pc.Adam(0.003)
    history = pc.train(network, data, data, optimizer, epochs=6, batch_size=64, threads=1, comm=pc.Serial(), verbose=0)
    # Not the test accuracy: after 18 minibatches, the running statistics of a deep network are still far off.
    assert np.mean(history.losses[-3:]) < 0.5 * np.mean(history.losses[:3])
