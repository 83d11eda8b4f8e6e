"""Whatever the readers are fed, they read it or refuse it in a sentence; and what was written comes back.

Readers of IDX files, model files and checkpoints; test_fuzzing_messages.py has the others. Examples are made by
hypothesis, the same in every run.
"""

import copy
import gzip
import math
import os
import pickle
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import archive_of, described, members_of, npy, sealed
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from watched import MEBIBYTE, Violation, examine, few, many

import parallelcnn as pc
from parallelcnn.activations import ACTIVATIONS
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.training.checkpoint import save_checkpoint

# ---- readers of archives


def _network():
    return pc.NetworkHandler(
        (
            pc.Conv2D(3, 3, activation="relu"),
            pc.MaxPool2D(2),
            pc.Conv2D(2, (1, 2), stride=(1, 2), padding="same", activation="gelu", bias=False),
            pc.Flatten(),
            pc.Activation("swish"),
            pc.Dense(3),
        ),
        (1, 11, 9),
    )


def _checkpoint():
    params = _network().params
    evaluations = [(2, 1, pc.Evaluation(1.5, 0.25, 4)), (3, 2, pc.Evaluation(1.5, None, 4))]
    history = pc.History([2.5, 1.0, 0.5], evaluations, 6, 0.25, lost_ranks=1)
    return pc.Checkpoint({"seed": 0, "layers": "x"}, {"params": params, "velocity": params + 1}, history)


def _written(save, value):
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, "step-000000003.npz"), value)
        return Path(folder, "step-000000003.npz").read_bytes()


ARCHIVES = {"model": _written(pc.save_model, _network()), "checkpoint": _written(save_checkpoint, _checkpoint())}


def examine_archive(kind, content, place):
    """Read a model file or a checkpoint; its InputError, or None if it was taken."""
    path = place / "step-000000003.npz"
    path.write_bytes(content)

    def read():
        if kind == "model":
            finite = np.isfinite(pc.load_model(path).params).all()
        else:
            checkpoint = pc.load_checkpoint(path)
            history = checkpoint.history
            numbers = [history.train_seconds, *history.losses, *(result.loss for _, _, result in history.evaluations)]
            counts = [history.samples_seen, history.lost_ranks]
            finite = all(type(count) is int and count >= 0 for count in counts) and all(map(math.isfinite, numbers))
        if not finite:
            raise Violation("it took over numbers that cannot be")

    held = sum(len(member.content) for member in members_of(content))
    return examine(read, 16 * MEBIBYTE + 10 * max(held, len(content)))


kinds = pytest.mark.parametrize("kind", ARCHIVES)


@kinds
def test_a_valid_archive_is_read(kind, place):
    assert examine_archive(kind, ARCHIVES[kind], place) is None
    packed = [member._replace(method=zipfile.ZIP_DEFLATED) for member in members_of(ARCHIVES[kind])]
    assert examine_archive(kind, archive_of(packed), place) is None


@kinds
@few
@given(data=st.data())
def test_bytes_that_are_changed_or_missing_do_no_more_than_be_refused(kind, place, data):
    content = bytearray(ARCHIVES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.sampled_from([0, 1, 8]))] = data.draw(st.binary(max_size=4))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    examine_archive(kind, bytes(content[:end]), place)


_ODD = [
    None, True, 0, -1, 2**31, 2**64, 10**30, 0.5, math.nan, math.inf, "", "\n", "\x1b[31m", "\ud800", "\u0663", "relu",
    "x" * 5000, "float16", "O", "f4,f4", "Conv2D", "Layer", "__class__", [], {}, [[]], [1, 2], [10**9] * 3, {"a": 1},
]  # fmt: skip


def _places(value):
    """(container, key) of every value inside a value."""
    found = []
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(one, dict | list):
            found += _places(one)
    return found


@kinds
@many
@given(data=st.data())
def test_no_value_in_a_description_is_believed(kind, place, data):
    def change(description):
        for _ in range(data.draw(st.integers(1, 2))):
            container, key = data.draw(st.sampled_from(_places(description)))
            if data.draw(st.booleans()):
                container[key] = copy.deepcopy(data.draw(st.sampled_from(_ODD)))
            elif data.draw(st.booleans()):
                del container[key]
            elif isinstance(container, list):
                container.insert(key, container[key])
            else:
                container[key] = [container[key]]
        return description

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examine_archive(kind, sealed(described(ARCHIVES[kind], change)), place)


_DTYPES = ["'<f4'", "'<f8'", "'>f4'", "'|O'", "'<U9'", "'<f4,<f4'", "[('a', 'O')]", "('<f4', (999999999,))", "5", "()"]
_SHAPES = ["()", "(9,)", "(1, 9)", "(999999999,)", "(999999999, 999999999)", "(-9,)", "(0,)", "(9", "", "('3',)"]


