"""Whatever the readers are fed, they read it or refuse it in a sentence; and what was written comes back.

The short form of scripts/fuzz.py, whose targets and watch these tests use: examples made by hypothesis, the same in
every run.
"""

import gzip
import json
import math
import os
import pickle
import random
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from launch import run

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.data.readers.idx import read_idx
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.files.archive import open_npz, read_npy, write_npz
from parallelcnn.training.checkpoint import load_checkpoint, save_checkpoint
from parallelcnn.training.evaluation import Evaluation

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from fuzzing.archives import Member, archive_of, members_of, npy, npy_of
from fuzzing.checkpoints import sealed
from fuzzing.idx import examine_idx, idx
from fuzzing.system import examine_system
from fuzzing.targets import TARGETS
from fuzzing.watch import MEBIBYTE, Violation, examine

SCRIPTS = Path(sys.path.pop(0))

# The examples are the same in every run, and none is kept; what else hypothesis keeps lies where pytest's things do.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parent.parent / ".pytest_cache" / "hypothesis")
)
few = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
many = settings(few, max_examples=150)

SEEDS = {name: target.seeds() for name, target in TARGETS.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for all examples of all tests."""
    return tmp_path_factory.mktemp("fuzzing")


def blindly(rng):
    """What changes some bytes."""

    def mutate(content):
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            start = rng.randrange(len(changed) + 1)
            changed[start : start + rng.choice([0, 1, 1, 8])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
        return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.1 else changed)

    return mutate


# What is broken


@pytest.mark.parametrize("name", TARGETS)
@many
@given(data=st.data(), number=st.integers(0, 2**32), times=st.integers(1, 3))
def test_no_broken_input_does_more_than_be_refused(name, place, data, number, times):
    content, rng = data.draw(st.sampled_from(SEEDS[name])), random.Random(number)
    for _ in range(times):
        content = TARGETS[name].mutate(content, rng, blindly(rng))
    TARGETS[name].examine(content, place)


@pytest.mark.parametrize("name", TARGETS)
@few
@given(content=st.binary(max_size=200))
def test_no_heap_of_bytes_does_more_than_be_refused(name, place, content):
    TARGETS[name].examine(content, place)


@pytest.mark.parametrize("name", TARGETS)
def test_no_valid_input_is_refused(name, place):
    for content in SEEDS[name]:
        assert TARGETS[name].examine(content, place) is None


@st.composite
def _idx_files(draw):
    """(content, whether it is one) with at most one thing wrong, or with anything."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    values, kind, packed = bytes(math.prod(shape)), 8, draw(st.booleans())
    wrong = draw(st.sampled_from(["nothing", "length", "shape", "kind", "end", "zeros behind", "more behind"]))
    if wrong == "length":
        values = values[1:] if draw(st.booleans()) else values + bytes(draw(st.sampled_from([1, 99, 40_000])))
    elif wrong == "shape":
        shape = tuple(draw(st.lists(st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)), max_size=6)))
    elif wrong == "kind":
        kind = draw(st.integers(0, 255))
    content = idx(shape, values, kind)
    content = gzip.compress(content) if packed else content
    if wrong == "end":
        content = content[: -draw(st.integers(1, len(content)))]
    content += {"zeros behind": bytes(9), "more behind": b"more"}.get(wrong, b"")
    true = kind == 8 and 1 <= len(shape) <= 4 and 0 not in shape and math.prod(shape) == len(values)
    # Zeros behind a gzip file mean nothing.
    return content, true and wrong not in ("end", "more behind") and (packed or wrong != "zeros behind")


@many
@given(file=_idx_files())
def test_an_idx_file_is_read_only_if_its_header_is_true_and_all_of_it_is_there(place, file):
    content, valid = file
    assert (examine_idx(content, place) is None) == valid


_claims = st.sampled_from(["()", "(9,)", "(1, 9)", "(999999999,)", "(999999999, 999999999)", "(-9,)", "(0,)", "(9", ""])


@many
@given(
    name=st.sampled_from(["model", "checkpoint"]),
    member=st.integers(0, 20),
    descr=st.sampled_from(["'<f4'", "'<f8'", "'|O'", "'<U9'", "'<f4,<f4'", "[('a', 'O')]", "('<f4', (999999999,))"]),
    shape=_claims,
    numbers=st.binary(max_size=72),
    method=st.sampled_from([0, 8, 12, 14]),
)
def test_no_header_in_an_archive_is_believed(place, name, member, descr, shape, numbers, method):
    members = members_of(SEEDS[name][1])
    i = member % len(members)
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    members[i] = members[i]._replace(content=npy(header, numbers), method=method)
    TARGETS[name].examine(sealed(archive_of(members)), place)


