""".npz files and folders of .npy files: the names of others are understood, and damage is refused in one sentence."""

import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from archives import Member, archive_of, npy
from launch import parallelcnn, refused

import parallelcnn as pc
from parallelcnn.data.description import missing_classes
from parallelcnn.data.formats import load_path
from parallelcnn.errors import DataError
from parallelcnn.files.rows import FileRows

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


def npy_bytes(array, **options):
    content = io.BytesIO()
    np.lib.format.write_array(content, array, **options)
    return content.getvalue()


def write(path, save=np.savez, **arrays):
    save(path, **arrays)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_names_of_keras_are_understood(tmp_path, save):
    path = write(tmp_path / "k.npz", save, x_train=X, y_train=Y, x_test=X[:5], y_test=Y[:5])
    sets = load_path(path)
    np.testing.assert_array_equal(sets.train.images, CHANNELS_FIRST)
    np.testing.assert_array_equal(sets.train.labels, Y)
    np.testing.assert_array_equal(sets.test.images, CHANNELS_FIRST[:5])
    assert sets.validation is None
    assert sets.train.name == str(path)
    assert sets.found == "npz: 12 training and 5 test images, 6 x 5 x 3, channels last, 4 classes"


@pytest.mark.parametrize("valid", ["x_val y_val", "x_valid y_valid", "X_validation Y_validation", "Xval yval"])
def test_a_validation_set_has_one_of_several_names(tmp_path, valid):
    images, labels = valid.split()
    sets = load_path(write(tmp_path / "v.npz", x_train=X, y_train=Y, **{images: X[:4], labels: Y[:4]}))
    assert (len(sets.validation), sets.validation.role) == (4, "val")
    assert sets.found.startswith("npz: 12 training and 4 validation images")


def test_the_names_of_medmnist_are_understood(tmp_path):
    arrays = {}
    for role, count in (("train", 12), ("val", 3), ("test", 4)):
        arrays |= {f"{role}_images": X[:count], f"{role}_labels": Y[:count, None].astype(np.uint8)}
    sets = load_path(write(tmp_path / "pathmnist.npz", np.savez_compressed, **arrays))
    assert [len(one) for one in (sets.train, sets.validation, sets.test)] == [12, 3, 4]
    np.testing.assert_array_equal(sets.validation.labels, Y[:3])
    np.testing.assert_array_equal(sets.test.images, CHANNELS_FIRST[:4])


def test_several_labels_for_each_sample_are_outputs(tmp_path):
    labels = RNG.integers(0, 2, (12, 14), dtype=np.uint8)
    train = load_path(write(tmp_path / "chestmnist.npz", train_images=X[..., 0], train_labels=labels)).train
    assert train.classes is None
    np.testing.assert_array_equal(train.labels, labels)


def test_the_names_of_scikit_learn_are_understood(tmp_path):
    # As load_digits() returns it: the images, and the same, flattened.
    images = RNG.integers(0, 17, (12, 8, 8)).astype(np.float64)
    path = tmp_path / "digits.npz"
    write(path, data=images.reshape(12, 64), target=Y, images=images, target_names=np.array(["a", "b", "c", "d"]))
    sets = load_path(path)
    np.testing.assert_array_equal(sets.train.images, images)
    assert sets.train.images.dtype == np.float32
    assert sets.train.class_names == ("a", "b", "c", "d")
    assert (sets.validation, sets.test) == (None, None)


def test_a_table_of_features_and_of_outputs_is_a_regression(tmp_path):
    sets = load_path(write(tmp_path / "r.npz", data=RNG.normal(size=(12, 7)), target=RNG.normal(size=12)))
    assert sets.train.classes is None
    assert sets.train.input_shape == (7,)
    assert sets.found == "npz: 12 training samples, 7 features, 1 output"