@kinds
@many
@given(
    member=st.integers(0, 20),
    dtype=st.sampled_from(_DTYPES),
    shape=st.sampled_from(_SHAPES),
    numbers=st.binary(max_size=72),
    method=st.sampled_from([0, 8, 12, 14]),
)
def test_no_header_in_an_archive_is_believed(kind, place, member, dtype, shape, numbers, method):
    members = members_of(ARCHIVES[kind])
    i = member % len(members)
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    members[i] = members[i]._replace(content=npy(header, numbers), method=method)
    examine_archive(kind, sealed(archive_of(members)), place)


@kinds
@few
@given(
    member=st.integers(0, 20),
    where=st.floats(0, 1, exclude_max=True),
    number=st.sampled_from([np.float32(np.nan), np.float32(-np.inf), np.float64(np.nan), np.float64(np.inf)]),
)
def test_no_number_is_believed(kind, place, member, where, number):
    members = members_of(ARCHIVES[kind])
    i = member % len(members)
    content = members[i].content
    start = content.index(b"\n") + 1
    start += number.nbytes * int(where * ((len(content) - start) // number.nbytes))
    members[i] = members[i]._replace(content=content[:start] + number.tobytes() + content[start + number.nbytes :])
    examine_archive(kind, sealed(archive_of(members)), place)


@kinds
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_size_the_directory_plays_down_is_not_unpacked(kind, method, place):
    first, *others = members_of(ARCHIVES[kind])
    bomb = first._replace(content=first.content[:80] + bytes(2**25), method=method)
    size = (2**25 + 80).to_bytes(4, "little")
    content = archive_of([bomb, *others]).replace(size, len(first.content).to_bytes(4, "little"))
    path = place / "step-000000003.npz"
    path.write_bytes(content)
    load = pc.load_model if kind == "model" else pc.load_checkpoint
    assert isinstance(examine(lambda: load(path), 20 * MEBIBYTE), InputError)


@kinds
@pytest.mark.parametrize("name", ["../up.npy", "/up", "a\\b", "\n", "0.weight.npy", "x"])
def test_a_member_of_another_name_writes_nothing(kind, name, place):
    members = members_of(ARCHIVES[kind])
    examine_archive(kind, archive_of([*members, members[0]._replace(name=name)]), place)
    assert isinstance(examine_archive(kind, archive_of([members[0]._replace(name=name)]), place), InputError)


@kinds
def test_a_pickle_is_not_loaded(kind, place):
    class Run:
        def __reduce__(self):
            return os.mkdir, (str(place / "ran"),)

    content = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Run()]))
    members = members_of(ARCHIVES[kind])
    for i, member in enumerate(members):
        changed = [*members[:i], member._replace(content=content), *members[i + 1 :]]
        assert isinstance(examine_archive(kind, archive_of(changed), place), InputError)
    assert not (place / "ran").exists()


@few
@given(units=st.sampled_from([2, 3, 10**4, 10**5, 10**6, 2**31 - 1]), inputs=st.sampled_from([1, 3, 2**40]))
def test_no_size_of_a_network_is_believed(place, units, inputs):
    small = _written(pc.save_model, pc.NetworkHandler((pc.Dense(2),), (3,)))

    def change(description):
        layers = [{"layer": "Dense", "arguments": {"units": units}, "written": f"Dense({units})"}]
        return {**description, "input_shape": [inputs], "layers": layers}

    refused = examine_archive("model", sealed(described(small, change)), place)
    assert (refused is None) == ((units, inputs) == (2, 3))


# ---- IDX files


def _idx(shape, values, kind=8):
    """An IDX file, whatever its header says."""
    return bytes([0, 0, kind % 256, len(shape) % 256]) + struct.pack(f">{len(shape)}I", *shape) + values


GOOD = {
    "train-images-idx3-ubyte": _idx((4, 3, 2), bytes(24)),
    "train-labels-idx1-ubyte": _idx((4,), bytes(range(4))),
    "t10k-images-idx3-ubyte": _idx((2, 3, 2), bytes(12)),
    "t10k-labels-idx1-ubyte": _idx((2,), bytes(range(2))),
}


@st.composite
def _idx_files(draw):
    """(content of a file that should hold 4 images of 3 x 2, whether it does) with at most one thing wrong."""
    shape, values, kind, packed = (4, 3, 2), bytes(24), 8, draw(st.booleans())
    wrong = draw(st.sampled_from(["nothing", "length", "shape", "kind", "end", "zeros behind", "more behind"]))
    if wrong == "length":
        values = values[1:] if draw(st.booleans()) else values + bytes(draw(st.sampled_from([1, 99, 40_000])))
    elif wrong == "shape":
        shape = tuple(draw(st.lists(st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)), max_size=6)))
    elif wrong == "kind":
        kind = draw(st.integers(0, 255))
    content = _idx(shape, values, kind)
    content = gzip.compress(content) if packed else content
    if wrong == "end":
        content = content[: -draw(st.integers(1, len(content)))]
    content += {"zeros behind": bytes(9), "more behind": b"more"}.get(wrong, b"")
    true = kind in (8, 9) and len(shape) == 3 and shape[0] == 4 and 0 not in shape and math.prod(shape) == len(values)
    # Zeros behind a gzip file mean nothing. Images of another size than those of the test set are refused, too.
    fits = shape == (4, 3, 2) and wrong not in ("end", "more behind") and (packed or wrong != "zeros behind")
    return content, true and fits