@pytest.mark.parametrize("name", ["model", "checkpoint"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_size_the_directory_plays_down_is_not_unpacked(name, method, place):
    first, *others = members_of(SEEDS[name][1])
    bomb = first._replace(content=first.content[:80] + bytes(2**25), method=method)
    size = (2**25 + 80).to_bytes(4, "little")
    content = archive_of([bomb, *others]).replace(size, len(first.content).to_bytes(4, "little"))
    assert isinstance(TARGETS[name].examine(content, place), InputError)


@few
@given(
    name=st.sampled_from(["model", "checkpoint"]),
    where=st.floats(0, 1, exclude_max=True),
    letter=st.one_of(st.integers(0, 2**32 - 1), st.integers(0xD7FF, 0xE000), st.integers(0x10FFFF, 0x110001)),
)
def test_no_letter_of_a_description_is_believed(name, place, where, letter):
    members = members_of(SEEDS[name][1])
    i = next(i for i, member in enumerate(members) if member.name == "description.npy")
    content = members[i].content
    start = content.index(b"{", content.index(b"\n"))
    start += 4 * int(where * ((len(content) - start) // 4))
    members[i] = members[i]._replace(content=content[:start] + letter.to_bytes(4, "little") + content[start + 4 :])
    TARGETS[name].examine(archive_of(members), place)


@few
@given(units=st.sampled_from([2, 3, 10**4, 10**5, 3 * 10**5, 10**6, 2**31 - 1]), inputs=st.sampled_from([1, 3, 2**40]))
def test_no_size_of_a_network_is_believed(place, units, inputs):
    layers = [{"layer": "Dense", "arguments": {"units": units}, "written": f"Dense({units})"}]
    claim = {"format": "parallelcnn model", "version": 1, "input_shape": [inputs], "dtype": "float32", "layers": layers}
    # Bytes that do not compress make room for claims.
    members = [Member("more", random.Random(0).randbytes(40_000)), *members_of(SEEDS["model"][0])[:-1]]
    refused = TARGETS["model"].examine(
        archive_of([*members, Member("description.npy", npy_of(json.dumps(claim)))]), place
    )
    assert (refused is None) == ((units, inputs) == (2, 3))


@few
@given(
    name=st.sampled_from(["model", "checkpoint"]),
    member=st.integers(0, 20),
    where=st.floats(0, 1, exclude_max=True),
    number=st.sampled_from([np.float32(np.nan), np.float32(-np.inf), np.float64(np.nan), np.float64(np.inf)]),
)
def test_no_number_is_believed(name, place, member, where, number):
    members = members_of(SEEDS[name][1])
    i = member % len(members)
    content = members[i].content
    start = content.index(b"\n") + 1
    start += number.nbytes * int(where * ((len(content) - start) // number.nbytes))
    changed = content[:start] + number.tobytes() + content[start + number.nbytes :]
    members[i] = members[i]._replace(content=changed)
    TARGETS[name].examine(sealed(archive_of(members)), place)


_odd_numbers = st.sampled_from(
    [None, True, 0, -1, -500, 9, 0.5, "9", float("nan"), float("inf"), 10**4000, [], {"a": 1}]
)
_odd_arrays = st.sampled_from(
    ["drop", "nan", "inf", "negative", "scalar", "flat", "square", "empty", "integers", "text"]
)


@many
@given(
    entries=st.dictionaries(
        st.sampled_from(["samples_seen", "train_seconds", "lost_ranks", "facts", "arrays"]), _odd_numbers, max_size=2
    ),
    arrays=st.dictionaries(
        st.sampled_from(["losses", "evaluations", "state.params", "state.velocity"]), _odd_arrays, max_size=1
    ),
)
def test_no_seal_of_a_checkpoint_is_believed(place, entries, arrays):
    (place / "sealed.npz").write_bytes(SEEDS["checkpoint"][1])
    with np.load(place / "sealed.npz", allow_pickle=False) as content:
        held = {name: content[name] for name in content.files}
    description = json.loads(str(held.pop("description")))
    for name, kind in arrays.items():
        array = held.pop(name)
        broken = {
            "nan": array * np.nan,
            "inf": array + array.dtype.type(np.inf),
            "negative": -1 - abs(array),
            "scalar": array.reshape(-1)[0],
            "flat": array.reshape(-1)[:3],
            "square": np.ones((2, 2), array.dtype),
            "empty": array[:0],
            "integers": np.ones(array.shape, np.int64),
            "text": np.array("text"),
        }
        held |= {name: broken[kind]} if kind != "drop" else {}
    described = npy_of(json.dumps({**description, "arrays": list(held), **entries}))
    write_npz(place / "sealed.npz", held)
    members = [*members_of((place / "sealed.npz").read_bytes()), Member("description.npy", described)]
    TARGETS["checkpoint"].examine(sealed(archive_of(members)), place)


_good_numbers = st.sampled_from(["100000", "300000", "0", "-1", "max"])
_numbers = st.one_of(_good_numbers, st.sampled_from(["", "x", "9" * 5000, "\u0663", "\u00b2", "\udcff", "1.5"]))
_lines = st.sampled_from(["0::/", "0::/a/b", "4:cpu,cpuacct:/", "3:cpu:/../..", "", "0", "0:", "::", ":cpu:\udcff"])
_quotas = st.one_of(st.tuples(_good_numbers, _good_numbers), st.lists(_numbers, max_size=3)).map(" ".join)


@many
@given(
    lines=st.lists(_lines, min_size=1, max_size=3),
    files=st.fixed_dictionaries({"cpu.max": _quotas, "cpu.cfs_quota_us": _numbers, "cpu.cfs_period_us": _numbers}),
    environment=st.dictionaries(
        st.sampled_from(["SLURM_CPUS_ON_NODE", "SLURM_NTASKS", "SLURM_PROCID", "PMI_SIZE", "PMI_RANK"]),
        _numbers,
        max_size=3,
    ),
)
def test_no_number_of_the_system_or_of_a_launcher_is_believed(place, lines, files, environment):
    examine_system({"cgroup": "\n".join(lines), **files}, environment, place)


def test_a_pickle_is_not_loaded(place, monkeypatch):
    class Run:
        def __reduce__(self):
            return os.mkdir, (str(place / "ran"),)

    for name in ("model", "checkpoint"):
        for i, member in enumerate(members_of(SEEDS[name][1])):
            content = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Run()]))
            members = [*members_of(SEEDS[name][1])[:i], member._replace(content=content)]
            members += members_of(SEEDS[name][1])[i + 1 :]
            assert isinstance(TARGETS[name].examine(archive_of(members), place), InputError)
    assert not (place / "ran").exists()


# What was written


@few
@given(values=npst.arrays(np.uint8, npst.array_shapes(max_dims=4, max_side=6)), packed=st.booleans())
def test_every_idx_file_comes_back(place, values, packed):
    content = idx(values.shape, values.tobytes())
    (place / "values").write_bytes(gzip.compress(content) if packed else content)
    read = read_idx(place / "values")
    assert read.shape == values.shape
    assert (read == values).all()


_dtypes = st.sampled_from(["<f4", "<f8", ">f4", "<i8", "|u1", "|b1", "<U5"])


@few
@given(
    arrays=st.dictionaries(
        st.sampled_from(["a", "0.weight", "state.x"]),
        _dtypes.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=5))),
    ),
    transposed=st.booleans(),
)
def test_every_archive_of_arrays_comes_back(place, arrays, transposed):
    arrays = {name: array.T if transposed else array for name, array in arrays.items()}
    write_npz(place / "arrays.npz", arrays)
    with open_npz(place / "arrays.npz", "archive") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.npy" for name in arrays)
        for name, array in arrays.items():
            read = read_npy(archive, name, 10**5)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(read, array)


