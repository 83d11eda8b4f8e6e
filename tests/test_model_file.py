"""Model files: what was saved comes back, and nothing else is taken for one."""

import contextlib
import copy
import io
import json
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, InputError


def test_a_model_comes_back_with_its_layers_and_every_bit(tmp_path):
    network = small.network(seed=5)
    pc.save_model(tmp_path / "model.npz", network)
    again = pc.load_model(tmp_path / "model.npz")
    assert again.layers == network.layers
    assert again.input_shape == network.input_shape
    assert again.parameters_sha256() == network.parameters_sha256()
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_a_model_of_other_numbers_comes_back_too(tmp_path):
    for network in (
        small.network(dtype=np.float64),
        pc.NetworkHandler((pc.Conv2D(np.int64(2), (np.int64(3), 3)), pc.Flatten(), pc.Dense(5)), (1, 11, 9)),
    ):
        pc.save_model(tmp_path / "model.npz", network)
        again = pc.load_model(tmp_path / "model.npz")
        assert again.dtype == network.dtype
        assert again.layers == network.layers
        assert again.parameters_sha256() == network.parameters_sha256()


def test_no_bit_of_a_model_file_may_flip_unseen_or_crash_the_reader(tmp_path):
    path, network = tmp_path / "model.npz", small.network()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(_GOOD), 400):
        path.write_bytes(_GOOD[:place] + bytes([_GOOD[place] ^ 1 << rng.integers(8)]) + _GOOD[place + 1 :])
        with contextlib.suppress(CheckpointError):
            # What is read all the same lost a bit of zip's own that says nothing, such as a date.
            assert pc.load_model(path).parameters_sha256() == network.parameters_sha256()


def test_a_model_file_of_version_1_is_read(tmp_path):
    (tmp_path / "model.npz").write_bytes(_OLD)
    network = pc.load_model(tmp_path / "model.npz")
    assert network.layers == small.network().layers
    assert network.parameters_sha256() == small.network().parameters_sha256()
    assert (network.prediction, network.input_range) == ("softmax", None)


def test_a_model_of_thousands_of_layers_comes_back(tmp_path):
    network = pc.NetworkHandler([pc.Activation("relu")] * 3000 + [pc.Dense(1)], (2,))
    pc.save_model(tmp_path / "model.npz", network)
    assert len(pc.load_model(tmp_path / "model.npz").layers) == 3001


def test_what_load_model_would_reject_is_not_written(tmp_path, monkeypatch):
    path, network = tmp_path / "model.npz", small.network(seed=1)
    pc.save_model(path, network)
    before = path.read_bytes()
    network.params[3] = np.nan
    with pytest.raises(
        InputError, match=r"a model's numbers must be finite, and array '0\.weight' of this network holds"
    ):
        pc.save_model(path, network)
    network.params[3] = 0
    monkeypatch.setattr("parallelcnn.files.archive._MOST_DESCRIPTION", 100)
    with pytest.raises(CheckpointError, match=r"model\.npz is not written: it does not read back"):
        pc.save_model(path, network)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def test_numpy_alone_can_read_a_model(tmp_path):
    network = small.network()
    pc.save_model(tmp_path / "model.npz", network)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as arrays:
        assert json.loads(str(arrays["description"]))["input_shape"] == [1, 11, 9]
        assert arrays["0.weight"].shape == (3, 1, 3, 3)
        assert sum(arrays[name].size for name in arrays.files if name != "description") == network.params.size


def test_layers_of_the_users_own_are_asked_for_and_taken(tmp_path):
    bent = pc.ActivationFunction("bent", lambda x: x + abs(x) / 2, lambda x: 1.5 if x > 0 else 0.5)
    layers = (pc.Flatten(), pc.Dense(5, activation=bent))
    network = pc.NetworkHandler(layers, (1, 11, 9), seed=2)
    pc.save_model(tmp_path / "model.npz", network)
    with pytest.raises(CheckpointError, match=r"holds Dense\(5, activation=<bent>\), which is not .* --model FILE"):
        pc.load_model(tmp_path / "model.npz")
    assert pc.load_model(tmp_path / "model.npz", layers).parameters_sha256() == network.parameters_sha256()


