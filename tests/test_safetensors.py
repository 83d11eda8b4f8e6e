"""Safetensors files: what is written, read, mapped and refused."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallelcnn.errors import CheckpointError, InputError
from parallelcnn.files.atomic import renamed_when_complete
from parallelcnn.files.safetensors import Kind, create_safetensors, map_safetensors, write_safetensors

DTYPES = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8"]


def arrays_of_all_types(rng):
    arrays = {np.dtype(d).name: rng.integers(0, 2, (3, i)).astype(d) for i, d in enumerate(DTYPES)}
    return {**arrays, "a number": np.float32(4), "none": np.zeros((0, 3)), "ünï": np.arange(3, dtype=">f4")}


def content_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_what_is_written_is_read_and_no_other_program_would_read_anything_else(tmp_path, rng):
    path, arrays = tmp_path / "a.safetensors", arrays_of_all_types(rng)
    write_safetensors(path, arrays, {"format": "pt", "names": '["ä"]'})
    found = map_safetensors(path)
    assert found.metadata == {"format": "pt", "names": '["ä"]'}
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == np.asarray(array).dtype.newbyteorder("<")
        assert found.arrays[name].flags.aligned
        assert not found.arrays[name].flags.writeable
    theirs = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    for name, array in theirs.load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])
    theirs.save_file({name: np.array(array) for name, array in found.arrays.items()}, path, {"a": "b"})
    again = map_safetensors(path)
    assert again.metadata == {"a": "b"}
    assert all(np.array_equal(again.arrays[name], array) for name, array in arrays.items())
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_is_created_first_and_filled_piece_by_piece(tmp_path):
    path = tmp_path / "cache.safetensors"
    kinds = {"images": Kind(np.uint8, (5, 3, 7)), "labels": Kind(np.int64, (5,)), "mean": Kind(np.float32, (1,))}
    with renamed_when_complete(path) as temporary:
        create_safetensors(temporary, kinds, {"width": "7"})
        for i in range(5):  # as other processes would
            arrays, metadata = map_safetensors(temporary, writable=True)
            arrays["images"][i], arrays["labels"][i] = i, -i
        assert metadata == {"width": "7"}
        assert not path.exists()
    found = map_safetensors(path)
    assert list(found.arrays) == ["labels", "mean", "images"]
    np.testing.assert_array_equal(found.arrays["images"][:, 2, 6], range(5))
    np.testing.assert_array_equal(found.arrays["labels"], -np.arange(5))
    assert found.arrays["mean"] == 0
    assert all(array.__array_interface__["data"][0] % 64 == 0 for array in found.arrays.values())
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["labels"][0] = 1
    path.unlink()
    assert found.arrays["labels"].sum() == -10  # the map outlives the name


def test_an_error_while_a_file_is_filled_leaves_nothing(tmp_path):
    def fill_half():
        with renamed_when_complete(tmp_path / "x") as temporary:
            create_safetensors(temporary, {"a": Kind(np.uint8, (9,))})
            raise KeyError

    with pytest.raises(KeyError):
        fill_half()
    with pytest.raises(OSError, match="of another") as caught, renamed_when_complete(tmp_path / "x"):
        raise OSError(5, "of another", "file")
    assert caught.value.filename == "file"
    with pytest.raises(OSError, match=r"No such file .*folder/x"), renamed_when_complete(tmp_path / "folder" / "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_a_file_exists(tmp_path):
    for arrays, metadata, message in (
        ({"a": np.array(["text"])}, {}, "array 'a' must have one of the types bool, uint8, .*, got <U4"),
        ({"a": np.zeros(3, np.complex128)}, {}, "got complex128"),
        ({"__metadata__": np.zeros(3)}, {}, "may be called '__metadata__'"),
        ({"a": np.zeros(3)}, {"a": 3}, "metadata of a safetensors file must be texts by name"),
        ({"a" * 2**24: np.zeros(3)}, {}, "takes 16777216 bytes of names"),
    ):
        with pytest.raises(InputError, match=message):
            write_safetensors(tmp_path / "x", arrays, metadata)
    assert not list(tmp_path.iterdir())


def test_bfloat16_becomes_float32_and_odd_places_are_copied(tmp_path):
    path = tmp_path / "x"
    halves = np.array([1.0, -2.5, 3e38], np.float32).view("<u4") >> 16
    header = {"b": entry("BF16", [3], [1, 7]), "a": entry("U8", [1], [0, 1]), "c": entry("F32", [1], [7, 11])}
    path.write_bytes(content_of(header, b"\7" + halves.astype("<u2").tobytes() + struct.pack("<f", 1.5)))
    a, b, c = map_safetensors(path).arrays.values()
    assert (a.tolist(), b[:2].tolist(), c.tolist()) == ([7], [1.0, -2.5], [1.5])
    assert c.flags.aligned


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header cannot have 0 bytes, the file has 0"),
        (b"PK\3\4 a zip file, by no means this", "its header cannot have"),
        (content_of({"a": entry()}, bytes(8))[:30], "its header cannot have"),
        ((2**63).to_bytes(8, "little") + b"{}", "its header cannot have"),
        (content_of(b"[]"), "its header is not JSON"),
        (content_of(b"{]"), "no safetensors file, or a damaged one"),
        (content_of(b'{"\xff": 1}'), "utf-8"),
        (content_of(b'{"a":' * 100_000), "recursion"),
        (content_of(b'{"a": 1' + b"0" * 5000 + b"}"), "no safetensors file, or a damaged one"),
        (content_of(b'{"a": 1, "a": 2}'), "its header has a name twice"),
        (content_of({"a": 3}), "array 'a' lacks dtype"),
        (content_of({"a": {"dtype": "F32", "shape": []}}), "array 'a' lacks dtype"),
        (content_of({"__metadata__": [1]}), "must be texts by name"),
        (content_of({"__metadata__": {"a": 1}}), "must be texts by name"),
        (content_of({"a": entry("F8_E4M3", [8])}, bytes(8)), "has the type 'F8_E4M3', which is not read here"),
        (content_of({"a": entry(["F32"])}, bytes(8)), "which is not read here"),
        (content_of({"a": entry(shape=[-2], offsets=[0, 8])}, bytes(8)), "not lists of counts"),
        (content_of({"a": entry(shape=[2.0])}, bytes(8)), "not lists of counts"),
        (content_of({"a": entry(shape=[True, 2])}, bytes(8)), "not lists of counts"),
        (content_of({"a": entry(offsets=[-8, 0])}, bytes(8)), "not lists of counts"),
        (content_of({"a": entry(offsets=[8, 0])}, bytes(8)), "8 bytes by its shape, which do not fit"),
        (content_of({"a": entry(offsets=[0, 4])}, bytes(8)), "8 bytes by its shape, which do not fit"),
        (content_of({"a": entry(offsets=[0, 4, 8])}, bytes(8)), "which do not fit its data_offsets"),
        (content_of({"a": entry(shape=[2**40, 2**40])}, bytes(8)), "which do not fit its data_offsets"),
        (content_of({"a": entry("U8", [0] * 99, [0, 0])}), "no safetensors file, or a damaged one"),
        (content_of({"a": entry(), "b": entry()}, bytes(8)), "array 'b' starts at byte 0, but the one before it ends"),
        (content_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "array 'b' starts at byte 4"),
        (content_of({"a": entry(offsets=[4, 12])}, bytes(12)), "array 'a' starts at byte 4"),
        (content_of({"a": entry()}, bytes(7)), "its arrays have 8 bytes, but 7 follow the header"),
        (content_of({"a": entry()}, bytes(9)), "its arrays have 8 bytes, but 9 follow the header"),
        (content_of({}, b"x"), "its arrays have 0 bytes, but 1 follow the header"),
        (content_of({"\x1b[2J": 3}), r"array '\\x1b\[2J' lacks"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(content, message, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        map_safetensors(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="none cannot be read: No such file"):
        map_safetensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot be read: a folder or a device"):
        map_safetensors(tmp_path)
    with pytest.raises(CheckpointError, match="/dev/zero cannot be read: a folder or a device"):
        map_safetensors(Path("/dev/zero"))


def test_no_memory_is_taken_because_a_header_claims_a_size(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content_of({"a": entry("U8", [2**28], [0, 2**28])}))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="bytes, but 0 follow the header"):
            map_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_COUNTS = st.lists(st.integers(-2, 9) | st.integers(-(2**65), 2**65), max_size=3)
_ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F32", "BF16", "I64"]) | _JSON, "shape": _COUNTS | _JSON},
    optional={"data_offsets": _COUNTS | _JSON},
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), _ENTRIES | _JSON), st.binary(max_size=30))
def test_any_header_is_read_or_refused(tmp_path, header, data):
    (tmp_path / "x").write_bytes(content_of(header, data))
    try:
        arrays, _ = map_safetensors(tmp_path / "x")
    except CheckpointError:
        return
    assert sum(array.size and array.nbytes for array in arrays.values()) <= 2 * len(data)  # bfloat16 doubles


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "x"
    arrays = {"a": np.arange(5), "b": np.ones((2, 3), np.float32), "c": np.zeros(3, np.uint8)}
    write_safetensors(path, arrays, {"d": "e"})
    return path.read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path, good, data):
    path, content = tmp_path / "x", bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        arrays, metadata = map_safetensors(path)
    except CheckpointError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(content)
    assert all(isinstance(one, str) for one in metadata.values())