_few_or_two = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))
_activations = st.sampled_from(sorted(ACTIVATIONS))
_image_layers = st.one_of(
    st.builds(
        pc.Conv2D,
        st.integers(1, 4),
        _few_or_two,
        stride=_few_or_two,
        padding=st.one_of(st.sampled_from(["valid", "same"]), st.integers(0, 2), st.tuples(*2 * [st.integers(0, 2)])),
        activation=_activations,
        bias=st.booleans(),
    ),
    st.builds(pc.MaxPool2D, _few_or_two, stride=st.one_of(st.none(), _few_or_two), activation=_activations),
    st.builds(pc.Activation, _activations),
)
_dense_layers = st.builds(pc.Dense, st.integers(1, 9), activation=_activations, bias=st.booleans())
_networks = st.builds(
    lambda images, dense, shape, seed, dtype: ((*images, pc.Flatten(), *dense), shape, seed, dtype),
    st.lists(_image_layers, max_size=3),
    st.lists(_dense_layers, max_size=2),
    st.tuples(*3 * [st.integers(1, 9)]),
    st.integers(0, 2**64),
    st.sampled_from([np.float32, np.float64]),
)


@few
@given(arguments=_networks)
def test_every_network_comes_back(place, arguments):
    try:
        network = pc.NetworkHandler(*arguments)
    except ShapeError:
        assume(False)
    pc.save_model(place / "network.npz", network)
    again = pc.load_model(place / "network.npz")
    assert again.layers == network.layers
    assert (again.input_shape, again.dtype) == (network.input_shape, network.dtype)
    assert again.parameters_sha256() == network.parameters_sha256()


