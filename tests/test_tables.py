"""CSV with a column of labels: how its form is told, and that a damaged row is named by its line."""

import gzip
import os
import zipfile

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.data.formats import load_path
from parallelcnn.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (15, 64))
LABELS = np.arange(15) % 3
PIXEL_NAMES = [f"pixel{number}" for number in range(64)]
MEASURED = RNG.normal(size=(15, 4)).round(3)


def text(values, labels, names=None, *, place=0, separator=","):
    """A table with the labels in a column."""
    rows = [[*row[:place], label, *row[place:]] for row, label in zip(values.tolist(), labels, strict=True)]
    lines = rows if names is None else [names, *rows]
    return "".join(separator.join(map(str, row)) + "\n" for row in lines)


def kaggle(values=PIXELS, labels=LABELS):
    return text(values, labels, ["label", *PIXEL_NAMES])


def refusal(path):
    """The one sentence that the data at a path are refused with."""
    with pytest.raises(DataError) as caught:
        load_path(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.fixture
def load(tmp_path):
    """Writes a table and loads it."""

    def write_and_load(content, name="table.csv"):
        (tmp_path / name).write_text(content)
        return load_path(tmp_path / name)

    return write_and_load


def check(sets, values=PIXELS, labels=LABELS):
    expected = values.reshape(-1, 8, 8) if values.shape[1] == 64 else values
    np.testing.assert_array_equal(sets.train.images, expected.astype(np.float32))
    np.testing.assert_array_equal(sets.train.labels, labels)


def test_the_table_of_kaggles_mnist_is_images(load):
    sets = load(kaggle())
    check(sets)
    assert sets.train.images.dtype == np.uint8
    assert sets.found == "CSV: 15 training images, 8 x 8, 3 classes; labels in column 'label'"
    assert (sets.validation, sets.test) == (None, None)


@pytest.mark.parametrize("name", ["LABEL", "labels", "class", "Target", "y"])
@pytest.mark.parametrize("place", [0, 20, 64])
def test_the_labels_may_be_any_column_with_a_known_name(load, name, place):
    names = [*PIXEL_NAMES[:place], name, *PIXEL_NAMES[place:]]
    check(load(text(PIXELS, LABELS, names, place=place)))


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (["digit", *PIXEL_NAMES], 0),  # the only name unlike the others
        ([*(f"{row}x{column}" for row in range(1, 9) for column in range(1, 9)), "what"], 64),
        ([*(str(number) for number in range(65))], 0),  # as pandas names them
        (["label", *(str(number) for number in range(64))], 0),
        ([*(str(number) for number in range(1, 65)), "y"], 64),
        (None, 0),
        ([*(f"f{number}" for number in range(64)), "label"], 64),
    ],
)
def test_the_label_column_is_told_without_a_known_name(load, names, place):
    check(load(text(PIXELS, LABELS, names, place=place)))


@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize("names", [None, list("abcde")])
def test_names_of_classes_are_labels(load, place, names):
    labels = np.array(["setosa", "versicolor", "virginica"])[LABELS]
    sets = load(text(MEASURED, labels, names, place=place))
    check(sets, MEASURED)
    assert sets.train.class_names == ("setosa", "versicolor", "virginica")
    assert sets.train.input_shape == (4,)
    column = f"column {place + 1}" if names is None else f"column {'abcde'[place]!r}"
    assert sets.found == f"CSV: 15 training samples, 4 features, 3 classes; labels in {column}"


def test_a_class_may_have_the_name_of_a_label_column(load):
    sets = load(text(MEASURED, np.array(["y", "class"])[LABELS % 2]))
    assert (len(sets.train), sets.train.class_names) == (15, ("class", "y"))


@pytest.mark.parametrize("place", [0, 4])
def test_of_numbers_the_column_of_whole_ones_is_that_of_labels(load, place):
    check(load(text(MEASURED, LABELS, place=place)), MEASURED)