def examine_idx(content, place):
    """The content as one of a folder's four files."""
    for name, good in GOOD.items():
        (place / name).write_bytes(content if name.startswith("train-images") else good)
    return examine(lambda: pc.load_idx_folder(place), 4 * MEBIBYTE + 1032 * len(content))


@many
@given(file=_idx_files())
def test_an_idx_file_is_read_only_if_its_header_is_true_and_all_of_it_is_there(place, file):
    content, valid = file
    assert (examine_idx(content, place) is None) == valid


@few
@given(content=st.binary(max_size=200))
def test_no_heap_of_bytes_is_taken_for_anything(place, content):
    assert isinstance(examine_idx(content, place), InputError)
    for kind in ARCHIVES:
        (place / "step-000000003.npz").write_bytes(content)
        load = pc.load_model if kind == "model" else pc.load_checkpoint
        assert isinstance(examine(lambda: load(place / "step-000000003.npz"), MEBIBYTE), InputError)  # noqa: B023


@few
@given(values=npst.arrays(np.uint8, (5, 4, 3)), packed=st.booleans())
def test_every_idx_file_comes_back(place, values, packed):
    content = {
        "train-images-idx3-ubyte": _idx((5, 4, 3), values.tobytes()),
        "train-labels-idx1-ubyte": _idx((5,), bytes(range(5))),
        "t10k-images-idx3-ubyte": _idx((5, 4, 3), values.tobytes()),
        "t10k-labels-idx1-ubyte": _idx((5,), bytes(range(5))),
    }
    for name, one in content.items():
        (place / name).write_bytes(gzip.compress(one) if packed else one)
    train_set, test_set = pc.load_idx_folder(place)
    for dataset in (train_set, test_set):
        np.testing.assert_array_equal(dataset.images.reshape(values.shape), values)


# ---- what was written comes back


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
    st.builds(pc.AvgPool2D, _few_or_two, stride=_few_or_two, count_include_pad=st.booleans()),
    st.builds(pc.ZeroPad2D, st.one_of(_few_or_two, st.tuples(*2 * [st.tuples(*2 * [st.integers(0, 2)])]))),
    st.builds(pc.Upsample2D, _few_or_two),
    st.builds(pc.Dropout, st.floats(0, 1, exclude_max=True)),
    st.builds(pc.SpatialDropout, st.floats(0, 1, exclude_max=True)),
    st.builds(pc.Activation, _activations),
)
_dense_layers = st.builds(pc.Dense, st.integers(1, 9), activation=_activations, bias=st.booleans())


@few
@given(
    images=st.lists(_image_layers, max_size=3),
    dense=st.lists(_dense_layers, max_size=2),
    shape=st.tuples(*3 * [st.integers(1, 9)]),
    seed=st.integers(0, 2**64),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_every_network_comes_back(place, images, dense, shape, seed, dtype):
    try:
        network = pc.NetworkHandler((*images, pc.Flatten(), *dense), shape, seed, dtype)
    except ShapeError:
        assume(False)
    pc.save_model(place / "network.npz", network)
    again = pc.load_model(place / "network.npz")
    assert again.layers == network.layers
    assert (again.input_shape, again.dtype) == (network.input_shape, network.dtype)
    assert again.parameters_sha256() == network.parameters_sha256()


_finite = st.floats(allow_nan=False, allow_infinity=False)
_counts = st.integers(0, 2**40)
_results = st.builds(pc.Evaluation, _finite, st.one_of(st.none(), st.floats(0, 1)), _counts)


@few
@given(
    facts=st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=9)), max_size=4),
    vector=npst.arrays(
        st.sampled_from([np.float32, np.float64]), st.integers(0, 9), elements=st.floats(-10, 10, width=32)
    ),
    losses=st.lists(_finite, max_size=5),
    evaluations=st.lists(st.tuples(_counts, _counts, _results), max_size=3),
    counts=st.tuples(_counts, st.floats(0, 1e9), _counts),
)
def test_every_checkpoint_comes_back(place, facts, vector, losses, evaluations, counts):
    samples_seen, seconds, lost_ranks = counts
    history = pc.History(losses, evaluations, samples_seen, seconds, lost_ranks=lost_ranks)
    save_checkpoint(place / "step-1.npz", pc.Checkpoint(facts, {"params": vector, "velocity": -vector}, history))
    again = pc.load_checkpoint(place / "step-1.npz")
    assert again.facts == facts
    assert again.history == history
    for name, expected in (("params", vector), ("velocity", -vector)):
        assert again.state[name].dtype == expected.dtype
        np.testing.assert_array_equal(again.state[name], expected)
