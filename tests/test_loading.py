"""Flips, crops and normalisation while images are loaded: the same bits as from the layers one by one."""

import augmented
import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.fusions import PreparedImages, fuse

MEAN, STD = (0.5, 0.25, 0.75), (0.3, 0.2, 0.1)
FLIP, CROP = pc.RandomFlip("horizontal_and_vertical"), pc.RandomCrop((3, 4))


def normalize(channels):
    return pc.Normalize(MEAN[:channels], STD[:channels])


def run(network, replica, images, indices, training, fused):
    x = replica.load(images, indices, training=training, key=7, fused=fused)
    return np.moveaxis(replica.forward(x, training=training), -1, 0).copy()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 3, 5), (1, 9, 33), (3, 4, 17), (1, 2, 16), (2, 1, 1)])
def test_loading_gives_the_bits_of_the_layers_one_by_one(shape, kind, training, rng):
    dtype = np.float64 if kind is np.float64 else np.float32
    images = rng.integers(0, 256, (60, *shape)).astype(kind) if kind is np.uint8 else rng.random((60, *shape), kind)
    scaled = images * dtype(1 / 255) if kind is np.uint8 else images
    norm = normalize(shape[0])
    for layers in (
        (FLIP,),
        (CROP,),
        (norm,),
        (FLIP, CROP),
        (CROP, FLIP),
        (CROP, FLIP, norm),
        (pc.RandomCrop(40), norm),
    ):
        network = pc.NetworkHandler(layers, shape, dtype=dtype)
        plain = network.new_replica(dict(enumerate(layers)))
        plain._predicting = plain._recordable
        for indices in ([], [0], [59], [7], rng.integers(1, 59, 5), range(60), rng.permutation(60)[:37]):
            indices = np.array(indices, np.intp)
            found = run(network, network.replica, images, indices, training, True)
            np.testing.assert_array_equal(run(network, network.replica, images, indices, training, False), found)
            np.testing.assert_array_equal(run(network, plain, images, indices, training, False), found)
            np.testing.assert_array_equal(run(network, plain, images, indices, training, True), found)
            active = layers if training else [layer for layer in layers if layer is norm]
            if len(indices) != 37:
                continue  # plain numpy is slow
            keys = augmented.keys_of(60, key=7)[indices]
            expected = augmented.prepared(layers, scaled[indices].astype(np.float64), keys, active)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_which_layers_are_run_while_loading():
    norm, dense = normalize(1), pc.Flatten()

    class OwnCrop(pc.RandomCrop):
        pass

    for layers, in_training, in_prediction in [
        ((FLIP, CROP, norm, dense), 3, 3),
        ((CROP, dense), 1, 0),
        ((CROP, FLIP, CROP, dense), 2, 0),
        ((FLIP, CROP, FLIP, norm, dense), 2, 0),
        ((norm, CROP, dense), 1, 1),
        ((pc.Frozen(FLIP), norm, dense), 2, 2),
        ((OwnCrop(1), norm, dense), 0, 0),
        ((FLIP, pc.Normalize("auto"), dense), 1, 0),
        ((pc.Sequential((FLIP, norm)), dense), 0, 0),
        ((dense, FLIP), 0, 0),
    ]:
        for training, count in ((True, in_training), (False, in_prediction)):
            first = fuse(layers, training=training)[0]
            assert (len(first.layers) if isinstance(first, PreparedImages) else 0) == count, layers


def test_images_of_any_strides_and_type_are_loaded(rng):
    images = rng.integers(0, 256, (20, 18, 40, 3), dtype=np.uint8)
    network = pc.NetworkHandler((FLIP, CROP, normalize(3)), (3, 18, 20))
    channels_last = images[:, :, ::2].transpose(0, 3, 1, 2)
    indices = rng.permutation(20)
    expected = run(network, network.replica, np.ascontiguousarray(channels_last), indices, True, True)
    np.testing.assert_array_equal(run(network, network.replica, channels_last, indices, True, True), expected)
    halves = (channels_last / 256).astype(np.float16)
    found = run(network, network.replica, halves, indices, True, True)
    np.testing.assert_array_equal(found, run(network, network.replica, halves.astype(np.float32), indices, True, True))


def test_a_vector_is_normalized_while_loading_too(rng):
    network = pc.NetworkHandler((pc.Normalize((1.0, 2.0, 3.0), 2.0), pc.Dense(2)), (3,))
    assert isinstance(network.fused_layers[0][0], PreparedImages)
    images = rng.random((7, 3), np.float32)
    plain = pc.NetworkHandler((pc.Dense(2),), (3,))
    plain.params = network.params
    np.testing.assert_allclose(network.predict(images), plain.predict((images - [1, 2, 3]) / 2), rtol=1e-5)


def test_an_array_that_was_not_loaded_with_them_goes_through_all_layers(rng):
    """The result of `load` is the plain images: only the training loop and `predict` ask for more."""
    network = pc.NetworkHandler((pc.Normalize(0.5, 0.25), pc.Flatten()), (1, 4, 5))
    images = rng.integers(0, 256, (6, 4, 5), dtype=np.uint8)
    x = network.load(images)
    np.testing.assert_allclose(x[0], np.moveaxis(images, 0, -1) / 255, rtol=1e-6)
    once = network.forward(x).copy()
    np.testing.assert_array_equal(network.forward(x.copy()), once)
    np.testing.assert_allclose(once.T.reshape(6, 4, 5), (images / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
