"""Parameters of one network for another: what fits is taken, the first layers may be frozen."""

import json

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.cli import main
from parallelcnn.files.safetensors import write_safetensors

OTHER = (*small.LAYERS[:-1], pc.Dense(3))


def test_what_fits_is_taken_and_the_rest_is_listed():
    old, new = small.network(seed=1), pc.NetworkHandler(OTHER, (1, 11, 9), seed=2)
    before = new.params.copy()
    matching = new.load_parameters(old.named_arrays, strict=False)
    assert matching.taken == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert matching.other_shape == {"4.weight": ((3, 48), (5, 48)), "4.bias": ((3,), (5,))}
    assert matching.missing == matching.unused == ()
    assert not matching.fits
    assert (
        str(matching) == "4 of 6 arrays fit; 4.weight (3, 48) has shape (5, 48) there, 4.bias (3,) has shape (5,) there"
    )
    for name, array in new.named_arrays.items():
        assert np.array_equal(array, old.named_arrays[name]) == (name in matching.taken)
    assert np.array_equal(new.params[-147:], before[-147:])


def test_layers_without_parameters_at_the_front_make_no_difference():
    old = small.network(seed=1)
    front = (pc.Dropout(0.1), pc.ZeroPad2D(0), *small.LAYERS)
    new = pc.NetworkHandler(front, (1, 11, 9), seed=2)
    for source, target, end in (
        (old, new, "layer 2 here is layer 0 there"),
        (new, old, "layer 0 here is layer 2 there"),
    ):
        with pytest.raises(pc.ShapeError, match="the network: 0 of 6 arrays fit; "):
            target.load_parameters(source.named_arrays)
        target.params = target.params + 1
        matching = target.load_parameters(
            {**source.named_arrays, "x.y": np.zeros(3), "9" * 9999 + ".a": [1]}, strict=False
        )
        assert len(matching.taken) == 6
        assert str(matching).endswith(end)
        np.testing.assert_array_equal(target.params, source.params)
    headless = {name: one for name, one in old.named_arrays.items() if not name.startswith("0.")}
    assert pc.NetworkHandler(small.LAYERS, (1, 11, 9)).load_parameters(headless, strict=False).shift == 0


def test_strict_takes_all_or_nothing():
    network = small.network()
    state = network.state_sha256()
    arrays = {name: array + 1 for name, array in network.named_arrays.items()}
    for given, message in (
        ({**arrays, "9.weight": np.zeros(3)}, "fit the network: 6 of 6 arrays fit; only there: 9.weight"),
        (
            {name: one for name, one in arrays.items() if "bias" not in name},
            "3 of 6 arrays fit; missing there: 0.bias, ",
        ),
        ({**arrays, "0.bias": np.zeros(4)}, r"5 of 6 arrays fit; 0.bias \(3,\) has shape \(4,\) there"),
    ):
        with pytest.raises(pc.ShapeError, match=message):
            network.load_parameters(given)
    for given in (np.array([0, 1, np.nan]), ["a", "b", "c"], np.array([1e300] * 3)):
        for strict in (True, False):
            with pytest.raises(pc.InputError, match=r"array '4\.bias' must|array '0\.bias'"):
                network.load_parameters({**arrays, "0.bias": given}, strict=strict)
    assert network.state_sha256() == state
    assert network.load_parameters({name: one.tolist() for name, one in arrays.items()}).fits
    np.testing.assert_array_equal(network.parameters["0.bias"], arrays["0.bias"])


def test_a_path_in_place_of_arrays_is_refused():
    with pytest.raises(
        pc.InputError, match=r"arrays must be of type Mapping, such as read_parameters\(path\), got 'a'"
    ):
        small.network().load_parameters("a")


def test_frozen_and_nested_layers_keep_their_names():
    block = (pc.Conv2D(4, 3, padding="same", bias=False), pc.BatchNorm(activation="relu"))
    layers = (pc.Residual(block, shortcut=pc.Conv2D(4, 1)), pc.Flatten(), pc.Dense(5))
    old = pc.NetworkHandler(layers, (1, 5, 4), seed=1)
    old.buffers += 1
    new = pc.NetworkHandler((*pc.freeze(layers[:-1], 1), pc.Dense(2)), (1, 5, 4), seed=2)
    assert len(new.load_parameters(old.named_arrays, strict=False).taken) == 7
    np.testing.assert_array_equal(new.named_arrays["0.1.running_mean"], old.named_arrays["0.1.running_mean"])
    assert new.trained_params.size == 2 * 80 + 2
    back = pc.NetworkHandler(layers, (1, 5, 4), seed=3)
    assert back.load_parameters(
        {**new.named_arrays, **{f"2.{one}": old.parameters[f"2.{one}"] for one in ("weight", "bias")}}
    ).fits
    np.testing.assert_array_equal(back.params, old.params)


