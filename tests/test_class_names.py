"""Names of classes: from the data set to the network, its copies, its files and its predictions."""

import copy
import pickle

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, DataError, InputError

NAMES = ("cat", "dog", "newt")


def data_set(**more):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 8, 8), np.uint8), np.arange(30) % 3
    return pc.Dataset(images, labels, 3, class_names=list(NAMES), resize="pad", **more)


def network(outputs=3):
    return pc.NetworkHandler((pc.Flatten(), pc.Dense(outputs)), (1, 8, 8))


def trained():
    found = network()
    pc.train(found, data_set(), data_set(), pc.SGD(0.1), 1, 10, verbose=0)
    return found


@pytest.mark.parametrize(
    "names", ["abc", ("a", "b"), ("a", "b", "b"), ("a", "b", ""), ("a", "b", 3), 3, ("a", "b", "c", "d")]
)
def test_names_that_are_not_one_for_each_class_are_refused(names):
    with pytest.raises(DataError, match="class_names must be 3 different names, got"):
        pc.Dataset(np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), 3, class_names=names)


def test_labels_that_are_not_classes_have_no_names():
    with pytest.raises(DataError, match="class_names must be None where labels are not classes, got"):
        pc.Dataset(np.zeros((4, 8, 8), np.uint8), np.zeros(4), None, class_names=NAMES)


def test_only_known_ways_to_resize_are_accepted():
    with pytest.raises(DataError, match="resize must be one of crop, pad, stretch, got 'squash'"):
        pc.Dataset(np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), 3, resize="squash")


def test_both_parts_of_a_split_keep_them():
    for part in data_set(sample_weight=np.ones(30)).split(0.2):
        assert (part.class_names, part.resize) == (NAMES, "pad")


def test_a_trained_network_its_copies_and_its_files_know_them(tmp_path):
    found = trained()
    pc.save_model(tmp_path / "model.npz", found)
    again = pc.load_model(tmp_path / "model.npz")
    for one in (found, again, copy.copy(found), pickle.loads(pickle.dumps(found)), pc.folded(found)):
        assert (one.class_names, one.resize) == (NAMES, "pad")


def test_a_network_with_more_outputs_than_classes_gets_no_names(tmp_path):
    found = network(outputs=5)
    pc.train(found, data_set(), data_set(), pc.SGD(0.1), 1, 10, verbose=0)
    assert found.class_names is None
    pc.save_model(tmp_path / "model.npz", found)


def test_the_predicted_class_is_that_of_the_largest_probability(rng):
    found, images = trained(), rng.integers(0, 256, (20, 8, 8), np.uint8)
    numbers = found.predict(images).argmax(axis=1)
    assert len(set(numbers)) > 1
    assert found.predict_classes(images).tolist() == [NAMES[number] for number in numbers]
    found.class_names = None
    np.testing.assert_array_equal(found.predict_classes(images), numbers)
    assert found.predict_classes(images[:0]).shape == (0,)


def test_a_network_with_one_output_decides_between_two_classes(rng):
    found = network(outputs=1)
    found.prediction, found.class_names = "sigmoid", ("no", "yes")
    images = rng.integers(0, 256, (20, 8, 8), np.uint8)
    wanted = np.where(found.predict(images)[:, 0] > 0.5, "yes", "no")
    assert set(wanted) == {"no", "yes"}
    np.testing.assert_array_equal(found.predict_classes(images), wanted)


@pytest.mark.parametrize(("prediction", "outputs"), [("output", 3), ("sigmoid", 3)])
def test_networks_that_predict_no_classes_say_so(prediction, outputs):
    found = network(outputs)
    found.prediction = prediction
    with pytest.raises(InputError, match=f"trained on classes; this one predicts its {prediction} of shape"):
        found.predict_classes(np.zeros((1, 8, 8), np.uint8))


def test_files_with_names_for_other_outputs_are_damaged(tmp_path):
    found = network()
    found.class_names = ("a", "b")
    with pytest.raises(CheckpointError, match="class_names must be 3 different names"):
        pc.save_model(tmp_path / "model.npz", found)
    assert small.network().class_names is None


def test_sets_whose_classes_have_other_names_are_refused():
    images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1])
    cats, cars = (pc.Dataset(images, labels, 2, name=n, class_names=(n, "dog")) for n in ("cat", "car"))
    nameless = pc.Dataset(images, labels, 2)
    network = pc.NetworkHandler((pc.Flatten(), pc.Dense(2)), (1, 2, 2))
    with pytest.raises(pc.DataError, match="car: the class 0 is 'car', but 'cat' in the training set"):
        pc.train(network, cats, cars, pc.SGD(0.1), 1, 4)
    pc.train(network, cats, nameless, pc.SGD(0.1), 1, 4)
    pc.evaluate(network, nameless)
    with pytest.raises(pc.DataError, match="car: the class 0 is 'car', but 'cat' in the network's training"):
        pc.evaluate(network, cars)
    pc.train(network, cars, cars, pc.SGD(0.1), 1, 4)  # the network learns other classes
