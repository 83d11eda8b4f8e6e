"""IDX files of all types, and what is distributed in MNIST's form: EMNIST, QMNIST and Fashion-MNIST."""

import gzip
import struct

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.data.formats import load_path
from parallelcnn.data.readers.idx import read_idx
from parallelcnn.errors import DataError, TrainingWarning

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (27, 5, 4), dtype=np.uint8)
TEN = np.arange(27) % 10


def idx_bytes(values, kind="u1"):
    header = bytes([0, 0, CODES[kind], values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(kind).tobytes()


def write_set(folder, source="", *, images=IMAGES, labels=TEN, test="test", kind="idx1-ubyte", label_type="u1"):
    """Four files; the test set is the first nine samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, some in (("train", slice(None)), (test, slice(9))):
        content = gzip.compress(idx_bytes(images[some]))
        (folder / f"{source}{role}-images-idx{images.ndim}-ubyte.gz").write_bytes(content)
        (folder / f"{source}{role}-labels-{kind}").write_bytes(idx_bytes(labels[some], label_type))
    return folder


def refusal(path):
    """The one sentence that the data at a path are refused with."""
    with pytest.raises(DataError) as caught:
        load_path(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- types


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_files_of_all_types_are_read(tmp_path, kind, compress):
    values = RNG.integers(-100, 100, (3, 4, 5)) if kind != "u1" else IMAGES
    path = tmp_path / "values"
    path.write_bytes(compress(idx_bytes(values, kind)))
    read = read_idx(path)
    assert read.dtype == np.dtype(kind).newbyteorder("=")
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("kind", [">i2", ">f8"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_file_of_another_length_is_refused_with_the_size_of_its_values(tmp_path, kind, compress):
    path = tmp_path / "values"
    size = np.dtype(kind).itemsize
    path.write_bytes(compress(idx_bytes(np.zeros((2, 3)), kind)[:-1]))
    with pytest.raises(DataError, match=f"is truncated: its header says 2 x 3 x {size} = {6 * size} bytes, but"):
        read_idx(path)
    path.write_bytes(compress(idx_bytes(np.zeros((2, 3)), kind) + b"x"))
    with pytest.raises(DataError, match=f"is too long: its header says 2 x 3 x {size} = {6 * size} bytes, but"):
        read_idx(path)


@pytest.mark.parametrize("kind", [">i2", ">i4", ">f4", ">f8"])
def test_a_folder_may_hold_images_of_other_types(tmp_path, kind):
    folder = write_set(tmp_path / "data", test="t10k")
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "train-images-idx3-int").write_bytes(idx_bytes(IMAGES, kind))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx_bytes(IMAGES[:9], kind))
    train, test = pc.load_idx_folder(folder)
    assert train.images.dtype == test.images.dtype == (np.float32 if "f" in kind else np.uint8)
    np.testing.assert_array_equal(train.images, IMAGES)


def test_images_with_channels_have_four_dimensions(tmp_path):
    images = RNG.integers(0, 256, (27, 5, 4, 3), dtype=np.uint8)
    sets = load_path(write_set(tmp_path / "data", images=images, test="t10k"))
    np.testing.assert_array_equal(sets.train.images, images.transpose(0, 3, 1, 2))
    assert sets.found == "IDX files: 27 training and 9 test images, 5 x 4 x 3, channels last, 10 classes"


def test_labels_that_start_at_1_are_refused(tmp_path):
    folder = write_set(tmp_path / "data", labels=TEN + 1)
    assert "train-labels-idx1-ubyte must start at 0, got 1 to 10: subtract 1" in refusal(folder)


# ---- EMNIST


def letters(count=26):
    return "".join(f"{number} {64 + number} {96 + number}\n" for number in range(1, count + 1))


def test_emnist_is_turned_and_its_letters_start_at_0(tmp_path):
    labels = np.arange(27) % 26 + 1
    folder = write_set(tmp_path / "emnist", "emnist-letters-", labels=labels)
    for mapping in (letters(), None):  # without the file, the names are known
        if mapping:
            (folder / "emnist-letters-mapping.txt").write_text(mapping)
        else:
            (folder / "emnist-letters-mapping.txt").unlink()
        sets = load_path(folder)
        np.testing.assert_array_equal(sets.train.images, IMAGES.swapaxes(1, 2))
        np.testing.assert_array_equal(sets.train.labels, labels - 1)
        assert (sets.train.classes, sets.train.class_names[0], sets.train.class_names[-1]) == (26, "Aa", "Zz")
        assert sets.found == "IDX files: 27 training and 9 test images, 4 x 5, 26 classes"


def test_other_splits_of_emnist_start_at_0(tmp_path):
    folder = write_set(tmp_path / "emnist", "emnist-digits-")
    assert load_path(folder).train.class_names is None
    (folder / "emnist-digits-mapping.txt").write_text("".join(f"{digit} {48 + digit}\n" for digit in range(10)))
    sets = load_path(folder)
    assert sets.train.class_names == tuple("0123456789")
    np.testing.assert_array_equal(sets.train.labels, TEN)


@pytest.mark.parametrize("mapping", ["", "1 65\n", "0 48\n2 50\n", "2 48\n3 49\n", "a b\n", "0 48\n1 99999999999\n"])
def test_a_mapping_that_maps_nothing_is_refused(tmp_path, mapping):
    folder = write_set(tmp_path / "emnist", "emnist-digits-")
    (folder / "emnist-digits-mapping.txt").write_text(mapping)
    assert "mapping.txt: each line must hold a label, from 0 or 1 without gaps, and the codes of its" in refusal(folder)


def test_of_several_splits_one_is_to_be_named(tmp_path):
    folder = write_set(tmp_path / "emnist", "emnist-digits-")
    write_set(folder, "emnist-balanced-", labels=TEN % 5)
    message = refusal(folder)
    assert (
        "holds several data sets (emnist-balanced, emnist-digits): name a file of the one you mean, such as" in message
    )
    train, _ = pc.load_data(folder / "emnist-balanced-train-images-idx3-ubyte.gz")
    assert train.classes == 5


def test_missing_files_of_a_split_are_named(tmp_path):
    folder = write_set(tmp_path / "emnist", "emnist-digits-")
    (folder / "emnist-digits-test-labels-idx1-ubyte").unlink()
    assert "misses emnist-digits-test-labels-idx1-ubyte (each looked for plain" in refusal(folder)


# ---- QMNIST


def test_the_first_of_the_eight_labels_of_qmnist_is_the_class(tmp_path):
    labels = RNG.integers(0, 5000, (27, 8))
    labels[:, 0] = TEN
    sets = load_path(write_set(tmp_path / "qmnist", "qmnist-", labels=labels, kind="idx2-int", label_type=">i4"))
    np.testing.assert_array_equal(sets.train.images, IMAGES)
    np.testing.assert_array_equal(sets.train.labels, TEN)
    np.testing.assert_array_equal(sets.test.labels, TEN[:9])
    assert sets.train.classes == 10


def test_qmnist_may_have_the_labels_of_mnist(tmp_path):
    assert load_path(write_set(tmp_path / "qmnist", "qmnist-")).train.classes == 10


# ---- Fashion-MNIST


@pytest.mark.parametrize("place", ["fashion-mnist", "FashionMNIST/raw", "data/fashion"])
def test_the_classes_of_fashion_mnist_have_names(tmp_path, place):
    sets = load_path(write_set(tmp_path / place, test="t10k"))
    assert sets.train.class_names[0] == "T-shirt/top"
    assert sets.test.class_names[9] == "Ankle boot"


def test_other_folders_have_no_names_of_classes(tmp_path):
    for place, labels in (("kmnist", TEN), ("fashion", TEN % 9)):
        assert load_path(write_set(tmp_path / place, labels=labels, test="t10k")).train.class_names is None


def test_the_folder_of_torchvision_is_enough(tmp_path):
    write_set(tmp_path / "FashionMNIST" / "raw", test="t10k")
    sets = load_path(tmp_path / "FashionMNIST")
    assert sets.train.class_names[1] == "Trouser"


def test_mnist_has_no_names_of_fashion_below_a_folder_of_that_name(tmp_path):
    folder = write_set(tmp_path / "fashion" / "a" / "b" / "mnist", test="t10k")
    assert load_path(folder).train.class_names is None


def test_a_second_file_is_taken_with_a_warning_at_the_line_of_the_caller(tmp_path):
    folder = write_set(tmp_path / "data", test="t10k")
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.warns(TrainingWarning) as caught:
        pc.load_idx_folder(folder)
    assert [str(warning.message).endswith("train-labels-idx1-ubyte instead") for warning in caught] == [True, False]
    assert {warning.filename for warning in caught} == {__file__}