def test_load_data_takes_a_path_and_draws_a_test_set(tmp_path):
    path = write(tmp_path / "d.npz", images=X, labels=np.array(["cat", "dog"])[Y % 2])
    train_set, test_set = pc.load_data(path)
    assert len(train_set) + len(test_set) == 12
    assert train_set.class_names == test_set.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "misses an array of training images and labels; it holds no arrays"),
        ({"weights": X, "bias": Y}, "it holds weights, bias. Known names: x_train and y_train (Keras), "),
        ({"x_train": X}, "misses an array of training labels; it holds x_train"),
        ({"y_train": Y, "x_test": X, "y_test": Y}, "misses an array of training images"),
        ({"x_test": X, "y_test": Y}, "misses an array of training images and labels"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "misses an array of test labels"),
        ({"x_train": X, "y_train": Y[:5]}, "y_train: every image must have one label, got shape (5,) for images of "),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :5], "y_test": Y},
            "x_test must have the shape of the training images, (N, 6, 5, 3), got (12, 5, 5, 3)",
        ),
        ({"x_train": X, "y_train": Y + 1}, "y_train must start at 0, got 1 to 4: subtract 1"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "y_test: labels must lie in [0, 4), got 4"),
        ({"x_train": X.astype(int) + 1, "y_train": Y}, "x_train: whole numbers must lie in [0, 255], got int64 from 1"),
        ({"x_train": X * 1j, "y_train": Y}, "x_train: it starts with no header of an array of numbers"),
        ({"x_train": X, "y_train": Y, "target_names": np.array(["a"])}, "y_train: 4 classes, but only 1 names: a"),
        ({"x_train": X, "y_train": Y, "target_names": Y}, "target_names must be names"),
        (
            {"x_train": X, "y_train": np.array(["a\n\x1b[31mb", "c"] * 6), "x_test": X, "y_test": Y},
            "y_test must be nam",
        ),
        ({"x_train": X[:0], "y_train": Y[:0]}, "x_train holds nothing: its header says uint8 of shape (0, 6, 5, 3)"),
    ],
)
def test_arrays_that_make_no_data_set_are_refused(tmp_path, arrays, message):
    assert message in refusal(write(tmp_path / "bad.npz", **arrays))


