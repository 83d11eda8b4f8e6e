"""Whatever the readers of data sets are fed, they read it or refuse it in a sentence; and what was written comes back.

Readers of arrays, tables, CIFAR's files and HDF5. Examples are made by hypothesis, the same in every run.
"""

import csv
import gzip
import io
import pickle
import pickletools
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from archives import archive_of, members_of, npy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from watched import MEBIBYTE, examine
from watched import few as sixty

from parallelcnn.data.formats import load_path
from parallelcnn.errors import InputError

few, many = settings(sixty, max_examples=25), sixty

X = np.arange(96, dtype=np.uint8).reshape(8, 4, 3, 1)
Y = np.arange(8) % 2


def examine_file(place, name, content, most_bytes=None):
    """Load a file; its InputError, or None if it was taken."""
    path = place / name
    path.write_bytes(content)
    return examine(lambda: load_path(path), most_bytes or 8 * MEBIBYTE + 100 * len(content))


def changed(data, content):
    """The content with some bytes changed, added or missing, or cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(changed)))
        changed[start : start + data.draw(st.sampled_from([0, 1, 8]))] = data.draw(st.binary(max_size=4))
    return bytes(changed[: data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))])


# ---- arrays


def npz(save=np.savez, **arrays):
    content = io.BytesIO()
    save(content, **arrays)
    return content.getvalue()


NPZ = {"stored": npz(x_train=X, y_train=Y), "packed": npz(np.savez_compressed, x_train=X, y_train=Y)}


@pytest.mark.parametrize("kind", NPZ)
@few
@given(data=st.data())
def test_bytes_of_an_npz_file_that_are_changed_or_missing_do_no_more_than_be_refused(kind, place, data):
    assert examine_file(place, "good.npz", NPZ[kind]) is None
    examine_file(place, "changed.npz", changed(data, NPZ[kind]))


_DTYPES = ["'|u1'", "'<f8'", "'>i4'", "'|b1'", "'|O'", "'<U9'", "'|S3'", "'<f4,<f4'", "[('a', 'O')]", "5", "()"]
_SHAPES = ["()", "(8,)", "(8, 4, 3, 1)", "(999999999,)", "(999999999, 999999999)", "(-8,)", "(0,)", "(8", "", "('3',)"]


@many
@given(
    member=st.integers(0, 1),
    dtype=st.sampled_from(_DTYPES),
    shape=st.sampled_from(_SHAPES),
    numbers=st.binary(max_size=96),
    method=st.sampled_from([0, 8, 12, 14]),
)
def test_no_header_of_an_array_is_believed(place, member, dtype, shape, numbers, method):
    members = members_of(NPZ["stored"])
    content = npy(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}", numbers)
    members[member] = members[member]._replace(content=content, method=method)
    examine_file(place, "header.npz", archive_of(members))
    folder = place / "arrays"
    folder.mkdir(exist_ok=True)
    for one in members:
        (folder / one.name).write_bytes(one.content)
    examine(lambda: load_path(folder), 8 * MEBIBYTE)


_NAMES = st.sampled_from([
    "x_train", "y_train", "x_test", "y_test", "train_images", "train_labels", "images", "labels", "data", "target",
    "target_names", "x_val", "y_valid", "other", "X_train", "train", "y", "../up", "a/b",
])  # fmt: skip
_ARRAYS = npst.arrays(
    st.one_of(npst.scalar_dtypes(), npst.unicode_string_dtypes(max_len=3), npst.byte_string_dtypes(max_len=3)),
    st.one_of(npst.array_shapes(max_dims=5, max_side=4), st.tuples(st.just(3)), st.tuples(*2 * [st.just(3)])),
)


@many
@given(arrays=st.dictionaries(_NAMES, _ARRAYS, max_size=5))
def test_no_arrays_do_more_than_be_refused(place, arrays):
    examine_file(place, "some.npz", npz(**arrays))


@few
@given(
    images=npst.arrays(
        st.sampled_from(["u1", "<f4", ">f4", "<f8", ">i2", "<i8", "?"]),
        st.tuples(st.just(6), st.integers(1, 5), st.integers(1, 5)),
        elements=st.integers(0, 1),
    ),
    labels=npst.arrays(np.int64, 6, elements=st.integers(0, 3)),
    form=st.sampled_from(["npz", "folder"]),
    order=st.sampled_from("CF"),
)
def test_arrays_that_were_written_come_back(place, images, labels, form, order):
    labels[0], labels[1] = 0, 1
    path = place / f"written.{form}"
    arrays = {"x_train": np.asarray(images, order=order), "y_train": labels}
    if form == "npz":
        path.write_bytes(npz(**arrays))
    else:
        path.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    train = load_path(path).train
    np.testing.assert_array_equal(train.images, images * (255 if images.dtype == bool else np.uint8(1)))
    np.testing.assert_array_equal(train.labels, labels)


# ---- tables


def table(rows):
    content = io.StringIO()
    csv.writer(content).writerows(rows)
    return content.getvalue().encode()


TABLE = table([["label", *(f"pixel{n}" for n in range(9))], *([n % 2, *range(n, n + 9)] for n in range(6))])


@pytest.mark.parametrize("form", ["csv", "gz", "zip"])
@few
@given(data=st.data())
def test_bytes_of_a_table_that_are_changed_or_missing_do_no_more_than_be_refused(form, place, data):
    content = TABLE
    if data.draw(st.booleans()):
        content = changed(data, content)
    if form == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.csv", content)
        content = packed.getvalue()
    content = gzip.compress(content) if form == "gz" else content
    name = {"csv": "t.csv", "gz": "t.csv.gz", "zip": "t.zip"}[form]
    examine_file(place, name, changed(data, content) if content != TABLE else content)


_FIELDS = st.sampled_from(
    ["", "0", "1", "255", "256", "-1", "0.5", "1e9", "1e999", "nan", "inf", "cat", '"', "label", "id"]
)
_FIELDS |= st.sampled_from(["0x1", "1_0", "\u0663", " 1 ", "1,", "a\nb", "\x00", "\x1b[31m", "9" * 400, "pixel1"])


@many
@given(rows=st.lists(st.lists(_FIELDS, min_size=1, max_size=5), max_size=5), separator=st.sampled_from(",;\t"))
def test_no_table_does_more_than_be_refused(place, rows, separator):
    content = "\n".join(separator.join(row) for row in rows).encode()
    examine_file(place, "any.csv", content)
    content = table(rows) if all("\x00" not in field for row in rows for field in row) else content
    examine_file(place, "any.csv", content)


@few
@given(
    values=npst.arrays(
        st.sampled_from([np.uint8, np.int16, np.float32]), st.tuples(st.integers(4, 9), st.integers(2, 7))
    ).filter(lambda values: np.isfinite(values).all()),
    header=st.booleans(),
)
def test_tables_that_were_written_come_back(place, values, header):
    labels = np.arange(len(values)) % 3
    names = [["label", *(f"a{n}b" for n in range(values.shape[1]))]] if header else []
    rows = [[label, *row.tolist()] for label, row in zip(labels, values, strict=True)]
    path = place / "written.csv"
    path.write_bytes(table([*names, *rows]))
    train = load_path(path).train
    np.testing.assert_array_equal(train.images, values.astype(np.float32))
    np.testing.assert_array_equal(train.labels, labels)


# ---- CIFAR


BATCH = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "filenames": ["a.png", "b.png"]}


@pytest.fixture(scope="module")
def cifar(place):
    folder = place / "cifar"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(BATCH))
    return SimpleNamespace(folder=folder, batch=folder / "data_batch_1")


def examine_pickle(cifar, content):
    cifar.batch.write_bytes(content)
    return examine(lambda: load_path(cifar.folder), 8 * MEBIBYTE + 100 * len(content))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@few
@given(data=st.data())
def test_bytes_of_a_pickle_that_are_changed_or_missing_do_no_more_than_be_refused(cifar, protocol, data):
    content = pickle.dumps(BATCH, protocol)
    assert examine_pickle(cifar, content) is None
    # The zeros of the pixels take nearly all of it.
    start, end = content[:200], content[-400:]
    examine_pickle(
        cifar, changed(data, start) + content[200:] if data.draw(st.booleans()) else content[:-400] + changed(data, end)
    )


_OPERATIONS = [one.code.encode("latin-1") for one in pickletools.opcodes]
_ARGUMENTS = [
    b"", b"\x00", b"\x01", b"\xff\xff\xff\x7f", b"\xff" * 8, b"os\nmkdir\n", b"numpy\ndtype\n", b"numpy\nndarray\n",
    b"numpy.core.multiarray\n_reconstruct\n", b"numpy._core.numeric\n_frombuffer\n", b"_codecs\nencode\n", b"1\n",
    b"'u1'\n", b"\x02u1", b"builtins\neval\n", b"numpy.core.multiarray\nscalar\n",
]  # fmt: skip


@many
@given(operations=st.lists(st.tuples(st.sampled_from(_OPERATIONS), st.sampled_from(_ARGUMENTS)), max_size=12))
def test_no_program_of_a_pickle_is_executed(cifar, operations):
    program = b"".join(code + argument for code, argument in operations)
    assert isinstance(examine_pickle(cifar, program + b"."), InputError)


_STATES = st.recursive(
    st.one_of(
        st.none(), st.integers(-2, 2**70), st.binary(max_size=3), st.text(max_size=2), st.floats(), st.booleans()
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner)
    ),
    max_leaves=8,
)


@few
@given(value=_STATES)
def test_no_value_in_a_pickle_does_more_than_be_refused(cifar, value):
    assert isinstance(examine_pickle(cifar, pickle.dumps(value)), InputError)
    assert isinstance(examine_pickle(cifar, pickle.dumps({"data": value, "labels": value})), InputError)


@few
@given(content=st.binary(max_size=200), name=st.sampled_from(["data_batch_1", "data_batch_1.bin", "batches.meta"]))
def test_no_heap_of_bytes_is_taken_for_cifar(cifar, place, content, name):
    folder = place / "heap"
    shutil.copytree(cifar.folder, folder)
    (folder / "data_batch_1").write_bytes(pickle.dumps(BATCH))
    (folder / name).write_bytes(content)
    (folder / "test_batch.bin").write_bytes(content)
    examine(lambda: load_path(folder), 8 * MEBIBYTE)
    shutil.rmtree(folder)


# ---- HDF5


@few
@given(arrays=st.dictionaries(_NAMES.filter(lambda name: "/" not in name), _ARRAYS, max_size=4))
def test_no_arrays_of_hdf5_do_more_than_be_refused(place, arrays):
    h5py = pytest.importorskip("h5py")
    path = place / "any.h5"
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.dtype.kind not in "UmM" and array.dtype.itemsize:  # which HDF5 does not have
                file[name] = array
    examine(lambda: load_path(path), 8 * MEBIBYTE)


# ---- anything


@few
@given(content=st.binary(max_size=200), end=st.sampled_from(["npz", "npy", "csv", "tsv", "csv.gz", "zip", "bin", "x"]))
def test_no_heap_of_bytes_is_taken_for_data(place, content, end):
    assert isinstance(examine_file(place, f"heap.{end}", content), InputError)
