"""Images and labels of other types and shapes: converted where nothing is lost, otherwise refused with advice."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from watched import few

from parallelcnn.data.conversion import channels_last, convert_images, labelling_of, layout_of
from parallelcnn.errors import DataError


def refusal(action, *arguments, **options):
    """The one sentence that an action is refused with."""
    with pytest.raises(DataError) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("x")
    return message


# ---- layout


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((9, 28, 28, 3), True),
        ((9, 3, 28, 28), False),
        ((9, 28, 28, 1), True),
        ((9, 1, 28, 28), False),
        ((9, 32, 48, 4), True),
        ((9, 3, 32, 48), False),
        ((9, 2, 2, 3), True),  # both axes are few: height and width are equal
        ((9, 3, 2, 2), False),
        ((9, 12, 12, 7), True),  # neither is few
        ((9, 7, 12, 12), False),
        ((9, 28, 28, 28), True),  # nothing tells: as Keras stores them
        ((9, 5, 6, 7), True),
        ((9, 1, 2, 3), True),
    ],
)
def test_where_the_channels_are_is_told_by_the_shape(shape, last):
    assert channels_last(shape) == last
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    expected = images.transpose(0, 3, 1, 2) if last else images
    np.testing.assert_array_equal(convert_images("x", images), expected)
    assert layout_of(shape) == f"{' x '.join(map(str, shape[1:]))}, channels {'last' if last else 'first'}"


def test_the_caller_may_know_where_the_channels_are():
    images = np.zeros((2, 3, 4, 3), np.uint8)
    assert convert_images("x", images, last=False).shape == (2, 3, 4, 3)
    assert convert_images("x", images, last=True).shape == (2, 3, 3, 4)


def test_images_without_a_channel_axis_and_features_keep_their_shape():
    assert layout_of((5, 28, 28)) == "28 x 28"
    assert layout_of((5, 12)) == "12 features"
    assert convert_images("x", np.zeros((5, 28, 28), np.uint8)).shape == (5, 28, 28)
    assert convert_images("x", np.zeros((5, 12), np.float32)).shape == (5, 12)


@pytest.mark.parametrize("shape", [(), (5,), (5, 2, 3, 3, 3)])
def test_other_shapes_are_refused(shape):
    assert f"got {shape}" in refusal(convert_images, "x", np.zeros(shape, np.uint8))


# ---- numbers of images


@pytest.mark.parametrize("kind", ["i1", "u2", "<i4", ">i4", "i8", "u8", ">u2"])
def test_whole_numbers_of_a_byte_become_bytes(kind):
    values = np.arange(120).reshape(5, 4, 6)
    images = convert_images("x", values.astype(kind))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, values)


@pytest.mark.parametrize("kind", ["<f2", ">f2", ">f4", "<f8", ">f8", "g"])
def test_floats_become_float32(kind):
    values = np.linspace(-3, 3, 120).reshape(5, 4, 6).astype(np.float16)
    images = convert_images("x", values.astype(kind))
    assert images.dtype == np.float32
    assert images.dtype.isnative
    np.testing.assert_array_equal(images, values)


def test_float32_and_bytes_are_not_copied():
    for kind in (np.float32, np.uint8):
        images = np.zeros((4, 5, 5), kind)
        assert convert_images("x", images) is images


def test_floats_that_are_no_numbers_remain_so_and_infinity_is_no_overflow():
    images = convert_images("x", np.array([[np.nan, np.inf, -np.inf, 1e-300]]))
    np.testing.assert_array_equal(images, np.array([[np.nan, np.inf, -np.inf, 0]], np.float32))


def test_a_float_too_large_for_float32_is_refused():
    message = refusal(convert_images, "x", np.array([[1.0, 2.0], [3.0, -1e40]]))
    assert message == "x: numbers must fit into float32, at most 3.4e38, got -1e+40"


def test_truth_values_become_black_and_white():
    images = convert_images("x", np.array([[[True, False]]]))
    assert images.dtype == np.uint8
    assert images.tolist() == [[[255, 0]]]


def test_numbers_of_features_are_no_pixels():
    values = np.array([[1, 2], [3, 400]])
    features = convert_images("x", values)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, values)
    assert "must lie between -16,777,216 and 16,777,216" in refusal(convert_images, "x", np.array([[2**24 + 1, 0]]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.full((2, 3, 3), 256),
            "in [0, 255], got int64 from 256 to 256: scale them and store floats, such as images.",
        ),
        (np.full((2, 3, 3), -1, np.int8), "got int8 from -1 to -1"),
        (np.full((2, 3, 3), 65535, np.uint16), "got uint16 from 65,535 to 65,535: .* such as (images / 65535).astype("),
        (np.zeros((2, 3, 3), complex), "must be numbers, got complex numbers"),
        (np.zeros((2, 3, 3), "U3"), "must be numbers, got strings"),
        (np.zeros((2, 3, 3), object), "got Python objects: images of one size are stored by np.stack(images)"),
        (np.zeros((2, 3, 3), "f4,f4"), "got named columns"),
        (np.zeros((2, 3, 3), "M8[s]"), "got datetime64[s]"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_advice(images, message):
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), refusal(convert_images, "x", images))


def test_large_arrays_are_converted_in_pieces(monkeypatch):
    monkeypatch.setattr("parallelcnn.data.conversion._PIECE", 10)
    values = np.arange(48.0).reshape(8, 3, 2)
    np.testing.assert_array_equal(convert_images("x", values), values)
    np.testing.assert_array_equal(convert_images("x", values.astype(int)), values)
    values[-1, -1, -1] = 256
    assert "from 0 to 256" in refusal(convert_images, "x", values.astype(int))
    values[-1, -1, -1] = 1e39
    assert "got 1e+39" in refusal(convert_images, "x", values)


@few
@given(
    values=npst.arrays(
        npst.integer_dtypes(endianness="?") | npst.unsigned_integer_dtypes(endianness="?"),
        npst.array_shapes(min_dims=3, max_dims=4, max_side=5),
    ),
    flipped=st.booleans(),
)
def test_converted_whole_numbers_are_the_same_numbers_whatever_the_type_and_strides(values, flipped):
    values = values[::-1, ..., ::-1] if flipped else values
    last = values.ndim == 4 and channels_last(values.shape)
    if values.min() < 0 or values.max() > 255:
        assert "must lie in [0, 255]" in refusal(convert_images, "x", values)
    else:
        expected = np.moveaxis(values, 3, 1) if last else values
        np.testing.assert_array_equal(convert_images("x", values), expected)


# ---- labels


def converted(labels, class_names=None):
    labelling = labelling_of("x", labels, class_names)
    return labelling.convert("x", labels), labelling.classes, labelling.class_names


@pytest.mark.parametrize("kind", ["u1", "i2", ">i4", "i8", "u8", "f4", ">f8"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_numbers_of_classes_become_int64(kind, shape):
    labels, classes, names = converted(np.array([0, 2, 1, 2, 0, 1]).astype(kind).reshape(shape))
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 2, 1, 2, 0, 1]
    assert (classes, names) == (3, None)


@pytest.mark.parametrize("kind", ["U", "S", "O"])
def test_names_are_numbered_in_sorted_order(kind):
    labels, classes, names = converted(np.array(["dog", "cat", "emu", "cat"]).astype(kind))
    assert labels.tolist() == [1, 0, 2, 0]
    assert (classes, names) == (3, ("cat", "dog", "emu"))


def test_names_are_numbered_as_the_source_says_if_it_knows_them_all():
    labels, classes, names = converted(np.array(["dog", "cat"]), ["dog", "emu", "cat"])
    assert (labels.tolist(), classes, names) == ([0, 2], 3, ("dog", "emu", "cat"))
    assert converted(np.array(["dog", "cat"]), ["Dog", "Cat"])[2] == ("cat", "dog")


def test_truth_values_are_two_classes():
    assert converted(np.array([True, False, True]))[:2] == (pytest.approx([1, 0, 1]), 2)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, ">f8"])
def test_one_hot_rows_are_classes(kind):
    labels, classes, names = converted(np.eye(4)[[3, 0, 1]].astype(kind), list("abcd"))
    assert (labels.tolist(), classes, names) == ([3, 0, 1], 4, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.5, 1.0, 2.0]),
        np.array([0.0, 2.0, 4.0]),  # whole, but with gaps
        np.array([25.0, 26.0, 27.0]),  # whole, but not from 0
        np.array([-1.0, 0.0, 1.0]),
        np.array([1.0, np.nan]),
        np.array([[0.5, 1.0], [2.0, 3.0]]),
        np.array([[0.5], [1.0]]),
        np.array([[1, 1, 0], [0, 0, 0]], np.uint8),  # several labels for each sample
    ],
)
def test_other_numbers_are_outputs(labels):
    found, classes, names = converted(labels, ["a", "b", "c"])
    assert (classes, names) == (None, None)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, labels[:, 0] if labels.shape[1:] == (1,) else labels)


def test_names_of_classes_say_how_many_there_are():
    assert converted(np.array([0, 1, 0]), list("abc"))[1:] == (3, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(1, 11), "x must start at 0, got 1 to 10: subtract 1, as labels - 1 does"),
        (np.arange(1.0, 11.0), "x must start at 0, got 1 to 10: subtract 1"),
        (np.array([[3], [5]]), "x must start at 0, got 3 to 5: subtract 3"),
        (np.array([-1, 1]), "x must be the numbers of classes from 0, got -1 to 1: np.unique(labels, return_inverse="),
        (np.array([0, 5000]), "got 0 to 5000: np.unique("),
        (np.zeros(4, int), "x must name at least 2 classes, all are 0"),
        (np.array(["cat", "cat"]), "x must name at least 2 classes, all are cat"),
        (np.array([[0, 2], [1, 1]]), "rows of several integers must be zeros and ones, got 0 to 2"),
        (np.array([]), "x holds no labels"),
        (np.zeros((2, 2, 2), int), "(N,), (N, 1) or (N, outputs), got (2, 2, 2)"),
        (np.array([["cat", "dog"]]), "got (1, 2)"),
        (np.array([1j, 2]), "x must be numbers or names, got complex numbers"),
        (np.array(["cat", ""]), "every sample must have the name of a class, got '' at sample 1"),
        (np.array(["cat", None], object), "every sample must have the name of a class, got None at sample 1"),
        (np.array([b"cat", b"\xff"]), "names must be UTF-8, got b'\\xff'"),
    ],
)
def test_labels_without_a_meaning_are_refused_with_advice(labels, message):
    assert message in refusal(labelling_of, "x", labels)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0, 3], "x: labels must lie in [0, 3), got 3 at sample 1"),
        ([0, 1, 2], ["cat"], "must be integers as the training labels are, got strings"),
        ([0, 1, 2], [0.5], "must be integers of shape (N,)"),
        ([0, 1, 2], [[0, 1]], "must be integers of shape (N,)"),
        (["cat", "dog"], ["dig"], "'dig' is no class of the training set: did you mean 'dog'?"),
        (["cat", "dog"], [1], "must be names as the training labels are"),
        ([[0, 1], [1, 0]], [[1, 1]], "must be rows of 2 numbers, zeros and a single one"),
        ([[0, 1], [1, 0]], [[0, 0, 1]], "must be rows of 2 numbers, zeros and a single one"),
        ([[0, 1], [1, 0]], [1], "must be rows of 2 numbers, zeros and a single one"),
    ],
)
def test_labels_of_another_set_must_mean_the_same(train, test, message):
    assert message in refusal(labelling_of("x", np.array(train)).convert, "x", np.array(test))


def test_too_few_names_are_refused():
    assert refusal(labelling_of, "x", np.array([0, 1, 2]), ["a", "b"]) == "x: 3 classes, but only 2 names: a, b"
    assert "the names of the classes must be 2 different names" in refusal(labelling_of, "x", [0, 1], ["a", "a"])


@few
@given(
    labels=st.lists(st.integers(0, 8), min_size=1, max_size=20),
    form=st.sampled_from(["integers", "names", "one-hot", "floats"]),
)
def test_the_form_of_labels_makes_no_difference(labels, form):
    number = np.unique(labels, return_inverse=True)[1].reshape(len(labels))
    classes = int(number.max()) + 1
    if classes < 2 and form != "one-hot":
        return
    forms = {
        "integers": number,
        "names": np.array(list("abcdefghi"))[number],
        "one-hot": np.eye(classes + 1)[number],
        "floats": number.astype(float),
    }
    found, known, _ = converted(forms[form])
    assert found.tolist() == number.tolist()
    assert known == classes + (form == "one-hot")
