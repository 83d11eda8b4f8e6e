"""Numbers in images and labels: NaN and infinity are named with their place, another scale causes a warning."""

import copy
import warnings

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.data.numbers import check_finite
from parallelcnn.errors import DataError, InputError, TrainingWarning

LAYERS = (pc.Flatten(), pc.Dense(5))


def pixels(n=60, dtype=np.float32, scale=1.0, shift=0.0):
    """Images with all numbers from 0 to 255, as uint8, or as floats times and plus something."""
    images = np.random.default_rng(0).integers(0, 256, (n, 11, 9), np.uint8)
    images[0, 0, :2] = 0, 255
    labels = np.arange(n) % 5
    if dtype == np.uint8:
        return pc.Dataset(images, labels, 5)
    return pc.Dataset((images * np.float32(scale) + np.float32(shift)).astype(np.float32), labels, 5)


def train(train_set, test_set=None, network=None, **options):
    network = network or pc.NetworkHandler(LAYERS, train_set.input_shape)
    pc.train(network, train_set, test_set or train_set, pc.SGD(1e-6), 1, 20, comm=pc.Serial(), threads=1, **options)
    return network


def replaced(dataset, sample, place, value):
    images = dataset.images.copy()
    images[(sample, *place)] = value
    return pc.Dataset(images, dataset.labels, dataset.classes, "spoilt")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_before_the_first_step(value):
    good = pixels(scale=1 / 255)
    bad = replaced(good, 37, (5, 3), value)
    network = pc.NetworkHandler(LAYERS, (1, 11, 9))
    before = network.parameters_sha256()
    for sets, role in (((bad, good), "training set"), ((good, bad), "test set")):
        message = rf"^{role} 'spoilt': image 37 holds {value} at \(5, 3\), but every number must be finite$"
        with pytest.raises(DataError, match=message):
            train(*sets, network)
    with pytest.raises(DataError, match=rf"^data set 'spoilt': image 37 holds {value} at \(5, 3\)"):
        pc.evaluate(network, bad, pc.Serial(), threads=1)
    with pytest.raises(DataError, match=rf"^image 37 holds {value} at \(5, 3\)"):
        network.predict(bad.images)
    assert network.parameters_sha256() == before
    assert network.input_range is None