def bent(slope):
    return pc.ActivationFunction("bent", lambda x: slope * x)


@pytest.mark.parametrize(
    ("saved", "given"),
    [
        (small.Scaled(5, 1.0), small.Scaled(5, 2.0)),
        (small.Scaled(5, np.arange(5000)), small.Scaled(5, np.arange(5000) ^ (np.arange(5000) == 2500))),
        (pc.Dense(5, activation=bent(0.5)), pc.Dense(5, activation=bent(0.7))),
    ],
)
def test_a_layer_of_the_users_with_other_values_is_refused_although_it_prints_alike(saved, given, tmp_path):
    path = tmp_path / "model.npz"
    assert repr(saved) == repr(given)
    pc.save_model(path, pc.NetworkHandler((pc.Flatten(), saved), (1, 11, 9)))
    pc.load_model(path, (pc.Flatten(), copy.deepcopy(saved)))
    with pytest.raises(CheckpointError, match=r"does not fit the network: it holds a (Scaled|Dense)\(5.* other values"):
        pc.load_model(path, (pc.Flatten(), given))
    # Files of older versions keep no fingerprints.
    with np.load(io.BytesIO(_version_1(path.read_bytes())), allow_pickle=False) as arrays:
        kept = dict(arrays)
    description = json.loads(str(kept["description"]))
    assert description["layers"][1].pop("fingerprint")
    path.write_bytes(_npz(**{**kept, "description": np.array(json.dumps(description))}))
    pc.load_model(path, (pc.Flatten(), given))


def test_a_layer_of_the_users_that_is_called_like_one_of_ours_is_not_taken_for_it(tmp_path):
    network = pc.NetworkHandler((pc.Flatten(), type("Dense", (pc.Dense,), {})(5)), (1, 11, 9))
    pc.save_model(tmp_path / "model.npz", network)
    with pytest.raises(CheckpointError, match=r"holds Dense\(5\), which is not this library's own"):
        pc.load_model(tmp_path / "model.npz")
    pc.load_model(tmp_path / "model.npz", network.layers)


@pytest.mark.parametrize(
    "layers", [(pc.Flatten(), pc.Dense(5)), (pc.Flatten(), pc.Dense(3), pc.Conv2D(2, 50))], ids=["fit", "do not chain"]
)
def test_a_model_that_does_not_fit_the_layers_is_refused(layers, tmp_path):
    pc.save_model(tmp_path / "model.npz", small.network())
    with pytest.raises(
        CheckpointError, match=r"does not fit the network: its layer 1 is Conv2D.*, not Flatten\(\) \(5 layers, not "
    ):
        pc.load_model(tmp_path / "model.npz", layers)