def test_other_labels_are_a_regression(load):
    sets = load(text(MEASURED[:, :3], MEASURED[:, 3], list("yabc")))
    assert sets.train.classes is None
    np.testing.assert_array_equal(sets.train.labels, MEASURED[:, 3].astype(np.float32))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_tables_of_other_programs_are_read(tmp_path, separator, end, bom):
    path = tmp_path / "t.csv"
    content = text(PIXELS, LABELS, ["label", *PIXEL_NAMES], separator=separator).replace("\n", end)
    path.write_bytes((bom + content + end).encode())  # an empty line at the end
    check(load_path(path))


def test_quoted_names_and_labels_are_read(load):
    labels = np.array(['"cat, big"', '"dog"', '"a ""quoted"" one"'])[LABELS]
    content = text(PIXELS, labels, [f'"{name}"' for name in ["label", *PIXEL_NAMES]])
    sets = load(content)
    check(sets, labels=np.array([1, 2, 0])[LABELS])
    assert sets.train.class_names == ('a "quoted" one', "cat, big", "dog")


def test_quotes_after_a_blank_are_read(load):
    labels = np.array(['"cat, big"', '"dog"', '"x y"'])[LABELS]
    sets = load(text(PIXELS, labels, [f'"{name}"' for name in ["label", *PIXEL_NAMES]], separator=", "))
    check(sets, labels=LABELS)
    assert sets.train.class_names == ("cat, big", "dog", "x y")
    assert sets.found.endswith("labels in column 'label'")
    quoted = np.array([[f'"{pixel}"' for pixel in row] for row in PIXELS])
    check(load(text(quoted, labels, ["label", *PIXEL_NAMES], separator=",  ")))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 1 << 18])
def test_lines_are_counted_whatever_their_end(tmp_path, monkeypatch, end, size):
    monkeypatch.setattr("parallelcnn.data.readers.tables._PIECE_BYTES", size)
    path = tmp_path / "t.csv"
    path.write_bytes("".join(f"{line}{end}" for line in ("y,a", "0,1", "", "1,2", "0,x")).encode())
    assert refusal(path) == f"{path}, line 5, column 'a': must be a finite number, got 'x'"


def test_a_column_that_numbers_the_rows_is_not_used(load):
    content = kaggle().splitlines()
    for first in ("", "id", "Unnamed: 0"):
        numbered = "\n".join(f"{number or first},{line}" for number, line in enumerate(content))
        sets = load(numbered)
        check(sets)
        assert sets.found.endswith(f"; labels in column 'label'; column {first!r} is not used")


def test_numbers_that_are_no_pixels_are_not_scaled_as_pixels(load):
    few = PIXELS[:, :4]  # a square number of columns, but too few to be an image
    sets = load(text(few, LABELS, ["label", "a", "b", "c", "d"]))
    check(sets, few)
    assert sets.train.images.dtype == np.float32
    named = load(text(PIXELS, LABELS, ["label", *(f"{'xyz'[n % 3]}{chr(97 + n % 26)}-{n}q" for n in range(64))]))
    assert named.train.input_shape == (64,)


def test_columns_with_names_of_pixels_are_images_whatever_they_hold(load):
    values = (PIXELS / 255).round(4)
    sets = load(kaggle(values))
    check(sets, values)
    assert sets.train.images.dtype == np.float32
    assert load(text(values, LABELS)).train.input_shape == (64,)
    assert load(text(PIXELS[:, :9], LABELS, ["label", *PIXEL_NAMES[:9]])).train.images.shape == (15, 3, 3)


@pytest.mark.parametrize("other", [256, -1, 0.5, 1e20])
@pytest.mark.parametrize("names", [None, ["label", *PIXEL_NAMES]])
def test_a_number_that_is_no_byte_may_come_late(load, other, names):
    values = np.tile(PIXELS, (10, 1)).astype(object)
    values[-1, -1] = other
    sets = load(text(values, np.tile(LABELS, 10), names))
    assert sets.train.images.dtype == np.float32
    np.testing.assert_array_equal(sets.train.images.reshape(150, 64), values.astype(np.float32))
    assert sets.train.images.ndim == (2 if names is None else 3)