_finite = st.floats(allow_nan=False, allow_infinity=False)
_counts = st.integers(0, 2**40)
_results = st.builds(Evaluation, _finite, st.one_of(st.none(), st.floats(0, 1)), _counts)


@few
@given(
    facts=st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=9)), max_size=4),
    vectors=npst.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(1, 3), st.integers(0, 9)),
        elements=st.floats(-10, 10, width=32),
    ),
    losses=st.lists(_finite, max_size=5),
    evaluations=st.lists(st.tuples(_counts, _counts, _results), max_size=3),
    counts=st.tuples(_counts, st.floats(0, 1e9), _counts),
)
def test_every_checkpoint_comes_back(place, facts, vectors, losses, evaluations, counts):
    samples_seen, seconds, lost_ranks = counts
    state = dict(zip(("params", "velocity", "other"), vectors, strict=False))
    history = pc.History(losses, evaluations, samples_seen, seconds, lost_ranks=lost_ranks)
    save_checkpoint(place / "step-1.npz", pc.Checkpoint(facts, state, history))
    again = load_checkpoint(place / "step-1.npz")
    assert again.facts == facts
    assert again.history == history
    assert list(again.state) == list(state)
    for name, vector in state.items():
        assert again.state[name].dtype == vector.dtype
        np.testing.assert_array_equal(again.state[name], vector)


# Who watches the watch


def _write(place):
    (place / "written").write_bytes(b"")


def _warn(place):
    warnings.warn("of a library", DeprecationWarning, stacklevel=1)


def _take_long(place):
    sum(range(1_000_000))


def _refuse(message):
    raise InputError(message)


@pytest.mark.parametrize(
    ("what", "noticed"),
    [
        (_write, "open"),
        (lambda place: (place / "made").mkdir(exist_ok=True), "os.mkdir"),
        (lambda place: os.rename(place / "none", place / "other"), "FileNotFoundError"),
        (lambda place: pickle.loads(pickle.dumps(Violation)), "pickle.find_class"),
        (lambda place: eval("1"), "compile"),
        (lambda place: __import__("this_module_is_nowhere"), "ModuleNotFoundError"),
        (lambda place: np.ones(2**18), "allocated 2.0 MiB where 1.0 should do"),
        (_take_long, "it took"),
        (_warn, "DeprecationWarning"),
        (lambda place: {}["key"], "KeyError"),
        (lambda place: _refuse("two\nlines"), "no letter"),
        (lambda place: _refuse("long " * 999), "4,995 letters"),
    ],
)
def test_the_watch_notices(what, noticed, place):
    with pytest.raises(Violation, match=noticed):
        examine(lambda: what(place), MEBIBYTE, most_seconds=0.1)
    assert not tracemalloc.is_tracing()


def test_the_watch_lets_readers_read_and_refuse(place):
    (place / "read").write_bytes(b"content")
    assert examine((place / "read").read_bytes, MEBIBYTE) is None
    assert str(examine(lambda: _refuse("no file"), MEBIBYTE)) == "no file"


def test_the_script_fuzzes_and_writes_its_page(tmp_path):
    pytest.importorskip("atheris")
    arguments = [
        "--target",
        "idx",
        "--seconds",
        "1",
        "--findings",
        tmp_path / "findings",
        "--page",
        tmp_path / "page.md",
    ]
    ran = run([sys.executable, str(SCRIPTS / "fuzz.py"), *map(str, arguments)], 60)
    assert ran.code == 0, ran.err + ran.out
    (row,) = (line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| IDX"))
    executions, *_, findings = (int(cell.replace(",", "")) for cell in row.strip("| ").split("|")[1:])
    assert executions > 10
    assert findings == 0
    assert list((tmp_path / "findings").iterdir()) == []


def test_a_finding_is_kept_and_can_be_fed_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from fuzz import keep

    known = set()
    for content in (b"one", b"two"):
        keep(tmp_path / "idx", content, Violation("it took 2.5 s, more than 2"), known)
    keep(tmp_path / "idx", b"three", Violation("KeyError (idx.py, line 9): 'key'"), known)
    kept = sorted(path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".txt")
    assert kept == [b"one", b"three"]
    again = run(
        [sys.executable, str(SCRIPTS / "fuzz.py"), "--target", "idx", "--again", str(next(tmp_path.iterdir()))], 60
    )
    assert again.code == 0, again.err
    assert "refused: " in again.out