@pytest.mark.parametrize(("labels", "where"), [(np.zeros(9), ""), (np.zeros((9, 2)), r" at \(1,\)")])
@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_a_label_that_is_not_finite_is_found_too(labels, where, value):
    labels = labels.copy()
    labels[(4, 1) if where else 4] = value
    dataset = pc.Dataset(np.zeros((9, 3), np.uint8), labels, None)
    network = pc.NetworkHandler((pc.Dense(labels.size // 9),), (3,))
    with pytest.raises(DataError, match=rf"training set 'data': the label of sample 4 holds (nan|inf){where}, but"):
        pc.train(network, dataset, dataset, pc.SGD(), 1, 9, comm=pc.Serial(), loss=pc.MeanSquaredError())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_place_of_large_arrays_is_looked_at_and_large_numbers_are_finite(dtype, monkeypatch):
    monkeypatch.setattr("parallelcnn.data.numbers._PIECE", 30)
    numbers = np.full((50, 7), np.finfo(dtype).max, dtype)
    check_finite("image", numbers)
    check_finite("image", numbers[::2, ::-1])
    check_finite("image", numbers[:0])
    for sample, place in ((0, 0), (23, 6), (49, 6)):
        spoilt = numbers.copy()
        spoilt[sample, place] = np.nan
        with pytest.raises(DataError, match=rf"image {sample} holds nan at \({place},\)"):
            check_finite("image", spoilt)


def test_each_data_set_is_looked_at_once_and_pixels_never(monkeypatch):
    looked = []
    monkeypatch.setattr("parallelcnn.data.dataset.check_finite", lambda what, numbers: looked.append(what))
    dataset = pixels(scale=1 / 255)
    network = train(dataset)
    pc.evaluate(network, dataset, pc.Serial(), threads=1)
    assert len(looked) == 2
    monkeypatch.undo()
    monkeypatch.setattr("numpy.dot", lambda *_: pytest.fail("looked at"))
    monkeypatch.setattr("numpy.isfinite", lambda *_: pytest.fail("looked at"))
    check_finite("image", np.zeros((3, 4), np.uint8))


def test_images_that_are_not_scaled_cause_a_warning():
    with pytest.warns(
        TrainingWarning, match="the training images hold numbers from 0 to 255, where .* as uint8"
    ) as met:
        train(pixels())
    assert len(met) == 1
    with pytest.warns(TrainingWarning, match="the training images hold numbers from -1000 to 1550"):
        train(pixels(scale=10, shift=-1000))


PREPARED = {
    "uint8": pixels(dtype=np.uint8),
    "scaled": pixels(scale=1 / 255),
    "0 to 255": pixels(),
    "centred": pixels(scale=2 / 255, shift=-1),
    "standardised": pixels(scale=3.24 / 255, shift=-0.42),
}
ALIKE = [("uint8", "scaled"), ("scaled", "uint8"), ("standardised", "centred")]


@pytest.mark.parametrize("found", PREPARED)
@pytest.mark.parametrize("trained", PREPARED)
def test_images_of_another_scale_than_in_training_cause_a_warning(trained, found):
    network, other = pc.NetworkHandler(LAYERS, (1, 11, 9)), PREPARED[found]
    network.input_range = PREPARED[trained].input_range
    differ = trained != found and (trained, found) not in ALIKE
    for use in (lambda: network.predict(other.images), lambda: pc.evaluate(network, other, pc.Serial(), threads=1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use()
        assert [warning.category for warning in caught] == [TrainingWarning] * differ
        assert all("but the network was trained on numbers from " in str(warning.message) for warning in caught)
        assert all(warning.filename == __file__ for warning in caught)


def test_training_warns_of_test_images_of_another_scale():
    with pytest.warns(
        TrainingWarning, match="the test images hold numbers from 0 to 255, but the network was trained on"
    ):
        train(pixels(dtype=np.uint8), pixels())


def test_the_range_of_the_training_images_is_saved_and_copied_with_the_model(tmp_path):
    for dataset, wanted in ((pixels(dtype=np.uint8), (0, 1)), (pixels(scale=1 / 255, shift=-1), (-1, 0))):
        network = train(dataset)
        assert network.input_range == wanted
        pc.save_model(tmp_path / "model.npz", network)
        assert pc.load_model(tmp_path / "model.npz").input_range == wanted
        assert copy.deepcopy(network).input_range == wanted
    pc.save_model(tmp_path / "model.npz", small.network())
    assert pc.load_model(tmp_path / "model.npz").input_range is None


def test_an_untrained_network_takes_images_of_any_scale():
    network = pc.NetworkHandler(LAYERS, (1, 11, 9))
    network.predict(pixels().images)
    pc.evaluate(network, pixels(), pc.Serial(), threads=1)


def test_an_input_error_is_what_users_catch():
    with pytest.raises(InputError):
        pc.NetworkHandler(LAYERS, (1, 11, 9)).predict(np.full((1, 11, 9), np.nan))


def trained_on(dataset):
    network = pc.NetworkHandler(LAYERS, (1, 11, 9))
    network.input_range = dataset.input_range
    return network


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixels_in_uint8_and_floats_in_0_to_1_are_predicted_alike(dtype):
    dataset = pixels(dtype=np.uint8)
    network = train(dataset)
    wanted = network.predict(dataset.images)
    found = network.predict((dataset.images / 255).astype(dtype))
    np.testing.assert_allclose(found, wanted, rtol=1e-2 if dtype == np.float16 else 2e-6)
    assert (network.predict_classes((dataset.images / 255).astype(np.float64)) == wanted.argmax(axis=1)).all()


HINTS = {
    ("uint8", "0 to 255"): "divide them by 255, or hand over pixels as uint8",
    ("scaled", "0 to 255"): "divide them by 255, or hand over pixels as uint8",
    ("0 to 255", "scaled"): "multiply them by 255, or write images.astype(np.float32) for pixels in uint8",
    ("0 to 255", "uint8"): "multiply them by 255, or write images.astype(np.float32) for pixels in uint8",
    ("standardised", "uint8"): "scale them in the same way",
    ("uint8", "standardised"): "scale them in the same way",
}


@pytest.mark.parametrize(("trained", "found"), HINTS)
def test_the_warning_says_how_to_scale(trained, found):
    with pytest.warns(TrainingWarning) as met:
        trained_on(PREPARED[trained]).predict(PREPARED[found].images)
    assert str(met[0].message).endswith(f": {HINTS[trained, found]} (uint8 counts as 0 to 1)")


def test_a_single_image_is_not_the_whole_range_and_causes_no_false_warning():
    dark = np.zeros((1, 11, 9), np.float32)
    dark[0, 0, 0] = 6 / 255
    for name, image in (("scaled", dark), ("scaled", 0 * dark), ("uint8", dark), ("centred", dark - 1)):
        trained_on(PREPARED[name]).predict(image)
    standardised = trained_on(PREPARED["standardised"])
    standardised.predict(np.full((1, 11, 9), 0.3, np.float32))
    with pytest.warns(TrainingWarning, match="hold numbers from 0 to 0.9, but the network was trained on"):
        standardised.predict(np.linspace(0, 0.9, 99, dtype=np.float32).reshape(1, 11, 9))


def test_features_may_have_outliers_and_rows_of_small_numbers():
    network = pc.NetworkHandler((pc.Dense(2),), (4,))
    network.input_range = (-3.0, 12.0)
    for row in ([-90, 0, 1, 2], [0, 0, 0, 160], [0, 0.01, 0.02, 0], [0, 1, 0, 1]):
        network.predict(np.array([row], np.float32))
    with pytest.warns(TrainingWarning, match="hold numbers from 0 to 255, but the network was trained on"):
        network.predict(np.array([[0, 0, 0, 255]], np.float32))


def test_the_warning_names_the_line_of_the_user():
    network, images = trained_on(PREPARED["uint8"]), PREPARED["0 to 255"].images
    for use in (network.predict, network.predict_classes, network.activations):
        with pytest.warns(TrainingWarning) as met:
            use(images)
        assert [warning.filename for warning in met] == [__file__]


@pytest.mark.parametrize(
    ("trained", "images", "hint"),
    [
        ("uint8", np.full((2, 11, 9), 200), "int64: write images.astype(np.uint8)"),
        ("0 to 255", np.full((2, 11, 9), 200), "int64: write images.astype(np.float32)"),
        ("uint8", np.full((2, 11, 9), 1000, np.uint16), "uint16: write (images / 65535).astype(np.float32) for pixels"),
        ("uint8", np.full((2, 11, 9), -7, np.int16), "int16: write images.astype(np.float32)"),
        ("uint8", np.ones((2, 11, 9), np.int32), "int32: write images.astype(np.float32) for numbers from 0 to 1, "),
        ("uint8", np.ones((2, 11, 9), bool), "bool: write images.astype(np.float32)"),
    ],
)
def test_other_integers_are_refused_with_the_way_to_convert_them(trained, images, hint):
    with pytest.raises(InputError) as refused:
        trained_on(PREPARED[trained]).predict(images)
    assert hint in str(refused.value)