def test_freeze_wraps_the_first_layers():
    assert pc.freeze(small.LAYERS, 0) == small.LAYERS
    assert pc.freeze(pc.freeze(small.LAYERS, 1), 2) == (*map(pc.Frozen, small.LAYERS[:2]), *small.LAYERS[2:])
    for first in (-1, 1.5, True, "1"):
        with pytest.raises(pc.InputError, match="first must be an integer of at least 0"):
            pc.freeze(small.LAYERS, first)
    with pytest.raises(pc.InputError, match="at most all 5 layers of the network can be frozen, got 6"):
        pc.freeze(small.LAYERS, 6)


def test_parameters_are_read_from_every_kind_of_file(tmp_path):
    network = small.network(seed=4)
    pc.save_model(tmp_path / "model.npz", network)
    pc.save_safetensors(tmp_path / "model.safetensors", network)
    folder = pc.CheckpointFolder(tmp_path / "checkpoints")
    trained = small.network(seed=4)
    pc.train(
        trained, small.dataset(50), small.dataset(9), pc.SGD(0), 1, 25, comm=pc.Serial(), checkpoints=folder, verbose=0
    )
    for path in (tmp_path, tmp_path / "model.npz", tmp_path / "model.safetensors", next(folder.path.iterdir())):
        again = small.network(seed=5)
        assert again.load_parameters(pc.read_parameters(path)).fits
        assert again.state_sha256() == network.state_sha256()
    for path, message in (
        (tmp_path / "x.txt", r"x\.txt must be a run directory, or a file named \.npz, \.safetensors, \.onnx, \.pt"),
        (tmp_path / "run-1", r"run-1 must be a run directory, .*, and there is no such file or folder$"),
        (tmp_path / "checkpoints", r"no model file .*model\.npz"),
        (tmp_path / "none.safetensors", "cannot be read: No such file"),
    ):
        with pytest.raises(pc.CheckpointError, match=message):
            pc.read_parameters(path)


