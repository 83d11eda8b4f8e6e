"""IDX files and folders of them: what is read, and that a file which lies is refused in one sentence."""

import gzip
import os
import re
import struct
import tracemalloc

import numpy as np
import pytest

from parallelcnn.data import load_data, load_idx_folder
from parallelcnn.data.readers.idx import read_idx
from parallelcnn.errors import DataError, TrainingWarning

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def idx_bytes(values, type_code=0x08):
    header = bytes([0, 0, type_code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def images(rng_bytes):
    return rng_bytes((12, 5, 4))


@pytest.fixture
def rng_bytes():
    rng = np.random.default_rng(1)
    return lambda shape: rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def parts(rng_bytes):
    """The content of four good files, by name."""
    return {
        TRAIN_IMAGES: rng_bytes((12, 5, 4)),
        TRAIN_LABELS: np.arange(12, dtype=np.uint8) % 10,
        TEST_IMAGES: rng_bytes((7, 5, 4)),
        TEST_LABELS: np.arange(7, dtype=np.uint8),
    }


@pytest.fixture
def write_folder(tmp_path, parts):
    """Write the four files, some of them replaced by other values, and return their folder."""

    def write(**replaced):
        folder = tmp_path / "data"
        folder.mkdir()
        for name, values in (parts | replaced).items():
            (folder / name).write_bytes(idx_bytes(values))
        return folder

    return write


def refusal(action, *arguments, **options):
    """The one sentence that an action is refused with."""
    with pytest.raises(DataError) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("shape", [(9,), (3, 4), (2, 5, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_idx_file_is_read_as_it_was_written(tmp_path, rng_bytes, shape, compress):
    values = rng_bytes(shape)
    path = tmp_path / "values"
    path.write_bytes(compress(idx_bytes(values)))
    read = read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("cut", [1, 7, 9, 40_000])
@pytest.mark.parametrize("zeros", [0, 1, 40_000])
def test_gzip_files_that_were_joined_are_read_as_one_and_zeros_behind_them_mean_nothing(
    tmp_path, rng_bytes, cut, zeros
):
    values = rng_bytes((70, 30, 40))
    content = idx_bytes(values)
    path = tmp_path / "joined"
    path.write_bytes(gzip.compress(content[:cut]) + gzip.compress(content[cut:]) + bytes(zeros))
    np.testing.assert_array_equal(read_idx(path), values)


def test_a_file_that_a_browser_unpacked_may_keep_its_gz_name(tmp_path, images):
    path = tmp_path / "images.gz"
    path.write_bytes(idx_bytes(images))
    np.testing.assert_array_equal(read_idx(path), images)


LYING_FILES = {
    "empty": (b"", "is empty"),
    "empty inside gzip": (gzip.compress(b""), "is empty"),
    "three bytes": (b"\0\0\x08", "is no IDX file"),
    "header cut off": (b"\0\0\x08\x03\0\0\0\x02", "takes 16 bytes, the file holds 8"),
    "a web page": (b"<!DOCTYPE html>", "this one with 3c 21 44 4f"),
    "no dimensions": (b"\0\0\x08\0", "dimensions from 1 to 4"),
    "five dimensions": (b"\0\0\x08\x05" + bytes(20), "dimensions from 1 to 4"),
    "unheard-of type": (b"\0\0\x77\x01" + bytes(8), "its header says an unknown type (0x77); known types: 0x08, 0x09"),
    "no items": (idx_bytes(np.empty((0, 28, 28))), "holds nothing: its header says 0 x 28 x 28"),
    "no pixels": (idx_bytes(np.empty((3, 0, 28))), "holds nothing: its header says 3 x 0 x 28"),
    "one byte short": (idx_bytes(np.ones((2, 3)))[:-1], "2 x 3 = 6 bytes, but 5 follow"),
    "one byte short inside gzip": (
        gzip.compress(idx_bytes(np.ones((2, 3)))[:-1]),
        "is truncated: its header says 2 x 3 = 6 bytes, but 5 follow",
    ),
    "one byte long": (idx_bytes(np.ones((2, 3))) + b"x", "is too long"),
    "one byte long inside gzip": (
        gzip.compress(idx_bytes(np.ones((2, 3))) + b"x"),
        "is too long: its header says 2 x 3 = 6 bytes, but more follow",
    ),
    "gzip cut off": (gzip.compress(idx_bytes(np.ones((50, 30))))[:-9], "gzip compression"),
    "gzip cut to its magic": (b"\x1f\x8b", "gzip compression"),
    "garbage behind gzip's magic": (b"\x1f\x8b" + bytes(range(100)), "gzip compression"),
    "garbage behind gzip": (gzip.compress(idx_bytes(np.ones(6))) + b"x" * 30, "gzip compression"),
}


@pytest.mark.parametrize(("content", "rule"), LYING_FILES.values(), ids=LYING_FILES)
def test_a_lying_file_is_refused_by_name_and_rule(tmp_path, monkeypatch, content, rule):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liar").write_bytes(content)
    message = refusal(read_idx, "liar")
    assert message.startswith("liar: ")
    assert rule in message


def test_a_gz_file_that_is_neither_gzip_nor_idx_is_refused(tmp_path):
    path = tmp_path / "page.gz"
    path.write_bytes(b"<html>")
    assert "is no gzip file: one starts with the bytes 1f 8b, this one with 3c 68" in refusal(read_idx, path)


# From the first compressed byte that means something to the last byte of the checksum.
@pytest.mark.parametrize("where", [*range(16, 200, 13), -8, -5])
def test_a_flipped_bit_in_a_gzip_file_is_noticed(tmp_path, rng_bytes, where):
    values = rng_bytes((20, 10))
    content = bytearray(gzip.compress(idx_bytes(values)))
    content[where] ^= 0x10
    path = tmp_path / "flipped"
    path.write_bytes(content)
    refusal(read_idx, path)


@pytest.mark.parametrize(
    ("compress", "told"), [(bytes, "but 3 follow"), (gzip.compress, "but a gzip file of 34 bytes holds at most 35,088")]
)
def test_a_header_that_claims_terabytes_allocates_nothing(tmp_path, compress, told):
    path = tmp_path / "boaster"
    path.write_bytes(compress(b"\0\0\x08\x03" + struct.pack(">3I", 1 << 22, 1024, 1024) + b"few"))
    tracemalloc.start()
    try:
        message = refusal(read_idx, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"4,398,046,511,104 bytes, {told}" in message
    assert peak < 4 << 20


def peak_of(action):
    """The most memory that an action allocated at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (1 << 20, "is truncated: .* bytes, but a gzip file of .* bytes holds at most"),
        (20_000, "is too long: its header says 20,000 x 28 x 28 = 15,680,000 bytes, but more follow"),
    ],
)
def test_a_gzip_file_takes_no_more_memory_than_its_header_says(tmp_path, items, message):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", items, 28, 28) + bytes(1 << 26)))
    assert path.stat().st_size < 70_000

    def read():
        assert re.search(message, refusal(read_idx, path))

    assert peak_of(read) < 32 << 20  # half of what the file inflates to


@pytest.mark.parametrize("swap", [False, True])
def test_images_that_are_more_than_their_labels_are_refused_before_they_are_read(write_folder, swap):
    folder = write_folder()
    large = (TRAIN_LABELS, (1 << 26,)) if swap else (TRAIN_IMAGES, (1 << 16, 32, 32))
    header = bytes([0, 0, 8, len(large[1])]) + struct.pack(f">{len(large[1])}I", *large[1])
    (folder / large[0]).write_bytes(gzip.compress(header + bytes(1 << 26), 1))

    def load():
        assert "every image must have one label, got " in refusal(load_idx_folder, folder)

    assert peak_of(load) < 1 << 20


def test_a_file_larger_than_memory_is_refused(tmp_path, monkeypatch, images):
    path = tmp_path / "large"
    path.write_bytes(idx_bytes(images))

    def exhaust(*_):
        raise MemoryError

    monkeypatch.setattr(np, "fromfile", exhaust)
    assert refusal(read_idx, path) == f"{path}: what it holds does not fit into memory"


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_file_larger_than_the_memory_limit_is_refused_before_memory_is_taken(tmp_path, monkeypatch, images, compress):
    path = tmp_path / "large"
    path.write_bytes(compress(idx_bytes(images)))
    monkeypatch.setattr("parallelcnn.data.readers.idx.memory_limit", lambda: (images.size - 1, "ulimit -v"))
    monkeypatch.setattr(np, "fromfile", lambda *_: pytest.fail("was read"))
    assert refusal(read_idx, path) == f"{path}: what it holds does not fit into memory"


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refusal(read_idx, pipe) == f"{pipe}: must be a file, not a folder or a device"
    assert "must be a file" in refusal(read_idx, tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, images):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(images))

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    # The real thing cannot be had as root.
    monkeypatch.setattr("parallelcnn.data.readers.idx.open", refuse, raising=False)
    assert refusal(read_idx, path) == f"{path}: cannot be read: Permission denied"


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "nowhere"
    assert refusal(read_idx, path) == f"{path}: cannot be read: No such file or directory"


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_a_folder_of_four_files_is_a_training_and_a_test_set(tmp_path, parts, mark, end):
    for name, values in parts.items():
        content = idx_bytes(values)
        name = name.replace("-idx", f"{mark}idx") + end
        (tmp_path / name).write_bytes(gzip.compress(content) if end else content)
    train, test = load_idx_folder(tmp_path, "tiny")
    np.testing.assert_array_equal(train.images, parts[TRAIN_IMAGES])
    np.testing.assert_array_equal(train.labels, parts[TRAIN_LABELS])
    np.testing.assert_array_equal(test.images, parts[TEST_IMAGES])
    np.testing.assert_array_equal(test.labels, parts[TEST_LABELS])
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert (train.classes, test.classes, train.name) == (10, 10, "tiny")


def test_the_training_labels_say_how_many_classes_there_are(write_folder):
    folder = write_folder(**{TRAIN_LABELS: np.arange(12) * 4})
    train, test = load_data(str(folder))
    assert train.classes == test.classes == 45
    assert train.name == str(folder)


def test_of_a_plain_and_a_gzipped_file_the_gzipped_one_is_taken(write_folder, parts):
    folder = write_folder()
    other = 255 - parts[TEST_IMAGES]
    (folder / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx_bytes(other)))
    with pytest.warns(TrainingWarning, match=f"taken: .*{TEST_IMAGES}.gz, .*; not taken: {TEST_IMAGES}$"):
        np.testing.assert_array_equal(load_idx_folder(folder)[1].images, other)


def test_a_missing_folder_is_named_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(load_idx_folder, "no/where") == "no/where: there is no such folder"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert "must be a folder of four IDX files, but is a file" in refusal(load_idx_folder, path)


def test_all_missing_files_are_named_at_once(write_folder):
    folder = write_folder()
    (folder / TRAIN_LABELS).unlink()
    (folder / TEST_IMAGES).unlink()
    message = refusal(load_idx_folder, folder)
    assert message.startswith(f"{folder}: misses {TRAIN_LABELS}, {TEST_IMAGES} (")
    assert ".gz" in message


def test_a_broken_link_is_named(write_folder):
    folder = write_folder()
    (folder / TRAIN_IMAGES).unlink()
    (folder / TRAIN_IMAGES).symlink_to("gone")
    assert f"{TRAIN_IMAGES}: cannot be read: No such file" in refusal(load_idx_folder, folder)


SWAPPED = "were the files swapped?"


def test_swapped_images_and_labels_are_told(write_folder, parts):
    folder = write_folder(**{TRAIN_IMAGES: parts[TRAIN_LABELS], TRAIN_LABELS: parts[TRAIN_IMAGES]})
    message = refusal(load_idx_folder, folder)
    assert message == (f"{folder / TRAIN_IMAGES}: holds labels where images are expected: {SWAPPED}")


def test_images_in_place_of_labels_are_told(write_folder, parts):
    folder = write_folder(**{TEST_LABELS: parts[TEST_IMAGES]})
    assert f"holds images where labels are expected: {SWAPPED}" in refusal(load_idx_folder, folder)


def test_colour_images_are_refused_with_their_dimensions(write_folder, rng_bytes):
    folder = write_folder(**{TRAIN_IMAGES: rng_bytes((12, 3, 5, 4))})
    assert "images must have 3 dimensions, got 4" in refusal(load_idx_folder, folder)


@pytest.mark.parametrize(("name", "count"), [(TRAIN_LABELS, 11), (TEST_LABELS, 8)])
def test_every_image_must_have_one_label(write_folder, name, count):
    message = refusal(load_idx_folder, write_folder(**{name: np.arange(count)}))
    assert f"{name}: every image must have one label, got {count} labels" in message


def test_training_and_test_images_must_have_one_size(write_folder, rng_bytes):
    message = refusal(load_idx_folder, write_folder(**{TEST_IMAGES: rng_bytes((7, 4, 5))}))
    assert "size of the training images, 5 x 4, got 4 x 5" in message


def test_a_test_label_beyond_the_training_labels_is_refused(write_folder):
    folder = write_folder(**{TEST_LABELS: np.array([0, 1, 2, 10, 4, 5, 6])})
    message = refusal(load_idx_folder, folder)
    assert message == f"{folder / TEST_LABELS}: labels must lie in [0, 10), got 10 at sample 3"


def test_a_training_label_beyond_the_known_classes_is_refused(write_folder):
    folder = write_folder(**{TRAIN_LABELS: np.arange(12)})
    message = refusal(load_idx_folder, folder, classes=10)
    assert f"{TRAIN_LABELS}: labels must lie in [0, 10), got 10 at sample 10" in message


def test_a_single_class_is_refused(write_folder):
    folder = write_folder(**{TRAIN_LABELS: np.zeros(12)})
    assert "at least 2 classes, all are 0" in refusal(load_idx_folder, folder)