def _npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _changed(**changes):
    """A good model file in which some arrays are others, or (None) are missing."""
    with np.load(io.BytesIO(_OLD), allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    kept.update({name.replace("_", "."): value for name, value in changes.items()})
    return _npz(**{name: value for name, value in kept.items() if value is not None})


def _described(**changes):
    with np.load(io.BytesIO(_OLD), allow_pickle=False) as arrays:
        description = json.loads(str(arrays["description"]))
    return _changed(description=np.array(json.dumps({**description, **changes})))


def _nested(depth, inner='{"layer": "Activation", "arguments": {"activation": "relu"}}'):
    """A model file that says it holds residuals inside each other."""
    before, after = '{"layer": "Residual", "arguments": {"layers": [', "]}}"
    text = json.dumps([{"layer": "Residual", "arguments": {"layers": ["?"]}, "written": "?"}])
    with np.load(io.BytesIO(_described(layers=0))) as arrays:
        description = str(arrays["description"]).replace('"layers": 0', f'"layers": {text}')
    return _changed(description=np.array(description.replace('"?"', before * depth + inner + after * depth, 1)))


def _with_member(name, content, method=zipfile.ZIP_STORED):
    """A model file with a member that is another, and right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_OLD)) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.namelist():
            if member == name:
                target.writestr(member, content, method)
            else:
                target.writestr(member, source.read(member))
    return out.getvalue()


def _npy(header, numbers):
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + numbers


def _header(text):
    """A model file whose first weight has this header, and one number."""
    return _with_member("0.weight.npy", _npy(text.encode() + b"\n", bytes(4)))


def _bomb():
    """A model file whose first weight unpacks to a quarter of a gigabyte."""
    return _with_member("0.weight.npy", bytes(2**28), zipfile.ZIP_DEFLATED)


def _good():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        pc.save_model(path, small.network())
        return path.read_bytes()


def _version_1(content):
    """The model file as version 1 had it: without a checksum, which would find any change first."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    description = json.loads(str(kept["description"]))
    for name in ("sha256", "arrays", "prediction", "input_range", "parameters", "buffers"):
        del description[name]
    return _npz(**{**kept, "description": np.array(json.dumps({**description, "version": 1}))})


_GOOD = _good()
_OLD = _version_1(_GOOD)

# What numpy's reader of headers raises for them: TokenError, TypeError twice, IndexError, SyntaxError, UserWarning,
# DeprecationWarning.
_ODD_HEADERS = [
    "(((",
    "{[]: 1}",
    "{1: 2, 'a': 3}",
    "{'descr': (), 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '(1,,2)f4,i4', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }",
    "{'descr': 'a4', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }",
]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no model file, or a damaged one"),
        (b"not a zip file at all", "no model file, or a damaged one"),
        (_GOOD[: len(_GOOD) // 2], "no model file, or a damaged one"),
        (_GOOD[:200] + bytes([_GOOD[200] ^ 1]) + _GOOD[201:], "damaged one: Bad CRC-32"),
        (_npz(x=np.zeros(3)), "is no model file: it holds no description"),
        (_changed(description=np.array(["a", "b"])), "is no model file"),
        (_changed(description=np.array("{}")), "is no model file: its description says that it is something else"),
        (_changed(description=np.zeros(10**6)), "is no model file"),
        (_described(version=3), "has version 3 of the format; this program reads versions 1 to 2"),
        (_described(version=2), "does not hold what its description says .'arrays'"),
        (_described(version="1"), "has version '1' of the format"),
        (_described(prediction=5), "prediction must be one of softmax, sigmoid, output, got 5"),
        (_described(prediction='"""\nimport os'), "prediction must be one of softmax, sigmoid, output, got"),
        (_described(input_range=5), "makes no network"),
        (_described(input_range=[1, 0]), "input_range must be two numbers"),
        (_described(layers=[]), "its description makes no network"),
        (_described(layers=[{"layer": "Layer", "arguments": {}, "written": "Layer()"}]), "not this library's own"),
        (_described(layers=[{"layer": "np", "arguments": {}, "written": "np()"}]), "not this library's own"),
        (_described(layers=[{"layer": "Dense", "arguments": {"size": 3}, "written": "?"}]), "makes no network"),
        (_described(layers=[{"layer": "Dense", "arguments": {"units": 10**15}, "written": "?"}]), "makes no network"),
        (_described(layers="many"), "makes no network"),
        (_nested(1), "does not fit the network: its layer 1 is .*, not Residual"),
        (_nested(1, inner='"relu"'), "makes no network .Residual takes a tuple of at least one layer"),
        (_nested(1, inner='{"layer": "Mine", "arguments": {}}'), "not this library's own"),
        (_nested(1, inner="[]"), "makes no network"),
        (_nested(1, inner="{}"), "makes no network"),
        (_nested(400), "damaged|does not fit"),
        (_nested(10_000), "damaged"),
        (
            _described(input_shape=[40], layers=[{"layer": "Dense", "arguments": {"units": 10**6}, "written": "?"}]),
            "does not fit the network|holds no array",
        ),
        (_changed(description=np.array("[" * 100_000)), "damaged"),
        (_described(dtype="float128"), "makes no network"),
        (_described(dtype="(1,,2)f4,i4"), "makes no network .dtype must be float32 or float64, got"),
        (_described(dtype="a4"), "makes no network .dtype must be float32 or float64, got"),
        (_described(dtype=None), "makes no network .dtype must be float32 or float64, got"),
        (_described(dtype=["float32"]), "makes no network .dtype must be float32 or float64, got"),
        (_described(input_shape=[1, 12, 9]), "does not fit the network|is damaged"),
        (_described(input_shape=None), "makes no network"),
        (_changed(**{"0_weight": None}), "holds no array '0.weight'"),
        (_changed(**{"0_weight": np.zeros((3, 1, 3, 3))}), "must be float32 of shape .* got float64"),
        (_changed(**{"0_weight": np.zeros((3, 1, 9), np.float32)}), r"of shape \(3, 1, 3, 3\), got float32"),
        (_changed(**{"0_weight": np.full((3, 1, 3, 3), np.nan, np.float32)}), "not finite"),
        (_changed(**{"0_weight": np.zeros(10**6, np.float32)}), r"got float32 of shape \(1000000,\)"),
        (_header("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }"), "not what follows"),
        (_bomb(), "larger than the"),
        *((_header(text), "no header of an array of numbers") for text in _ODD_HEADERS),
    ],
)
def test_what_is_no_model_file_is_refused_in_a_sentence(content, message, tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        pc.load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_of_letters_that_do_not_exist_is_refused(tmp_path):
    # numpy makes a string of them, and whoever touches a letter of that gets a SystemError, or worse.
    text = '{"format": "parallelcnn model", "version": "?"}'
    header = f"{{'descr': '<U{len(text)}', 'fortran_order': False, 'shape': (), }}\n".encode()
    letters = text.encode("utf-32-le").replace("?".encode("utf-32-le"), b"\xff" * 4)
    path = tmp_path / "model.npz"
    path.write_bytes(_with_member("description.npy", _npy(header, letters)))
    with pytest.raises(CheckpointError, match="it holds no description"):
        pc.load_model(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_few_bytes_do_not_unpack_to_more_than_the_array_that_they_are_read_for(method, tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(_with_member("0.weight.npy", _npy(b"{}", bytes(2**24)), method))
    # The directory says that it is small.
    size, lie = (2**24 + 12).to_bytes(4, "little"), (200).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, lie))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="compressed by another method than numpy's"):
            pc.load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_network_that_a_file_only_claims_to_hold_is_not_made(tmp_path, rng):
    # No more than so many bytes could be compressed to, so its size alone does not give it away.
    layers = [{"layer": "Dense", "arguments": {"units": 10**6}, "written": "Dense(1000000)"}]
    claim = {"format": "parallelcnn model", "version": 1, "input_shape": [9], "dtype": "float32", "layers": layers}
    path = tmp_path / "model.npz"
    path.write_bytes(_npz(description=np.array(json.dumps(claim)), **{"0.weight": rng.random(20_000)}))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"array '0\.weight' must be float32 of shape"):
            pc.load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_damage_that_only_a_strange_method_of_compression_notices_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    content = _with_member("0.weight.npy", bytes(200), zipfile.ZIP_LZMA)
    place = content.index(b"0.weight.npy") + 12
    path.write_bytes(content[: place + 9] + b"\xff" * 4 + content[place + 13 :])
    with pytest.raises(CheckpointError, match="compressed by another method than numpy's"):
        pc.load_model(path)