def test_a_state_dict_is_found_in_what_training_scripts_write_and_nothing_else_is_run(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "x.pt"
    tensors = {"0.weight": torch.ones(2, 3, dtype=torch.bfloat16), "1.num_batches_tracked": torch.tensor(5)}
    for content in (
        tensors,
        {"state_dict": {f"model.{name}": one for name, one in tensors.items()}, "epoch": 5},
        {f"_orig_mod.{name}": torch.nn.Parameter(one) for name, one in tensors.items() if one.is_floating_point()},
    ):
        torch.save(content, path)
        found = pc.read_parameters(path)
        assert list(found) == ["0.weight"]
        np.testing.assert_array_equal(found["0.weight"], np.ones((2, 3), np.float32))
    for content in (torch.ones(3), [1], {"a": 3}, {3: torch.ones(1)}, {"a": torch.ones(2).to_sparse()}):
        torch.save(content, path)
        with pytest.raises(pc.CheckpointError, match=r"x\.pt must hold a state_dict, as torch\.save\(model\.state"):
            pc.read_parameters(path)

    class Evil:
        def __reduce__(self):
            return (tmp_path / "run").touch, ()

    torch.save({"a": Evil()}, path)
    evil = path.read_bytes()
    for content in (evil, b"", b"x" * 100, evil[: len(evil) // 2]):
        path.write_bytes(content)
        with pytest.raises(pc.CheckpointError, match=r"x\.pt must hold a state_dict"):
            pc.read_parameters(path)
    assert not (tmp_path / "run").exists()
    with pytest.raises(pc.CheckpointError, match="and there is no such file"):
        pc.read_parameters(tmp_path / "none.pt")


MODEL = """
import parallelcnn as pc

def network(classes):
    return (pc.Conv2D(3, 3, activation="relu"), pc.MaxPool2D(4), pc.Flatten(), pc.Dense({classes}))
"""


@pytest.fixture
def command(capsys):
    """Runs the command in this process; returns its exit code, and what it prints on stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        return main(list(map(str, words))), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run, and the command line of another one."""
    path = tmp_path_factory.mktemp("runs")
    (path / "net.py").write_text(MODEL.format(classes="classes"))
    (path / "wide.py").write_text(MODEL.format(classes="classes + 1"))
    line = ["train", "--data", folder, "--epochs", 1, "--batch-size", 115]
    assert main([*map(str, line), "--model", f"{path / 'wide.py'}:network", "--out", str(path / "a")]) == 0
    return path, [*line, "--model", f"{path / 'net.py'}:network", "--seed", 3]


def test_a_run_starts_from_another_and_changes_only_what_is_not_frozen(run, command, tmp_path):
    path, line = run
    code, out, err = command(*line, "--start-from", path / "a", "--freeze", 2, "--out", tmp_path / "b")
    assert code == 0, err
    said = [one for one in out.splitlines() if one.startswith("start from")]
    assert len(said) == 1
    assert said[0].startswith(f"start from {path / 'a'}: 2 of 4 arrays fit; 3.weight (")
    assert out.index("start from") < out.index("epoch 1/1")
    old, new = (pc.load_model(one / "model.npz") for one in (path / "a", tmp_path / "b"))
    np.testing.assert_array_equal(new.parameters["0.weight"], old.parameters["0.weight"])
    assert (
        repr(new.layers[:3]) == "(Frozen(Conv2D(3, 3, activation='relu')), Frozen(MaxPool2D(pool_size=4)), Flatten())"
    )
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert (summary["start_from"], summary["freeze"]) == (str(path / "a"), 2)
    assert f'start_from = "{path / "a"}"\n' in (tmp_path / "b" / "config.toml").read_text()


def sources(run, place, network):
    """The same network as a run directory, a model file and a safetensors file, elsewhere."""
    pc.save_model(place / "elsewhere.npz", network)
    pc.save_safetensors(place / "elsewhere.safetensors", network)
    return run, place / "elsewhere.npz", place / "elsewhere.safetensors", run / "checkpoints" / "step-000000002.npz"


def test_a_start_with_another_normalisation_is_warned_of(run, command, tmp_path):
    path, line = run
    for number, source in enumerate(sources(path / "a", tmp_path, pc.load_model(path / "a" / "model.npz"))):
        code, _, err = command(*line, "--start-from", source, "--normalize", "--out", tmp_path / f"b{number}")
        assert code == 0
        assert err.count("that network was trained without --normalize, and this one is with it: its first") == 1
        assert "warning" not in command(*line, "--start-from", source, "--out", tmp_path / f"c{number}")[2]
    line = [*line, "--start-from", tmp_path / "b0" / "checkpoints" / "step-000000002.npz", "--out", tmp_path / "d"]
    assert "warning" not in command(*line, "--normalize")[2]
    assert "that network was trained with --normalize, and this one is without it: its" in command(*line)[2]


def test_a_start_with_other_classes_or_another_scale_is_warned_of(run, command, tmp_path):
    line = list(run[1])
    code, _, err = command(*line, "--out", tmp_path / "a")
    assert code == 0, err
    network = pc.load_model(tmp_path / "a" / "model.npz")
    network.class_names, network.input_range = tuple("abcdefghij"), (0.0, 255.0)
    names = [f"digit {label}" for label in range(10)]
    train_set, _ = pc.load_data(line[2])
    np.savez(tmp_path / "d.npz", images=train_set.images, target=train_set.labels, target_names=names)
    line[2] = tmp_path / "d.npz"
    pc.save_model(tmp_path / "a" / "model.npz", network)
    for source in sources(tmp_path / "a", tmp_path, network)[:-1]:
        code, _, err = command(*line, "--start-from", source, "--out", tmp_path / "b")
        assert code == 0, err
        assert f"--start-from {source}: that network has learnt the classes a, b, c, d, e, f, g, h, ..., and" in err
        assert "and this one is for digit 0, digit 1, " in err
        assert f"--start-from {source}: the training images hold numbers from 0 to 1, but the network was" in err
        assert err.count("warning") == 2


def test_a_damaged_description_is_no_reason_to_refuse_parameters(run, command, tmp_path):
    path, line = run
    arrays = pc.read_parameters(path / "a")
    for layers, names in (("?", "[1]"), ("3", "3"), ("[[[", '["a", "a"]')):
        metadata = {"layers": layers, "class_names": names, "input_range": '"x"'}
        write_safetensors(tmp_path / "s.safetensors", arrays, metadata)
        code, _, err = command(*line, "--start-from", tmp_path / "s.safetensors", "--out", tmp_path / "b")
        assert code == 0, err


def test_resuming_takes_precedence_over_start_from(run, command, tmp_path):
    path, line = run
    where, start = tmp_path / "b", tmp_path / "start.safetensors"
    pc.save_safetensors(start, pc.load_model(path / "a" / "model.npz"))
    line = [*line, "--start-from", start, "--out", where, "--resume"]
    code, out, err = command(*line)
    assert "start from" in out, err
    start.unlink()
    code, out, err = command(*line, "--epochs", 2)
    assert code == 0, err
    assert "resumed after minibatch 2\n" in out
    assert "start from" not in out
    for file in (where / "checkpoints").iterdir():
        file.write_bytes(b"damaged")
    before = {file: file.read_bytes() for file in where.rglob("*") if file.is_file()}
    code, out, err = command(*line)
    assert code == 2
    assert f"--resume: none of the checkpoints in {where}/checkpoints can be read" in err
    assert {file: file.read_bytes() for file in where.rglob("*") if file.is_file()} == before


def test_wrong_settings_are_refused_before_anything_is_written(run, command, tmp_path):
    path, line = run
    for more, message in (
        (["--freeze", -1], "freeze must be an integer of at least 0, got -1"),
        (["--freeze", 5], "at most all 4 layers of the network can be frozen, got 5"),
        (["--freeze", 4], "freeze must leave a layer with parameters to train, got 4"),
        (["--start-from", tmp_path / "none"], "none must be a run directory, or a file named"),
        (["--start-from", path / "a", "--model", "resnet8"], "no array fits the network by name and shape: 0 of 47"),
    ):
        code, _, err = command(*line, *more, "--out", tmp_path / "b")
        assert code == 2
        assert message in err
    assert not (tmp_path / "b").exists()
