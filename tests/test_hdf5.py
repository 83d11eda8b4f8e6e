"""HDF5 files: the names of .npz files, also in groups; and nothing is read from elsewhere."""

import sys

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.data.formats import load_path
from parallelcnn.errors import DataError, InputError

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
Y = np.arange(12) % 4
CHANNELS_FIRST = X.transpose(0, 3, 1, 2)


def refusal(path):
    """The one sentence that the data at a path are refused with."""
    with pytest.raises(DataError) as caught:
        load_path(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.h5"


def test_arrays_with_the_names_of_keras_are_read(path):
    with h5py.File(path, "w") as file:
        file["x_train"], file["y_train"], file["x_test"], file["y_test"] = X, Y, X[:5], Y[:5]
    sets = load_path(path)
    np.testing.assert_array_equal(sets.train.images, CHANNELS_FIRST)
    np.testing.assert_array_equal(sets.test.labels, Y[:5])
    assert sets.found == "HDF5: 12 training and 5 test images, 6 x 5 x 3, channels last, 4 classes"
    assert len(pc.load_data(path)[0]) == 12


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_groups_are_a_part_of_the_name(path, compression):
    with h5py.File(path, "w") as file:
        for role, count in (("train", 12), ("val", 3), ("test", 4)):
            file.create_dataset(
                f"data/{role}/images" if role == "x" else f"{role}/images", data=X[:count], compression=compression
            )
            file[f"{role}/labels"] = Y[:count]
        file["train/again"] = file["train"]  # a group in itself
    sets = load_path(path)
    assert [len(one) for one in (sets.train, sets.validation, sets.test)] == [12, 3, 4]
    np.testing.assert_array_equal(sets.validation.images, CHANNELS_FIRST[:3])


@pytest.mark.parametrize("kind", ["variable", "S5", "ascii"])
def test_names_of_classes_are_read(path, kind):
    names = np.array(["cat", "dog", "emu", "fox"])
    with h5py.File(path, "w") as file:
        file["images"] = X
        labels = names[Y]
        file.create_dataset(
            "labels",
            data=labels.astype("S5" if kind == "S5" else object),
            dtype=None if kind == "S5" else h5py.string_dtype("ascii" if kind == "ascii" else "utf-8"),
        )
    train = load_path(path).train
    assert train.class_names == tuple(names)
    np.testing.assert_array_equal(train.labels, Y)


@pytest.mark.parametrize("kind", [">f8", "<f2", ">i4", "bool"])
def test_numbers_of_other_types_are_converted(path, kind):
    with h5py.File(path, "w") as file:
        file["data"], file["target"] = (X % 2).astype(kind), Y.astype(kind if kind == ">i4" else "u1")
    images = load_path(path).train.images
    np.testing.assert_array_equal(images, CHANNELS_FIRST % 2 * (255 if kind == "bool" else 1))


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "camelyonpatch.data"
    with h5py.File(path, "w") as file:
        file["x_train"], file["y_train"] = X, Y
    assert load_path(path).found.startswith("HDF5: 12 training images")


def test_without_h5py_the_extra_is_named(path, monkeypatch):
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"reading HDF5 needs h5py: pip install 'parallelcnn\[hdf5\]'$"):
        load_path(path)


def test_the_weights_of_keras_are_no_data(path):
    with h5py.File(path, "w") as file:
        file["model_weights/dense/kernel:0"] = np.zeros((3, 4))
    assert "misses an array of training images and labels; it holds model_weights/dense/kernel:0" in refusal(path)


def test_other_files_are_not_read(tmp_path, path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(X))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x_train"] = X
    with h5py.File(path, "w") as file:
        file["y_train"] = Y
        file["x_train"] = h5py.ExternalLink("other.h5", "/x_train")
    assert "misses an array of training images; it holds y_train" in refusal(path)
    with h5py.File(path, "w") as file:
        file["y_train"] = Y
        file.create_dataset("x_train", X.shape, "u1", external=[(str(secret), 0, X.nbytes)])
    assert "x_train takes its numbers from other files, which are not read" in refusal(path)
    layout = h5py.VirtualLayout(X.shape, "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x_train", X.shape)
    with h5py.File(path, "w") as file:
        file["y_train"] = Y
        file.create_virtual_dataset("x_train", layout)
    assert "x_train takes its numbers from other files, which are not read" in refusal(path)


@pytest.mark.parametrize("chunks", [None, (1, 1 << 10, 1 << 10)])
def test_a_size_that_the_file_cannot_hold_is_refused(path, chunks):
    with h5py.File(path, "w") as file:
        file["y_train"] = Y
        file.create_dataset("x_train", (1 << 20, 1 << 10, 1 << 10), "u1", chunks=chunks)
    assert "x_train is truncated: it has 1,099,511,627,776 bytes, which the file's " in refusal(path)


def test_an_array_larger_than_the_memory_limit_is_refused(path, monkeypatch):
    with h5py.File(path, "w") as file:
        file["x_train"], file["y_train"] = X, Y
    monkeypatch.setattr("parallelcnn.data.readers.hdf5.memory_limit", lambda: (X.nbytes - 1, "ulimit -v"))
    assert "x_train does not fit into memory: it has 1,080 bytes" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (np.dtype("f4,f4"), "x_train must hold numbers or strings, got [('f0', '<f4'), ('f1', '<f4')]"),
        (h5py.ref_dtype, "x_train must hold numbers or strings, got object"),
        (np.dtype("c8"), "x_train must hold numbers or strings, got complex64"),
    ],
)
def test_arrays_of_something_else_are_refused(path, kind, message):
    with h5py.File(path, "w") as file:
        file["y_train"] = Y
        file.create_dataset("x_train", (3,), kind)[...]
        file["x_train"].attrs["filled"] = file["x_train"].size
        if kind.kind != "O":
            file["x_train"][...] = np.zeros(3, kind)
        else:
            file["x_train"][0] = file["y_train"].ref
    assert message in refusal(path)


def test_an_empty_array_is_refused(path):
    with h5py.File(path, "w") as file:
        file["y_train"], file["x_train"] = Y, h5py.Empty("f4")
    assert "x_train holds nothing: its shape is None" in refusal(path)


@pytest.mark.parametrize("cut", [8, 100, 1000])
def test_a_truncated_file_is_refused(path, cut):
    with h5py.File(path, "w") as file:
        file["x_train"], file["y_train"] = X, Y
    path.write_bytes(path.read_bytes()[:cut])
    assert "is no HDF5 file, or a damaged one: " in refusal(path)


def test_what_is_no_hdf5_file_is_refused(path):
    path.write_text("label,pixel0\n")
    assert "is no HDF5 file, or a damaged one: " in refusal(path)
