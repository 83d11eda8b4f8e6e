"""CIFAR-10 and CIFAR-100: the binary version, and the Python version, whose pickles are read and not executed."""

import os
import pickle
import pickletools
import shutil

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.data.formats import load_path
from parallelcnn.data.readers.pickles import read_dictionary
from parallelcnn.errors import DataError

RNG = np.random.default_rng(0)
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE = tuple(f"fine {number}" for number in range(100))
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
PER_FILE = 4
IMAGES = RNG.integers(0, 256, (6 * PER_FILE, 3, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 6 * PER_FILE)
FINE_LABELS = RNG.integers(0, 100, 6 * PER_FILE)
TRAIN, TEST = slice(0, 5 * PER_FILE), slice(5 * PER_FILE, None)


def records(images, *labels):
    columns = [np.asarray(one, np.uint8)[:, None] for one in labels]
    return np.concatenate([*columns, images.reshape(len(images), -1)], axis=1).tobytes()


def write_binary(folder):
    folder.mkdir(parents=True)
    for number, name in enumerate([*BATCHES, "test_batch"]):
        some = slice(number * PER_FILE, (number + 1) * PER_FILE)
        (folder / f"{name}.bin").write_bytes(records(IMAGES[some], LABELS[some]))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def write_binary_100(folder):
    folder.mkdir(parents=True)
    for name, some in (("train", TRAIN), ("test", TEST)):
        (folder / f"{name}.bin").write_bytes(records(IMAGES[some], FINE_LABELS[some] // 5, FINE_LABELS[some]))
    (folder / "fine_label_names.txt").write_text("\n".join(FINE))
    (folder / "coarse_label_names.txt").write_text("\n".join(FINE[:20]))
    return folder


def as_of_python_2(values):
    """A pickle as Python 2 and numpy 1 wrote it, with byte strings, protocol 2."""

    def text(one):
        return b"U" + bytes([len(one)]) + one if len(one) < 256 else b"T" + len(one).to_bytes(4, "little") + one

    def value(one):
        if isinstance(one, np.ndarray):
            shape = b"".join(b"J" + length.to_bytes(4, "little") for length in one.shape)
            kind = (
                b"cnumpy\ndtype\n"
                + text(one.dtype.str[1:].encode())
                + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            )
            kind += b"J\xff\xff\xff\xffK\x00tb"
            start = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x08"
            return start + b"(K\x01(" + shape + b"t" + kind + b"\x89" + text(one.tobytes()) + b"tb"
        if isinstance(one, list):
            return b"]q\x01(" + b"".join(map(value, one)) + b"e"
        if isinstance(one, int):
            return b"J" + one.to_bytes(4, "little")
        return text(one.encode())

    content = b"\x80\x02}q\x00(" + b"".join(text(key.encode()) + value(one) for key, one in values.items()) + b"u."
    assert pickle.loads(content, encoding="latin1").keys() == values.keys()
    return content


def by_python_3(protocol):
    return lambda values: pickle.dumps(values, protocol)


DUMPS = [as_of_python_2, *map(by_python_3, range(6))]


def write_python(folder, dumps=as_of_python_2):
    folder.mkdir(parents=True)
    for number, name in enumerate([*BATCHES, "test_batch"]):
        some = slice(number * PER_FILE, (number + 1) * PER_FILE)
        batch = {
            "batch_label": f"training batch {number} of 5",
            "labels": LABELS[some].tolist(),
            "data": IMAGES[some].reshape(PER_FILE, 3072),
            "filenames": ["leptodactylus_pentadactylus_s_000004.png"] * PER_FILE,
        }
        (folder / name).write_bytes(dumps(batch))
    meta = {"num_cases_per_batch": 10000, "label_names": list(NAMES), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dumps(meta))
    return folder


def write_python_100(folder, dumps=as_of_python_2):
    folder.mkdir(parents=True)
    for name, some in (("train", TRAIN), ("test", TEST)):
        labels = FINE_LABELS[some]
        batch = {
            "filenames": ["bos_taurus_s_000507.png"] * len(labels),
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": IMAGES[some].reshape(len(labels), 3072),
        }
        (folder / name).write_bytes(dumps(batch))
    (folder / "meta").write_bytes(dumps({"fine_label_names": list(FINE), "coarse_label_names": list(FINE[:20])}))
    return folder


def refusal(path):
    """The one sentence that the data at a path are refused with."""
    with pytest.raises(DataError) as caught:
        load_path(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def check(sets, labels, names):
    np.testing.assert_array_equal(sets.train.images, IMAGES[TRAIN])
    np.testing.assert_array_equal(sets.test.images, IMAGES[TEST])
    np.testing.assert_array_equal(sets.train.labels, labels[TRAIN])
    np.testing.assert_array_equal(sets.test.labels, labels[TEST])
    assert sets.train.class_names == sets.test.class_names == names
    assert sets.train.classes == (10 if labels is LABELS else 100)


def test_the_binary_version_of_cifar_10_is_read(tmp_path):
    sets = load_path(write_binary(tmp_path / "cifar-10-batches-bin"))
    check(sets, LABELS, NAMES)
    assert sets.found == "CIFAR-10, binary version: 20 training and 4 test images, 3 x 32 x 32, 10 classes"


def test_the_binary_version_of_cifar_100_is_read_with_its_fine_labels(tmp_path):
    sets = load_path(write_binary_100(tmp_path / "data"))
    check(sets, FINE_LABELS, FINE)
    assert sets.found.startswith("CIFAR-100, binary version: 20 training")


@pytest.mark.parametrize("dumps", DUMPS, ids=["python 2", *map(str, range(6))])
def test_the_python_version_is_read_in_every_protocol(tmp_path, dumps):
    sets = load_path(write_python(tmp_path / "10", dumps))
    check(sets, LABELS, NAMES)
    assert sets.found.startswith("CIFAR-10, Python version: 20 training and 4 test images")
    check(load_path(write_python_100(tmp_path / "100", dumps)), FINE_LABELS, FINE)


def test_labels_may_be_an_array_or_numbers_of_numpy(tmp_path):
    for labels in (lambda some: np.array(some, ">i2"), lambda some: list(map(np.int64, some))):
        folder = write_python(tmp_path / "data", lambda batch: pickle.dumps(batch))
        for name in [*BATCHES, "test_batch"]:
            batch = pickle.loads((folder / name).read_bytes())
            (folder / name).write_bytes(pickle.dumps(batch | {"labels": labels(batch["labels"])}))
        check(load_path(folder), LABELS, NAMES)
        shutil.rmtree(folder)


def test_the_folder_above_the_unpacked_one_is_enough(tmp_path):
    write_python(tmp_path / "cifar-10-batches-py")
    check(load_path(tmp_path), LABELS, NAMES)
    write_binary_100(tmp_path / "cifar-100-binary")
    message = refusal(tmp_path)
    assert "holds CIFAR-10 and CIFAR-100: name the folder of one of them, of " in message
    assert str(tmp_path / "cifar-100-binary") in message


def test_without_the_file_of_names_the_classes_have_none(tmp_path):
    for folder, meta in (
        (write_binary(tmp_path / "b"), "batches.meta.txt"),
        (write_python(tmp_path / "p"), "batches.meta"),
    ):
        (folder / meta).unlink()
        check(load_path(folder), LABELS, None)


def test_load_data_reads_it(tmp_path):
    train_set, test_set = pc.load_data(write_binary(tmp_path / "data"))
    assert (len(train_set), len(test_set)) == (20, 4)


def test_an_archive_is_to_be_unpacked(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"")
    assert refusal(path) == f"{path}: is an archive: unpack it (tar -xf cifar-10-binary.tar.gz), and name the folder"


def test_missing_files_are_named(tmp_path):
    folder = write_binary(tmp_path / "data")
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    os.mkfifo(folder / "test_batch.bin")
    assert refusal(folder) == f"{folder}: misses data_batch_2.bin, test_batch.bin of CIFAR-10"


@pytest.mark.parametrize("content", [b"", records(IMAGES[:2], LABELS[:2])[:-1], b"x" * 3074])
def test_a_binary_file_of_another_size_is_refused(tmp_path, content):
    folder = write_binary(tmp_path / "data")
    (folder / "data_batch_3.bin").write_bytes(content)
    assert (
        f"data_batch_3.bin: must hold records of 1 + 3072 bytes as CIFAR-10 has them, got {len(content):,}"
        in refusal(folder)
    )


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    folder = write_binary(tmp_path / "binary")
    (folder / "data_batch_1.bin").write_bytes(records(IMAGES[:4], [0, 1, 10, 2]))
    assert refusal(folder) == f"{folder / 'data_batch_1.bin'}: labels must lie in [0, 10), got 10 at sample 2"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (b"cat\ndog\n", "the names of the classes must be 10 different names, got ['cat', 'dog']"),
        (b"\xff\xfe", "must be text, one name of a class in each line"),
        (b"", "the names of the classes must be 10 different names, got []"),
    ],
)
def test_names_that_are_no_names_of_the_classes_are_refused(tmp_path, names, message):
    folder = write_binary(tmp_path / "data")
    (folder / "batches.meta.txt").write_bytes(names)
    assert f"batches.meta.txt: {message}" in refusal(folder)


PIXELS = IMAGES[:4].reshape(4, 3072)
BAD_BATCHES = {
    "no dictionary": ([PIXELS], "it must hold a dictionary, not a list"),
    "no data": ({"labels": [0] * 4}, "'data' must be an array of uint8, shape (N, 3072), as CIFAR-10 has it"),
    "floats": ({"data": PIXELS / 255, "labels": [0] * 4}, "'data' must be an array of uint8"),
    "another shape": ({"data": PIXELS[:, 1:], "labels": [0] * 4}, "'data' must be an array of uint8"),
    "a list": ({"data": PIXELS.tolist(), "labels": [0] * 4}, "'data' must be an array of uint8"),
    "no labels": ({"data": PIXELS}, "'labels' must be a list of 4 integers in [0, 10)"),
    "too few labels": ({"data": PIXELS, "labels": [0] * 3}, "'labels' must be a list of 4 integers"),
    "another label": ({"data": PIXELS, "labels": [0, 1, 2, 10]}, "'labels' must be a list of 4 integers"),
    "names as labels": ({"data": PIXELS, "labels": list("abcd")}, "'labels' must be a list of 4 integers"),
    "objects": ({"data": np.array([None]), "labels": [0]}, "arrays must hold numbers or strings, not 'O8'"),
    "columns": ({"data": np.zeros(4, "f4,f4"), "labels": [0] * 4}, "arrays must hold numbers or strings, not 'V8'"),
    "a set": ({"data": PIXELS, "labels": {1, 2}}, "it names __builtin__.set, which is none of numbers, text, lists"),
    "a date": ({"data": np.datetime64("2020-01-01"), "labels": [0] * 4}, "not 'M8'"),
}


@pytest.mark.parametrize(("batch", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_pickle_of_something_else_is_refused(tmp_path, batch, message):
    folder = write_python(tmp_path / "data")
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    assert f"data_batch_1: {'' if message.startswith(chr(39)) else 'is no file of CIFAR'}" in refusal(folder)
    assert message in refusal(folder)


class Run:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def malicious(place):
    """Pickles that make a folder when they are loaded, by name."""
    run = Run(os.mkdir, str(place))
    as_text = f"cos\nmkdir\n(S'{place}'\ntR.".encode()
    builds = f"(cos\nmkdir\nS'{place}'\no.".encode()
    instance = f"(S'{place}'\nios\nmkdir\n.".encode()
    return {
        "a call": pickle.dumps({"data": run, "labels": [0]}),
        "a call in protocol 0": as_text,
        "an object": builds,
        "an instance": instance,
        "by exec": pickle.dumps({"data": Run(exec, f"import os; os.mkdir({str(place)!r})")}),
        "by getattr": b"c__builtin__\ngetattr\n(cos\npath\nS'x'\ntR.",
        "a key": b"}" + as_text[:-1] + b"K\x01s.",
        "as the type of an array": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nmkdir\n(I0\ntS'b'\ntR.",
        "as the state of an array": (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(dS'array'\n"
            + as_text[:-1]
            + b"sb."
        ),
        "a function with a state": b"cos\nmkdir\n}b.",
        "a persistent object": b"Pos.mkdir\n.",
        "an extension": b"\x82\x01.",
        "a new object": b"\x80\x02cos\nmkdir\n(S'x'\nt\x81.",
    }


@pytest.mark.parametrize("kind", sorted(malicious("x")))
def test_a_malicious_pickle_executes_nothing(tmp_path, kind):
    ran = tmp_path / "ran"
    folder = write_python(tmp_path / "data")
    content = malicious(ran)[kind]
    (folder / "data_batch_1").write_bytes(content)
    assert "data_batch_1: is no file of CIFAR's Python version: " in refusal(folder)
    assert not ran.exists()


def test_the_malicious_pickles_of_these_tests_would_run(tmp_path):
    for kind in ("a call", "a call in protocol 0", "an object", "an instance", "by exec"):
        pickle.loads(malicious(tmp_path / kind)[kind])
        assert (tmp_path / kind).exists()


def test_every_operation_of_pickles_is_known_or_refused():
    """No operation that Python has, or will have, raises anything but a ValueError."""
    for operation in pickletools.opcodes:
        if operation.name != "STOP":
            for before in (b"", b"(", b"K\x01", b"]", b"}", b"(K\x01K\x02K\x03", b"cos\nmkdir\n(t", b"cos\nmkdir\n}"):
                with pytest.raises(ValueError):  # noqa: PT011
                    read_dictionary(before + operation.code.encode("latin-1") + b"\x00" * 20 + b"0\n0\n.")


@pytest.mark.parametrize(
    "array", [PIXELS, np.asfortranarray(PIXELS), PIXELS.astype(">i4"), np.array(["ab", "c"]), PIXELS[0, 0]]
)
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_as_pickle_writes_them(array, protocol):
    values = {"array": array, b"bytes": b"\xff", "nested": [(1, 2.5, None, True), {"a": []}], "text": "\u00e4"}
    again = read_dictionary(pickle.dumps(values, protocol))
    np.testing.assert_array_equal(again["array"], array)
    assert getattr(again["array"], "dtype", None) == (None if array.ndim == 0 else array.dtype)
    assert again["bytes"] == b"\xff"
    assert again["nested"] == values["nested"]
    assert again["text"] == "\u00e4"


def test_a_size_in_a_pickle_is_not_believed():
    huge = (2**40).to_bytes(8, "little")
    for content in (
        b"\x8e" + huge + b"x.",  # bytes of that length
        b"\x96" + huge + b"x.",
        b"r\xff\xff\xff\xff.",  # the place of a remembered value
        b"}r\xff\xff\xff\x7f.",
        as_of_python_2({"data": PIXELS})[:-2].replace(b"J\x00\x0c\x00\x00", b"J\x00\x0c\x00\x7f") + b"u.",
    ):
        if content.startswith(b"}"):
            assert read_dictionary(content) == {}
        else:
            with pytest.raises(ValueError, match=r"^(?!.*MemoryError)"):
                read_dictionary(content)


def test_a_file_larger_than_memory_is_refused(tmp_path, monkeypatch):
    folder = write_python(tmp_path / "data")
    monkeypatch.setattr("parallelcnn.data.readers.cifar.memory_limit", lambda: (1000, "ulimit -v"))
    assert "data_batch_1: does not fit into memory" in refusal(folder)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder = write_binary(tmp_path / "data")

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    # The real thing cannot be had as root.
    monkeypatch.setattr("parallelcnn.data.readers.cifar.open", refuse, raising=False)
    assert refusal(folder).endswith("data_batch_1.bin: cannot be read: Permission denied")