class Malicious:
    """Pickles as a call of a function."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_a_pickle_is_refused_with_the_way_out_and_not_loaded(tmp_path):
    ran = tmp_path / "ran"
    objects = np.array([Malicious(ran), None], object)
    path = write(tmp_path / "o.npz", x_train=objects, y_train=Y)
    message = refusal(path)
    assert "but with one of Python objects, which only a pickle can store, and a pickle may run any program" in message
    assert "store arrays of numbers or strings, such as np.stack(images) and labels.astype(str)" in message
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x_train.npy", objects)
    np.save(folder / "y_train.npy", Y)
    assert "x_train.npy: it starts with no header of an array of numbers, but with one of Python objects" in refusal(
        folder
    )
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Malicious(ran)))
    assert "is no .npz file, or a damaged one" in refusal(tmp_path / "p.npz")
    assert not ran.exists()


def header(kind="'|u1'", shape="(12, 6, 5, 3)", fortran="False"):
    return f"{{'descr': {kind}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


LIES = {
    "too few numbers": (npy(header(), X.tobytes()[:-1]), "is truncated: its header says uint8 of shape (12, 6, 5, 3)"),
    "too many numbers": (npy(header(), X.tobytes() + b"x"), "is too long: its header says uint8"),
    "terabytes": (npy(header(shape="(1099511627776, 6)"), b"few"), "is truncated: its header says uint8"),
    "a product beyond 64 bits": (
        npy(header(shape="(4294967296, 4294967296, 2)"), b""),
        "is truncated: its header says",
    ),
    "named columns": (npy(header("[('a', '<f4')]", "(12,)"), bytes(48)), "but with one of an array with named columns"),
    "a program in place of a shape": (npy(header(shape="(print(1),)"), b""), "no header of an array of numbers"),
    "a negative length": (npy(header(shape="(-1,)"), b""), "no header of an array of numbers"),
    "forty dimensions": (npy(header(shape=f"({'1, ' * 40})"), b"x"), "it has 40 dimensions, more than 32"),
    "no header": (b"12345678" * 99, "it starts with no header of an array of numbers"),
    "nothing": (b"", "it starts with no header of an array of numbers"),
    "half a header": (npy(header(), b"")[:50], "it starts with no header of an array of numbers"),
    "characters that do not exist": (npy(header("'<U1'", "(1,)"), b"\xff" * 4), "holds characters that do not exist"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(tmp_path, content, message):
    path = tmp_path / "liar.npz"
    path.write_bytes(archive_of([Member("x_train.npy", content), Member("y_train.npy", npy_bytes(Y))]))
    assert message in refusal(path)
    folder = tmp_path / "liar"
    folder.mkdir()
    (folder / "x_train.npy").write_bytes(content)
    (folder / "y_train.npy").write_bytes(npy_bytes(Y))
    assert message in refusal(folder)


def test_an_archive_bomb_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "bomb.npz"
    size = 1 << 24
    bomb = npy(header(shape=f"({size * 64},)"), bytes(size))
    content = archive_of([Member("x_train.npy", bomb, zipfile.ZIP_DEFLATED), Member("y_train.npy", npy_bytes(Y))])
    claimed = (len(bomb) - size + size * 64).to_bytes(4, "little")  # the directory tells the same lie as the header
    path.write_bytes(content.replace(len(bomb).to_bytes(4, "little"), claimed))
    assert re.search(r"x_train is truncated: it has 1,073,741,824 bytes, and at most [\d,]+ are there", refusal(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    path = tmp_path / "c.npz"
    path.write_bytes(archive_of([Member("x_train.npy", npy_bytes(X), method), Member("y_train.npy", npy_bytes(Y))]))
    assert "x_train is compressed by another method than numpy's" in refusal(path)


def test_an_array_larger_than_the_memory_limit_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "large.npz", x_train=X, y_train=Y)
    monkeypatch.setattr("parallelcnn.data.readers.npz.memory_limit", lambda: (X.nbytes - 1, "ulimit -v"))
    assert "x_train does not fit into memory: it has 1,080 bytes" in refusal(path)


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, cut):
    path = write(tmp_path / "cut.npz", x_train=X, y_train=Y)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    assert "is no .npz file, or a damaged one" in refusal(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = write(tmp_path / "flipped.npz", x_train=X, y_train=Y)
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()[:9]) + 5] ^= 1
    path.write_bytes(content)
    assert "Bad CRC-32" in refusal(path)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(X),
        X[::-1, :, ::-1],
        X.astype(">i8"),
        X.astype(">f8"),
        X.astype(np.float16),
        np.asfortranarray(X.astype("<f4")),
    ],
    ids=["fortran", "strides", "big-endian integers", "big-endian floats", "half", "fortran floats"],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_order_type_and_version_of_the_format_is_read(tmp_path, array, version):
    path = tmp_path / "a.npz"
    members = [Member("x_train.npy", npy_bytes(array, version=version)), Member("y_train.npy", npy_bytes(Y))]
    path.write_bytes(archive_of(members))
    np.testing.assert_array_equal(load_path(path).train.images, np.asarray(array).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "text",
    [
        "{'descr':'|u1','fortran_order':False,'shape':(12,6,5,3)}",  # other programs write other spaces and orders
        "{'shape': (12, 6, 5, 3), 'fortran_order': False, 'descr': '|u1'}   ",
    ],
)
def test_the_headers_of_other_programs_are_read(tmp_path, text):
    path = tmp_path / "a.npz"
    path.write_bytes(archive_of([Member("x_train.npy", npy(text, X.tobytes())), Member("y_train.npy", npy_bytes(Y))]))
    np.testing.assert_array_equal(load_path(path).train.images, CHANNELS_FIRST)


def in_folder(tmp_path, **arrays):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_a_folder_of_npy_files_stays_on_disk(tmp_path):
    images = np.ascontiguousarray(CHANNELS_FIRST)
    folder = in_folder(tmp_path, x_train=images, y_train=Y, x_test=images[:5], y_test=Y[:5])
    sets = load_path(folder)
    assert sets.found == "numpy arrays: 12 training and 5 test images, 3 x 6 x 5, channels first, 4 classes"
    np.testing.assert_array_equal(sets.train.images, images)
    memory = sets.train.images
    while memory.base is not None and not isinstance(memory, np.memmap):
        memory = memory.base
    assert isinstance(memory, np.memmap)
    assert not sets.train.images.flags.writeable


def test_an_array_larger_than_memory_is_read_by_rows(tmp_path, monkeypatch):
    images = np.ascontiguousarray(CHANNELS_FIRST)
    folder = in_folder(tmp_path, x_train=images, y_train=Y)
    for module in ("readers.npz", "conversion"):
        monkeypatch.setattr(f"parallelcnn.data.{module}.memory_limit", lambda: (images.nbytes, "ulimit -v"))
    train = load_path(folder).train
    assert isinstance(train.images, FileRows)
    np.testing.assert_array_equal(train.images[np.array([5, 2, 11])], images[[5, 2, 11]])
    np.save(folder / "x_train.npy", X)
    assert "x_train: the 1 KiB do not fit into memory. They could stay in a .npy file if they" in refusal(folder)
    np.save(folder / "x_train.npy", images.astype(float))
    assert "x_train: the 8 KiB do not fit into memory" in refusal(folder)


def test_a_folder_of_npy_files_in_another_layout_is_converted(tmp_path):
    sets = load_path(in_folder(tmp_path, train_images=X.astype(np.float64), train_labels=Y, other=Y))
    np.testing.assert_array_equal(sets.train.images, CHANNELS_FIRST)


def test_a_single_npy_file_is_no_data_set(tmp_path):
    path = in_folder(tmp_path, x_train=X) / "x_train.npy"
    assert "is one array, and data are images and labels: name a folder" in refusal(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    folder = in_folder(tmp_path, x_train=X)
    os.mkfifo(folder / "y_train.npy")
    assert "y_train.npy: must be a file, not a folder or a device" in refusal(folder)
    os.mkfifo(tmp_path / "pipe.npz")
    assert "must be a .npz file, not a folder or a device" in refusal(tmp_path / "pipe.npz")


def test_an_array_that_is_gone_is_named(tmp_path):
    folder = in_folder(tmp_path, x_train=X)
    (folder / "y_train.npy").symlink_to("gone")
    assert "y_train.npy: cannot be read: No such file or directory" in refusal(folder)


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_classes_without_samples_are_named(tmp_path, kind):
    labels = np.array([0, 1, 5] * 8)
    if kind == "npz":
        path = write(tmp_path / "gaps.npz", x_train=np.eye(24, 9, dtype=np.float32), y_train=labels)
    else:
        path = tmp_path / "gaps.csv"
        np.savetxt(path, np.column_stack([labels, np.eye(24, 9)]), "%d", ",")
    missing = "the training set has no sample of the classes 2, 3, 4"
    shown = parallelcnn("data", path)
    assert f"\nmissing    {missing}\n" in shown.out
    assert "unequal" not in shown.out  # balanced weights need samples of every class
    (tmp_path / "net.py").write_text(
        "import parallelcnn as pc\ndef net(classes):\n    return (pc.Flatten(), pc.Dense(classes))\n"
    )
    words = ("--data", path, "--model", f"{tmp_path / 'net.py'}:net", "--out", tmp_path / "out", "--epochs", 1)
    ran = parallelcnn("train", *words, ranks=2)
    assert ran.code == 0, ran.err
    warning = f"parallelcnn: warning: {path}: {missing}, although the network has outputs for all 6 classes"
    assert ran.err.splitlines().count(warning) == 1, ran.err


def test_a_number_that_is_not_finite_is_refused_before_a_directory_is_touched(tmp_path, here):
    images = np.zeros((12, 10, 10), np.float32)
    images[3, 5, 2] = np.nan
    for bad in ("training", "test"):
        train, test = (images, np.ones_like(images)) if bad == "training" else (np.ones_like(images), images)
        sets = {"x_train": train, "y_train": Y, "x_test": test, "y_test": Y}
        path = write(tmp_path / f"{bad}.npz", **sets)
        message = f"{bad} set '{path}': image 3 holds nan at (5, 2), but every number must be finite"
        refused(here("data", path), message)
        refused(here("train", "--data", path, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_classes_need_another_loss(tmp_path, here):
    path = write(tmp_path / "x.npz", x_train=np.zeros((12, 10, 10), np.uint8), y_train=np.array([0.0, 1.0, 5.0] * 4))
    refused(
        here("train", "--data", path, "--out", tmp_path / "out"),
        f"{path}: the labels are numbers, not classes: --loss squared is for regression, and",
    )
    assert here("train", "--data", path, "--out", tmp_path / "out", "--loss", "squared", "--epochs", 1).code == 0


def test_two_samples_are_too_few_for_a_test_set(tmp_path):
    path = write(tmp_path / "x.npz", x_train=X[:2], y_train=Y[:2])
    with pytest.raises(pc.InputError, match=re.escape(f"{path}: 2 samples are too few to draw a test set from them")):
        pc.load_data(path)


def test_many_classes_without_samples_are_abridged():
    dataset = pc.Dataset(np.zeros((2, 3), np.float32), [0, 13], 14)
    assert missing_classes(dataset) == "of the classes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 others"
    named = pc.Dataset(np.zeros((2, 3), np.float32), [0, 1], 3, class_names=("ant", "bee", "cat"))
    assert missing_classes(named) == "of the class cat"
    assert missing_classes(pc.Dataset(np.zeros((2, 3), np.float32), [0, 1.5], None)) == ""