@pytest.mark.parametrize(
    "written", ["\x1b[2J\n", "x" * 10_000], ids=["letters that a terminal obeys", "more than a screen holds"]
)
def test_what_a_file_says_cannot_take_the_message_over(written, tmp_path):
    path = tmp_path / "model.npz"
    for layers, message in (
        ([{"layer": "Mine", "arguments": {}, "written": written}], "which is not this library's own: say where it is"),
        ([{"layer": "Dense", "arguments": {"units": 2}, "written": written}], r"not Flatten\(\) \(1 layer, not 2\)$"),
        ([{"layer": "Dense", "arguments": {"units": written}, "written": ""}], "makes no network"),
    ):
        path.write_bytes(_described(layers=layers))
        with pytest.raises(CheckpointError, match=message) as caught:
            pc.load_model(path, None if "own" in message or "makes" in message else (pc.Flatten(), pc.Dense(5)))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 3000


def test_a_pickle_in_a_model_file_is_not_run(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, description=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError):
        pc.load_model(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model file"):
        pc.load_model(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match="must be a model file, not a folder or a device"):
        pc.load_model(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        pc.load_model(tmp_path / ("n" * 300))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    pc.save_model(path, small.network(seed=1))
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        pc.save_model(path, small.network(seed=2))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]