# ---- several tables


def test_a_folder_of_tables_is_several_sets(tmp_path):
    (tmp_path / "mnist_train.csv").write_text(kaggle())
    (tmp_path / "mnist_test.csv.gz").write_bytes(gzip.compress(kaggle(PIXELS[:6], LABELS[:6]).encode()))
    with zipfile.ZipFile(tmp_path / "valid.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("valid.csv", kaggle(PIXELS[:4], LABELS[:4]))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    (tmp_path / ".train.csv").write_text("hidden")
    sets = load_path(tmp_path)
    check(sets)
    assert (len(sets.test), len(sets.validation), sets.validation.role) == (6, 4, "val")
    assert sets.found.startswith("CSV: 15 training, 4 validation and 6 test images, 8 x 8, 3 classes; labels in")


@pytest.mark.parametrize("late", [False, True])
def test_names_that_are_digits_in_one_table_are_still_names(tmp_path, late):
    names = ["7", "A", "07"] * 5
    pixels = PIXELS.copy()
    if late:
        pixels[-1, -1] = 300  # read again, as floats
    (tmp_path / "train.csv").write_text(text(pixels, names, ["label", *PIXEL_NAMES]))
    (tmp_path / "test.csv").write_text(text(PIXELS[:3], ["7", "07", "7"], ["label", *PIXEL_NAMES]))
    sets = load_path(tmp_path)
    assert sets.train.class_names == ("07", "7", "A")
    assert sets.test.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("names", [None, ["label", *PIXEL_NAMES]])
def test_a_test_table_without_labels_is_not_used(tmp_path, names):
    (tmp_path / "train.csv").write_text(text(PIXELS, LABELS, names))
    without = "".join(line.partition(",")[2] + "\n" for line in text(PIXELS, LABELS, names).splitlines())
    (tmp_path / "test.csv").write_text(without)
    sets = load_path(tmp_path)
    assert sets.test is None
    assert sets.found.endswith("; test.csv has no labels and is not used")
    assert len(pc.load_data(tmp_path)[1]) == 3


def test_an_archive_of_tables_is_several_sets(tmp_path):
    path = tmp_path / "digit-recognizer.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("digits/train.csv", kaggle())
        archive.writestr("digits/test.csv", kaggle(PIXELS[:6], LABELS[:6]))
        archive.writestr("__MACOSX/digits/._train.csv", "?")
        archive.writestr("readme.txt", "?")
    sets = load_path(path)
    check(sets)
    assert len(sets.test) == 6


@pytest.mark.parametrize("name", ["train.csv.gz", "TRAIN.CSV", "table.tsv", "train.csv.zip"])
def test_a_single_file_may_have_these_names(tmp_path, name):
    path = tmp_path / name
    content = kaggle().encode()
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train.csv", content)
    else:
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    check(load_path(path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["b.csv", "test.csv"],
            "holds several tables, of which the names must say what they are, such as train.csv and ",
        ),
        (["train.csv", "train2.csv"], "both seem to be the training set"),
    ],
)
def test_tables_whose_names_do_not_say_what_they_are_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text(kaggle())
    assert message in refusal(tmp_path)


def test_a_folder_with_other_tables_is_no_data_set(tmp_path):
    (tmp_path / "epochs.csv").write_text("epoch,loss\n1,0.5\n")  # a run directory
    assert "holds no data in a known format. Known formats: " in refusal(tmp_path)


def test_tables_of_other_columns_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text(kaggle())
    (tmp_path / "test.csv").write_text(text(PIXELS, LABELS, ["label", *PIXEL_NAMES[1:], "other"]))
    assert "test.csv: must have the columns of the training table, label, pixel0," in refusal(tmp_path)
    (tmp_path / "test.csv").write_text(text(PIXELS[:, :60], LABELS))
    assert "test.csv, line 1: must have 65 columns, got 61" in refusal(tmp_path)


# ---- damage


def damaged(line, change, content=None):
    lines = (content or kaggle()).split("\n")
    lines[line - 1] = change(lines[line - 1])
    return "\n".join(lines)


DAMAGES = {
    "a column less": (damaged(9, lambda row: row.rpartition(",")[0]), ", line 9: must have 65 columns, got 64"),
    "a column more": (damaged(9, lambda row: row + ",5"), "line 9: must have 65 columns, got 66"),
    "cut off": (kaggle()[:-9], ", line 16: must have 65 columns, got "),
    "a word": (damaged(3, lambda row: row[:-2] + "x"), "line 3, column 'pixel63': must be a finite number, got '"),
    "a missing number": (damaged(4, lambda row: row.rpartition(",")[0] + ","), "must be a finite number, got ''"),
    "not a number": (damaged(5, lambda row: row.rpartition(",")[0] + ",nan"), "line 5, column 'pixel63': must be a"),
    "infinity": (damaged(5, lambda row: row.rpartition(",")[0] + ",-inf"), "must be a finite number, got '-inf'"),
    "too large": (damaged(5, lambda row: row.rpartition(",")[0] + ",1e300"), "numbers must fit into float32"),
    "an open quote": (damaged(6, lambda row: '"' + row), ", line 6: must have 65 columns"),
    "an open quote at the end": ('a,y\n0,"x\n1,"z"\n', "line 2: must have 2 columns, got 1"),
    "nothing beside the label": ("0,1\n1,\n", "line 2, column 2: must be a finite number, got ''"),
    "no label": (damaged(7, lambda row: "," + row.partition(",")[2]), "7, column 'label': must be a label, got noth"),
    "labels from 1": (kaggle(labels=LABELS + 1), "column 'label' must start at 0, got 1 to 3: subtract 1"),
    "one class": (kaggle(labels=LABELS * 0), "must name at least 2 classes"),
    "empty": ("", "is empty"),
    "only names": (kaggle().partition("\n")[0], "holds no rows, only the names of columns"),
    "one column": ("1\n2\n", "must have a column of labels and others, separated by commas, semicolons or tabs, got"),
    "only labels": ("id,label\n0,1\n", "must have other columns than that of the labels"),
    "text": ("It was a dark, and stormy\nnight, it was\n", "line 2, column 'and stormy': must be a finite number, got"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_row_is_named_by_its_line(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_text(content)
    assert message in refusal(path)


def test_a_damaged_row_of_an_archive_is_named(tmp_path):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/train.csv", damaged(9, lambda row: row + ",5"))
    assert refusal(path) == f"{path}: in/train.csv, line 9: must have 65 columns, got 66"


@pytest.mark.parametrize("content", [kaggle().encode("utf-16"), b"label,a\n\xff,1\n", b"label,a\n0,1\n\x00,2\n"])
def test_what_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert ": must be text in UTF-8" in refusal(path)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("parallelcnn.data.readers.tables._LONGEST_LINE", 1 << 20)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"0," * (1 << 24)))
    assert refusal(path) == f"{path}, line 1: is longer than 1,048,576 bytes"


def test_an_archive_that_holds_more_than_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress((kaggle() + ("0," * 64 + "0\n") * 20_000).encode()))
    monkeypatch.setattr("parallelcnn.data.readers.tables.memory_limit", lambda: (1 << 20, "ulimit -v"))
    assert "what it holds does not fit into memory" in refusal(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("train.csv", kaggle())
    assert "train.csv is compressed by another method than deflate" in refusal(path)


def test_damaged_compression_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(kaggle().encode())[:-20])
    assert "its gzip compression is damaged" in refusal(path)
    path.write_text(kaggle())
    assert "is no gzip file" in refusal(path)
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", kaggle())
    path.write_bytes(path.read_bytes().replace(b"pixel7", b"pixel8", 1))
    assert "Bad CRC-32" in refusal(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    assert "train.csv: must be a file, not a folder or a device" in refusal(tmp_path)
